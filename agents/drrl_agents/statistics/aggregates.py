"""Aggregates of returns and scores. Each reduces the last two axes, (seeds, instances), and keeps what is before them.

So one function gives the value and, on arrays with an axis of resamples in front, its bootstrap replicates.

Source: interquartile mean, optimality gap and probability of improvement: Agarwal et al. 2021, arXiv 2108.13264.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats

from drrl_env.envs.mechanism import Doubles

_TRIMMED = 0.25
_NAMED = 5
_ALL = (-2, -1)


def normalised(returns: Doubles, random: Doubles, oracle: Doubles, names: Sequence[str] = ()) -> Doubles:
    """Scores of their own for every seed and instance: random 0, oracle 1.

    Args:
        returns: (..., seeds, instances).
        random: expected return of random choices, (instances,).
        oracle: return of the oracle, (instances,).
        names: names of the instances for the error; their numbers where there are none.

    Returns:
        (return − random) / (oracle − random), the shape of `returns`; above 1 where a policy beats an oracle that
        is a lower bound.

    Raises:
        ValueError: on some instance the oracle does not exceed random.
    """
    flat = np.flatnonzero(~(oracle > random))
    if flat.size:
        shown = ", ".join(str(names[i] if names else i) for i in flat[:_NAMED]) + (
            ", ..." if flat.size > _NAMED else ""
        )
        raise ValueError(
            f"oracle is not above random on {flat.size} of {len(oracle)} instances ({shown}): they have no score of "
            "their own; leave them out, or use ratio_of_means"
        )
    scores: Doubles = (returns - random) / (oracle - random)
    return scores


def mean_return(returns: Doubles) -> Doubles:
    """Mean over seeds and instances, (...,)."""
    mean: Doubles = returns.mean(_ALL)
    return mean


def ratio_of_means(returns: Doubles, random: Doubles, oracle: Doubles) -> Doubles:
    """The headline score, (mean return − mean random) / (mean oracle − mean random).

    Args:
        returns: (..., seeds, instances).
        random: (..., instances); the same resampled instances as the returns, where they are resampled.
        oracle: (..., instances).

    Returns:
        (...,): random 0, oracle 1; NaN where the mean of the oracle does not exceed that of random.

    Source: `drrl_env.envs.oracle.normalised_score`, over an axis of resamples.
    """
    low, high = random.mean(-1), oracle.mean(-1)
    spread = np.where(high > low, high - low, np.nan)
    score: Doubles = (returns.mean(_ALL) - low) / spread
    return score


def interquartile_mean(scores: Doubles) -> Doubles:
    """Mean of the middle half of all scores of all seeds and instances.

    Args:
        scores: (..., seeds, instances).

    Returns:
        (...,). A quarter of them, rounded down, is cut at either end: with fewer than four it is the mean.
    """
    flat = scores.reshape(*scores.shape[:-2], -1)
    mean: Doubles = np.asarray(stats.trim_mean(flat, _TRIMMED, axis=-1))
    return mean


def optimality_gap(scores: Doubles, gamma: float = 1.0) -> Doubles:
    """Mean amount by which scores miss `gamma`; what lies above it does not make up for what lies below.

    Args:
        scores: (..., seeds, instances).
        gamma: the score that is good enough; 1 is the oracle's.

    Returns:
        (...,), at least 0; less is better.
    """
    gap: Doubles = np.maximum(0.0, gamma - scores).mean(_ALL)
    return gap


def wins(x: Doubles, y: Doubles) -> Doubles:
    """1 where x is larger than y, ½ where they are equal, 0 where it is smaller: of every pair of seeds.

    Args:
        x: (seeds of x, instances).
        y: (seeds of y, instances), the same instances in the same order.

    Returns:
        (seeds of x, seeds of y, instances).
    """
    left, right = x[:, None, :], y[None, :, :]
    won: Doubles = (left > right) + 0.5 * (left == right)
    return won


def probability_of_improvement(x: Doubles, y: Doubles) -> float:
    """Probability that a run of x beats a run of y on a random instance, P(X > Y) + ½ P(X = Y).

    Args:
        x: returns or scores of x, (seeds of x, instances); normalising per instance changes nothing here.
        y: the same of y, on the same instances.

    Returns:
        0 to 1: the mean over all pairs of seeds on each instance, then over instances.
    """
    return float(wins(x, y).mean())
