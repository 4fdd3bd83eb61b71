"""A task as the command line gives it: an environment id and its arguments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import gymnasium
import tyro

import drrl_env  # noqa: F401  (registers the environments)
from drrl_env.envs.registration import IDS
from drrl_env.envs.settings import one_of
from drrl_env.sb3 import RankVecEnv, make_vec_env
from drrl_policies.field import Field, open_field

VECTOR = "DRRL-Attention-MO-v0"
"""Its reward is a vector, which no algorithm of stable-baselines3 takes."""
PLAYED = tuple(task for task in IDS if task != VECTOR)
"""Environment ids that `drrl train`, `evaluate` and `compare` play."""
REPEATS = 4
"""Episodes on every (instance, layer) of a task that draws a tolerance or a budget, spread over its range."""
FIELD_SEEDS = {"train": 0, "validation": 1, "test": 2}
"""Seed of what a task draws for the episodes of each split: every command sees the same ones."""


@dataclass(frozen=True)
class Task:
    """Which environment, and with which arguments.

    Attributes:
        env: environment id; any but DRRL-Attention-MO-v0.
        model: `bundled`, a folder, or a Hugging Face name.
        layer: layer to play on; None for all.
        segment: tokens of a segment.
        context: tokens of an instance.
        ranks: candidate ranks, the last full; None for shares of the head dimension.
        value_rank: `balanced`, `same`, a number, or `none` for full values.
        basis: `refreshed`, `calibrated`, or the literature's `keys-pca` and `separate-svd`; None for the task's own.
        actions: `discrete` or `box`; None for what the task has, or `box` where the algorithm needs it.
        reward: `default` or `paper`.
        guard: `off`, `paper` or `conformal`.
        statistics: names of the statistics an agent observes; None for the default ones.
        tolerance: lowest and highest ε of DRRL-Tolerance-v0; None for the task's own.
        budget: lowest and highest budget of DRRL-Budget-v0 over full attention's FLOPs; None for the task's own.
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
    basis: str | None = None
    actions: str | None = None
    reward: str = "default"
    guard: str = "off"
    statistics: tuple[str, ...] | None = None
    tolerance: tuple[float, float] | None = None
    budget: tuple[float, float] | None = None
    cost: str | None = None
    text: Path | None = None

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of every face of the environment, but for the instances."""
        found = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "env"}
        return {**found, "value_rank": _value_rank(self.value_rank)}

    def make(self, split: str, instances: int | None) -> gymnasium.Env[Any, Any]:
        """The environment on some instances of a split."""
        check_played(self.env)
        return gymnasium.make(self.env, **self.arguments(), split=split, instances=instances)

    def make_lanes(self, split: str, instances: int | None, count: int) -> RankVecEnv:
        """The same in lanes, for stable-baselines3."""
        check_played(self.env)
        return make_vec_env(self.env, count, **self.arguments(), split=split, instances=instances)

    def field(
        self,
        split: str,
        instances: int | None,
        repeats: int = REPEATS,
        seed: int | None = None,
        progress: bool = True,
        measure: bool = True,
    ) -> Field:
        """Episodes on some instances of a split; see `drrl_policies.field.open_field`.

        Args:
            split: the split.
            instances: how many of it; None for all.
            repeats: episodes per (instance, layer) where the task draws something.
            seed: seed of what it draws; None for the split's own, so that every command sees the same episodes.
            progress: whether long work shows progress bars.
            measure: whether every rank is measured beforehand, or only what is played, when it is.
        """
        check_played(self.env)
        drawn = FIELD_SEEDS.get(split, 0) if seed is None else seed
        return open_field(self.env, self.arguments(), split, instances, drawn, repeats, progress, measure)


def open_fields(task: Task, wanted: Sequence[tuple[str, int | None]], progress: bool = True) -> list[Field]:
    """Fields of several (split, instances); all of them are found good before anything is measured."""
    for split, instances in wanted:
        task.make(split, instances)
    return [task.field(split, instances, progress=progress) for split, instances in wanted]


def check_played(env: str) -> None:
    """Raises a one-line ValueError for an environment that these commands do not play."""
    if env == VECTOR:
        raise ValueError(f"env={env!r}: its reward is a vector; train a multi-objective agent on mo_gymnasium.make")
    one_of("env", env, PLAYED)


def _value_rank(text: str) -> str | int | None:
    if text.lower() == "none":
        return None
    return int(text) if text.lstrip("-").isdigit() else text


Tasks = Annotated[Task, tyro.conf.OmitArgPrefixes]
