"""Resamples keep what they must keep: strata, pairs of policies, and the two sources of variation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drrl_agents.statistics import Draws, Interval, draw, percentile_interval
from drrl_agents.statistics.bootstrap import collapsed

KINDS = np.array(["prose", "code", "prose", "mixture", "code", "prose", "mixture"])


def test_a_resample_keeps_each_kind_of_text_as_often_as_it_was():
    """Drawn from all instances alike, some resample would hold no code."""
    drawn = KINDS[draw(KINDS, seed=0, resamples=500).instances]
    for kind in np.unique(KINDS):
        assert ((drawn == kind).sum(1) == np.count_nonzero(kind == KINDS)).all()


@given(st.lists(st.sampled_from("abcd"), min_size=1, max_size=12), st.integers(0, 99))
def test_every_draw_is_an_instance_of_its_stratum(labels, seed):
    """With strata of one drawn together, in any order of instances: numbers in range, strata kept."""
    strata = np.array(labels)
    groups, picks = collapsed(strata), draw(strata, seed, 20).instances
    assert picks.shape == (20, len(labels))
    assert (groups[picks] == groups).all()


@given(st.lists(st.sampled_from("abcd"), min_size=2, max_size=12))
def test_no_stratum_is_left_with_one_instance(labels):
    """It would be drawn every time, as though it were known without error."""
    groups = collapsed(np.array(labels))
    assert np.bincount(groups)[groups].min() >= 2


def test_strata_that_can_vary_are_left_alone():
    """Only singles are pooled: with one another, or a lone one with the smallest of the others."""
    assert len(np.unique(collapsed(KINDS))) == 3
    assert collapsed(np.array(list("aabbcd"))).tolist() == [0, 0, 1, 1, 2, 2]
    assert collapsed(np.array(list("aaabbc"))).tolist() == [0, 0, 0, 1, 1, 1]


def test_two_instances_of_two_kinds_are_drawn_together():
    """Each alone, every resample would be the data."""
    assert (draw(np.array(["prose", "code"]), 0, 50).instances != [0, 1]).any()


def test_every_instance_of_a_stratum_is_drawn_equally_often():
    """Each of three in a third of 9,000 draws, within 5 standard errors."""
    picks = draw(np.array(["a"] * 3 + ["b"] * 2), resamples=3_000).instances[:, :3]
    assert np.abs(np.bincount(picks.ravel()) / 9_000 - 1 / 3).max() < 5 * (2 / 9 / 9_000) ** 0.5


def test_draws_follow_the_seed():
    """The same seed the same bits, another seed others; of instances and of a policy's seeds."""
    first, again, other = draw(KINDS, 1, 50), draw(KINDS, 1, 50), draw(KINDS, 2, 50)
    assert (first.instances == again.instances).all()
    assert (first.seeds("ppo", 5) == again.seeds("ppo", 5)).all()
    assert (first.instances != other.instances).any()
    assert (first.seeds("ppo", 5) != other.seeds("ppo", 5)).any()


def test_policies_draw_their_seeds_on_their_own():
    """Seed 0 of one algorithm has nothing in common with seed 0 of another."""
    draws = draw(KINDS, 0, 2_000)
    first, second = draws.seeds("ppo", 5).ravel(), draws.seeds("dqn", 5).ravel()
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.05


def test_one_seed_too_few_is_drawn():
    """Then the variance of a resampled mean is s²/n; drawing n of n = 5 gives four fifths of that."""
    values, draws = np.random.default_rng(3).normal(size=5), draw(KINDS, 0, 20_000)
    chosen = draws.seeds("ppo", 5)
    assert chosen.shape == (20_000, 4)
    assert values[chosen].mean(1).var() == pytest.approx(values.var(ddof=1) / 5, rel=0.05)


def test_one_seed_is_drawn_every_time():
    """A rule has nothing else."""
    assert (draw(KINDS, 0, 9).seeds("rule", 1) == np.zeros((9, 1))).all()


def test_seeds_and_instances_are_drawn_as_rows_and_columns():
    """Every drawn seed meets every drawn instance; drawing cells would mix them up."""
    table = np.arange(3)[:, None] * 100.0 + np.arange(len(KINDS))
    draws = draw(KINDS, 4, 30)
    drawn = draws.apply(table, "ppo")
    assert drawn.shape == (30, 2, len(KINDS))
    assert (drawn % 100 == draws.instances[:, None, :]).all()
    assert (drawn // 100 == draws.seeds("ppo", 3)[:, :, None]).all()


def test_the_interval_is_the_middle_of_the_replicates():
    """Of 0 to 1000, 95 % are 25 to 975 and 80 % are 100 to 900; the value is what is given."""
    replicates = np.random.default_rng(0).permutation(1001).astype(float)
    assert percentile_interval(7.0, replicates) == Interval(7, pytest.approx(25), pytest.approx(975))
    assert percentile_interval(7.0, replicates, 0.8) == Interval(7, pytest.approx(100), pytest.approx(900))


def test_an_undefined_replicate_leaves_no_ends():
    """Dropping it would hide that some resample has no score; and nothing is then claimed."""
    found = percentile_interval(1.0, np.array([1.0, np.nan, 2.0]))
    assert np.isnan([found.low, found.high]).all()
    assert not found.above(-9)


def test_above_asks_for_the_whole_interval():
    """An end on the threshold is not above it."""
    assert Interval(2, 0.1, 3).above()
    assert not Interval(2, 0.0, 3).above()
    assert not Interval(2, 0.4, 3).above(0.5)


@pytest.mark.parametrize("confidence", [0, 1, 95, float("nan")])
def test_a_confidence_that_is_none_is_refused(confidence):
    """95 is a slip for .95."""
    with pytest.raises(ValueError, match=r"confidence=.* must lie between 0 and 1"):
        percentile_interval(0.0, np.zeros(3), confidence)


def test_nothing_to_draw_is_refused():
    """No instances, no resamples."""
    with pytest.raises(ValueError, match="instances=0"):
        draw(np.array([], str))
    with pytest.raises(ValueError, match="resamples=0"):
        draw(KINDS, resamples=0)


def test_draws_can_be_made_by_hand():
    """Resamples that are all the data give back the data."""
    table = np.array([[1.0, 2, 3]])
    assert Draws(np.tile(np.arange(3), (2, 1)), 0).apply(table, "rule").tolist() == [table.tolist()] * 2
