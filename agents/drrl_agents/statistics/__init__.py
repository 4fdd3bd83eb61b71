"""Statistics of a comparison: aggregates of scores, paired bootstrap intervals, Pareto fronts. Pure and seeded."""

from drrl_agents.statistics.aggregates import (
    interquartile_mean,
    mean_return,
    normalised,
    optimality_gap,
    probability_of_improvement,
    ratio_of_means,
)
from drrl_agents.statistics.bootstrap import Draws, Interval, draw, percentile_interval
from drrl_agents.statistics.groups import Contrast, Group, Scale, Summary, contrast, summarise
from drrl_agents.statistics.pareto import Front, contributions, hypervolume, nondominated, pareto_front

__all__ = [
    "Contrast",
    "Draws",
    "Front",
    "Group",
    "Interval",
    "Scale",
    "Summary",
    "contrast",
    "contributions",
    "draw",
    "hypervolume",
    "interquartile_mean",
    "mean_return",
    "nondominated",
    "normalised",
    "optimality_gap",
    "pareto_front",
    "percentile_interval",
    "probability_of_improvement",
    "ratio_of_means",
    "summarise",
]
