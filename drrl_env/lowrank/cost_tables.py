"""The FLOPs account as tables, for ranks that differ by head: what many lanes gather from at once.

`flops.mixed_flops` prices one segment; here are its parts for every segment and candidate. A query head's part depends
on its own rank. A key head's part depends on what its group projects, now and in the last segment: its *mix*.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from drrl_env.lowrank.flops import (
    AttentionShape,
    RankCost,
    key_side_flops,
    projected_columns,
    query_side_flops,
    update_flops,
)

Doubles = NDArray[np.float64]
Integers = NDArray[np.int64]


def group_mixes(shape: AttentionShape, costs: Sequence[RankCost]) -> tuple[RankCost, ...]:
    """What a key head can be asked to project: columns of k P_k and of v P_v, (0, 0) where its group is all full.

    Args:
        shape: sizes of the layer.
        costs: candidates, ascending; the last is full.

    Returns:
        First the mixes of groups that run at one candidate, in the candidates' order, so that a candidate's number is
        that of its mix, and the last candidate's is that of "nothing". With more than one query head per key head
        more follow: the largest reduced rank of a group and its largest reduced value rank (one that is not full) may
        come from two candidates.

    Raises:
        ValueError: the last candidate is not full, or another one is.
    """
    ranks = tuple(cost.rank for cost in costs)
    if not ranks or ranks[-1] < shape.dim or any(rank >= shape.dim for rank in ranks[:-1]):
        raise ValueError(f"costs: ranks {ranks}; must be below {shape.dim} up to the last, and {shape.dim} there")
    uniform = tuple(projected_columns(shape, [cost]) for cost in costs)
    if shape.groups == 1:
        return uniform
    pairs = {(high.rank, low.value_rank) for high in uniform for low in uniform if _outdoes(low, high)}
    return uniform + tuple(RankCost(*pair) for pair in sorted(pairs))


def _outdoes(low: RankCost, high: RankCost) -> bool:
    """Whether a lower rank has more value columns to project: beside it, a higher one that keeps full values."""
    return low.rank < high.rank and low.value_rank > high.value_rank


def query_side_table(shape: AttentionShape, segments: int, costs: Sequence[RankCost]) -> Doubles:
    """FLOPs of one query head at every candidate, (segments, ranks)."""
    return np.array([[query_side_flops(shape, t, cost) for cost in costs] for t in range(segments)], np.float64)


def key_side_table(shape: AttentionShape, segments: int, costs: Sequence[RankCost], basis: str, width: int) -> Doubles:
    """FLOPs of one key head, its update included, (segments, mixes of the last segment, mixes of this one).

    Args:
        shape: sizes of the layer.
        segments: segments to price, from the first.
        costs: candidates, ascending; the last is full.
        basis: `refreshed` or `calibrated`.
        width: columns of the refreshed basis.

    Returns:
        Numbers of mixes are places in `group_mixes`: with one query head per key head the candidates themselves, the
        last one standing for "nothing projected".
    """
    mixes = group_mixes(shape, costs)
    update = np.array([update_flops(shape, width) if basis == "refreshed" and mix.rank else 0.0 for mix in mixes])
    run = [
        [[key_side_flops(shape, t, mix, cached, basis) for mix in mixes] for cached in mixes] for t in range(segments)
    ]
    found: Doubles = np.array(run, np.float64) + update
    return found


@dataclass(frozen=True)
class MixedTables:
    """Everything that prices a segment by gathers; exact, for one lane or many.

    Attributes:
        queries: from `query_side_table`, (segments, ranks).
        keys: from `key_side_table`, (segments, mixes, mixes).
        columns: projected columns of k and of v per candidate, (2, ranks).
        lookup: number of the mix of (columns of k, columns of v), -1 where no group has it.
        groups: query heads per key head.
    """

    queries: Doubles
    keys: Doubles
    columns: Integers
    lookup: Integers
    groups: int

    def mixes(self, choices: Integers) -> Integers:
        """Number of every key head's mix, (lanes, kv_heads), from its query heads' candidates, (lanes, heads)."""
        if self.groups == 1:
            return choices
        grouped = choices.reshape(len(choices), -1, self.groups)
        largest = (columns.take(grouped).max(-1) for columns in self.columns)
        found: Integers = self.lookup[tuple(largest)]
        return found

    def flops(self, positions: Integers, previous: Integers, chosen: Integers) -> Doubles:
        """FLOPs of a segment per lane, (lanes,), all heads; the numbers of `mixed_flops`.

        Args:
            positions: segment numbers, (lanes,).
            previous: candidates that the query heads ran at in the last executed segment, (lanes, heads).
            chosen: candidates that they run at now, (lanes, heads).
        """
        ranks, mixes = self.queries.shape[-1], self.keys.shape[-1]
        queries = self.queries.reshape(-1).take(positions[:, None] * ranks + chosen)
        moves = (positions[:, None] * mixes + self.mixes(previous)) * mixes + self.mixes(chosen)
        return added(queries) + added(self.keys.reshape(-1).take(moves))


def mixed_tables(
    shape: AttentionShape, segments: int, costs: Sequence[RankCost], basis: str, width: int
) -> MixedTables:
    """The tables of a layer; arguments as in `key_side_table`."""
    mixes = group_mixes(shape, costs)
    columns = np.array([[mix.rank, mix.value_rank] for mix in mixes[: len(costs)]]).T
    lookup = np.full((shape.dim, shape.value_dim), -1)
    for number, mix in reversed(list(enumerate(mixes))):
        lookup[mix.rank, mix.value_rank] = number
    queries, keys = query_side_table(shape, segments, costs), key_side_table(shape, segments, costs, basis, width)
    return MixedTables(queries, keys, columns, lookup, shape.groups)


def added(parts: Doubles) -> Doubles:
    """Sum over the last axis, one by one: the same bits for any number of lanes."""
    found: Doubles = parts[..., 0].copy()
    for place in range(1, parts.shape[-1]):
        found += parts[..., place]
    return found
