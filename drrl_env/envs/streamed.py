"""What all tabular mechanisms share: candidate ranks as arrays, and a segment that must be streamed to be looked at."""

from __future__ import annotations

import numpy as np

from drrl_env.envs.costs import FlopsCost
from drrl_env.envs.mechanism import Bools, Doubles, Lanes
from drrl_env.envs.safety import Safety
from drrl_env.envs.settings import Guard
from drrl_env.envs.store import Store


class Streamed:
    """The common part of a mechanism.

    Args:
        store: what was measured.
        guard: which ranks are allowed.

    Attributes:
        full_flops: FLOPs of full attention, (segments,).
        mean_full: their mean.
    """

    def __init__(self, store: Store, guard: Guard) -> None:
        self.store, self.world, self.guard = store, store.world, guard
        self._ranks, self._segments = len(self.world.ranks), self.world.segments
        self.full_flops = FlopsCost().full(self.world)
        self.mean_full = float(self.full_flops.mean())
        self._limits = np.array([guard.limit(t) for t in range(self._segments)])
        self._safety = Safety(store, guard) if guard.kind == "conformal" else None
        self._nearest = distances(self.world.ranks)
        self._one_hot = np.eye(self._ranks, dtype=np.float32)
        self._shares = np.array(self.world.ranks, np.float32) / np.float32(self.world.shape.dim)

    def prepare(self, lanes: Lanes, lane: int) -> None:
        """Streams the lane's segment, and those before it."""
        block, position = int(lanes.block[lane]), min(int(lanes.position[lane]), self._segments - 1)
        self.store.ensure_segment(block, position)
        if self._safety is not None:
            self._safety.prepare(block, position)

    def ready(self, lanes: Lanes) -> Bools:
        """Whether the segment was streamed, (lanes,)."""
        found: Bools = self.store.ready.take(lanes.block) > lanes.position
        return found if self._safety is None else found & self._safety.ready(lanes)


def distances(ranks: tuple[int, ...]) -> Doubles:
    """Distance between a wanted and an executed rank, (wanted, executed); of two equally near the upper one wins."""
    values = np.array(ranks, float)
    apart = np.abs(values[:, None] - values[None, :])
    found: Doubles = apart - 0.25 * (values[None, :] > values[:, None])
    return found
