"""The FLOPs account: one function counts what a segment of attention costs, completely.

A multiply and an add are two FLOPs; the softmax is counted on neither side. Every term is per key head
(a key head serves `groups` query heads) and is multiplied by the number of key heads at the end.
Source of every term: the table of design §2.
"""

from __future__ import annotations

from dataclasses import dataclass

BASES = ("refreshed", "calibrated")
"""Where a segment's score basis comes from; see `drrl_env.lowrank.bases`."""


@dataclass(frozen=True)
class AttentionShape:
    """The sizes of one attention layer and of its segments.

    Attributes:
        kv_heads: key/value heads, H_kv.
        groups: query heads per key head, g.
        dim: head dimension of queries and keys, d.
        value_dim: head dimension of the values, d_v.
        segment: tokens of a segment, T.
    """

    kv_heads: int
    groups: int
    dim: int
    value_dim: int
    segment: int

    @property
    def heads(self) -> int:
        """Query heads, H = H_kv · g."""
        return self.kv_heads * self.groups

    def keys(self, position: int) -> int:
        """Keys the layer holds at segment `position` (from 0): n = (s + 1) T."""
        return (position + 1) * self.segment

    def visible(self, position: int) -> float:
        """Keys a query of the segment sees on average: n̄ = sT + (T + 1)/2."""
        return position * self.segment + (self.segment + 1) / 2


def decomposition_method(dim: int, width: int) -> str:
    """`warm` or `cold`, whichever costs fewer FLOPs at this dimension and width; warm up to 0.62 · dim."""
    return "warm" if _warm_flops(dim, width) < _cold_flops(dim, width) else "cold"


def _warm_flops(dim: int, width: int) -> float:
    """Design §2 counts 9d²w for one application of G_q G_k; a second one adds 4d²w."""
    return 13 * dim**2 * width + 8 * dim * width**2 + 9 * width**3 + dim**3 / 3


def _cold_flops(dim: int, width: int) -> float:
    return 13 * dim**3 + dim**2 * width


def _gram_flops(shape: AttentionShape) -> float:
    """Both Gram updates of one segment, per key head: G_k 2Td², G_q 2gTd²."""
    return 2 * shape.segment * shape.dim**2 * (1 + shape.groups)


def decomposition_flops(shape: AttentionShape, width: int) -> float:
    """Gram updates and the basis of one segment, all key heads."""
    method = _warm_flops if decomposition_method(shape.dim, width) == "warm" else _cold_flops
    return shape.kv_heads * (_gram_flops(shape) + method(shape.dim, width))


def basis_flops(shape: AttentionShape, width: int, basis: str) -> float:
    """What observing energies needs in a segment whose attention did not run it, all key heads.

    Refreshed: the Grams and the decomposition, whose Ritz values are the energies. Calibrated: the Grams and the
    products of `changes.score_products`, since a fixed basis brings no energies of its own.
    """
    if basis == "refreshed":
        return decomposition_flops(shape, width)
    products = 4 * shape.dim**2 * width + 4 * shape.dim * width**2
    return shape.kv_heads * (_gram_flops(shape) + products)


def energy_flops(shape: AttentionShape, width: int) -> float:
    """Energies of every candidate rank, given the basis."""
    return shape.kv_heads * (2 * shape.dim**2 + width)


def full_flops(shape: AttentionShape, position: int) -> float:
    """Full attention of one segment, all heads: 2gTn̄(d + d_v)."""
    return shape.heads * 2 * shape.segment * shape.visible(position) * (shape.dim + shape.value_dim)


@dataclass(frozen=True)
class RankCost:
    """What executing one rank costs and what it left behind.

    Attributes:
        rank: columns of queries and keys, r; `dim` means full attention.
        value_rank: columns of the values, r_v.
    """

    rank: int
    value_rank: int


def segment_flops(
    shape: AttentionShape, position: int, chosen: RankCost, previous: RankCost, basis: str, width: int
) -> float:
    """FLOPs of one segment's attention at the chosen rank, update and projections included.

    Args:
        shape: sizes of the layer.
        position: segment number, from 0.
        chosen: rank and value rank to execute.
        previous: those of the last executed segment: its projected columns are cached. A full segment
            projects nothing, so nothing is cached after it; nor are value columns after full values.
        basis: `refreshed` or `calibrated`.
        width: columns of the refreshed basis.

    Returns:
        FLOPs over all heads.
    """
    if chosen.rank >= shape.dim:
        return full_flops(shape, position)
    cached = _cached(shape, previous)
    per_head = (
        _score_and_value(shape, position, chosen)
        + _query_projection(shape, chosen.rank)
        + _key_projection(shape, position, chosen.rank, cached.rank, basis)
        + _value_projection(shape, position, chosen.value_rank, cached.value_rank)
    )
    update = decomposition_flops(shape, width) if basis == "refreshed" else 0.0
    return shape.kv_heads * per_head + update


def _cached(shape: AttentionShape, previous: RankCost) -> RankCost:
    """Projected columns of every key so far that the last executed segment left behind."""
    if previous.rank >= shape.dim:
        return RankCost(0, 0)
    return RankCost(previous.rank, previous.value_rank if previous.value_rank < shape.value_dim else 0)


def _score_and_value(shape: AttentionShape, position: int, chosen: RankCost) -> float:
    return 2 * shape.groups * shape.segment * shape.visible(position) * (chosen.rank + chosen.value_rank)


def _query_projection(shape: AttentionShape, rank: int) -> float:
    return 2 * shape.groups * shape.segment * shape.dim * rank


def _key_projection(shape: AttentionShape, position: int, rank: int, cached: int, basis: str) -> float:
    """A refreshed basis re-projects every key; a kept one only new rows and added columns."""
    keys = shape.keys(position)
    if basis == "refreshed":
        return 2 * keys * shape.dim * rank
    return 2 * shape.segment * shape.dim * rank + 2 * (keys - shape.segment) * shape.dim * max(0, rank - cached)


def _value_projection(shape: AttentionShape, position: int, value_rank: int, cached: int) -> float:
    """New rows and added columns into the value basis, and the output back out of it; nothing at full values."""
    if value_rank >= shape.value_dim:
        return 0.0
    old = shape.keys(position) - shape.segment
    into = 2 * shape.segment * shape.value_dim * value_rank + 2 * old * shape.value_dim * max(0, value_rank - cached)
    return into + 2 * shape.groups * shape.segment * value_rank * shape.value_dim


def cache_bytes(shape: AttentionShape, position: int, chosen: RankCost, basis: str, itemsize: int = 2) -> int:
    """Bytes of KV cache read by one segment and kept for the next; the second account.

    Args:
        itemsize: bytes of a cached number (2: half precision).

    Returns:
        Bytes over all key heads; a refreshed basis needs the raw keys as well as the projected ones.
    """
    if chosen.rank >= shape.dim:
        columns = shape.dim + shape.value_dim
    else:
        columns = chosen.rank + chosen.value_rank + (shape.dim if basis == "refreshed" else 0)
    return shape.kv_heads * shape.keys(position) * columns * itemsize
