"""The conformal guard on the store's numbers: an upper error bound per (instance, layer), segment and rank."""

from __future__ import annotations

import numpy as np

from drrl_env.envs.conformal import open_guard
from drrl_env.envs.mechanism import Bools, Doubles, Lanes
from drrl_env.envs.settings import Guard
from drrl_env.envs.store import Store


class Safety:
    """Bounds, worked out once per segment and remembered.

    Args:
        store: whose static observations they follow from.
        guard: tolerance and confidence.

    Attributes:
        bounds: upper bound of the relative error per rank, NaN where not known yet, (rows, ranks).
    """

    def __init__(self, store: Store, guard: Guard) -> None:
        self._store, self._guard = store, open_guard(store.world, guard)
        self._segments = store.world.segments
        self.bounds: Doubles = np.full((0, len(store.world.ranks)), np.nan)

    def prepare(self, block: int, position: int) -> None:
        """Makes the bounds of a streamed segment be there."""
        row = block * self._segments + position
        if row >= len(self.bounds):
            more = np.full((2 * row + 64 - len(self.bounds), self.bounds.shape[1]), np.nan)
            self.bounds = np.concatenate([self.bounds, more])
        layer = self._store.origin(block)[1]
        self._store.ensure_evidence(block, position)
        self.bounds[row] = self._guard.bounds(layer, position, self._store.evidence[block, position])

    def ready(self, lanes: Lanes) -> Bools:
        """Whether the lanes' bounds are there."""
        rows = lanes.block * self._segments + np.minimum(lanes.position, self._segments - 1)
        inside = rows < len(self.bounds)
        return inside & ~np.isnan(self.bounds[np.where(inside, rows, 0), 0]) if len(self.bounds) else inside
