"""A task as the command line gives it: an environment id and its arguments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import gymnasium
import tyro

import drrl_env  # noqa: F401  (registers the environments)
from drrl_env.envs.attention_env import AttentionEnv
from drrl_env.envs.registration import TASKS
from drrl_env.envs.settings import one_of
from drrl_env.envs.simulator import pairs
from drrl_env.envs.transitions import Transitions
from drrl_policies.rollout import Pair


@dataclass(frozen=True)
class Task:
    """Which environment, and with which arguments.

    Attributes:
        env: environment id.
        model: `bundled`, a folder, or a Hugging Face name.
        layer: layer to play on; None for all.
        segment: tokens of a segment.
        context: tokens of an instance.
        ranks: candidate ranks, the last full; None for shares of the head dimension.
        value_rank: `balanced`, `same`, a number, or `none` for full values.
        basis: `refreshed` or `calibrated`.
        reward: `default` or `paper`.
        guard: `off` or `paper`.
        text: your own text file instead of the bundled text; its spans are dealt to the splits, 2 : 1 : 1.
    """

    env: tyro.conf.Positional[str] = "DRRL-Attention-v0"
    model: str = "bundled"
    layer: int | None = None
    segment: int = 128
    context: int = 2048
    ranks: tuple[int, ...] | None = None
    value_rank: str = "balanced"
    basis: str = "refreshed"
    reward: str = "default"
    guard: str = "off"
    text: Path | None = None

    def arguments(self, split: str, instances: int | None) -> dict[str, Any]:
        """Keyword arguments of `gymnasium.make`."""
        names = ("model", "layer", "segment", "context", "ranks", "basis", "reward", "guard", "text")
        found = {name: getattr(self, name) for name in names}
        return {**found, "value_rank": _value_rank(self.value_rank), "split": split, "instances": instances}

    def make(self, split: str, instances: int | None) -> gymnasium.Env[Any, Any]:
        """The environment on some instances of a split."""
        one_of("env", self.env, tuple(TASKS))
        return gymnasium.make(self.env, **self.arguments(split, instances))


def _value_rank(text: str) -> str | int | None:
    if text.lower() == "none":
        return None
    return int(text) if text.lstrip("-").isdigit() else text


@dataclass(frozen=True)
class Field:
    """The episodes of a task on some instances: every (instance, layer), and the tables they are played on."""

    transitions: Transitions
    pairs: tuple[Pair, ...]


def open_field(task: Task, split: str, instances: int | None, progress: bool = True) -> Field:
    """Measures every rank of the instances (with a progress bar) and returns their episodes."""
    return open_fields(task, [(split, instances)], progress)[0]


def open_fields(task: Task, wanted: Sequence[tuple[str, int | None]], progress: bool = True) -> list[Field]:
    """The same for several (split, instances); all of them are found good before anything is measured."""
    faces = [task.make(split, instances).unwrapped for split, instances in wanted]
    return [_measured(face, progress) for face in faces]


def _measured(env: gymnasium.Env[Any, Any], progress: bool) -> Field:
    assert isinstance(env, AttentionEnv)
    env.transitions.store.fill(env.pool, env.layers, progress)
    return Field(env.transitions, tuple(pairs(env.pool, env.layers)))


Tasks = Annotated[Task, tyro.conf.OmitArgPrefixes]
