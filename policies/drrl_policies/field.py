"""A field: episodes of one task, and what policies are played on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any

import numpy as np
from tqdm import tqdm

from drrl_env.envs.arena import Arena, open_arena
from drrl_env.envs.game import Game
from drrl_env.envs.mechanism import Doubles, Integers
from drrl_env.envs.optima import Question, solve
from drrl_env.envs.oracle import Optimum
from drrl_env.envs.play import Episode
from drrl_env.envs.simulator import Simulator


@dataclass(frozen=True)
class Field:
    """Episodes of a task, every one with a lane of its own.

    Attributes:
        arena: the lanes.
        episodes: instance, layer and parameter of each.
        single: one lane of the same task, for solvers.
        progress: whether long work shows progress bars.
    """

    arena: Arena
    episodes: tuple[Episode, ...]
    single: Arena
    progress: bool = True

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of choices in each component of an action."""
        return self.arena.play.sizes

    @property
    def rank_components(self) -> int:
        """How many of them are ranks; they come first."""
        return self.game.mechanism.heads if isinstance(self.arena.play, Simulator) else 1

    @property
    def game(self) -> Game:
        """Tables and rules of a task that replays what was measured."""
        assert isinstance(self.arena.play, Simulator), "DRRL-Layers-v0 is live and has no tables"
        return self.arena.play.game

    @property
    def live(self) -> bool:
        """Whether the task is computed live, an episode through all layers (DRRL-Layers-v0)."""
        return not isinstance(self.arena.play, Simulator)

    @property
    def steps(self) -> int:
        """Steps of an episode."""
        return self.arena.world.segments * (len(self.arena.play.layers) if self.live else 1)  # type: ignore[attr-defined]

    @property
    def mean_full(self) -> float:
        """Mean full-attention FLOPs per step of an episode."""
        return self.arena.play.shared.mean_full if self.live else self.game.mean_full  # type: ignore[attr-defined]

    @property
    def layers(self) -> Integers:
        """Layer that every episode begins at, (episodes,)."""
        return np.array([episode.layer for episode in self.episodes])

    @property
    def instances(self) -> tuple[str, ...]:
        """URI of every episode's instance."""
        return tuple(episode.instance.uri for episode in self.episodes)

    @property
    def parameters(self) -> Doubles:
        """What the task drew for every episode, (episodes,)."""
        return np.array([episode.parameter for episode in self.episodes])

    @cached_property
    def optima(self) -> tuple[Optimum, ...]:
        """The oracle of every episode, worked out once."""
        bar = tqdm(self.episodes, desc="oracle", unit="episode", leave=False, disable=not self.progress)
        return tuple(solve(Question(self.single, *episode)) for episode in bar)


def open_field(
    task: str,
    arguments: Mapping[str, Any],
    split: str,
    instances: int | None,
    seed: int = 0,
    repeats: int = 1,
    progress: bool = True,
    measure: bool = True,
) -> Field:
    """Episodes on every layer of some instances.

    Args:
        task: the environment id.
        arguments: of the environment, but for the split and its instances.
        split: `train`, `validation` or `test`.
        instances: how many of the split; None for all.
        seed: seed of what the task draws for each episode.
        repeats: episodes per (instance, layer) where the task draws something (spread evenly over its range), else 1.
        progress: whether long work shows progress bars.
        measure: whether every rank is measured beforehand, or only what is played, when it is.

    Raises:
        ValueError: an argument is wrong; one line with its name, value and remedy.
    """
    given = {**arguments, "split": split, "instances": instances}
    single = open_arena(task, 1, given)
    if measure and isinstance(single.play, Simulator):
        single.play.game.store.fill(single.pool, single.layers, progress)
    times = repeats if single.play.parameter is not None else 1
    chosen = [pair for pair in product(single.pool, single.layers) for _ in range(times)]
    uniform = (np.arange(len(chosen)) % times + np.random.default_rng(seed).random(len(chosen))) / times
    drawn = single.play.draw(np.array([layer for _, layer in chosen]), uniform).tolist()
    episodes = tuple(Episode(*pair, value) for pair, value in zip(chosen, drawn, strict=True))
    return Field(open_arena(task, len(episodes), given), episodes, single, progress)
