"""Transitions: what a step does, for every (segment, previous rank, rank), as tables that lanes gather from.

Reward, masks and costs are worked out from what the store measured. A row is filled when it is first needed;
a replayed step is one gather from it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from drrl_env.envs.settings import Guard, Measurement, Reward
from drrl_env.envs.store import Doubles, Store, open_store
from drrl_env.lowrank.flops import full_flops, segment_flops

COLUMNS = (
    "reward",
    "fidelity_term",
    "flops_term",
    "change_term",
    "cosine",
    "relative_error",
    "flops",
    "flops_ratio",
    "score_change",
)
"""Numbers of a transition, in this order; the reward is the sum of the three terms."""


@dataclass(frozen=True)
class Rules:
    """What turns measurements into a task.

    Attributes:
        measurement: what is measured, ranks resolved.
        reward: weights of the reward.
        guard: which ranks are allowed.
    """

    measurement: Measurement
    reward: Reward
    guard: Guard


class Transitions:
    """The tables of one set of rules.

    Args:
        rules: the rules.
        store: the store of their measurement.

    Attributes:
        table: `COLUMNS` per (block, segment, previous, choice), NaN where not known yet, (rows, columns).
        allowed: action masks per (block, segment, previous), (rows, ranks), bool.
        executed: the choice carried out for each choice, per (block, segment, previous), (rows · ranks,).
        known: whether masks and static observation are there, per (block, segment), (rows,), bool.
        flops: FLOPs per (layer, segment, previous, choice).
        mean_full: mean full-attention FLOPs per segment of an episode.
    """

    def __init__(self, rules: Rules, store: Store) -> None:
        self.rules, self.store, self.world = rules, store, store.world
        self.flops = self._flops()
        self.mean_full = float(np.mean([full_flops(self.world.shape, t) for t in range(self.world.segments)]))
        self._nearest = _distances(self.world.ranks)
        self._allocate(16)

    def _flops(self) -> Doubles:
        """FLOPs of every transition, (layers, segments, previous, choice)."""
        world = self.world
        found = np.empty((world.layers, world.segments, len(world.ranks), len(world.ranks)))
        for layer, stream in enumerate(world.streams):
            for (t, p, a), _ in np.ndenumerate(found[layer]):
                chosen, before = stream.costs[a], stream.costs[p]
                found[layer, t, p, a] = segment_flops(stream.shape, t, chosen, before, stream.basis, stream.width)
        return found

    def _allocate(self, blocks: int) -> None:
        ranks = len(self.world.ranks)
        rows = blocks * self.world.segments * ranks
        self.table = np.full((rows * ranks, len(COLUMNS)), np.nan)
        self.allowed = np.ones((rows, ranks), bool)
        self.executed = np.tile(np.arange(ranks), rows)
        self.known = np.zeros(blocks * self.world.segments, bool)

    def _grow(self, block: int) -> None:
        while (block + 1) * self.world.segments > len(self.known):
            old = self.table, self.allowed, self.executed, self.known
            self._allocate(2 * len(self.known) // self.world.segments)
            for array, before in zip((self.table, self.allowed, self.executed, self.known), old, strict=True):
                array[: len(before)] = before

    def prepare(self, block: int, position: int) -> None:
        """Makes the masks and the static observation of a segment, and of those before it, be there."""
        self._grow(block)
        first = block * self.world.segments
        if self.known[first + position]:
            return
        self.store.ensure_segment(block, position)
        for t in np.flatnonzero(~self.known[first : first + position + 1]):
            self._write_masks(block, int(t))
        self.known[first : first + position + 1] = True

    def _write_masks(self, block: int, position: int) -> None:
        ranks = len(self.world.ranks)
        allowed = self.store.changes[block, position] <= self.rules.guard.limit(position)
        allowed[:, -1] = True
        first = (block * self.world.segments + position) * ranks
        self.allowed[first : first + ranks] = allowed
        cost = np.where(allowed[:, None, :], self._nearest[None], np.inf)
        self.executed[first * ranks : (first + ranks) * ranks] = cost.argmin(-1).ravel()

    def fill(self, block: int, position: int, choice: int) -> None:
        """Works out the transitions to `choice` from every previous rank."""
        self.prepare(block, position)
        self.store.ensure_outcome(block, position, choice)
        ranks = len(self.world.ranks)
        first = (block * self.world.segments + position) * ranks * ranks
        self.table[first + choice : first + ranks * ranks : ranks] = self._rows(block, position, choice)

    def _rows(self, block: int, position: int, choice: int) -> Doubles:
        """`COLUMNS` for every previous rank, (ranks, columns)."""
        cosine, error = self.store.outcomes[block, position, choice]
        change = self.store.changes[block, position, :, choice]
        flops = self.flops[self.store.origin(block)[1], position, :, choice]
        ratio = flops / self.mean_full
        weights = self.rules.reward
        fidelity = cosine if weights.fidelity == "cosine" else 1 - error**2
        terms = np.broadcast_arrays(weights.alpha * fidelity, -weights.beta * ratio, -weights.gamma * change)
        rows = (terms[0] + terms[1] + terms[2], *terms, np.full_like(ratio, cosine), np.full_like(ratio, error))
        return np.stack([*rows, flops, ratio, change], axis=-1)

    def complete(self, block: int) -> Doubles:
        """Every transition of a block, (segments, previous, choice, columns); disallowed ones are not executed."""
        segments, ranks = self.world.segments, len(self.world.ranks)
        for position in range(segments):
            for choice in range(ranks):
                self.fill(block, position, choice)
        size = segments * ranks * ranks
        return self.table[block * size : (block + 1) * size].reshape(segments, ranks, ranks, len(COLUMNS))

    def masks(self, block: int) -> NDArray[np.bool_]:
        """Action masks of a block, (segments, previous, choice)."""
        self.prepare(block, self.world.segments - 1)
        segments, ranks = self.world.segments, len(self.world.ranks)
        size = segments * ranks
        return self.allowed[block * size : (block + 1) * size].reshape(segments, ranks, ranks)

    def carried_out(self, block: int) -> NDArray[np.int64]:
        """The choice carried out for each choice of a block, (segments, previous, choice)."""
        shape = self.masks(block).shape
        size = int(np.prod(shape))
        return self.executed[block * size : (block + 1) * size].reshape(shape)


def _distances(ranks: tuple[int, ...]) -> Doubles:
    """Distance between a wanted and an executed rank, (wanted, executed); of two equally near the upper one wins."""
    values = np.array(ranks, float)
    apart = np.abs(values[:, None] - values[None, :])
    found: Doubles = apart - 0.25 * (values[None, :] > values[:, None])
    return found


def open_transitions(rules: Rules) -> Transitions:
    """The process-wide tables of a set of rules; `clear_stores` forgets them with what they were worked out from."""
    store = open_store(rules.measurement)
    found = store.derived.get(rules) or store.derived.setdefault(rules, Transitions(rules, store))
    assert isinstance(found, Transitions)
    return found
