"""What ships can be used at once: every policy loads, plays its environment, and its card says where it comes from."""

from __future__ import annotations

import re

import gymnasium
import numpy as np
import pytest

import drrl_env  # noqa: F401  (registers the environments)
from drrl_policies.field import open_field
from drrl_policies.rollout import reference, rollout
from drrl_policies.trained import COMPUTING, SHIPPED, WEIGHTS, TrainedPolicy, load, shipped

UNPLAYED = "DRRL-Attention-MO-v0"
"""Its reward is a vector."""
LARGEST = 500_000
"""Bytes of weights: 100,000 parameters in float32, and some for their names."""


@pytest.fixture(params=shipped() or [pytest.param("", marks=pytest.mark.skip("nothing ships"))])
def policy(request: pytest.FixtureRequest) -> TrainedPolicy:
    """Each policy that ships."""
    found = load(request.param)
    assert found.card.task == request.param
    return found


def test_every_playable_task_ships_a_policy():
    """Eight of the nine."""
    playable = {name for name in gymnasium.registry if name.startswith("DRRL-")} - {UNPLAYED}
    assert set(shipped()) == playable


def test_a_shipped_policy_plays_its_environment(policy):
    """From the id and the card alone: the spaces fit, and each action is legal and, for who sees masks, allowed."""
    given = {**policy.card.arguments, "split": "test", "instances": 1}
    env = gymnasium.make(policy.card.task, **given)
    policy.check(env.observation_space, env.action_space)
    observation, info = env.reset(seed=0)
    for _ in range(4):
        mask = info["action_mask"]
        action, _ = policy.predict(observation, action_masks=mask)
        assert env.action_space.contains(action)
        observation, reward, *_, info = env.step(action)
        assert np.isfinite(reward)
        if policy.card.algorithm == "maskable-ppo":
            assert not info["masked_action"]


def test_a_shipped_card_is_complete(policy):
    """A score between random's 0 and the oracle's 1 within its interval, on the test split; command and versions."""
    card, score = policy.card, policy.card.score
    assert score is not None
    assert score.split == "test"
    assert score.instances >= (8 if card.task == "DRRL-Layers-v0" else 32)  # whose oracle takes a minute a span
    assert 0 < score.low <= score.score <= score.high <= 1
    assert score.random < score.mean_return <= score.oracle
    assert score.score == pytest.approx((score.mean_return - score.random) / (score.oracle - score.random), abs=1e-9)
    assert card.command.startswith("drrl ")
    assert card.task in card.command
    assert not re.search(r"(^|[ =])[/~]", card.command)
    assert set(COMPUTING) <= set(card.versions)
    assert card.arguments["model"] == "bundled"
    assert card.deciding_flops > 0
    assert policy.reads == {entry.name for entry in card.observation}


def test_a_shipped_policy_is_small(policy):
    """At most 100,000 parameters, each written once."""
    assert (SHIPPED / policy.card.task / WEIGHTS).stat().st_size <= LARGEST
    assert sum(tensor.numel() for tensor in policy.network.parameters()) <= 100_000
    assert sorted(path.name for path in (SHIPPED / policy.card.task).iterdir()) == ["card.json", WEIGHTS]


@pytest.mark.slow
def test_a_shipped_score_is_what_the_policy_reaches(policy):
    """Played again on all of the card's episodes: the same mean return to 1e-6, and the same random and oracle.

    What takes long is judged on less: DRRL-Basis-v0, which measures every basis, on two spans; DRRL-Layers-v0 without
    the search for its optimum.
    """
    from drrl_agents.tasks import FIELD_SEEDS, REPEATS

    card, score = policy.card, policy.card.score
    few = card.task == "DRRL-Basis-v0"
    count = 2 if few else score.instances
    field = open_field(card.task, card.arguments, score.split, count, FIELD_SEEDS["test"], REPEATS, False)
    found = rollout(policy, field).returns
    if few:
        assert reference(field).score(found) == pytest.approx(score.score, abs=0.02)
        return
    assert len(field.episodes) == score.episodes
    assert found.mean() == pytest.approx(score.mean_return, abs=1e-6)
    if field.live:
        return
    known = reference(field)
    assert known.random.mean() == pytest.approx(score.random, abs=1e-6)
    assert known.oracle.mean() == pytest.approx(score.oracle, abs=1e-6)
