"""Everything that decides how the training of an SB3 algorithm goes on, as one tree, and back.

It is taken and put back where nothing is under way (`between_updates`): then there is no rollout, no batch, and no
tensor of an unfinished step. What a constructor makes of its arguments (networks, schedules, spaces) is not in it: the
agent is made anew from the run's config.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.noise import ActionNoise, VectorizedActionNoise
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecNormalize

from drrl_env.sb3 import RankVecEnv

Tree = dict[str, Any]

ATTRIBUTES = (
    "num_timesteps", "_episode_num", "_n_updates", "_n_calls", "_current_progress_remaining", "exploration_rate",
    "ent_coef", "old_count", "weights", "_last_obs", "_last_original_obs", "_last_episode_starts",
)  # fmt: skip
"""What changes while an algorithm learns and is neither a network nor an optimiser; each has some of them."""

ROWS = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")
"""Arrays of a replay buffer, (size, lanes, ...), or dicts of those."""

VERSIONS = ("torch", "numpy", "stable-baselines3", "sb3-contrib", "drrl-env")
"""Packages whose other version may round otherwise."""


def capture(model: BaseAlgorithm) -> Tree:
    """The state of an algorithm between two updates: plain values, arrays and tensors, none of them copied."""
    modules, variables = model._get_torch_save_params()
    return {
        "versions": {name: version(name) for name in VERSIONS},
        "steps": model._total_timesteps,
        "attributes": {name: getattr(model, name) for name in ATTRIBUTES if hasattr(model, name)},
        "episodes": [[*(buffer or ())] for buffer in (model.ep_info_buffer, model.ep_success_buffer)],
        "memory": getattr(model, "_last_lstm_states", None),
        "modules": {name: attrgetter(name)(model).state_dict() for name in modules},
        "variables": {name: attrgetter(name)(model) for name in variables},
        "lanes": _lanes(model).get_state(),
        "normaliser": _normaliser(model.get_vec_normalize_env()),
        "replay": _replay(getattr(model, "replay_buffer", None)),
        "noise": [getattr(noise, "noise_prev", None) for noise in _noises(model.action_noise)],
        "log": _log(model),
        "generators": {
            "python": random.getstate(),
            "numpy": np.random.get_state(),
            "torch": torch.get_rng_state(),
            "actions": model.action_space.np_random.bit_generator.state,
        },
    }


def restore(model: BaseAlgorithm, tree: Tree) -> None:
    """Puts a fresh algorithm of the same config where `capture` found another, but for `restore_generators`.

    Args:
        model: the algorithm; it has its logger already.
        tree: what `capture` gave; its arrays become the algorithm's own.

    Raises:
        ValueError: the lanes are of another task or of other arguments.
        RuntimeError: the networks have other shapes.
    """
    for name, value in tree["attributes"].items():
        setattr(model, name, value)
    size = model._stats_window_size
    model.ep_info_buffer, model.ep_success_buffer = (deque(each, maxlen=size) for each in tree["episodes"])
    if tree["memory"] is not None:
        model._last_lstm_states = type(model._last_lstm_states)(*tree["memory"])  # type: ignore[attr-defined]
    for name, values in tree["modules"].items():
        attrgetter(name)(model).load_state_dict(values)
    for name, value in tree["variables"].items():
        attrgetter(name)(model).data.copy_(value)
    _lanes(model).set_state(tree["lanes"])
    _restore_normaliser(model.get_vec_normalize_env(), tree["normaliser"])
    _restore_replay(getattr(model, "replay_buffer", None), tree["replay"])
    for kept, values in zip(_log(model), tree["log"], strict=True):
        kept.clear()
        kept.update(values)


def restore_generators(model: BaseAlgorithm, tree: Tree) -> None:
    """Puts back what drawing random numbers, and the start of `learn`, change; to be called when it has started."""
    for noise, value in zip(_noises(model.action_noise), tree["noise"], strict=True):
        if value is not None:
            noise.noise_prev = value  # type: ignore[attr-defined]
    states = tree["generators"]
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    torch.set_rng_state(states["torch"])
    model.action_space.np_random.bit_generator.state = states["actions"]


def _log(model: BaseAlgorithm) -> list[dict[str, Any]]:
    """Values recorded since the logger's last dump, how many each is the mean of, and who leaves it out."""
    return [model.logger.name_to_value, model.logger.name_to_count, model.logger.name_to_excluded]


def _lanes(model: BaseAlgorithm) -> RankVecEnv:
    assert model.env is not None
    found = model.env.unwrapped
    assert isinstance(found, RankVecEnv)
    return found


def _noises(noise: ActionNoise | None) -> list[ActionNoise]:
    """The noise of each lane."""
    if noise is None:
        return []
    return list(noise.noises) if isinstance(noise, VectorizedActionNoise) else [noise]


def _normaliser(env: VecNormalize | None) -> Tree | None:
    if env is None:
        return None
    found = {name: (each.mean, each.var, each.count) for name, each in _running(env).items()}
    return {"running": found, "returns": env.returns}


def _restore_normaliser(env: VecNormalize | None, tree: Tree | None) -> None:
    if env is None or tree is None:
        return
    for name, each in _running(env).items():
        each.mean, each.var, each.count = tree["running"][name]
    env.returns = tree["returns"]


def _running(env: VecNormalize) -> dict[str, RunningMeanStd]:
    """Running means and variances: of the rewards, and of the observations where those are normalised."""
    seen = getattr(env, "obs_rms", None)
    seen = seen if isinstance(seen, dict) else {"": seen} if seen is not None else {}
    return {"return": env.ret_rms, **{f"observation {name}": each for name, each in seen.items()}}


def _replay(buffer: ReplayBuffer | None) -> Tree | None:
    if buffer is None:
        return None
    filled = buffer.buffer_size if buffer.full else min(buffer.pos + 1, buffer.buffer_size)
    rows = {name: getattr(buffer, name) for name in ROWS if hasattr(buffer, name)}
    cut = {
        name: {key: each[:filled] for key, each in rows.items()} if isinstance(rows, dict) else rows[:filled]
        for name, rows in rows.items()
    }
    return {"position": buffer.pos, "full": buffer.full, "rows": cut}


def _restore_replay(buffer: ReplayBuffer | None, tree: Tree | None) -> None:
    if buffer is None or tree is None:
        return
    buffer.pos, buffer.full = tree["position"], tree["full"]
    for name, rows in tree["rows"].items():
        kept = getattr(buffer, name)
        for key, values in rows.items() if isinstance(rows, dict) else [(None, rows)]:
            array = kept if key is None else kept[key]
            array[: len(values)] = values


@contextmanager
def between_updates(model: BaseAlgorithm, act: Callable[[], None]) -> Iterator[None]:
    """Calls `act` before each rollout (ARS: before each iteration), when the update before it is done.

    SB3's callbacks cannot: where a rollout starts, ARS has drawn its perturbations, and gSDE its noise.
    """
    name = "collect_rollouts" if hasattr(model, "collect_rollouts") else "_do_one_update"
    inner = getattr(model, name)

    def begin(*arguments: Any, **named: Any) -> Any:
        if name == "_do_one_update":  # ARS counts its progress from where `learn` was called
            model._update_current_progress_remaining(model.num_timesteps, model._total_timesteps)
        act()
        return inner(*arguments, **named)

    setattr(model, name, begin)
    try:
        yield
    finally:
        delattr(model, name)
