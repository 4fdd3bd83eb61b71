"""Rows of a comparison hold what the rollouts did; instances, not episodes, are what is independent."""

from __future__ import annotations

import numpy as np
import pytest

from drrl_agents.scoring import Judge, judge, means, per_instance, strata
from drrl_env.data.instances import Instance
from drrl_env.envs.play import Episode
from drrl_policies import Field, Random
from drrl_policies.fitting import full, oracle_policy
from drrl_policies.rollout import Reference, Rollout, reference, rollout

LAYERS = 2
RESAMPLES = 400


class MadeField(Field):
    """Episodes of one step, two layers per instance, made by hand."""

    steps = 1

    def __init__(self, count: int) -> None:
        kinds = ("prose", "code")
        found = [Instance(f"drrl://{n}", "test", kinds[n % 2], ()) for n in range(count // LAYERS)]
        episodes = tuple(Episode(found[n // LAYERS], n % LAYERS) for n in range(count))
        super().__init__(None, episodes, None)  # type: ignore[arg-type]

    @property
    def mean_full(self) -> float:
        """FLOPs of a step of full attention."""
        return 10.0


COLUMNS = ("cosine", "relative_error", "score_change", "flops_ratio", "flops")


def made(returns, field, **columns) -> Rollout:
    """One-step episodes with these returns."""
    rewards = np.asarray(returns, float)[:, None]
    chosen, nothing = np.zeros((len(rewards), 1, 1), np.int64), np.zeros(len(rewards))
    reported = {name: np.zeros_like(rewards) for name in COLUMNS} | {
        name: np.asarray(values, float)[:, None] for name, values in columns.items()
    }
    return Rollout("made", field.episodes, rewards, {}, reported, chosen, chosen, (8, 64), 1, nothing, nothing)


def judged(random, best) -> Judge:
    """A judge of episodes with these returns of random and the oracle."""
    known = Reference(np.asarray(random, float), np.asarray(best, float))
    return judge(MadeField(len(known.random)), known, RESAMPLES)


def row(found: Judge, *returns):
    """The row of a policy with these returns, one list a seed."""
    return found.row("made", "rule", [made(each, found.field) for each in returns])


def test_the_oracle_scores_1_and_random_0():
    """With intervals that say so too: on these they have no width."""
    random, best = np.array([0.0, 1, 2, 3]), np.array([4.0, 6, 5, 7])
    found = judged(random, best)
    for returns, score in ((best, 1), (random, 0)):
        of = row(found, returns)
        assert [of.normalised_score, of.low, of.high] == pytest.approx([score] * 3)
    assert row(found, best).regret == 0
    assert row(found, best - 3).regret == pytest.approx(3)


def test_a_score_is_a_ratio_of_means():
    """All of a gap of 1 and half of a gap of 99: (1 + 49.5) / 100. A mean of ratios would say .75."""
    found = judged([0, 0, 0, 0], [1, 1, 99, 99])
    assert row(found, [1, 1, 49.5, 49.5]).normalised_score == pytest.approx(0.505)


def test_nothing_to_choose_is_said_and_not_divided_by():
    """Random equal to the oracle has no score."""
    with pytest.raises(ValueError, match="nothing to choose"):
        judged([1, 1], [1, 1])


def test_layers_of_an_instance_are_one_observation():
    """Four episodes of two instances give two means, in the order of the instances."""
    assert per_instance(np.array([1.0, 3, 10, 20]), MadeField(4)).tolist() == [2, 15]


def test_instances_are_drawn_within_their_kind_of_text():
    """Of each the kind, in the order of the instances; every resample holds as many of a kind as there are."""
    field = MadeField(12)
    assert strata(field).tolist() == ["prose", "code"] * 3
    drawn = judged(np.zeros(12), np.ones(12)).draws.instances
    assert drawn.shape == (RESAMPLES, 6)
    assert ((strata(field)[drawn] == "code").sum(1) == 3).all()


def test_the_interval_does_not_shrink_by_counting_layers():
    """Layers that say the same thing twice add nothing: resampling episodes would give an interval √2 too narrow."""
    values = np.random.default_rng(0).normal(0.5, 0.2, 40)
    of = row(judged(np.zeros(80), np.ones(80)), np.repeat(values, LAYERS))
    within = np.mean([values[kind::2].var() for kind in range(2)]) ** 0.5
    assert pytest.approx(of.high - of.low, rel=0.15) == 2 * 1.96 * within / 40**0.5


def test_the_interval_is_deterministic_and_holds_the_score():
    """The same rollout gives the same row, its ends around the point estimate."""
    values = np.random.default_rng(1).uniform(0, 1, 24)
    first, again = (row(judged(np.zeros(24), np.ones(24)), values) for _ in range(2))
    assert first == again
    assert first.low < first.normalised_score < first.high


def test_seeds_widen_the_interval():
    """Two seeds .4 apart on every instance: their interval is as wide as that, one seed's has no width."""
    found = judged(np.zeros(24), np.ones(24))
    one, two = row(found, np.full(24, 0.5)), row(found, np.full(24, 0.3), np.full(24, 0.7))
    assert one.normalised_score == pytest.approx(two.normalised_score)
    assert (one.seeds, two.seeds) == (1, 2)
    assert one.high - one.low == pytest.approx(0, abs=1e-12)
    assert two.high - two.low == pytest.approx(0.4)


def test_one_instance_has_no_interval():
    """NaN, not a width of zero that looks like certainty."""
    of = row(judged([0, 0], [3, 3]), [1, 2])
    assert np.isnan([of.low, of.high]).all()
    assert of.normalised_score == pytest.approx(0.5)


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    """Of 100 samples of 20 instances, 95 % intervals hold the true score of .5 in 85 or more (two layers agree)."""
    rng, found, hits = np.random.default_rng(2), judged(np.zeros(40), np.ones(40)), 0
    for _ in range(100):
        of = row(found, np.repeat(rng.normal(0.5, 0.3, 20), LAYERS))
        hits += of.low <= 0.5 <= of.high
    assert hits >= 85


def test_means_are_over_all_seeds_and_episodes():
    """By hand: errors of .1 and .3 are a fidelity of .95; 4 and 8 FLOPs of 10; milliseconds where there are some."""
    field = MadeField(2)
    first = made([0, 0], field, relative_error=[0.1, 0.1], flops=[4, 4], cosine=[1, 0.8])
    second = made([0, 0], field, relative_error=[0.3, 0.3], flops=[8, 8], cosine=[1, 1])
    found = means([first, second], field)
    assert found.relative_error == pytest.approx(0.2)
    assert found.fidelity == pytest.approx((0.99 + 0.91) / 2)
    assert found.total_flops_ratio == pytest.approx(0.6)
    assert found.cosine == pytest.approx(0.95)
    assert found.mean_rank == 8
    assert found.latency_ratio is None
    assert means([made([0, 0], field, latency_ratio=[1, 3])], field).latency_ratio == pytest.approx(2)


def test_a_row_of_a_task_is_what_its_rollout_did(task):
    """Full attention costs itself and what the guard looks at; random stands at 0 within its noise, the oracle at 1."""
    field = task.field("test", 2, progress=False)
    found = judge(field, reference(field), RESAMPLES)
    rollouts = {each.policy: each for each in (rollout(p, field) for p in (full(field), oracle_policy(field)))}
    rows = {name: found.row(name, "rule", [each]) for name, each in rollouts.items()}
    assert rows["oracle"].normalised_score == pytest.approx(1)
    assert rows["full"].mean_return == pytest.approx(rollouts["full"].returns.mean())
    assert (rows["full"].flops_ratio, rows["full"].cache_ratio) == (pytest.approx(1), pytest.approx(1))
    assert rows["full"].total_flops_ratio > 1
    assert (rows["full"].cosine, rows["full"].fidelity, rows["full"].mean_rank) == (1, 1, 64)
    assert found.row("random", "rule", [rollout(Random(field.sizes), field)]).normalised_score < 0.5
