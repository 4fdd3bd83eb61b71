"""Policies as groups of runs on the same instances: what each scores, and how two differ, with intervals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from drrl_agents.statistics.aggregates import (
    interquartile_mean,
    mean_return,
    normalised,
    optimality_gap,
    ratio_of_means,
    wins,
)
from drrl_agents.statistics.bootstrap import CONFIDENCE, Draws, Interval, percentile_interval
from drrl_env.envs.mechanism import Doubles


@dataclass(frozen=True)
class Group:
    """A policy: an algorithm over its seeds, or a rule, which has one.

    Attributes:
        name: its name; its seeds are drawn by it.
        returns: (seeds, instances), averaged over the layers and the drawn parameters of an instance: instances, not
            episodes, are independent.

    Raises:
        ValueError: the returns are no such table, or not finite.
    """

    name: str
    returns: Doubles

    def __post_init__(self) -> None:
        _check_table(f"returns of {self.name!r}", self.returns, 2)

    @property
    def varies(self) -> str:
        """What its intervals account for: `instances and seeds`, or `instances` where there is one seed."""
        return "instances and seeds" if len(self.returns) > 1 else "instances"


@dataclass(frozen=True)
class Scale:
    """What scores are measured against, on every instance.

    Attributes:
        random: expected return of random choices, (instances,).
        oracle: return of the oracle, (instances,).
        names: names of the instances; empty for their numbers.

    Raises:
        ValueError: the lengths differ, a value is not finite, or over all instances the oracle does not exceed random.
    """

    random: Doubles
    oracle: Doubles
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_table("random", self.random, 1)
        _check_table("oracle", self.oracle, 1)
        if len(self.random) != len(self.oracle) or (self.names and len(self.names) != len(self.random)):
            raise ValueError(
                f"random, oracle and names are of {len(self.random)}, {len(self.oracle)} and {len(self.names)} "
                "instances; give one of each per instance"
            )
        low, high = float(self.random.mean()), float(self.oracle.mean())
        if high <= low:
            raise ValueError(f"oracle={high} is not above random={low}; there is nothing to choose here")


@dataclass(frozen=True)
class Summary:
    """What a policy reaches.

    Attributes:
        policy: its name.
        seeds: how many.
        instances: how many.
        varies: what the intervals account for, `instances` or `instances and seeds`.
        mean_return: mean return of an episode.
        score: ratio of means, random 0 and oracle 1: the headline.
        interquartile_mean: mean of the middle half of the scores of all seeds and instances.
        optimality_gap: mean amount by which those miss 1.
    """

    policy: str
    seeds: int
    instances: int
    varies: str
    mean_return: Interval
    score: Interval
    interquartile_mean: Interval
    optimality_gap: Interval


@dataclass(frozen=True)
class Contrast:
    """How two policies differ on the same instances, paired.

    Attributes:
        first: name of the one.
        second: name of the other.
        varies: what the intervals account for, `instances` or `instances and seeds`.
        mean_return: mean return of the first less that of the second.
        score: the same of scores, ratios of means.
        probability_of_improvement: that a run of the first beats one of the second; above ½ where it is better.
    """

    first: str
    second: str
    varies: str
    mean_return: Interval
    score: Interval
    probability_of_improvement: Interval


def summarise(group: Group, scale: Scale, draws: Draws, gamma: float = 1.0, confidence: float = CONFIDENCE) -> Summary:
    """What a policy reaches, with intervals from these draws.

    Args:
        group: the policy.
        scale: random and oracle on its instances.
        draws: resamples of those instances, the same for every policy of a comparison.
        gamma: the score below which the optimality gap counts.
        confidence: of the intervals.

    Raises:
        ValueError: the three are not of the same instances, or one of these has no score of its own.
    """
    _check_same(scale, draws, group)
    scores = normalised(group.returns, scale.random, scale.oracle, scale.names)
    ends = _Ends(len(scale.random), confidence)
    returns_drawn, scores_drawn = draws.apply(group.returns, group.name), draws.apply(scores, group.name)
    random, oracle = scale.random[draws.instances], scale.oracle[draws.instances]
    return Summary(
        policy=group.name,
        seeds=len(scores),
        instances=len(scale.random),
        varies=group.varies,
        mean_return=ends.of(mean_return, group.returns, returns_drawn),
        score=ends.interval(
            ratio_of_means(group.returns, scale.random, scale.oracle), ratio_of_means(returns_drawn, random, oracle)
        ),
        interquartile_mean=ends.of(interquartile_mean, scores, scores_drawn),
        optimality_gap=ends.of(lambda values: optimality_gap(values, gamma), scores, scores_drawn),
    )


def contrast(first: Group, second: Group, scale: Scale, draws: Draws, confidence: float = CONFIDENCE) -> Contrast:
    """How two policies differ, with intervals from these draws: both are played on the same resampled instances.

    Raises:
        ValueError: the groups, the scale and the draws are not of the same instances.
    """
    _check_same(scale, draws, first, second)
    ends = _Ends(len(scale.random), confidence)
    gap = mean_return(first.returns) - mean_return(second.returns)
    gaps = mean_return(draws.apply(first.returns, first.name)) - mean_return(draws.apply(second.returns, second.name))
    spread = scale.oracle.mean() - scale.random.mean()
    spreads = (scale.oracle[draws.instances] - scale.random[draws.instances]).mean(-1)
    won = wins(first.returns, second.returns)
    return Contrast(
        first.name,
        second.name,
        varies="instances and seeds" if max(len(first.returns), len(second.returns)) > 1 else "instances",
        mean_return=ends.interval(gap, gaps),
        # random's mean cancels: a difference of two ratios with one denominator
        score=ends.interval(gap / spread, gaps / np.where(spreads > 0, spreads, np.nan)),
        probability_of_improvement=ends.interval(won.mean(), _resampled_wins(won, first, second, draws)),
    )


def _resampled_wins(won: Doubles, first: Group, second: Group, draws: Draws) -> Doubles:
    """Mean of wins, (first's seeds, second's seeds, instances), on each resample, as weights rather than copies.

    Copies would be resamples × seeds² × instances numbers, 50 million for five seeds and 500 instances.
    """
    of_instances = _weights(draws.instances, won.shape[2])
    of_first = _weights(draws.seeds(first.name, won.shape[0]), won.shape[0])
    of_second = _weights(draws.seeds(second.name, won.shape[1]), won.shape[1])
    by_pair = (of_instances @ won.reshape(-1, won.shape[2]).T).reshape(-1, *won.shape[:2])
    replicates: Doubles = np.einsum("rst,rs,rt->r", by_pair, of_first, of_second)
    return replicates


def _weights(drawn: np.ndarray[tuple[int, ...], np.dtype[np.int64]], count: int) -> Doubles:
    """Share of each of `count` things in each row of draws, (resamples, count)."""
    rows = np.arange(len(drawn))[:, None] * count
    counts = np.bincount((drawn + rows).ravel(), minlength=len(drawn) * count).reshape(-1, count)
    shares: Doubles = counts / drawn.shape[1]
    return shares


@dataclass(frozen=True)
class _Ends:
    """Makes intervals; without ends where one instance cannot tell how instances vary."""

    instances: int
    confidence: float

    def of(self, statistic: Callable[[Doubles], Doubles], values: Doubles, drawn: Doubles) -> Interval:
        return self.interval(statistic(values), statistic(drawn))

    def interval(self, value: Doubles, replicates: Doubles) -> Interval:
        known = replicates if self.instances > 1 else np.full_like(replicates, np.nan)
        return percentile_interval(value, known, self.confidence)


def _check_table(name: str, values: Doubles, axes: int) -> None:
    wanted = "(seeds, instances)" if axes == 2 else "(instances,)"
    if values.ndim != axes or values.size == 0:
        raise ValueError(f"{name}: of shape {values.shape}; give {wanted}, at least one of each")
    if not np.isfinite(values).all():
        raise ValueError(f"{name}: {int((~np.isfinite(values)).sum())} values are not finite; leave those runs out")


def _check_same(scale: Scale, draws: Draws, *groups: Group) -> None:
    count = len(scale.random)
    found = {f"policy {group.name!r}": group.returns.shape[1] for group in groups}
    for what, instances in (*found.items(), ("draws", draws.instances.shape[1])):
        if instances != count:
            raise ValueError(f"{what}: of {instances} instances, the scale of {count}; play all on the same instances")
