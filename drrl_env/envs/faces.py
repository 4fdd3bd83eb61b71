"""The faces side by side: the same seeds and actions through each, and what every lane saw, to be compared bit by bit.

What a one-lane environment shows is the reference; a vector face is held to it in each of its autoreset modes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from numpy.typing import NDArray

from drrl_env.envs.play import Observation

NEXT_STEP, SAME_STEP, DISABLED = (mode.value for mode in AutoresetMode)
MODES = (NEXT_STEP, SAME_STEP, DISABLED)
OWN_OF_SB3 = ("terminal_observation", "episode", "TimeLimit.truncated")
"""What the stable-baselines3 face adds to the info of an episode's last step."""

Infos = dict[str, Any]


@dataclass(frozen=True)
class Seen:
    """What a lane saw in one round.

    Attributes:
        observation: what an agent acts on next, of a new episode if one has begun.
        mask: allowed choices, likewise.
        reward: reward of the step; 0 where none was made.
        done: whether the episode has ended with it.
        info: info of the step; empty where none was made.
        last: the episode's last observation; empty where it has not ended, or is still shown.
        began: info of the episode begun in this round; empty where none was.
    """

    observation: Observation
    mask: NDArray[np.bool_]
    reward: Any
    done: bool
    info: Infos
    last: Observation
    began: Infos


Rounds = list[list[Seen]]
"""By round, the reset first, and lane."""


def drive_singles(envs: Sequence[gymnasium.Env[Any, Any]], actions: NDArray[Any], seed: int, mode: str) -> Rounds:
    """One-lane environments, reset as the mode says by hand; lane i is seeded with seed + i.

    Args:
        envs: one for each lane.
        actions: (rounds, lanes, ...).
        seed: of the first lane.
        mode: `NextStep`, `SameStep` or `Disabled`.
    """
    first = [_begun(env, *env.reset(seed=seed + lane)) for lane, env in enumerate(envs)]
    found = [first]
    for row in actions:
        found.append([_step(env, row[lane], found[-1][lane], mode) for lane, env in enumerate(envs)])
    return found


def _begun(env: gymnasium.Env[Any, Any], observation: Observation, info: Infos) -> Seen:
    return Seen(observation, _mask(env), _no_reward(env.unwrapped), False, {}, {}, info)


def _no_reward(env: Any) -> Any:
    """Of a reset: 0, or a vector of zeros where rewards are vectors."""
    space = getattr(env, "reward_space", None)
    return 0.0 if space is None else np.zeros(space.shape, space.dtype)


def _mask(env: Any) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = env.get_wrapper_attr("action_masks")()
    return found


def _step(env: gymnasium.Env[Any, Any], action: Any, before: Seen, mode: str) -> Seen:
    if mode == NEXT_STEP and before.done:
        return _begun(env, *env.reset())
    observation, reward, terminated, truncated, info = env.step(action)
    done = terminated or truncated
    if not done or mode == NEXT_STEP:
        return Seen(observation, _mask(env), reward, done, info, {}, {})
    again, began = env.reset()
    return Seen(again, _mask(env), reward, done, info, observation, began)


def drive_vector(env: VectorEnv[Any, Any, Any], actions: NDArray[Any], seed: int) -> Rounds:
    """A Gymnasium vector environment in the autoreset mode that it declares; `Disabled` is reset by `reset_mask`."""
    mode = env.metadata["autoreset_mode"].value
    observations, infos = env.reset(seed=seed)
    begun = np.ones(env.num_envs, bool)
    none = _no_reward(env) if hasattr(env, "reward_space") else np.zeros(env.num_envs)
    found = [_lanes(env, observations, none, ~begun, [({}, {}, info) for info in _split(infos, env)])]
    for row in actions:
        observations, rewards, terminated, truncated, infos = env.step(row)
        done, reset_before = terminated | truncated, np.array([seen.done for seen in found[-1]]) & (mode == NEXT_STEP)
        told = [_told(info, reset) for info, reset in zip(_split(infos, env), reset_before.tolist(), strict=True)]
        if mode == DISABLED and done.any():
            told = [
                (info, _row(observations, lane) if done[lane] else {}, {}) for lane, (info, _, _) in enumerate(told)
            ]
            observations, infos = env.reset(options={"reset_mask": done})
            told = [(info, last, began) for (info, last, _), began in zip(told, _split(infos, env), strict=True)]
        found.append(_lanes(env, observations, rewards, done, told))
    return found


