"""Scores and intervals hold on numbers made by hand."""

from __future__ import annotations

import numpy as np
import pytest

from drrl_agents.scoring import paired_difference, per_instance, score_interval
from drrl_env.data.instances import Instance
from drrl_policies.rollout import Reference, Rollout

LAYERS = 2


def rollout_of(returns) -> Rollout:
    """One-segment episodes with these returns, two layers per instance."""
    returns = np.asarray(returns, float)
    pairs = tuple((Instance(f"drrl://{n // LAYERS}", "test", "text", ()), n % LAYERS) for n in range(len(returns)))
    chosen, nothing = np.zeros((len(returns), 1), np.int64), np.zeros(len(returns))
    return Rollout("made", pairs, returns[:, None], {}, {}, chosen, chosen, nothing, nothing)


def known(random, best) -> Reference:
    """A reference with these returns of random and the oracle."""
    return Reference(rollout_of(random).pairs, np.asarray(random, float), np.asarray(best, float))


def test_the_oracle_scores_1_and_random_0():
    """With intervals that say so too: on these they have no width."""
    random, best = np.array([0.0, 1, 2, 3]), np.array([4.0, 6, 5, 7])
    reference = known(random, best)
    assert reference.score(best) == 1
    assert reference.score(random) == 0
    assert score_interval(rollout_of(best), reference) == (1, 1)
    assert score_interval(rollout_of(random), reference) == (0, 0)


def test_a_score_is_a_ratio_of_means():
    """All of a gap of 1 and half of a gap of 99: (1 + 49.5) / 100. A mean of ratios would say .75."""
    reference = known([0, 0], [1, 99])
    assert reference.score(np.array([1, 49.5])) == pytest.approx(0.505)


def test_nothing_to_choose_is_said_and_not_divided_by():
    """Random equal to the oracle has no score."""
    with pytest.raises(ValueError, match="nothing to choose"):
        known([1, 1], [1, 1]).score(np.array([1, 1]))


def test_layers_of_an_instance_are_one_observation():
    """Four episodes of two instances give two means, in the order of the instances."""
    assert per_instance(np.array([1.0, 3, 10, 20]), rollout_of([1, 3, 10, 20])).tolist() == [2, 15]


def test_the_interval_does_not_shrink_by_counting_layers():
    """Layers that say the same thing twice add nothing: resampling episodes would give an interval √2 too narrow."""
    values = np.repeat(np.random.default_rng(0).normal(0.5, 0.2, 40), LAYERS)
    low, high = score_interval(rollout_of(values), known(np.zeros(80), np.ones(80)))
    assert pytest.approx(high - low, rel=0.35) == 2 * 1.96 * 0.2 / 40**0.5


def test_the_score_interval_is_deterministic_and_holds_the_score():
    """The same rollout gives the same ends, around the point estimate."""
    values = np.random.default_rng(1).uniform(0, 1, 24)
    found, reference = rollout_of(values), known(np.zeros(24), np.ones(24))
    low, high = score_interval(found, reference)
    assert (low, high) == score_interval(found, reference)
    assert low < reference.score(values) < high


def test_one_instance_has_no_interval():
    """NaN, not a width of zero that looks like certainty."""
    assert np.isnan(score_interval(rollout_of([1, 2]), known([0, 0], [3, 3]))).all()


def test_score_intervals_cover_the_truth_about_as_often_as_they_say():
    """Of 100 samples of 20 instances, 95 % intervals hold the true score of .5 in 85 or more (two layers agree)."""
    rng, reference, hits = np.random.default_rng(2), known(np.zeros(40), np.ones(40)), 0
    for _ in range(100):
        low, high = score_interval(rollout_of(np.repeat(rng.normal(0.5, 0.3, 20), LAYERS)), reference)
        hits += low <= 0.5 <= high
    assert hits >= 85


def test_paired_differences_cover_the_truth_about_as_often_as_they_say():
    """100 samples of 20 skewed differences with mean .1: BCa intervals hold it in 83 or more."""
    rng, hits = np.random.default_rng(3), 0
    for _ in range(100):
        gaps = np.repeat(rng.exponential(1.0, 20) - 0.9, LAYERS)
        found = paired_difference(gaps, np.zeros(40), rollout_of(gaps))
        hits += found.low <= 0.1 <= found.high
    assert hits >= 83


def test_pairing_sees_what_two_separate_intervals_would_not():
    """Instances differ by 10, policies by .1: paired, the difference is clear; and the other way round it is not."""
    rng = np.random.default_rng(4)
    worse = np.repeat(rng.normal(0, 10, 30), LAYERS)
    better = worse + np.repeat(rng.normal(0.1, 0.05, 30), LAYERS)
    found = rollout_of(better)
    assert paired_difference(better, worse, found).clear
    assert not paired_difference(worse, better, found).clear
    assert paired_difference(better, worse, found) == paired_difference(better, worse, found)


def test_a_constant_difference_has_an_interval_of_no_width():
    """SciPy answers NaN there."""
    found = paired_difference(np.full(8, 3.0), np.full(8, 1.0), rollout_of(np.zeros(8)))
    assert (found.mean, found.low, found.high, found.clear) == (2, 2, 2, True)
