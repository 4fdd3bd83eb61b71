"""Aggregates say what they are named for, on numbers worked out by hand and on any numbers at all."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from drrl_agents.statistics import (
    interquartile_mean,
    mean_return,
    normalised,
    optimality_gap,
    probability_of_improvement,
    ratio_of_means,
)
from drrl_env.envs.oracle import normalised_score

SCORES = st.floats(-10, 10, allow_subnormal=False)
TABLES = st.tuples(st.integers(1, 4), st.integers(1, 9)).flatmap(lambda shape: arrays(float, shape, elements=SCORES))
INSTANCES = 5
RUNS = st.integers(1, 4).flatmap(lambda seeds: arrays(float, (seeds, INSTANCES), elements=st.integers(-3, 3)))


def test_every_instance_has_a_score_of_its_own():
    """Random 0 and oracle 1 on each: 3 between 2 and 6 is a quarter, 10 between 0 and 8 is above the oracle."""
    random, oracle = np.array([2.0, 0.0]), np.array([6.0, 8.0])
    assert normalised(np.array([[3.0, 10.0], [2.0, 8.0]]), random, oracle).tolist() == [[0.25, 1.25], [0, 1]]


def test_instances_without_a_choice_are_named():
    """Equal or worse oracles have no scale: infinite scores would drown the rest. By number, or by name if known."""
    random, oracle, returns = np.array([1.0, 1, 1]), np.array([1.0, 2, 0]), np.ones((2, 3))
    with pytest.raises(ValueError, match=r"on 2 of 3 instances \(0, 2\).*leave them out"):
        normalised(returns, random, oracle)
    with pytest.raises(ValueError, match=r"\(uri-a, uri-c\)"):
        normalised(returns, random, oracle, ["uri-a", "uri-b", "uri-c"])


def test_a_long_list_of_such_instances_is_cut():
    """One line, whatever the count."""
    with pytest.raises(ValueError, match=r"on 9 of 9 instances \(0, 1, 2, 3, 4, \.\.\.\)"):
        normalised(np.ones((1, 9)), np.ones(9), np.ones(9))


def test_the_headline_score_is_a_ratio_of_means():
    """All of a gap of 1 and half of a gap of 99: (1 + 49.5) / 100. A mean of ratios would say .75."""
    assert ratio_of_means(np.array([[1, 49.5]]), np.zeros(2), np.array([1.0, 99])) == pytest.approx(0.505)


@given(st.integers(0, 2**32 - 1))
def test_the_headline_score_is_the_one_used_everywhere(seed):
    """The same as `normalised_score` of the three means."""
    rng = np.random.default_rng(seed)
    returns, random, oracle = rng.normal(size=(3, 7)), rng.normal(size=7), rng.normal(3, 1, 7)
    known = normalised_score(returns.mean(), random.mean(), oracle.mean())
    assert ratio_of_means(returns, random, oracle) == pytest.approx(known)


def test_a_score_without_a_scale_is_nan():
    """Of two resamples, the second has an oracle equal to random."""
    random, oracle = np.zeros((2, 1)), np.array([[2.0], [0.0]])
    scores = ratio_of_means(np.ones((2, 1, 1)), random, oracle)
    assert scores[0] == 0.5
    assert np.isnan(scores[1])


def test_the_interquartile_mean_drops_a_quarter_at_either_end():
    """Of 1 to 8 it is the mean of 3 to 6; with the two best and the two worst wild, still."""
    assert interquartile_mean(np.array([[8.0, 1, 7, 2], [6, 3, 5, 4]])) == 4.5
    assert interquartile_mean(np.array([[800.0, -100, 70, 2], [6, 3, 5, 4]])) == 4.5


def test_a_quarter_is_rounded_down():
    """Of six scores one is cut at either end, of three none."""
    assert interquartile_mean(np.array([[0.0, 1, 2, 3, 4, 100]])) == 2.5
    assert interquartile_mean(np.array([[0.0, 1, 8]])) == 3


@given(SCORES, st.integers(1, 4), st.integers(1, 9))
def test_the_interquartile_mean_of_a_constant_is_the_constant(value, seeds, instances):
    """However many there are."""
    assert interquartile_mean(np.full((seeds, instances), value)) == pytest.approx(value)


@given(TABLES, SCORES)
def test_shifting_scores_shifts_means(scores, shift):
    """Mean and interquartile mean move with it; the optimality gap does when its target moves too."""
    assert mean_return(scores + shift) == pytest.approx(mean_return(scores) + shift, abs=1e-9)
    assert interquartile_mean(scores + shift) == pytest.approx(interquartile_mean(scores) + shift, abs=1e-9)
    assert optimality_gap(scores + shift, 1 + shift) == pytest.approx(optimality_gap(scores), abs=1e-9)


@given(TABLES, st.randoms(use_true_random=False))
def test_order_does_not_matter(scores, rng):
    """Seeds and instances may come in any order."""
    rows, columns = list(range(scores.shape[0])), list(range(scores.shape[1]))
    rng.shuffle(rows)
    rng.shuffle(columns)
    for statistic in (mean_return, interquartile_mean, optimality_gap):
        assert statistic(scores[rows][:, columns]) == pytest.approx(statistic(scores), abs=1e-9)


@given(TABLES)
def test_aggregates_lie_where_they_must(scores):
    """The interquartile mean within the scores; the gap at least 0 and at least 1 less the mean."""
    assert scores.min() - 1e-9 <= interquartile_mean(scores) <= scores.max() + 1e-9
    assert optimality_gap(scores) >= max(0, 1 - scores.mean()) - 1e-9


def test_what_lies_above_the_oracle_fills_no_gap():
    """.4 misses 1 by .6 and 2 misses nothing: .3, where a mean would say none. Of .5, only .1 is missing."""
    scores = np.array([[0.4, 2.0]])
    assert optimality_gap(scores) == pytest.approx(0.3)
    assert optimality_gap(scores, gamma=0.5) == pytest.approx(0.05)


def test_the_probability_of_improvement_counts_pairs_of_seeds():
    """Instance 1: 3 of 4 pairs won; instance 2: one won, one drawn, two lost. Mean of .75 and .375."""
    x, y = np.array([[1.0, 1], [3, 5]]), np.array([[0.0, 5], [2, 4]])
    x[1, 1], y[0, 1] = 5, 5
    assert probability_of_improvement(x, y) == pytest.approx((3 / 4 + 1.5 / 4) / 2)


def test_instances_are_compared_with_themselves_only():
    """x is better by a little on each; across instances, which differ by much, it would win barely half the time."""
    y = np.arange(10.0)[None] * 100
    assert probability_of_improvement(y + 1, y) == 1


@given(RUNS, RUNS)
def test_either_improves_on_the_other(x, y):
    """P(X > Y) + P(Y > X) = 1, ties halved; a policy against itself is ½."""
    assert probability_of_improvement(x, y) + probability_of_improvement(y, x) == pytest.approx(1)
    assert probability_of_improvement(x, x) == pytest.approx(0.5)


@given(RUNS, RUNS, st.permutations(range(INSTANCES)))
def test_improvement_needs_no_scale_and_no_order(x, y, order):
    """Per instance a positive factor and a shift, and any order of instances, change nothing."""
    factor, shift = np.array([1.0, 2, 4, 8, 16]), np.arange(5.0)
    known = probability_of_improvement(x, y)
    assert probability_of_improvement(x * factor + shift, y * factor + shift) == pytest.approx(known)
    assert probability_of_improvement(x[:, order], y[:, order]) == pytest.approx(known)


@pytest.mark.parametrize("statistic", [mean_return, interquartile_mean, optimality_gap])
def test_resamples_in_front_are_kept(statistic):
    """Each of them gives what it gives alone."""
    tables = np.random.default_rng(0).normal(size=(6, 3, 5))
    assert statistic(tables).tolist() == pytest.approx([float(statistic(table)) for table in tables])
