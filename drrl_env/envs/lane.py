"""A lane of DRRL-Layers-v0: an episode of the closed loop, and what is seen of it."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from copy import copy
from weakref import WeakValueDictionary

import numpy as np
import torch

from drrl_env.data.instances import Instance
from drrl_env.envs.flow import Flow, FlowRules, relative_changes
from drrl_env.envs.history import free, previous_rank, window_ranks
from drrl_env.envs.mechanism import Bools, Doubles, Floats
from drrl_env.envs.observation import WINDOW, Entry, entry_row, token_rows, view_of
from drrl_env.envs.play import Observation
from drrl_env.envs.world import World


def lane_entries(world: World) -> tuple[Entry, ...]:
    """Every entry of the observation; the static ones show the segment as it arrives at the layer that waits."""
    so_far = "ranks executed so far in this segment, layer by layer, over dim; zero at the layer that waits and above"
    clock = "choices made over choices in the episode"
    return (
        *world.layout.entries,
        previous_rank(len(world.ranks)),
        window_ranks(),
        Entry("layers_ranks", world.layers, 0.0, 1.0, False, free, so_far, "history"),
        Entry("position", 1, 0.0, 1.0, False, free, clock, "clock"),
    )


class Lane:
    """An episode in progress.

    Args:
        flow: the episode.

    Attributes:
        flow: the episode.
        layer: the layer that waits; at the end the one that was chosen for last.
        allowed: what the guard allows there, (ranks,); everything at the end.
    """

    def __init__(self, flow: Flow) -> None:
        self.flow, self.layer = flow, flow.layers[-1]
        self._tokens: tuple[int, Floats] | None = None
        self._past: dict[int, tuple[Floats, ...]] = dict.fromkeys(flow.layers, ())
        self._kept: dict[int, tuple[Doubles, ...]] = dict.fromkeys(flow.layers, ())
        self._row: Floats = np.empty(flow.shared.world.layout.width, np.float32)
        self._key: Hashable = None
        self.arrive()

    def fork(self) -> Lane:
        """An independent lane at the same point."""
        twin = copy(self)
        twin.flow, twin._key = self.flow.fork(), None
        twin._past, twin._kept = dict(self._past), dict(self._kept)
        twin._enter()
        return twin

    def leave(self) -> None:
        """To be said before the episode goes on: who looks for a lane here finds it no more."""
        if _RESTING.get(self._key) is self:
            del _RESTING[self._key]

    def arrive(self) -> None:
        """To be said once it went on: looks at the attention that waits, or at the end keeps what was seen last."""
        self.allowed: Bools = self.flow.allowed()
        if not self.flow.loop.ended:
            self.layer = self.flow.loop.layer
            self._look()
        self._enter()

    def _enter(self) -> None:
        flow = self.flow
        self._key = _place(flow.shared, flow.layers, flow.instance, flow.choices)
        _RESTING[self._key] = self

    @torch.no_grad()
    def _look(self) -> None:
        """Works out the static row, and remembers what later ones show of it."""
        world, segment, layer = self.flow.shared.world, self.flow.loop.segment, self.layer
        layout, view = world.layout, view_of(segment, world.calibration.weights[layer], self._text())
        self._row = np.empty(layout.width, np.float32)
        for entry in layout.entries:
            past = entry.name == "window"
            self._row[layout.slices[entry.name]] = self._window() if past else entry_row(entry, view, layer)
        self._past[layer] = (*self._past[layer], self._row[layout.slices.get("segment", slice(0))])[-WINDOW:]
        self._kept[layer] = (*self._kept[layer], 1 - relative_changes(segment)[:, -1] ** 2)

    def _text(self) -> Floats:
        """What is shown of the segment's text, the same at every layer."""
        loop, world = self.flow.loop, self.flow.shared.world
        if self._tokens is None or self._tokens[0] != loop.position:
            calibration = world.calibration
            axes = calibration.embedding_mean, calibration.embedding_components
            self._tokens = loop.position, token_rows(loop.embeddings, *axes, world.measurement.segment)[0]
        return self._tokens[1]

    def _window(self) -> Floats:
        """Statistics of the last `WINDOW` segments at this layer, zero before the first."""
        rows = self._past[self.layer]
        columns = self.flow.shared.world.layout.slices["segment"]
        missing = [np.zeros(columns.stop - columns.start, np.float32)] * (WINDOW - len(rows))
        return np.concatenate([*missing, *rows])

    def observe(self) -> Observation:
        """The observation, (size,) each."""
        flow, world = self.flow, self.flow.shared.world
        found: Observation = {name: self._row[columns] for name, columns in world.layout.slices.items()}
        position, ranks = flow.loop.position, len(world.ranks)
        found["previous_rank"] = np.eye(ranks, dtype=np.float32)[flow.before(position - 1, self.layer)]
        window = [flow.before(at, self.layer) if at >= 0 else None for at in range(position - WINDOW, position)]
        found["window_ranks"] = self._shares(window)
        begun = flow.executed[min(position, world.segments - 1) * world.layers :]
        found["layers_ranks"] = self._shares([*begun, *[None] * (world.layers - len(begun))])
        found["position"] = np.array([flow.steps / (world.segments * len(flow.layers))], np.float32)
        return found

    def _shares(self, choices: list[int | None]) -> Floats:
        """Ranks over dim; zero for none."""
        world = self.flow.shared.world
        return np.array([0 if at is None else world.ranks[at] / world.shape.dim for at in choices], np.float32)

    def spectrum(self) -> Doubles:
        """Share of the score energy that each rank keeps at this layer, (segments arrived, ranks)."""
        return np.stack(self._kept[self.layer])


_RESTING: WeakValueDictionary[Hashable, Lane] = WeakValueDictionary()
"""Lanes of this process by where they are: a state of one of them is gone back to by a fork instead of a replay."""


def _place(shared: FlowRules, layers: tuple[int, ...], instance: Instance, choices: Sequence[int]) -> Hashable:
    return shared.rules, layers, instance, tuple(choices)


def lane_at(shared: FlowRules, layers: tuple[int, ...], instance: Instance, choices: Sequence[int] = ()) -> Lane:
    """A lane with these choices made: forked from one that is there, else replayed; the bits are the same.

    Args:
        shared: rules and tables.
        layers: layers whose ranks are chosen.
        instance: the span of text.
        choices: choices made, carried out whatever the guard says: they are what was executed.
    """
    resting = _RESTING.get(_place(shared, layers, instance, choices))
    if resting is not None:
        return resting.fork()
    lane = Lane(Flow(shared, instance, layers))
    for choice in choices:
        lane.leave()
        lane.flow.execute(choice)
        lane.arrive()
    return lane
