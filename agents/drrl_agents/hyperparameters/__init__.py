"""Hyperparameters, one YAML file per algorithm in the format of RL Baselines3 Zoo, and the reader for them.

The Zoo reads the files as they are: `python -m rl_zoo3.train --algo ppo --env DRRL-Attention-v0 --gym-packages drrl_env
--conf-file ppo.yml`. They say nothing that would have to be evaluated: `policy_kwargs` is a mapping, never a string of
Python.

Source: `rl_zoo3.exp_manager` (an entry per environment id or `default`, `lin_X` schedules, `noise_type`).
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml  # type: ignore[import-untyped]
from gymnasium import spaces
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.utils import LinearSchedule

from drrl_env.envs.settings import one_of

FOLDER = Path(__file__).resolve().parent
FALLBACK = "default"
"""Entry of environments that have none of their own."""
ZOO = ("n_timesteps", "n_envs", "policy", "env_wrapper", "env_kwargs")
"""What an entry says beside the constructor's arguments; `drrl train` has options of its own for these."""
SCHEDULED = ("learning_rate", "clip_range", "clip_range_vf", "delta_std")
"""Values that may fall linearly to zero over a training run, written `lin_0.001`."""
LINEAR = re.compile(r"lin_([0-9.]+(?:e-?[0-9]+)?)")


def read_entry(file: str, task: str | None = None) -> dict[str, Any]:
    """What a file says of a task.

    Args:
        file: name of the file, without `.yml`.
        task: environment id; None, or one that the file does not name, for its `default`.

    Returns:
        A copy of the entry as it stands in the file, with what only the Zoo needs.
    """
    entries = _entries(file)
    return deepcopy(entries.get(task or FALLBACK, entries[FALLBACK]))


@cache
def _entries(file: str) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = yaml.safe_load((FOLDER / f"{file}.yml").read_text(encoding="utf-8"))
    return found


def plain_values(entry: Mapping[str, Any]) -> dict[str, Any]:
    """The constructor's arguments of an entry, as plain as in the file."""
    return {name: value for name, value in entry.items() if name not in ZOO}


def constructor_arguments(
    values: Mapping[str, Any], make: Callable[..., Any], action_space: spaces.Space[Any]
) -> dict[str, Any]:
    """Plain values as an algorithm's constructor takes them.

    Args:
        values: by name, as in a file.
        make: the algorithm's class.
        action_space: what it acts in; noise has its shape.

    Returns:
        Arguments that share nothing with `values`: some algorithms change the `policy_kwargs` they are given.

    Raises:
        ValueError: a name that the constructor does not know, or a value that is not plain.
    """
    found = deepcopy(dict(values))
    std, kind = found.pop("noise_std", None), found.pop("noise_type", None)
    if kind is not None:
        one_of("noise_type", kind, ("normal",))
        shape = action_space.shape or ()
        found["action_noise"] = NormalActionNoise(np.zeros(shape), np.full(shape, float(std or 0.0)))
    known = tuple(inspect.signature(make).parameters)
    for name, value in found.items():
        one_of("hyperparameter", name, known)
        found[name] = _ready(name, value)
    return found


def _ready(name: str, value: Any) -> Any:
    """A value as the constructor takes it."""
    if name in SCHEDULED and isinstance(value, str):
        return LinearSchedule(_start(name, value), 0.0, 1.0)
    if name == "train_freq" and isinstance(value, list):
        return tuple(value)
    if name == "policy_kwargs" and not isinstance(value, Mapping):
        raise ValueError(f"policy_kwargs={value!r}: never evaluated; use a mapping such as {{net_arch: [64]}}")
    return value


def _start(name: str, value: str) -> float:
    """X of `lin_X`."""
    found = LINEAR.fullmatch(value)
    if found is None:
        raise ValueError(f"{name}={value!r}: not a schedule; use a number, or lin_0.001 to fall from .001 to zero")
    return float(found[1])
