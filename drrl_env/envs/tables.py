"""The tables of a store: which arrays each is made of. An array more is a line here."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from drrl_env.envs.arrays import ArraySpec
from drrl_env.envs.predictor import evidence_size
from drrl_env.envs.world import World

BASE, SOURCES = "base", "sources"
"""What every task reads, and what only the choice of a basis reads; each table has files of its own."""


def tables(world: World) -> Mapping[str, tuple[ArraySpec, ...]]:
    """The arrays of every table."""
    return {BASE: base_specs(world), SOURCES: source_specs(world)}


def base_specs(world: World) -> tuple[ArraySpec, ...]:
    """Arrays of the base table; see `store.Store`."""
    segments, ranks, heads = world.segments, len(world.ranks), world.shape.heads
    return (
        ArraySpec("static", (segments, world.layout.width), dtype=np.float32),
        ArraySpec("changes", (segments, ranks, ranks)),
        ArraySpec("head_changes", (segments, heads, ranks, ranks)),
        ArraySpec("outcomes", (segments, ranks, 2), axes=2),
        ArraySpec("moments", (segments, ranks, heads, 4), axes=2),
        ArraySpec("evidence", (segments, evidence_size(world.shape, ranks))),
        ArraySpec("ready", (), dtype=np.int64, fill=0),
    )


def source_specs(world: World) -> tuple[ArraySpec, ...]:
    """Arrays of the sources table; see `store.Store`."""
    segments, ranks = world.segments, len(world.ranks)
    return (
        ArraySpec("source_outcomes", (segments, segments + 1, ranks, 2), axes=3),
        ArraySpec("source_changes", (segments, segments + 1, 2, ranks, 3, ranks), axes=2),
    )
