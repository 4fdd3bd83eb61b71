"""The checkers of Gymnasium and stable-baselines3 have nothing to say, in any variant."""

from __future__ import annotations

import warnings
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env as gymnasium_check
from stable_baselines3.common.env_checker import check_env as sb3_check

from drrl_env.envs.tasks import TASKS

VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "paper guard": {"guard": "paper"},
    "paper reward": {"reward": "paper", "layer": 0},
    "calibrated": {"basis": "calibrated"},
    "same value rank": {"value_rank": "same"},
    "one value rank": {"value_rank": 16, "instances": 1},
    "full values": {"value_rank": None, "ranks": (8, 64)},
    "separate SVDs": {"basis": "separate-svd"},
    "numbers as actions": {"actions": "box"},
    "long segments": {"segment": 256, "basis": "calibrated"},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_the_checkers_pass_without_a_warning(name: str, make: Any) -> None:
    """Warnings are errors: a 2-D box, a NumPy reward or a NaN in info would be one."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gymnasium_check(make(**VARIANTS[name]))
        sb3_check(make(**VARIANTS[name]))


SCALAR = [task for task in TASKS if "-MO-" not in task]


@pytest.mark.parametrize("guard", ["off", "paper"])
@pytest.mark.parametrize("task", SCALAR)
def test_the_checkers_pass_without_a_warning_for_every_task(task: str, guard: str, make: Any) -> None:
    """Gymnasium's also refuses data that two calls share, such as one mask for all; it knows no vector reward."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gymnasium_check(make(task, guard=guard))
        sb3_check(make(task, guard=guard))


@pytest.mark.parametrize("env_id", ["DRRL-Attention-v0", "drrl_env:DRRL-Attention-v0"])
def test_gym_make_finds_the_environment(env_id: str) -> None:
    """By the bare id after the import, and by the id that imports (which works in subprocess workers too)."""
    env = gymnasium.make(env_id, context=512, instances=1)
    observation, _ = env.reset(seed=0)
    assert env.observation_space.contains(observation)
    assert env.action_space == gymnasium.spaces.Discrete(8)


def test_the_default_episode_is_16_segments_of_2048_tokens() -> None:
    """The defaults of the issue: 128 tokens a segment, ranks 8 to 64, a fixed horizon that terminates."""
    env = gymnasium.make("DRRL-Attention-v0", instances=1)
    assert env.unwrapped.ranks == (8, 12, 16, 20, 24, 32, 40, 64)  # type: ignore[attr-defined]
    env.reset(seed=0)
    ends = [env.step(7)[2:4] for _ in range(16)]
    assert ends == [(False, False)] * 15 + [(True, False)]


def test_masks_reach_through_the_wrappers() -> None:
    """`env.action_masks` does not get through gym.make's wrappers; `get_wrapper_attr` does, and sb3-contrib uses it."""
    env = gymnasium.make("DRRL-Attention-v0", context=512, instances=1, guard="paper")
    _, info = env.reset(seed=0)
    assert np.array_equal(env.get_wrapper_attr("action_masks")(), info["action_mask"])
    for _ in range(4):
        info = env.step(0)[4]
        assert np.array_equal(env.get_wrapper_attr("action_masks")(), info["action_mask"])


@pytest.mark.parametrize("task", TASKS)
def test_no_method_makes_sb3_take_it_for_a_goal_env(task: str, make: Any) -> None:
    """A method of the name `compute_reward` would."""
    assert not hasattr(make(task), "compute_reward")
