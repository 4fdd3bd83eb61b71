"""The FLOPs account: what a segment of attention costs, completely.

A multiply and an add are two FLOPs; the softmax is counted on neither side. A segment's cost has three parts, each
written down once: the *query side* of every query head, the *key side* of every key head (which serves `groups`
query heads), and the *update* of a key head's basis. `segment_flops` adds them up where all heads run at one rank,
`mixed_flops` where each has its own, `kind_flops` where a basis may be kept; all parts but a warm step's d³/3 are
whole or half numbers, so that a sum does not depend on its order.
Source of every term: the table of design §2.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

BASES = ("refreshed", "calibrated")
"""Where a segment's score basis comes from; see `drrl_env.lowrank.bases`."""
KINDS = ("calibrated", "kept", "refreshed")
"""The same where it may also be the one of the last refresh, gone stale."""


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


def _gram_flops(shape: AttentionShape, missed: int = 1) -> float:
    """Both Gram updates, per key head: G_k 2Td² for every segment it takes in, G_q 2gTd² for this one."""
    return 2 * shape.segment * shape.dim**2 * (missed + shape.groups)


def update_flops(shape: AttentionShape, width: int, missed: int = 1) -> float:
    """Gram updates and the basis of one segment, one key head.

    Args:
        width: columns of the basis.
        missed: segments since the last refresh, this one included: G_k takes all of them in.
    """
    method = _warm_flops if decomposition_method(shape.dim, width) == "warm" else _cold_flops
    return _gram_flops(shape, missed) + method(shape.dim, width)


def decomposition_flops(shape: AttentionShape, width: int) -> float:
    """Gram updates and the basis of one segment, all key heads."""
    return shape.kv_heads * update_flops(shape, width)


def basis_flops(shape: AttentionShape, width: int, basis: str) -> float:
    """What observing energies needs in a segment whose attention did not run it, all key heads.

    Refreshed: the Grams and the decomposition, whose Ritz values are the energies. Calibrated: the Grams and the
    products of `changes.score_products`, since a fixed basis brings no energies of its own.
    """
    if basis == "refreshed":
        return decomposition_flops(shape, width)
    return shape.kv_heads * _gram_flops(shape) + product_flops(shape, width)


def product_flops(shape: AttentionShape, width: int) -> float:
    """Energies of a basis that brings none of its own, from `changes.score_products`, all key heads."""
    return shape.kv_heads * (4 * shape.dim**2 * width + 4 * shape.dim * width**2)


def energy_flops(shape: AttentionShape, width: int) -> float:
    """Energies of every candidate rank, given the basis."""
    return shape.kv_heads * (2 * shape.dim**2 + width)


@dataclass(frozen=True)
class RankCost:
    """What executing one rank costs and what it left behind.

    Attributes:
        rank: columns of queries and keys, r; `dim` means full attention.
        value_rank: columns of the values, r_v.
    """

    rank: int
    value_rank: int


def full_flops(shape: AttentionShape, position: int) -> float:
    """Full attention of one segment, all heads: 2gTn̄(d + d_v)."""
    return shape.heads * query_side_flops(shape, position, RankCost(shape.dim, shape.value_dim))


def query_side_flops(shape: AttentionShape, position: int, cost: RankCost) -> float:
    """FLOPs of one query head: scores and values, query projection, back through P_vᵀ; full attention at rank dim."""
    pairs = 2 * shape.segment * shape.visible(position)
    if cost.rank >= shape.dim:
        return pairs * (shape.dim + shape.value_dim)
    back = cost.value_rank if cost.value_rank < shape.value_dim else 0
    turned = shape.dim * cost.rank + shape.value_dim * back
    return pairs * (cost.rank + cost.value_rank) + 2 * shape.segment * turned


def projected_columns(shape: AttentionShape, costs: Iterable[RankCost]) -> RankCost:
    """Columns of k P_k and of v P_v that one key head holds once its query heads have run at these costs.

    "Where the ranks of a group differ, the key side pays for the largest" (design §2), of those that project at all:
    full attention projects nothing, full values no value column. Zero where nothing is projected.
    """
    reduced = [cost for cost in costs if cost.rank < shape.dim]
    values = [cost.value_rank for cost in reduced if cost.value_rank < shape.value_dim]
    return RankCost(max((cost.rank for cost in reduced), default=0), max(values, default=0))


def key_side_flops(shape: AttentionShape, position: int, columns: RankCost, cached: RankCost, kind: str) -> float:
    """FLOPs of projecting one key head's keys and values: new rows, and for old rows what is not cached.

    Args:
        shape: sizes of the layer.
        position: segment number, from 0.
        columns: what the group needs, from `projected_columns`; `RankCost(0, 0)` if all of it is full.
        cached: what is there for every old row, in this segment's very basis.
        kind: of `KINDS`; a refreshed basis is new, so every key is projected anew whatever is cached.

    Returns:
        FLOPs; the update of a refreshed basis is not among them.
    """
    held = 0 if kind == "refreshed" else cached.rank
    keys = _projection(shape, position, shape.dim, columns.rank, held)
    return keys + _projection(shape, position, shape.value_dim, columns.value_rank, cached.value_rank)


