"""The paper's guard: a mask that is never empty, a threshold that decays, and honesty about what was executed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from drrl_env.envs.settings import Guard

TIGHT = Guard("paper", threshold=0.15, decay=0.3)
NOTHING_ELSE = Guard("paper", threshold=1e-9, decay=0.0)


def test_there_is_no_mask_without_a_guard(make: Any, play: Any) -> None:
    """Everything is allowed and executed as asked."""
    for step in play(make(), seed=3)[1:]:
        assert step.info["action_mask"].all()
        assert step.info["masked_action"] is False


@pytest.mark.parametrize("guard", ["paper", TIGHT, NOTHING_ELSE])
def test_full_rank_is_always_allowed(guard: str | Guard, make: Any, play: Any) -> None:
    """However small the threshold and whatever was chosen before, the mask is not empty."""
    env = make(guard=guard)
    for seed in range(8):
        assert all(step.info["action_mask"][-1] for step in play(env, seed=seed))


def test_the_threshold_decays() -> None:
    """ε_t = ε exp(−λ t); without a guard there is none."""
    limits = [Guard("paper", 0.6, 0.05).limit(t) for t in range(16)]
    assert limits == pytest.approx([0.6 * np.exp(-0.05 * t) for t in range(16)])
    assert Guard("off").limit(3) == np.inf


def test_the_mask_is_the_threshold_on_the_change_from_the_previous_rank(make: Any, play: Any) -> None:
    """A rank is allowed if and only if its info would report a change of at most ε_t, or it is full."""
    guarded, free = make(guard=TIGHT, layer=1), make(layer=1)
    steps = play(guarded, seed=4)
    executed = [step.info["choice"] for step in steps[1:]]
    for position, step in enumerate(steps[:-1]):
        options = {"instance": steps[0].info["instance"]}
        for choice in range(8):
            asked = [*executed[:position], choice, *[7] * 4][:4]
            change = play(free, choices=asked, **options)[position + 1].info["score_change"]
            assert step.info["action_mask"][choice] == (choice == 7 or change <= TIGHT.limit(position))


def test_a_masked_action_is_executed_at_the_nearest_safe_rank_and_said_so(make: Any) -> None:
    """Of two equally near the upper one; reward, previous rank and info are those of the executed rank."""
    env = make(guard=TIGHT)
    ranks, masked = np.array(env.ranks), 0
    for seed in range(12):
        mask = env.reset(seed=seed)[1]["action_mask"]
        for _ in range(4):
            choice = int(env.np_random.integers(8))
            allowed = np.flatnonzero(mask)
            apart = np.abs(ranks[allowed] - ranks[choice])
            nearest = allowed[apart == apart.min()].max()
            observation, _, _, _, info = env.step(choice)
            assert info["choice"] == nearest
            assert info["rank"] == env.ranks[nearest]
            assert info["masked_action"] == (not mask[choice])
            assert observation["previous_rank"].argmax() == nearest
            mask, masked = info["action_mask"], masked + info["masked_action"]
    assert masked > 0


def test_ties_go_upward(make: Any) -> None:
    """With 8, 16, 24, 64 and 16 forbidden, 24 is executed and not 8; from `executed` alone, whatever the model."""
    env = make(ranks=(8, 16, 24, 64), guard=TIGHT)
    nearest = env.game.mechanism._nearest
    allowed = np.array([True, False, True, True])
    assert np.where(allowed, nearest[1], np.inf).argmin() == 2


def test_action_masks_are_the_masks_of_info(make: Any, play: Any) -> None:
    """Before every step and after the last one, where everything is allowed."""
    env = make(guard=TIGHT)
    _, info = env.reset(seed=5)
    for _ in range(4):
        assert np.array_equal(env.action_masks(), info["action_mask"])
        info = env.step(2)[4]
    assert np.array_equal(env.action_masks(), info["action_mask"])
    assert info["action_mask"].all()


def test_a_mask_that_was_handed_out_does_not_change_later(make: Any) -> None:
    """It is a copy: a replay buffer may keep it, and writing to it opens no door."""
    env = make(guard=NOTHING_ELSE)
    _, info = env.reset(seed=6)
    kept = info["action_mask"].copy()
    env.action_masks()[:] = True
    env.step(0)
    assert np.array_equal(info["action_mask"], kept)
