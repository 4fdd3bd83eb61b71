"""A rank for every head: heads differ most."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from drrl_env.envs.history import previous_rank, window_ranks
from drrl_env.envs.mechanism import Bools, Doubles, Effects, Floats, Integers, Lanes
from drrl_env.envs.observation import Entry
from drrl_env.envs.settings import Guard
from drrl_env.envs.store import Store
from drrl_env.envs.streamed import Streamed
from drrl_env.lowrank.cost_tables import added, mixed_tables


class HeadsMechanism(Streamed):
    """An action is a candidate rank per query head; the state is the ranks executed last.

    Where the ranks of a group of query heads differ, the key side pays for the largest. The paper's guard gives every
    head an equal share of ε_t²; the conformal one allows a head what is safe for all of them at ε_t/√m, m the most
    different reduced ranks there can be: the squared error of heads at different ranks is at most the sum over those
    ranks of what all heads would lose at each.

    Args:
        store: what was measured.
        guard: which ranks are allowed.
    """

    def __init__(self, store: Store, guard: Guard) -> None:
        super().__init__(store, guard)
        self.heads, self.masked = self.world.shape.heads, guard.kind != "off"
        self.sizes, self.start = (self._ranks,) * self.heads, (self._ranks - 1,) * self.heads
        self.state_sizes = self.sizes
        self.entries: tuple[Entry, ...] = (previous_rank(self._ranks, self.heads), window_ranks(self.heads))
        self.tables = [
            mixed_tables(stream.shape, self._segments, stream.costs, stream.basis, stream.width)
            for stream in self.world.streams
        ]
        limits, mixed = self._limits, min(self.heads, self._ranks - 1)
        self._limits = limits * limits / self.heads if guard.kind == "paper" else limits / np.sqrt(mixed)
        self._each = np.arange(self.heads)

    def effects(self, lanes: Lanes, actions: Integers) -> Effects:
        """Adds up what the heads do."""
        moments = self._moments(lanes, actions)
        exact, inner, low, difference = (added(moments[..., part]) for part in range(4))
        with np.errstate(divide="ignore", invalid="ignore"):
            cosine = np.where(exact * low > 0, inner / np.sqrt(exact * low), (exact == low).astype(float))
            error = np.where(exact > 0, np.sqrt(difference / exact), (low > 0).astype(float))
        flops = self._flops(lanes, actions)
        ratio, full = flops / self.mean_full, self.full_flops.take(lanes.position) / self.mean_full
        change = np.sqrt(added(self._changes(lanes, actions)))
        return Effects(cosine, error, flops, ratio, flops, ratio, full, change)

    def _moments(self, lanes: Lanes, actions: Integers) -> Doubles:
        """Moments of every head at its rank, measured first where they never were, (lanes, heads, 4)."""
        place = lanes.block * self._segments + lanes.position
        rows = (place[:, None] * self._ranks + actions) * self.heads + self._each
        found: Doubles = self.store.moments.reshape(-1, 4).take(rows, axis=0)
        missing = np.isnan(found[..., 0])
        if missing.any():
            for lane, head in np.argwhere(missing):
                choice = int(actions[lane, head])
                self.store.ensure_outcome(int(lanes.block[lane]), int(lanes.position[lane]), choice)
            found = self.store.moments.reshape(-1, 4).take(rows, axis=0)
        return found

    def _changes(self, lanes: Lanes, actions: Integers) -> Doubles:
        """‖ΔS_h‖² over the layer's ‖S‖², (lanes, heads)."""
        place = (lanes.block * self._segments + lanes.position)[:, None] * self.heads + self._each
        rows = (place * self._ranks + lanes.state) * self._ranks + actions
        found: Doubles = self.store.head_changes.reshape(-1).take(rows)
        return found

    def _flops(self, lanes: Lanes, actions: Integers) -> Doubles:
        found = np.empty(len(actions))
        for layer in np.unique(lanes.layer):
            here = lanes.layer == layer
            table = self.tables[int(layer)]
            found[here] = table.flops(lanes.position[here], lanes.state[here], actions[here])
        return found

    def following(self, lanes: Lanes, actions: Integers) -> Integers:
        """The ranks themselves."""
        return actions

    def allowed(self, lanes: Lanes) -> Bools:
        """What the guard allows each head, full rank always, (lanes, heads · ranks)."""
        size = (len(lanes.block), self.heads, self._ranks)
        found = np.ones(size, bool)
        place = np.minimum(lanes.position, self._segments - 1)
        at = lanes.block * self._segments + place
        limits = self._limits.take(place)[:, None, None]
        if self._safety is not None:
            found &= self._safety.bounds.take(at, axis=0)[:, None] <= limits
        elif self.masked:
            rows = (at[:, None] * self.heads + self._each) * self._ranks + lanes.state
            found &= self.store.head_changes.reshape(-1, self._ranks).take(rows, axis=0) <= limits
        found[..., -1] = True
        return found.reshape(size[0], -1)

    def carried_out(self, lanes: Lanes, actions: Integers, allowed: Bools) -> Integers:
        """Head by head the nearest allowed rank; of two equally near the upper one."""
        open_ = allowed.reshape(len(actions), self.heads, self._ranks)
        found: Integers = np.where(open_, self._nearest.take(actions, axis=0), np.inf).argmin(-1)
        return found

    def shares(self, actions: Integers) -> Floats:
        """The ranks over dim."""
        return self._shares.take(actions)

    def observe(self, lanes: Lanes) -> dict[str, Floats]:
        """The last ranks and those before."""
        previous = self._one_hot.take(lanes.state, axis=0).reshape(len(lanes.block), -1)
        return {"previous_rank": previous, "window_ranks": lanes.history.copy()}

    def describe(self, lanes: Lanes, actions: Integers) -> Mapping[str, list[object]]:
        """Rank, value rank and choice of every head; tuples, since the simulator remembers them."""
        layers, choices = lanes.layer.tolist(), actions.tolist()
        costs = [[self.world.streams[k].costs[a] for a in row] for k, row in zip(layers, choices, strict=True)]
        ranks: list[object] = [tuple(cost.rank for cost in row) for row in costs]
        values: list[object] = [tuple(cost.value_rank for cost in row) for row in costs]
        return {"rank": ranks, "value_rank": values, "choice": list(map(tuple, choices))}

    def states(self, position: int) -> Integers:
        """Every combination of the ranks executed last, (ranks ** heads, heads): few heads only."""
        return combinations(self.sizes)


def combinations(sizes: Sequence[int]) -> Integers:
    """Every combination of choices, ascending, (product of sizes, components).

    Raises:
        ValueError: more than a million of them.
    """
    if math.prod(sizes) > 1_000_000:
        raise ValueError(f"sizes={tuple(sizes)}: too many combinations to list; work head by head")
    return np.stack([axis.ravel() for axis in np.indices(tuple(sizes))], axis=-1)
