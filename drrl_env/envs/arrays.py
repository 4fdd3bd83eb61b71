"""Named arrays that grow together, a row of each per block, and what of a block is measured, as a value."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

Array = NDArray[Any]
Entries = dict[str, tuple[NDArray[np.int64], Array]]
"""What of a block is measured: per array the flat numbers of its entries, ascending, and the entries, (found, size)."""

SMALLEST = 16
"""Blocks that a new table has room for."""


@dataclass(frozen=True)
class ArraySpec:
    """One array of a table.

    Attributes:
        name: its name.
        shape: its shape per block.
        axes: leading axes of `shape` that number its entries; an entry is measured at once or not at all.
        dtype: its type.
        fill: value where nothing is measured yet. NaN: what is measured is seen in the array itself, and persists.
    """

    name: str
    shape: tuple[int, ...]
    axes: int = 1
    dtype: DTypeLike = np.float64
    fill: float = np.nan

    @property
    def persists(self) -> bool:
        """Whether its entries are worth keeping."""
        return bool(np.isnan(self.fill))

    @property
    def entries(self) -> tuple[int, int]:
        """Number of entries of a block, and numbers in each."""
        return prod(self.shape[: self.axes]), prod(self.shape[self.axes :])


class Table:
    """Arrays of the same blocks, growing by doubling.

    Args:
        specs: the arrays.

    Attributes:
        arrays: by name, (capacity, *shape); zero beyond the blocks that there are.
        blocks: blocks that there are.
    """

    def __init__(self, specs: Iterable[ArraySpec]) -> None:
        self.specs = {spec.name: spec for spec in specs}
        self.arrays: dict[str, Array] = {}
        self.blocks = 0
        self._allocate(SMALLEST)

    def _allocate(self, capacity: int) -> None:
        """Room for so many blocks; what is there is kept."""
        for name, spec in self.specs.items():
            # Zeros take no memory until they are written to, so room for blocks to come is free.
            found = np.zeros((capacity, *spec.shape), spec.dtype)
            if self.blocks:
                found[: self.blocks] = self.arrays[name][: self.blocks]
            self.arrays[name] = found

    @property
    def capacity(self) -> int:
        """Blocks that there is room for."""
        return len(next(iter(self.arrays.values())))

    def extend(self, blocks: int) -> bool:
        """Makes so many blocks be there, new ones unmeasured; whether the arrays moved."""
        moved = blocks > self.capacity
        if moved:
            self._allocate(max(2 * self.capacity, blocks))
        for name, spec in self.specs.items():
            self.arrays[name][self.blocks : blocks] = spec.fill
        self.blocks = max(self.blocks, blocks)
        return moved

    def entries(self, block: int) -> Entries:
        """What of a block is measured, copied."""
        found = {}
        for name, spec in self.specs.items():
            if spec.persists:
                rows = self.arrays[name][block].reshape(spec.entries)
                at = np.flatnonzero(~np.isnan(rows).all(-1))
                found[name] = at, rows[at]
        return found

    def put(self, block: int, found: Entries) -> None:
        """Writes measured entries into a block."""
        for name, (at, rows) in found.items():
            self.arrays[name][block].reshape(self.specs[name].entries)[at] = rows


def fits(specs: Iterable[ArraySpec], found: Entries) -> bool:
    """Whether entries are of these arrays: of all that persist, and of the right sizes."""
    wanted = {spec.name: spec for spec in specs if spec.persists}
    return found.keys() == wanted.keys() and all(_fits(wanted[name], *found[name]) for name in found)


def _fits(spec: ArraySpec, at: Array, rows: Array) -> bool:
    count, size = spec.entries
    inside = at.ndim == 1 and (at.size == 0 or (int(at.min()) >= 0 and int(at.max()) < count))
    return inside and rows.dtype == spec.dtype and rows.shape == (len(at), size)


def merged(mine: Entries, theirs: Mapping[str, tuple[Array, Array]]) -> Entries:
    """What either has measured; mine where both have."""
    found = {}
    for name, (at, rows) in mine.items():
        places, first = np.unique(np.concatenate([at, theirs[name][0]]), return_index=True)
        found[name] = places, np.concatenate([rows, theirs[name][1]])[first]
    return found
