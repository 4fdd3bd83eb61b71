"""One rank for the whole layer: the mechanism of the paper's task and of its variants."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from drrl_env.envs.costs import CostModel, FlopsCost
from drrl_env.envs.history import previous_rank, window_ranks
from drrl_env.envs.mechanism import Bools, Doubles, Effects, Floats, Integers, Lanes
from drrl_env.envs.observation import Entry
from drrl_env.envs.settings import Guard
from drrl_env.envs.store import Store
from drrl_env.envs.streamed import Streamed


class RankMechanism(Streamed):
    """An action is a candidate rank; the state is the one executed last.

    Args:
        store: what was measured.
        guard: which ranks are allowed, given the last one.
        cost: what a transition costs in the reward; FLOPs are reported whatever it is.
    """

    def __init__(self, store: Store, guard: Guard, cost: CostModel) -> None:
        super().__init__(store, guard)
        self.sizes: tuple[int, ...] = (self._ranks,)
        self.start: tuple[int, ...] = (self._ranks - 1,)
        self.state_sizes: tuple[int, ...] = (self._ranks,)
        self.masked, self.heads = guard.kind != "off", 1
        self.entries: tuple[Entry, ...] = (previous_rank(self._ranks), window_ranks())
        self.flops, same = FlopsCost().table(self.world), cost.name == FlopsCost.name
        self.cost = self.flops if same else cost.table(self.world)
        self.full_cost = self.full_flops if same else cost.full(self.world)
        self._mean_cost = float(self.full_cost.mean())
        self._flat_flops, self._flat_cost = self.flops.reshape(-1), None if same else self.cost.reshape(-1)
        self._full_ratio = self.full_cost / self._mean_cost
        self._candidates = np.array(self.world.ranks)
        self._value_ranks = np.array([[cost.value_rank for cost in stream.costs] for stream in self.world.streams])

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
