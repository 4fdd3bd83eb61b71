"""Lanes as every face drives them: episodes, what a step gives, and the protocol of what moves the lanes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from drrl_env.data.instances import Instance
from drrl_env.envs.mechanism import Bools, Doubles, Floats, Integers
from drrl_env.envs.observation import Entry
from drrl_env.envs.world import World

Observation = dict[str, Floats]
EFFECTS = ("cosine", "relative_error", "flops", "flops_ratio", "score_change")
"""Effects that every step reports."""


class Episode(NamedTuple):
    """What an episode is played on; a tuple, because hundreds begin at once.

    Attributes:
        instance: the span of text.
        layer: the layer.
        parameter: what the task drew for it (a tolerance, a budget); 0 where it draws nothing.
    """

    instance: Instance
    layer: int
    parameter: float = 0.0


class Batch(NamedTuple):
    """What a step gave, lane by lane; a tuple, since every step makes one.

    Attributes:
        rewards: (lanes,), or (lanes, terms) where the reward is a vector; float64.
        terms: terms of the reward, (lanes,) each.
        columns: `EFFECTS` and what the task adds, (lanes,) each.
        actions: actions carried out, (lanes, components).
        changed: whether another action was carried out than was asked for, (lanes,).
        terminated: whether the episode has ended, (lanes,).
        described: rank, value rank and choice carried out, a list over lanes each.
        where: numbers of the lanes that were stepped; None for all.
    """

    rewards: Doubles
    terms: Mapping[str, Doubles]
    columns: Mapping[str, Doubles]
    actions: Integers
    changed: Bools
    terminated: Bools
    described: Mapping[str, list[object]]
    where: Integers | None = None


class Play(Protocol):
    """Lanes of a task, whatever moves them; what every face drives.

    Attributes:
        world: model, calibration and sizes.
        sizes: number of choices in each component of an action.
        entries: entries of the observation.
        vector: whether the reward is the vector of its terms.
        terms: names of those.
        parameter: name of what is drawn for an episode; None where nothing is.
    """

    world: World
    sizes: tuple[int, ...]
    entries: tuple[Entry, ...]
    vector: bool
    terms: tuple[str, ...]
    parameter: str | None

    def playable(self, layers: tuple[int, ...]) -> tuple[int, ...]:
        """Layers an episode may begin with, where the user chose some."""

    def draw(self, layers: Integers, uniform: Doubles) -> Doubles:
        """The parameter of new episodes from uniform numbers in [0, 1), (lanes,)."""

    def check(self, layer: int, value: float) -> float:
        """A parameter somebody asked for; a ValueError where no episode can have it."""

    def begin(self, lanes: Sequence[int], episodes: Sequence[Episode]) -> None:
        """Begins an episode in each of some lanes."""

    def step(self, actions: Integers, where: Integers | None = None) -> Batch:
        """Carries out an action in every lane, or in those named."""

    def observe(self) -> Observation:
        """The observation of every lane, fresh arrays, (lanes, size) each."""

    def masks(self) -> Bools:
        """Allowed choices of every component side by side, (lanes, sum of sizes)."""

    def infos(self, batch: Batch, masks: Bools) -> list[dict[str, Any]]:
        """What a user wants to know of a step, a dict of plain values per lane."""

    def start_info(self, lane: int) -> dict[str, Any]:
        """What `reset` says of a lane."""

    def spectrum(self, lane: int) -> Doubles:
        """Share of the score energy that each rank keeps, per segment streamed so far, (segments, ranks)."""

    def state(self, lane: int) -> dict[str, Any]:
        """A lane as a value: plain JSON."""

    def restore(self, lane: int, state: Mapping[str, Any], instance: Instance | None) -> None:
        """Puts a lane where it was when `state` was taken; the instance is None for one from before any episode."""
