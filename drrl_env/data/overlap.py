"""Shared text: which windows of characters occur in two places."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

WINDOW = 200
"""Characters: two texts share text when they have a run of this many in common."""

_BASE = 0x9E3779B97F4A7C15
_NONE = np.empty(0, dtype=np.uint64)


def windows(text: str, width: int = WINDOW) -> NDArray[np.uint64]:
    """Hashes of every run of `width` characters, sorted.

    A polynomial hash modulo 2**64 out of prefix sums: equal windows always have equal hashes.
    """
    codes = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32).astype(np.uint64)
    if len(codes) < width:
        return _NONE
    powers = np.cumprod(np.full(len(codes), _BASE, dtype=np.uint64))
    inverses = np.cumprod(np.full(len(codes), pow(_BASE, -1, 2**64), dtype=np.uint64))
    prefix = np.concatenate([np.zeros(1, dtype=np.uint64), np.cumsum(codes * inverses, dtype=np.uint64)])
    # np.sort: np.unique hashes and is forty times slower here.
    return np.sort((prefix[width:] - prefix[:-width]) * powers[: len(codes) - width + 1])


def union(hashes: Iterable[NDArray[np.uint64]]) -> NDArray[np.uint64]:
    """All hashes together, sorted."""
    return np.sort(np.concatenate([_NONE, *hashes]))


def shared(few: NDArray[np.uint64], many: NDArray[np.uint64]) -> int:
    """How many hashes of `few` are in `many` (sorted): quick for a short text against a library."""
    if not len(many):
        return 0
    found = np.minimum(np.searchsorted(many, few), len(many) - 1)
    return int((many[found] == few).sum())
