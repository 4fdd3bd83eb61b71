"""One rank for the whole layer: the mechanism of the paper's task and of its variants."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from drrl_env.envs.costs import CostModel, FlopsCost
from drrl_env.envs.history import previous_rank, window_ranks
from drrl_env.envs.mechanism import Bools, Doubles, Effects, Floats, Integers, Lanes
from drrl_env.envs.observation import Entry
from drrl_env.envs.safety import Safety
from drrl_env.envs.settings import Guard
from drrl_env.envs.store import Store


class RankMechanism:
    """An action is a candidate rank; the state is the one executed last.

    Args:
        store: what was measured.
        guard: which ranks are allowed, given the last one.
        cost: what a transition costs in the reward; FLOPs are reported whatever it is.
    """

    def __init__(self, store: Store, guard: Guard, cost: CostModel) -> None:
        self.store, self.world, self.guard, self.cost_model = store, store.world, guard, cost
        self._ranks, self._segments = len(self.world.ranks), self.world.segments
        self.sizes: tuple[int, ...] = (self._ranks,)
        self.start: tuple[int, ...] = (self._ranks - 1,)
        self.state_sizes: tuple[int, ...] = (self._ranks,)
        self.masked, self.heads = guard.kind != "off", 1
        self.entries: tuple[Entry, ...] = (previous_rank(self._ranks), window_ranks())
        flops = FlopsCost()
        self.flops, self.full_flops = flops.table(self.world), flops.full(self.world)
        same = cost.name == flops.name
        self.cost = self.flops if same else cost.table(self.world)
        self.full_cost = self.full_flops if same else cost.full(self.world)
        self.mean_full = float(self.full_flops.mean())
        self._mean_cost = float(self.full_cost.mean())
        self._flat_flops, self._flat_cost = self.flops.reshape(-1), None if same else self.cost.reshape(-1)
        self._full_ratio = self.full_cost / self._mean_cost
        self._limits = np.array([guard.limit(t) for t in range(self._segments)])
        self._safety = Safety(store, guard) if guard.kind == "conformal" else None
        self._nearest = distances(self.world.ranks)
        self._candidates = np.array(self.world.ranks)
        self._value_ranks = np.array([[cost.value_rank for cost in stream.costs] for stream in self.world.streams])
        self._one_hot = np.eye(self._ranks, dtype=np.float32)
        self._shares = np.array(self.world.ranks, np.float32) / np.float32(self.world.shape.dim)

    def prepare(self, lanes: Lanes, lane: int) -> None:
        """Streams the segment, and those before it."""
        block, position = int(lanes.block[lane]), min(int(lanes.position[lane]), self._segments - 1)
        self.store.ensure_segment(block, position)
        if self._safety is not None:
            self._safety.prepare(block, position)

    def ready(self, lanes: Lanes) -> Bools:
        """Whether the segment was streamed."""
        found: Bools = self.store.ready.take(lanes.block) > lanes.position
        return found if self._safety is None else found & self._safety.ready(lanes)

    def effects(self, lanes: Lanes, actions: Integers) -> Effects:
        """Gathers what the ranks do."""
        choice, place = actions[:, 0], lanes.block * self._segments + lanes.position
        outcomes = self._outcomes(lanes, place * self._ranks + choice, choice)
        move = (place * self._ranks + lanes.state[:, 0]) * self._ranks + choice
        change = self.store.changes.reshape(-1).take(move)
        row = (lanes.layer * self._segments + lanes.position) * self._ranks + lanes.state[:, 0]
        priced = row * self._ranks + choice
        flops = self._flat_flops.take(priced)
        cost = flops if self._flat_cost is None else self._flat_cost.take(priced)
        full = self._full_ratio.take(lanes.position)
        flops_ratio = flops / self.mean_full
        return Effects(outcomes[:, 0], outcomes[:, 1], flops, flops_ratio, cost, cost / self._mean_cost, full, change)

    def _outcomes(self, lanes: Lanes, places: Integers, choice: Integers) -> Doubles:
        """Cosine and error, measured first where they never were, (lanes, 2)."""
        found: Doubles = self.store.outcomes.reshape(-1, 2).take(places, axis=0)
        missing = np.isnan(found[:, 0])
        if np.count_nonzero(missing):
            for lane in np.flatnonzero(missing):
                self.store.ensure_outcome(int(lanes.block[lane]), int(lanes.position[lane]), int(choice[lane]))
            found = self.store.outcomes.reshape(-1, 2).take(places, axis=0)
        return found

    def _row(self, lanes: Lanes) -> Integers:
        """Row of the lane in tables of (layer, segment, previous)."""
        place = np.minimum(lanes.position, self._segments - 1)
        return (lanes.layer * self._segments + place) * self._ranks + lanes.state[:, 0]

    def prices(self, lanes: Lanes) -> Doubles:
        """FLOPs of every rank, (lanes, ranks)."""
        found: Doubles = self.flops.reshape(-1, self._ranks).take(self._row(lanes), axis=0)
        return found

    def following(self, lanes: Lanes, actions: Integers) -> Integers:
        """The rank itself."""
        return actions

    def allowed(self, lanes: Lanes) -> Bools:
        """What the guard allows, full rank always."""
        if not self.masked:
            return np.ones((len(lanes.block), self._ranks), bool)
        place = np.minimum(lanes.position, self._segments - 1)
        at = lanes.block * self._segments + place
        if self._safety is not None:
            measured = self._safety.bounds.take(at, axis=0)
        else:
            row = at * self._ranks + lanes.state[:, 0]
            measured = self.store.changes.reshape(-1, self._ranks).take(row, axis=0)
        found: Bools = measured <= self._limits.take(place)[:, None]
        found[:, -1] = True
        return found

    def carried_out(self, lanes: Lanes, actions: Integers, allowed: Bools) -> Integers:
        """The nearest allowed rank; of two equally near the upper one."""
        apart = np.where(allowed, self._nearest.take(actions[:, 0], axis=0), np.inf)
        found: Integers = apart.argmin(-1)
        return found[:, None]

    def shares(self, actions: Integers) -> Floats:
        """The rank over dim."""
        return self._shares.take(actions)

    def observe(self, lanes: Lanes) -> dict[str, Floats]:
        """The last rank and those before."""
        return {"previous_rank": self._one_hot.take(lanes.state[:, 0], axis=0), "window_ranks": lanes.history.copy()}

    def describe(self, lanes: Lanes, actions: Integers) -> Mapping[str, list[object]]:
        """Rank, value rank and choice."""
        choices = actions[:, 0]
        values = self._value_ranks.reshape(-1).take(lanes.layer * self._ranks + choices)
        return {
            "rank": self._candidates.take(choices).tolist(),
            "value_rank": values.tolist(),
            "choice": choices.tolist(),
        }

    def states(self, position: int) -> Integers:
        """Every rank, executed last."""
        return np.arange(self._ranks)[:, None]


def distances(ranks: tuple[int, ...]) -> Doubles:
    """Distance between a wanted and an executed rank, (wanted, executed); of two equally near the upper one wins."""
    values = np.array(ranks, float)
    apart = np.abs(values[:, None] - values[None, :])
    found: Doubles = apart - 0.25 * (values[None, :] > values[:, None])
    return found
