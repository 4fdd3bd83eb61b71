"""From rollouts to numbers that hold: scores with intervals over instances and seeds, a row per policy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from drrl_agents.statistics import Draws, Group, Scale, draw, summarise
from drrl_env.envs.store import Doubles
from drrl_policies.field import Field
from drrl_policies.rollout import Reference, Rollout

RESAMPLES = 4_000


@dataclass(frozen=True)
class Row:
    """What a comparison says of one policy, on all episodes and seeds.

    Attributes:
        policy: its name.
        kind: `agent`, `rule`, `offline basis` or `oracle`.
        seeds: how many seeds.
        normalised_score: random 0, oracle 1; a ratio of means.
        low: lower end of its 95 % interval, stratified bootstrap over instances and seeds.
        high: upper end.
        interquartile_mean: mean of the middle half of the scores of all seeds and instances.
        interquartile_mean_low: lower end of its interval.
        interquartile_mean_high: upper end.
        optimality_gap: mean amount by which those scores miss 1.
        optimality_gap_low: lower end of its interval.
        optimality_gap_high: upper end.
        mean_return: mean return of an episode.
        regret: mean return lost to the oracle, per step.
        cosine: mean cosine of the outputs.
        relative_error: mean relative error of the outputs.
        fidelity: 1 − ‖ΔO‖²/‖O‖², mean over steps.
        score_change: mean relative ‖ΔS‖ between successive ranks.
        flops_ratio: attention's FLOPs over full attention's.
        total_flops_ratio: the same with observing and deciding counted.
        cache_ratio: KV-cache bytes read over full attention's.
        mean_rank: mean executed rank.
        latency_ratio: milliseconds over full attention's where the reward charges those; None where it charges FLOPs.
    """

    policy: str
    kind: str
    seeds: int
    normalised_score: float
    low: float
    high: float
    interquartile_mean: float
    interquartile_mean_low: float
    interquartile_mean_high: float
    optimality_gap: float
    optimality_gap_low: float
    optimality_gap_high: float
    mean_return: float
    regret: float
    cosine: float
    relative_error: float
    fidelity: float
    score_change: float
    flops_ratio: float
    total_flops_ratio: float
    cache_ratio: float
    mean_rank: float
    latency_ratio: float | None = None

    def values(self) -> dict[str, float | str | int]:
        """Column name to value, of the columns that there are."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Means:
    """What the steps of a policy report on average, over all seeds and episodes; names as in `Row`."""

    cosine: float
    relative_error: float
    fidelity: float
    score_change: float
    flops_ratio: float
    total_flops_ratio: float
    cache_ratio: float
    mean_rank: float
    latency_ratio: float | None


def means(rollouts: Sequence[Rollout], field: Field) -> Means:
    """Averages of what was reported."""

    def mean(name: str) -> float:
        return float(np.mean([found.columns[name].mean() for found in rollouts]))

    return Means(
        mean("cosine"),
        mean("relative_error"),
        float(np.mean([(1 - found.columns["relative_error"] ** 2).mean() for found in rollouts])),
        mean("score_change"),
        mean("flops_ratio"),
        float(np.mean([found.total_ratio(field.mean_full).mean() for found in rollouts])),
        float(np.mean([found.cache_ratio.mean() for found in rollouts])),
        float(np.mean([found.executed_ranks.mean() for found in rollouts])),
        mean("latency_ratio") if "latency_ratio" in rollouts[0].columns else None,
    )


@dataclass(frozen=True)
class Judge:
    """Scores policies on the episodes of one field.

    Attributes:
        field: the episodes.
        reference: random and oracle on them.
        scale: the same per instance.
        draws: resamples of the instances, stratified by the kind of text.
    """

    field: Field
    reference: Reference
    scale: Scale
    draws: Draws

    def group(self, name: str, rollouts: Sequence[Rollout]) -> Group:
        """A policy's returns, (seeds, instances)."""
        return Group(name, np.stack([per_instance(found.returns, self.field) for found in rollouts]))

    def row(self, name: str, kind: str, rollouts: Sequence[Rollout]) -> Row:
        """A policy's row."""
        found = summarise(self.group(name, rollouts), self.scale, self.draws)
        score, middle, gap = found.score, found.interquartile_mean, found.optimality_gap
        returns = np.concatenate([each.returns for each in rollouts])
        best = np.tile(self.reference.oracle, len(rollouts))
        return Row(
            name,
            kind,
            len(rollouts),
            score.value,
            score.low,
            score.high,
            middle.value,
            middle.low,
            middle.high,
            gap.value,
            gap.low,
            gap.high,
            float(returns.mean()),
            float((best - returns).mean()) / self.field.steps,
            **asdict(means(rollouts, self.field)),
        )


def judge(field: Field, reference: Reference, resamples: int = RESAMPLES) -> Judge:
    """Makes what scores policies on these episodes.

    Raises:
        ValueError: over all instances the oracle is not above random.
    """
    names = tuple(dict.fromkeys(field.instances))
    scale = Scale(per_instance(reference.random, field), per_instance(reference.oracle, field), names)
    return Judge(field, reference, scale, draw(strata(field), resamples=resamples))


def strata(field: Field) -> NDArray[np.str_]:
    """Kind of text of every instance, (instances,)."""
    kinds = {episode.instance.uri: episode.instance.kind for episode in field.episodes}
    return np.array(list(kinds.values()))


def per_instance(values: Doubles, field: Field) -> Doubles:
    """Mean over the layers and drawn parameters of each instance: instances, not episodes, are independent."""
    names = np.array(field.instances)
    found: Doubles = np.array([values[names == name].mean() for name in dict.fromkeys(field.instances)])
    return found
