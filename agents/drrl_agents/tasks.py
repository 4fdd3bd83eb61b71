"""A task as the command line gives it: an environment id and its arguments.

The commands play tasks of one rank per layer and one number as the reward: rules, tables and the oracle that an agent
is compared with are fitted to those.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import gymnasium
import tyro

import drrl_env  # noqa: F401  (registers the environments)
from drrl_env.envs.game import Game
from drrl_env.envs.registration import IDS
from drrl_env.envs.settings import one_of
from drrl_env.envs.simulator import pairs
from drrl_env.envs.single import RankEnv
from drrl_env.sb3 import RankVecEnv, make_vec_env
from drrl_policies.rollout import Pair

PLAYED = ("DRRL-Attention-v0", "DRRL-Latency-v0")
"""Environment ids that `drrl train`, `evaluate` and `compare` play."""


@dataclass(frozen=True)
class Task:
    """Which environment, and with which arguments.

    Attributes:
        env: environment id, DRRL-Attention-v0 or DRRL-Latency-v0.
        model: `bundled`, a folder, or a Hugging Face name.
        layer: layer to play on; None for all.
        segment: tokens of a segment.
        context: tokens of an instance.
        ranks: candidate ranks, the last full; None for shares of the head dimension.
        value_rank: `balanced`, `same`, a number, or `none` for full values.
        basis: `refreshed` or `calibrated`.
        reward: `default` or `paper`.
        guard: `off`, `paper` or `conformal`.
        statistics: names of the statistics an agent observes; None for the default ones.
        cost: what the reward charges, `flops`, `latency` or a table of `drrl calibrate latency`; None: the task's own.
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
    statistics: tuple[str, ...] | None = None
    cost: str | None = None
    text: Path | None = None

    def arguments(self, split: str, instances: int | None) -> dict[str, Any]:
        """Keyword arguments of every face of the environment."""
        found = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "env"}
        return {**found, "value_rank": _value_rank(self.value_rank), "split": split, "instances": instances}

    def make(self, split: str, instances: int | None) -> gymnasium.Env[Any, Any]:
        """The environment on some instances of a split."""
        check_played(self.env)
        return gymnasium.make(self.env, **self.arguments(split, instances))

    def make_lanes(self, split: str, instances: int | None, count: int) -> RankVecEnv:
        """The same in lanes, for stable-baselines3."""
        check_played(self.env)
        return make_vec_env(self.env, count, **self.arguments(split, instances))


def check_played(env: str) -> None:
    """Raises a one-line ValueError for an environment that these commands do not play, with the way to train on it."""
    if env not in IDS:
        one_of("env", env, PLAYED)
    if env not in PLAYED:
        raise ValueError(
            f"env={env!r}: drrl train, evaluate and compare play {' and '.join(PLAYED)} so far; train {_way_out(env)}"
        )


def _way_out(env: str) -> str:
    if env == "DRRL-Attention-MO-v0":
        return f"a multi-objective agent on mo_gymnasium.make({env!r})"
    return f"any SB3 algorithm on drrl_env.sb3.make_vec_env({env!r}, n)"


def _value_rank(text: str) -> str | int | None:
    if text.lower() == "none":
        return None
    return int(text) if text.lstrip("-").isdigit() else text


@dataclass(frozen=True)
class Field:
    """The episodes of a task on some instances: every (instance, layer), and the tables they are played on."""

    game: Game
    pairs: tuple[Pair, ...]


def open_field(task: Task, split: str, instances: int | None, progress: bool = True) -> Field:
    """Measures every rank of the instances (with a progress bar) and returns their episodes."""
    return open_fields(task, [(split, instances)], progress)[0]


def open_fields(task: Task, wanted: Sequence[tuple[str, int | None]], progress: bool = True) -> list[Field]:
    """The same for several (split, instances); all of them are found good before anything is measured."""
    faces = [task.make(split, instances).unwrapped for split, instances in wanted]
    return [_measured(face, progress) for face in faces]


def _measured(env: gymnasium.Env[Any, Any], progress: bool) -> Field:
    assert isinstance(env, RankEnv)
    game, arena = env.game, env.arena
    game.store.fill(arena.pool, arena.layers, progress)
    return Field(game, tuple(pairs(arena.pool, arena.layers)))


Tasks = Annotated[Task, tyro.conf.OmitArgPrefixes]
