"""The reward is what it says: three terms, recomputable from info."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from drrl_env.envs.settings import REWARDS, Reward
from drrl_env.lowrank.flops import full_flops

WEIGHTS = {
    "default": "default",
    "paper": "paper",
    "error": Reward(alpha=2.0, beta=0.7, gamma=0.3, fidelity="error"),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_the_reward_is_the_sum_of_its_terms_and_follows_from_info(name: str, make: Any, play: Any) -> None:
    """Equal bit for bit to the terms' sum, and to α·fidelity − β·FLOPs ratio − γ·change to 1e-12."""
    reward = WEIGHTS[name]
    weights = REWARDS[reward] if isinstance(reward, str) else reward
    for step in play(make(reward=reward), seed=1)[1:]:
        info = step.info
        fidelity = info["cosine"] if weights.fidelity == "cosine" else 1 - info["relative_error"] ** 2
        wanted = weights.alpha * fidelity - weights.beta * info["flops_ratio"] - weights.gamma * info["score_change"]
        assert sum(info["reward_terms"].values()) == step.reward
        assert step.reward == pytest.approx(wanted, abs=1e-12)


def test_presets_are_those_of_the_issue() -> None:
    """α 1, β .3, γ .05 by default; the paper's α 1, β .05, γ .1."""
    assert REWARDS["default"] == Reward(alpha=1.0, beta=0.3, gamma=0.05, fidelity="cosine")
    assert REWARDS["paper"] == Reward(alpha=1.0, beta=0.05, gamma=0.1, fidelity="cosine")


def test_rewards_are_python_floats_and_info_holds_no_nan(make: Any, play: Any) -> None:
    """np.float32 fails SB3's checker, NaN and clock readings Gymnasium's determinism check."""
    for step in play(make(guard="paper"), seed=2)[1:]:
        assert type(step.reward) is float
        assert type(step.terminated) is bool
        numbers = [value for value in step.info.values() if isinstance(value, float)]
        assert all(type(value) in (float, int, bool, str, dict, np.ndarray) for value in step.info.values())
        assert all(math.isfinite(value) for value in [*numbers, *step.info["reward_terms"].values()])


@pytest.mark.parametrize("basis", ["refreshed", "calibrated"])
def test_full_rank_is_exact_and_costs_full_attention(basis: str, make: Any, play: Any) -> None:
    """Cosine 1, error 0, no change, and FLOPs whose ratio is 1 over the episode (.4 to 1.6 by segment)."""
    steps = play(make(basis=basis), choices=[7] * 4)[1:]
    for step in steps:
        assert (step.info["cosine"], step.info["relative_error"], step.info["score_change"]) == (1.0, 0.0, 0.0)
        assert step.info["rank"] == step.info["value_rank"] == 64
    assert np.mean([step.info["flops_ratio"] for step in steps]) == pytest.approx(1.0)


def test_a_late_segment_weighs_what_it_costs(make: Any, play: Any) -> None:
    """FLOPs over the episode's mean, so that the mean over segments is the true total ratio."""
    env = make()
    steps = play(env, choices=[7] * 4)[1:]
    full = [full_flops(env.game.world.shape, position) for position in range(4)]
    assert [step.info["flops"] for step in steps] == full
    assert [step.info["flops_ratio"] for step in steps] == pytest.approx([x / np.mean(full) for x in full])


def test_higher_ranks_err_less(make: Any, play: Any) -> None:
    """At the last segment with full values the error falls from each rank to the next but one, on any model."""
    env = make(value_rank=None)
    errors = [play(env, choices=[choice] * 4)[-1].info["relative_error"] for choice in range(8)]
    assert all(later < earlier for earlier, later in zip(errors, errors[2:], strict=False))


def test_the_change_is_from_the_last_executed_rank(make: Any, play: Any) -> None:
    """The first segment's is from full rank; staying costs nothing; a lower rank after full changes more."""
    steps = play(make(), choices=[0, 0, 7, 4])[1:]
    changes = [step.info["score_change"] for step in steps]
    assert changes[0] > 0
    assert changes[1] == 0
    assert changes[2] > changes[3] > 0


def test_value_ranks_follow_the_setting(make: Any, play: Any) -> None:
    """`same` brings the rank, a number itself, None full values; full rank always brings full values."""
    wanted = {"same": [8, 12, 64, 64], 16: [16, 16, 64, 64], None: [64, 64, 64, 64]}
    for value_rank, expected in wanted.items():
        steps = play(make(value_rank=value_rank), choices=[0, 1, 7, 7])[1:]
        assert [step.info["value_rank"] for step in steps] == expected
