"""Intervals of policies and of their differences hold the truth about as often as they say, and pair what is paired."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from drrl_agents.statistics import (
    Draws,
    Group,
    Interval,
    Scale,
    contrast,
    draw,
    interquartile_mean,
    optimality_gap,
    probability_of_improvement,
    ratio_of_means,
    summarise,
)
from drrl_agents.statistics.groups import Contrast, Summary

KINDS = np.array(["code", "encyclopedia", "mixture", "prose"])
EASE = np.array([0.5, 0.6, 0.7, 0.8])
LEAD = 0.03
SIMULATIONS = 200


def world(rng, seeds=5, per_kind=8, of_seeds=0.05):
    """A task made up: text kinds, instances, seeds and runs vary; x is better than y by LEAD in score, on average.

    Instances differ widely in their random return and in what there is to gain, independently of the scores.
    """
    strata, count = np.repeat(KINDS, per_kind), 4 * per_kind
    random, size = rng.normal(0, 5, count), rng.lognormal(0, 0.3, count)
    ease = np.repeat(EASE, per_kind) + rng.normal(0, 0.1, count)
    groups = []
    for name, lead in (("x", LEAD), ("y", 0.0)):
        scores = lead + ease + rng.normal(0, of_seeds, (seeds, 1)) + rng.normal(0, 0.05, (seeds, count))
        groups.append(Group(name, random + size * scores))
    return strata, Scale(random, random + size), *groups


@pytest.fixture(scope="module")
def truth() -> dict[str, float]:
    """By definition of that world; by 4 million scores of it where no formula is at hand."""
    rng = np.random.default_rng(99)
    ease = np.repeat(EASE, 50_000) + rng.normal(0, 0.1, 200_000)
    spread = (2 * (0.05**2 + 0.05**2)) ** 0.5
    scores = LEAD + ease + rng.normal(0, 0.05 * 2**0.5, (20, 200_000))
    return {
        "score": EASE.mean() + LEAD,
        "interquartile_mean": float(interquartile_mean(scores)),
        "optimality_gap": float(optimality_gap(scores)),
        "score difference": LEAD,
        "return difference": LEAD * np.exp(0.3**2 / 2),
        "improvement": float(norm.cdf(LEAD / spread)),
    }


def intervals(found: Summary, differs: Contrast) -> dict[str, Interval]:
    """By the names of the truth."""
    return {
        "score": found.score,
        "interquartile_mean": found.interquartile_mean,
        "optimality_gap": found.optimality_gap,
        "score difference": differs.score,
        "return difference": differs.mean_return,
        "improvement": differs.probability_of_improvement,
    }


def coverage(truth, average_seeds=False, **kwargs):
    """How often each interval holds the truth, in comparisons of freshly made worlds."""
    rng, hits = np.random.default_rng(1), dict.fromkeys(truth, 0)
    for seed in range(SIMULATIONS):
        strata, scale, x, y = world(rng, **kwargs)
        if average_seeds:
            x, y = (replace(each, returns=each.returns.mean(0, keepdims=True)) for each in (x, y))
        draws = draw(strata, seed, 1_000)
        found = intervals(summarise(x, scale, draws), contrast(x, y, scale, draws))
        for name, value in truth.items():
            hits[name] += found[name].low <= value <= found[name].high
    return {name: count / SIMULATIONS for name, count in hits.items()}


def test_intervals_hold_the_truth_about_as_often_as_they_say(truth):
    """Of 200 comparisons of five seeds on 32 instances, each 95 % interval holds it in 88 to 99 %."""
    found = coverage(truth)
    assert {name: share for name, share in found.items() if not 0.88 <= share <= 0.99} == {}


def test_seeds_that_are_averaged_away_claim_too_much(truth):
    """The way not to do it: with runs averaged first, seeds seem certain, and differences are held in under 70 %."""
    found = coverage(truth, average_seeds=True)
    assert max(found["score difference"], found["return difference"]) < 0.7


def example(seed=0, **kwargs):
    """A world, and 2,000 resamples of its instances."""
    strata, scale, x, y = world(np.random.default_rng(seed), **kwargs)
    return scale, x, y, draw(strata, seed, 2_000)


def test_values_are_the_aggregates_themselves():
    """Intervals stand around them; nothing is read off the resamples but the ends."""
    scale, x, y, draws = example()
    found, differs = summarise(x, scale, draws), contrast(x, y, scale, draws)
    scores = (x.returns - scale.random) / (scale.oracle - scale.random)
    headline = [float(ratio_of_means(each.returns, scale.random, scale.oracle)) for each in (x, y)]
    assert found.mean_return.value == pytest.approx(x.returns.mean())
    assert found.score.value == headline[0]
    assert found.interquartile_mean.value == interquartile_mean(scores)
    assert found.optimality_gap.value == optimality_gap(scores)
    assert differs.mean_return.value == pytest.approx(x.returns.mean() - y.returns.mean())
    assert differs.score.value == pytest.approx(headline[0] - headline[1])
    assert differs.probability_of_improvement.value == probability_of_improvement(x.returns, y.returns)
    for each in intervals(found, differs).values():
        assert each.low < each.value < each.high


@pytest.mark.parametrize("seed", range(5))
def test_ends_are_those_of_whole_resamples_taken_one_by_one(seed):
    """What is done with weights and many axes at once equals a loop over resampled comparisons, four seeds and five."""
    strata, scale, x, y = world(np.random.default_rng(seed), per_kind=4)
    x, draws = replace(x, returns=x.returns[:4]), draw(strata, seed, 40)
    found, differs = summarise(x, scale, draws), contrast(x, y, scale, draws)
    tables: dict[str, list[float]] = {name: [] for name in intervals(found, differs)}
    for one, other, picks in zip(
        draws.apply(x.returns, "x"), draws.apply(y.returns, "y"), draws.instances, strict=True
    ):
        random, oracle = scale.random[picks], scale.oracle[picks]
        scores, headline = (one - random) / (oracle - random), float(ratio_of_means(one, random, oracle))
        tables["score"].append(headline)
        tables["interquartile_mean"].append(float(interquartile_mean(scores)))
        tables["optimality_gap"].append(float(optimality_gap(scores)))
        tables["score difference"].append(headline - float(ratio_of_means(other, random, oracle)))
        tables["return difference"].append(one.mean() - other.mean())
        tables["improvement"].append(probability_of_improvement(one, other))
    for name, each in intervals(found, differs).items():
        assert [each.low, each.high] == pytest.approx(np.quantile(tables[name], [0.025, 0.975]).tolist()), name


def test_pairing_narrows_the_interval():
    """Instances differ by 5, policies by .03: two separate resamplings give ends over five times as far apart."""
    scale, x, y, draws = example()
    apart = Draws(draw(np.repeat(KINDS, 8), 77, 2_000).instances, 77)
    separate = draws.apply(x.returns, "x").mean((1, 2)) - apart.apply(y.returns, "y").mean((1, 2))
    paired = contrast(x, y, scale, draws).mean_return
    assert np.ptp(np.quantile(separate, [0.025, 0.975])) > 5 * (paired.high - paired.low)


def test_strata_narrow_the_interval_where_kinds_of_text_differ():
    """Kinds of text a whole score apart, instances hardly: drawn without strata, the interval is ten times as wide."""
    rng, strata = np.random.default_rng(0), np.repeat(KINDS, 8)
    group, scale = (
        Group("rule", np.repeat(np.arange(4.0), 8)[None] + rng.normal(0, 0.05, 32)),
        Scale(np.zeros(32), np.ones(32)),
    )
    kept, lost = (summarise(group, scale, draw(labels)).score for labels in (strata, np.repeat("text", 32)))
    assert lost.high - lost.low > 10 * (kept.high - kept.low)


def test_a_lead_on_every_instance_is_clear_and_the_reverse_is_not():
    """x beats y by .1 to .3 on each of them, with one seed."""
    scale, _, y, draws = example(seeds=1)
    x = Group("x", y.returns + np.random.default_rng(0).uniform(0.1, 0.3, 32))
    found, reverse = contrast(x, y, scale, draws), contrast(y, x, scale, draws)
    assert found.mean_return.above()
    assert found.score.above()
    assert found.probability_of_improvement == Interval(1, 1, 1)
    assert not reverse.mean_return.above()
    assert reverse.probability_of_improvement == Interval(0, 0, 0)


@given(st.integers(0, 10**6))
def test_a_contrast_turned_round_changes_sign(seed):
    """The same draws for the same policies: differences change sign, probabilities add to 1."""
    strata, scale, x, y = world(np.random.default_rng(seed), seeds=2, per_kind=2)
    draws = draw(strata, seed, 50)
    there, back = contrast(x, y, scale, draws), contrast(y, x, scale, draws)
    for sum_, one, other in (
        (0, there.mean_return, back.mean_return),
        (0, there.score, back.score),
        (1, there.probability_of_improvement, back.probability_of_improvement),
    ):
        assert [one.value + other.value, one.low + other.high, one.high + other.low] == pytest.approx([sum_] * 3)


def test_a_policy_does_not_differ_from_itself():
    """Not even in a resample: it draws its own seeds."""
    scale, x, _, draws = example()
    found = contrast(x, x, scale, draws)
    assert found.mean_return == found.score == Interval(0, 0, 0)
    assert found.probability_of_improvement.value == 0.5


@given(st.permutations(range(8)), st.integers(0, 99))
def test_the_order_of_instances_does_not_matter(order, seed):
    """Carried through strata, scale and returns, and drawn alike, it gives the same values and ends."""
    _, scale, x, y = world(np.random.default_rng(seed), seeds=2, per_kind=2)
    draws, place = draw(np.repeat(KINDS, 2), seed, 50), np.argsort(order)
    moved = Scale(scale.random[order], scale.oracle[order])
    moved_x, moved_y = (replace(each, returns=each.returns[:, order]) for each in (x, y))
    moved_draws = Draws(place[draws.instances], draws.seed)
    before = intervals(summarise(x, scale, draws), contrast(x, y, scale, draws))
    after = intervals(summarise(moved_x, moved, moved_draws), contrast(moved_x, moved_y, moved, moved_draws))
    for name, each in before.items():
        assert [after[name].value, after[name].low, after[name].high] == pytest.approx(
            [each.value, each.low, each.high]
        )


def test_an_interval_stays_when_a_policy_joins():
    """Nothing of a summary depends on what else is compared, and the same seed gives the same bits."""
    scale, x, y, draws = example()
    alone = summarise(x, scale, draws)
    summarise(y, scale, draws)
    assert summarise(x, scale, draws) == alone
    assert summarise(x, scale, draw(np.repeat(KINDS, 8), 0, 2_000)) == alone


def test_intervals_say_what_they_account_for():
    """A rule, or a single run, cannot tell how seeds vary; one side with seeds is enough for a difference."""
    scale, x, y, draws = example()
    rule = Group("rule", x.returns[:1])
    assert summarise(rule, scale, draws).varies == "instances"
    assert summarise(x, scale, draws).varies == "instances and seeds"
    assert contrast(rule, replace(rule, name="other"), scale, draws).varies == "instances"
    assert contrast(rule, y, scale, draws).varies == contrast(y, rule, scale, draws).varies == "instances and seeds"
    assert (summarise(x, scale, draws).seeds, summarise(x, scale, draws).instances) == (5, 32)


def test_one_instance_has_values_but_no_ends():
    """NaN, not a width of zero that looks like certainty; seeds alone would not tell how instances vary."""
    scale, draws = Scale(np.zeros(1), np.ones(1)), draw(np.array(["prose"]), 0, 20)
    x, y = Group("x", np.array([[0.2], [0.6]])), Group("y", np.array([[0.1], [0.1]]))
    for name, each in intervals(summarise(x, scale, draws), contrast(x, y, scale, draws)).items():
        assert np.isnan([each.low, each.high]).all(), name
        assert np.isfinite(each.value), name


def test_one_instance_of_each_kind_still_varies():
    """Four instances, four kinds: drawn together, they have an interval of some width."""
    scale, draws = Scale(np.zeros(4), np.ones(4)), draw(KINDS, 0, 200)
    found = summarise(Group("rule", np.array([[0.1, 0.5, 0.7, 0.9]])), scale, draws).score
    assert found.low < found.value < found.high


def test_gamma_and_confidence_are_passed_on():
    """A lower target leaves a smaller gap; a lower confidence a narrower interval."""
    scale, x, y, draws = example()
    wide, narrow = summarise(x, scale, draws), summarise(x, scale, draws, gamma=0.5, confidence=0.5)
    assert narrow.optimality_gap.value < wide.optimality_gap.value
    assert narrow.optimality_gap.high < wide.optimality_gap.low
    assert wide.score.low < narrow.score.low < narrow.score.high < wide.score.high
    assert contrast(x, y, scale, draws, 0.5).score.low > contrast(x, y, scale, draws).score.low


def test_what_is_no_comparison_is_refused_in_one_line():
    """Other instances, tables of the wrong shape, runs that failed, and nothing to choose."""
    scale, x, _, draws = example()
    short = Group("short", x.returns[:, :-1])
    with pytest.raises(ValueError, match="policy 'short': of 31 instances, the scale of 32"):
        summarise(short, scale, draws)
    with pytest.raises(ValueError, match="policy 'short'"):
        contrast(x, short, scale, draws)
    with pytest.raises(ValueError, match="draws: of 4 instances"):
        summarise(x, scale, draw(KINDS))
    with pytest.raises(ValueError, match=r"returns of 'x': of shape \(3,\); give \(seeds, instances\)"):
        Group("x", np.ones(3))
    with pytest.raises(ValueError, match=r"returns of 'x': of shape \(0, 3\)"):
        Group("x", np.ones((0, 3)))
    with pytest.raises(ValueError, match="returns of 'x': 2 values are not finite"):
        Group("x", np.array([[1.0, np.nan, np.inf]]))
    with pytest.raises(ValueError, match=r"oracle: of shape \(1, 2\); give \(instances,\)"):
        Scale(np.zeros(2), np.ones((1, 2)))
    with pytest.raises(ValueError, match="of 2, 3 and 0 instances"):
        Scale(np.zeros(2), np.ones(3))
    with pytest.raises(ValueError, match="of 2, 2 and 1 instances"):
        Scale(np.zeros(2), np.ones(2), ("one",))
    with pytest.raises(ValueError, match="nothing to choose"):
        Scale(np.ones(2), np.ones(2))
    with pytest.raises(ValueError, match=r"\(uri-b\)"):
        summarise(
            Group("x", np.ones((1, 2))), Scale(np.zeros(2), np.array([1.0, 0]), ("uri-a", "uri-b")), draw(KINDS[[0, 0]])
        )
