"""From rollouts to numbers that hold: normalised scores with intervals, paired differences, a row per policy."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from scipy import stats

from drrl_env.envs.game import Game
from drrl_env.envs.oracle import normalised_score
from drrl_env.envs.store import Doubles
from drrl_policies.rollout import Reference, Rollout

RESAMPLES = 4_000


@dataclass(frozen=True)
class Row:
    """What a comparison says of one policy, on all episodes.

    Attributes:
        policy: its name.
        normalised_score: random 0, oracle 1; a ratio of means.
        low: lower end of its 95 % interval, bootstrap over instances.
        high: upper end.
        mean_return: mean return of an episode.
        regret: mean return lost to the oracle, per step.
        cosine: mean cosine of the outputs.
        relative_error: mean relative error of the outputs.
        score_change: mean relative ‖ΔS‖ between successive ranks.
        flops_ratio: attention's FLOPs over full attention's.
        total_flops_ratio: the same with observing and deciding counted.
        cache_ratio: KV-cache bytes read over full attention's.
        mean_rank: mean executed rank.
        latency_ratio: milliseconds over full attention's where the reward charges those; None where it charges FLOPs.
    """

    policy: str
    normalised_score: float
    low: float
    high: float
    mean_return: float
    regret: float
    cosine: float
    relative_error: float
    score_change: float
    flops_ratio: float
    total_flops_ratio: float
    cache_ratio: float
    mean_rank: float
    latency_ratio: float | None = None

    def values(self) -> dict[str, float | str]:
        """Column name to value, of the columns that there are."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def row(found: Rollout, reference: Reference, game: Game) -> Row:
    """The row of one rollout."""
    low, high = score_interval(found, reference)
    ranks = np.array(game.world.ranks, float)
    latency = found.columns.get("latency_ratio")
    return Row(
        policy=found.policy,
        normalised_score=reference.score(found.returns),
        low=low,
        high=high,
        mean_return=float(found.returns.mean()),
        regret=reference.regret(found.returns, game.world.segments),
        cosine=float(found.columns["cosine"].mean()),
        relative_error=float(found.columns["relative_error"].mean()),
        score_change=float(found.columns["score_change"].mean()),
        flops_ratio=float(found.columns["flops_ratio"].mean()),
        total_flops_ratio=float(found.total_ratio(game.mean_full).mean()),
        cache_ratio=float(found.cache_ratio.mean()),
        mean_rank=float(ranks[found.executed].mean()),
        latency_ratio=None if latency is None else float(latency.mean()),
    )


def per_instance(values: Doubles, found: Rollout) -> Doubles:
    """Mean over the layers of each instance: instances, not episodes, are independent."""
    names = np.array([instance.uri for instance, _ in found.pairs])
    means: Doubles = np.array([values[names == name].mean() for name in dict.fromkeys(names)])
    return means


def score_interval(found: Rollout, reference: Reference, seed: int = 0) -> tuple[float, float]:
    """95 % percentile bootstrap over instances of the normalised score."""
    columns = [per_instance(values, found) for values in (found.returns, reference.random, reference.oracle)]
    if len(columns[0]) < 2:
        return float("nan"), float("nan")
    picks = np.random.default_rng(seed).integers(len(columns[0]), size=(RESAMPLES, len(columns[0])))
    means = [values[picks].mean(-1) for values in columns]
    scores = [normalised_score(*(float(mean[i]) for mean in means)) for i in range(RESAMPLES)]
    low, high = np.percentile(scores, [2.5, 97.5])
    return float(low), float(high)


@dataclass(frozen=True)
class Difference:
    """A paired difference of mean returns per episode, over instances.

    Attributes:
        mean: mean difference.
        low: lower end of its 95 % interval.
        high: upper end.
    """

    mean: float
    low: float
    high: float

    @property
    def clear(self) -> bool:
        """Whether the whole interval lies above zero."""
        return self.low > 0


def paired_difference(better: Doubles, worse: Doubles, found: Rollout, seed: int = 0) -> Difference:
    """Bootstrap (BCa) of the per-instance difference of returns of two policies on the same episodes."""
    gaps = per_instance(better - worse, found)
    if len(gaps) < 2 or np.ptp(gaps) == 0:
        return Difference(float(gaps.mean()), float(gaps.mean()), float(gaps.mean()))
    interval = stats.bootstrap((gaps,), np.mean, n_resamples=RESAMPLES, rng=np.random.default_rng(seed))
    return Difference(float(gaps.mean()), *(float(end) for end in interval.confidence_interval))