def _projection(shape: AttentionShape, position: int, dim: int, columns: int, cached: int) -> float:
    old = shape.keys(position) - shape.segment
    return 2 * dim * (shape.segment * columns + old * max(0, columns - cached))


def segment_flops(
    shape: AttentionShape, position: int, chosen: RankCost, previous: RankCost, basis: str, width: int
) -> float:
    """FLOPs of one segment's attention at one rank for all heads, update and projections included.

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
    _check_name("basis", basis, BASES)
    return kind_flops(shape, position, chosen, basis, previous, basis, True, width)


def kind_flops(
    shape: AttentionShape,
    position: int,
    chosen: RankCost,
    kind: str,
    previous: RankCost,
    previous_kind: str,
    same_basis: bool,
    width: int,
    missed: int = 1,
) -> float:
    """FLOPs of one segment where the basis may be calibrated, kept from the last refresh, or refreshed.

    A refreshed basis costs its update and re-projects every key. A kept one costs no update, and projects new rows and
    added columns only if what is cached was projected in that very basis; coming from the calibrated one, or from
    another refresh, every key is projected. The calibrated one likewise. P_v is fixed, so cached value columns carry
    over whatever the kinds. Full rank is full attention in any kind: no update, nothing cached after it.

    Args:
        shape: sizes of the layer.
        position: segment number, from 0.
        chosen: rank and value rank to execute, all heads alike.
        kind: of `KINDS`.
        previous: rank and value rank of the last executed segment.
        previous_kind: its kind; of no account after full rank.
        same_basis: whether a kept or refreshed previous segment ran in the basis that is kept now.
        width: columns of the refreshed basis.
        missed: segments since the last refresh, this one included, at least 1: a refresh takes their keys into G_k.

    Returns:
        FLOPs over all heads.

    Raises:
        ValueError: an unknown kind, or `missed` below 1.
    """
    _check_name("kind", kind, KINDS)
    _check_name("previous_kind", previous_kind, KINDS)
    if missed < 1:
        raise ValueError(f"missed={missed}: a refresh takes in this segment's own keys at least; use 1 or more")
    columns, cached = projected_columns(shape, [chosen]), projected_columns(shape, [previous])
    if (kind == "calibrated") != (previous_kind == "calibrated") or (kind == "kept" and not same_basis):
        cached = RankCost(0, cached.value_rank)
    queries = shape.groups * query_side_flops(shape, position, chosen)
    run = shape.kv_heads * (queries + key_side_flops(shape, position, columns, cached, kind))
    update = shape.kv_heads * update_flops(shape, width, missed) if kind == "refreshed" and columns.rank else 0.0
    return run + update


def mixed_flops(
    shape: AttentionShape,
    position: int,
    chosen: Sequence[RankCost],
    previous: Sequence[RankCost],
    basis: str,
    width: int,
) -> float:
    """FLOPs of one segment whose query heads run at ranks of their own; `segment_flops` where they are all alike.

    A key head pays for the largest reduced rank of its group, and for the largest reduced value rank; one whose group
    is all full pays no update. The last segment's largest reduced ranks are what it has cached.

    Args:
        shape: sizes of the layer.
        position: segment number, from 0.
        chosen: rank and value rank of every query head, (heads,); those of a group are neighbours.
        previous: those of the last executed segment, (heads,).
        basis: `refreshed` or `calibrated`.
        width: columns of the refreshed basis.

    Returns:
        FLOPs over all heads.

    Raises:
        ValueError: an unknown basis, or not one cost per query head.
    """
    _check_name("basis", basis, BASES)
    needed, cached = _by_key_head(shape, "chosen", chosen), _by_key_head(shape, "previous", previous)
    run = sum(query_side_flops(shape, position, cost) for cost in chosen)
    pairs = zip(needed, cached, strict=True)
    run += sum(key_side_flops(shape, position, columns, held, basis) for columns, held in pairs)
    updates = sum(columns.rank > 0 for columns in needed) if basis == "refreshed" else 0
    return run + updates * update_flops(shape, width)


def _by_key_head(shape: AttentionShape, name: str, costs: Sequence[RankCost]) -> list[RankCost]:
    """Projected columns of every key head."""
    if len(costs) != shape.heads:
        raise ValueError(f"{name}: {len(costs)} costs; the layer has {shape.heads} query heads, give one for each")
    return [projected_columns(shape, costs[at : at + shape.groups]) for at in range(0, shape.heads, shape.groups)]


def _check_name(argument: str, found: str, known: Sequence[str]) -> None:
    if found not in known:
        raise ValueError(f"{argument}={found!r}: must be one of {', '.join(map(repr, known))}")


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
