"""Rank and basis: refreshing costs now, a kept basis goes stale, a calibrated one is blunt."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from drrl_env.envs.history import free, previous_rank, window_ranks
from drrl_env.envs.mechanism import Bools, Doubles, Effects, Floats, Integers, Lanes
from drrl_env.envs.observation import Entry
from drrl_env.envs.settings import Guard
from drrl_env.envs.store import Store
from drrl_env.envs.streamed import Streamed
from drrl_env.envs.world import World
from drrl_env.lowrank.flops import kind_flops, product_flops

KINDS = ("calibrated", "kept", "refreshed")
"""What a segment's score basis may be, in the order of the action."""
CALIBRATED, KEPT, REFRESHED = range(3)


class BasisMechanism(Streamed):
    """An action is (rank, kind of basis); the state is (rank, what is cached, slot).

    Cached is 0 for the calibrated basis (and after full rank, when nothing is) and 1 for the slot's; slot 0 means that
    nothing was refreshed yet, slot 1 + s that the basis in hand was refreshed at segment s. Refreshing pays the update
    (the keys of every segment since the last refresh go into G_k) and re-projects all cached keys; keeping pays for new
    rows only; changing to or from the calibrated basis re-projects. Full rank touches no basis.

    Args:
        store: what was measured.
        guard: which ranks are allowed, given what was executed last; a rank is masked if no allowed kind may run it.

    Raises:
        ValueError: a conformal guard, whose promise covers one basis only.
    """

    heads, masked = 1, True

    def __init__(self, store: Store, guard: Guard) -> None:
        if guard.kind == "conformal":
            raise ValueError("guard='conformal': its promise covers no kept bases; use 'paper' or 'off'")
        super().__init__(store, guard)
        self.sizes: tuple[int, ...] = (self._ranks, len(KINDS))
        self.start: tuple[int, ...] = (self._ranks - 1, 0, 0)
        self.state_sizes: tuple[int, ...] = (self._ranks, 2, self._segments + 1)
        self.flops, self.catching_up = _flops(self.world), _catching_up(self.world)
        self._cached = np.eye(3, dtype=np.float32)
        self.entries: tuple[Entry, ...] = (previous_rank(self._ranks), window_ranks(), *_entries(self._ranks))

    def prepare(self, lanes: Lanes, lane: int) -> None:
        """Streams the segment, and measures the changes between the bases in hand."""
        super().prepare(lanes, lane)
        block, position = int(lanes.block[lane]), min(int(lanes.position[lane]), self._segments - 1)
        slot = int(lanes.state[lane, 2])
        if slot <= position:
            self.store.ensure_source_changes(block, position, slot)

    def ready(self, lanes: Lanes) -> Bools:
        """Whether both were done."""
        found = super().ready(lanes)
        if not found.all():
            return found
        return ~np.isnan(self._energies(lanes, CALIBRATED)[:, 0])

    def _slots(self, lanes: Lanes) -> Integers:
        """Row of (block, segment, slot) in `source_changes`."""
        place = np.minimum(lanes.position, self._segments - 1)
        return (lanes.block * self._segments + place) * (self._segments + 1) + lanes.state[:, 2]

    def _energies(self, lanes: Lanes, kind: int) -> Doubles:
        """‖S − S_r‖/‖S‖ per rank in the calibrated basis or the slot's, NaN where there is none, (lanes, ranks)."""
        moves = self.store.source_changes.reshape(-1, 2, self._ranks, 3, self._ranks)
        found: Doubles = moves[self._slots(lanes), kind, :, CALIBRATED, -1]
        return found

    def effects(self, lanes: Lanes, actions: Integers) -> Effects:
        """Gathers what rank and basis do."""
        choice, kind = actions[:, 0], actions[:, 1]
        outcomes = self._outcomes(lanes, choice, self._source(lanes, choice, kind))
        moves = self._slots(lanes), lanes.state[:, 1], lanes.state[:, 0], kind, choice
        change = self.store.source_changes.reshape(-1, 2, self._ranks, 3, self._ranks)[moves]
        flops = self._price(lanes, choice, kind)
        ratio, full = flops / self.mean_full, self.full_flops.take(lanes.position) / self.mean_full
        return Effects(outcomes[:, 0], outcomes[:, 1], flops, ratio, flops, ratio, full, change)

    def _source(self, lanes: Lanes, choice: Integers, kind: Integers) -> Integers:
        """Which measured basis runs: 0 the calibrated one (and for full rank), 1 + s the one refreshed at s."""
        kept = np.where(kind == KEPT, lanes.state[:, 2], 0)
        found = np.where(kind == REFRESHED, lanes.position + 1, kept)
        return np.where(choice == self._ranks - 1, 0, found)

    def _outcomes(self, lanes: Lanes, choice: Integers, source: Integers) -> Doubles:
        """Cosine and error, measured first where they never were, (lanes, 2)."""
        at = lanes.block * self._segments + lanes.position
        rows = (at * (self._segments + 1) + source) * self._ranks + choice
        found: Doubles = self.store.source_outcomes.reshape(-1, 2).take(rows, axis=0)
        missing = np.isnan(found[:, 0])
        if missing.any():
            for lane in np.flatnonzero(missing):
                where = int(lanes.block[lane]), int(lanes.position[lane])
                self.store.ensure_source_outcome(*where, int(source[lane]), int(choice[lane]))
            found = self.store.source_outcomes.reshape(-1, 2).take(rows, axis=0)
        return found

    def _price(self, lanes: Lanes, choice: Integers, kind: Integers) -> Doubles:
        """FLOPs of the transition; a refresh pays for the keys of every segment since the last one."""
        row = (lanes.layer, lanes.position, lanes.state[:, 1], lanes.state[:, 0], kind, choice)
        missed = np.where(lanes.state[:, 2] == 0, lanes.position, lanes.position - lanes.state[:, 2])
        refreshes = (kind == REFRESHED) & (choice < self._ranks - 1)
        return self.flops[row] + np.where(refreshes, missed * self.catching_up, 0.0)

    def following(self, lanes: Lanes, actions: Integers) -> Integers:
        """Rank, what is cached and slot after the actions."""
        choice, kind = actions[:, 0], actions[:, 1]
        full = choice == self._ranks - 1
        cached = np.where(full | (kind == CALIBRATED), 0, 1)
        slot = np.where((kind == REFRESHED) & ~full, lanes.position + 1, lanes.state[:, 2])
        return np.stack([choice, cached, slot], axis=-1)

    def joint(self, lanes: Lanes) -> Bools:
        """Which (kind, rank) pairs may run, full rank always, (lanes, 3, ranks)."""
        found = np.ones((len(lanes.block), 3, self._ranks), bool)
        place = np.minimum(lanes.position, self._segments - 1)
        if self.guard.kind != "off":
            moves = self.store.source_changes.reshape(-1, 2, self._ranks, 3, self._ranks)
            change = moves[self._slots(lanes), lanes.state[:, 1], lanes.state[:, 0]]
            found = change <= self._limits.take(place)[:, None, None]
        found[:, KEPT] &= (lanes.state[:, 2] > 0)[:, None]
        found[..., -1] = True
        return found

    def allowed(self, lanes: Lanes) -> Bools:
        """Ranks that some kind may run, then kinds there are: kept only after a refresh, (lanes, ranks + 3)."""
        kinds = np.ones((len(lanes.block), 3), bool)
        kinds[:, KEPT] = lanes.state[:, 2] > 0
        return np.concatenate([self.joint(lanes).any(1), kinds], axis=1)

    def carried_out(self, lanes: Lanes, actions: Integers, allowed: Bools) -> Integers:
        """Calibrated where nothing can be kept; then the nearest rank that this kind may run, ties upward."""
        none_kept = (actions[:, 1] == KEPT) & (lanes.state[:, 2] == 0)
        kind = np.where(none_kept, CALIBRATED, actions[:, 1])
        open_ = np.take_along_axis(self.joint(lanes), kind[:, None, None], axis=1)[:, 0]
        rank = np.where(open_, self._nearest.take(actions[:, 0], axis=0), np.inf).argmin(-1)
        return np.stack([rank, kind], axis=-1)

    def shares(self, actions: Integers) -> Floats:
        """The rank over dim."""
        return self._shares.take(actions[:, :1])

    def observe(self, lanes: Lanes) -> dict[str, Floats]:
        """The last rank, those before, the basis in hand and what either basis would keep."""
        slot = lanes.state[:, 2]
        age = np.where(slot > 0, lanes.position - (slot - 1), 0) / np.float64(self._segments)
        cached = np.where(lanes.state[:, 0] == self._ranks - 1, 0, 1 + lanes.state[:, 1])
        basis = np.concatenate([self._cached.take(cached, axis=0), np.stack([slot > 0, age], -1)], axis=1)
        return {
            "previous_rank": self._one_hot.take(lanes.state[:, 0], axis=0),
            "window_ranks": lanes.history.copy(),
            "basis": basis.astype(np.float32),
            "energy_calibrated": self._kept_share(lanes, 0),
            "energy_kept": self._kept_share(lanes, 1),
        }

    def _kept_share(self, lanes: Lanes, kind: int) -> Floats:
        """1 − ‖S − S_r‖²/‖S‖² of every rank, 0 where there is no basis."""
        lost = self._energies(lanes, kind)
        return np.where(np.isnan(lost), 0.0, 1 - lost * lost).clip(-8, 1).astype(np.float32)

    def describe(self, lanes: Lanes, actions: Integers) -> Mapping[str, list[object]]:
        """Rank, value rank, choice, kind of basis and its age in segments."""
        layers, choices = lanes.layer.tolist(), actions.tolist()
        names = [KINDS[kind] for _, kind in choices]
        streams = [self.world.streams_of("calibrated" if name == "calibrated" else "refreshed") for name in names]
        costs = [stream[k].costs[a] for stream, k, (a, _) in zip(streams, layers, choices, strict=True)]
        ages = (lanes.position - (lanes.state[:, 2] - 1)).tolist()
        return {
            "rank": [cost.rank for cost in costs],
            "value_rank": [cost.value_rank for cost in costs],
            "choice": list(map(tuple, choices)),
            "basis": names,
            "basis_age": [age if name == "kept" else 0 for age, name in zip(ages, names, strict=True)],
        }

    def states(self, position: int) -> Integers:
        """Every rank in either cached basis after every refresh there may have been; full rank caches nothing."""
        slots = [(rank, 0, slot) for slot in range(position + 1) for rank in range(self._ranks)]
        cached = [(rank, 1, slot) for slot in range(1, position + 1) for rank in range(self._ranks - 1)]
        found = slots + cached if position else [self.start]
        return np.array(found, np.int64)