def _told(info: Infos, reset: bool) -> tuple[Infos, Observation, Infos]:
    """A lane's (info of the step, last observation, info of the episode begun)."""
    if reset:
        return {}, {}, info
    if "final_info" not in info:
        return info, {}, {}
    final = ("final_info", "final_obs")
    return info["final_info"], info["final_obs"], {name: value for name, value in info.items() if name not in final}


def _lanes(
    env: Any, observations: Observation, rewards: Any, done: Any, told: Sequence[tuple[Infos, Observation, Infos]]
) -> list[Seen]:
    masks = env.action_masks() if hasattr(env, "action_masks") else env.call("action_masks")
    return [
        Seen(_row(observations, lane), masks[lane].copy(), rewards[lane], bool(done[lane]), *told[lane])
        for lane in range(env.num_envs)
    ]


def _row(observations: Observation, lane: int) -> Observation:
    return {name: rows[lane].copy() for name, rows in observations.items()}


def _split(infos: Infos, env: Any) -> list[Infos]:
    return [lane_info(infos, lane) for lane in range(env.num_envs)]


def lane_info(infos: Mapping[str, Any], lane: int) -> Infos:
    """A lane's info out of Gymnasium's vector form, where `_name` says which lanes have `name`."""
    found: Infos = {}
    for name in infos:
        if f"_{name}" in infos and infos[f"_{name}"][lane]:
            value = infos[name]
            found[name] = lane_info(value, lane) if isinstance(value, dict) else value[lane]
    return found


def drive_sb3(env: Any, actions: NDArray[Any], seed: int) -> Rounds:
    """A stable-baselines3 `VecEnv`, which resets a lane in the step that ends its episode."""
    env.seed(seed)
    observations = env.reset()
    none = np.zeros(env.num_envs)
    found = [_lanes_of_sb3(env, observations, none, none > 0, [({}, {}, dict(info)) for info in env.reset_infos])]
    for row in actions:
        observations, rewards, done, infos = env.step(row)
        told = [
            (
                {name: value for name, value in info.items() if name not in OWN_OF_SB3},
                info.get("terminal_observation", {}),
                dict(env.reset_infos[lane]) if done[lane] else {},
            )
            for lane, info in enumerate(infos)
        ]
        found.append(_lanes_of_sb3(env, observations, rewards, done, told))
    return found


def _lanes_of_sb3(env: Any, observations: Observation, rewards: Any, done: Any, told: Any) -> list[Seen]:
    masks = env.env_method("action_masks")
    return [
        Seen(_row(observations, lane), masks[lane].copy(), rewards[lane], bool(done[lane]), *told[lane])
        for lane in range(env.num_envs)
    ]


def difference(one: Rounds, two: Rounds) -> str | None:
    """Where two faces first differ, in words; None where every bit is the same.

    A float32 reward, which is all that stable-baselines3 takes, is compared with the other's rounded to it.
    """
    if [len(row) for row in one] != [len(row) for row in two]:
        return f"{len(one)} rounds of {len(one[0])} lanes against {len(two)} of {len(two[0])}"
    for turn, (first, second) in enumerate(zip(one, two, strict=True)):
        for lane, (mine, other) in enumerate(zip(first, second, strict=True)):
            for part in fields(Seen):
                at = _differ(getattr(mine, part.name), getattr(other, part.name))
                if at is not None:
                    return f"round {turn}, lane {lane}: {part.name}{at}"
    return None


def _differ(one: Any, two: Any) -> str | None:
    """None if equal, else the place inside and both values."""
    if isinstance(one, Mapping) and isinstance(two, Mapping):
        if set(one) != set(two):
            return f" has {sorted(set(one) ^ set(two))} on one face only"
        inside = ((name, _differ(one[name], two[name])) for name in one)
        return next((f"[{name!r}]{at}" for name, at in inside if at is not None), None)
    return None if _equal(one, two) else f" is {one!r} on one face and {two!r} on the other"


def _equal(one: Any, two: Any) -> bool:
    if isinstance(two, np.float32) and isinstance(one, float):
        return bool(np.float32(one) == two)
    if isinstance(one, np.ndarray) or isinstance(two, np.ndarray):
        first, second = np.asarray(one), np.asarray(two)
        return first.dtype == second.dtype and np.array_equal(first, second)
    return bool(one == two)


def random_actions(env: VectorEnv[Any, Any, Any], rounds: int, seed: int) -> NDArray[Any]:
    """Actions of every lane, drawn from its space whatever is masked, (rounds, lanes, ...)."""
    env.action_space.seed(seed)
    return np.stack([env.action_space.sample() for _ in range(rounds)])