def _entries(ranks: int) -> tuple[Entry, ...]:
    hand = "one-hot of what is cached (nothing, calibrated, the basis in hand), whether one is in hand, its age"
    return (
        Entry("basis", 5, 0.0, 1.0, False, free, f"{hand} over segments", "history"),
        Entry(
            "energy_calibrated", ranks, -8.0, 1.0, True, product_flops,
            "score energy each rank keeps in the calibrated basis", "paper Eq. 15",
        ),
        Entry("energy_kept", ranks, -8.0, 1.0, True, product_flops, "the same in the basis in hand", "paper Eq. 15"),
    )  # fmt: skip


def _flops(world: World) -> Doubles:
    """FLOPs by (layer, segment, cached, previous, kind, choice); a refresh takes in its own segment's keys."""
    ranks, names = len(world.ranks), ("calibrated", "refreshed")
    found = np.empty((world.layers, world.segments, 2, ranks, 3, ranks))
    costs = [[world.streams_of(name)[layer].costs for layer in range(world.layers)] for name in names]
    width = world.streams[0].width
    for (layer, t, cached, before, kind, choice), _ in np.ndenumerate(found):
        found[layer, t, cached, before, kind, choice] = kind_flops(
            world.shape, t, costs[min(kind, 1)][layer][choice], KINDS[kind], costs[cached][layer][before],
            names[cached], True, width,
        )  # fmt: skip
    return found


def _catching_up(world: World) -> float:
    """FLOPs of taking one more segment's keys into G_k, all key heads."""
    shape = world.shape
    return 2.0 * shape.kv_heads * shape.segment * shape.dim**2
