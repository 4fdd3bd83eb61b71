"""Kernels: the functions a segment of attention executes, named, sized and ready to be timed.

`segment_calls` is to milliseconds what `flops.segment_flops` is to FLOPs: the same products, but as they are
executed. Two differences show: fused attention runs at the larger of rank and value rank, so a rank far below its
value rank saves nothing there, and a masked key costs as much as a visible one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from drrl_env.lowrank.attention import full_attention, low_rank_attention, project
from drrl_env.lowrank.bases import refresh
from drrl_env.lowrank.flops import AttentionShape, RankCost, decomposition_method, projected_columns
from drrl_env.lowrank.grams import Grams, gram, update_grams

FULL, LOW_RANK, PROJECTION = "full attention", "low-rank attention", "projection"
GRAMS, DECOMPOSITION = "Gram update", "decomposition"
KERNELS = (FULL, LOW_RANK, PROJECTION, GRAMS, DECOMPOSITION)
"""Attention of a segment (back-projection included), rows into a basis, and the two halves of a refresh."""


@dataclass(frozen=True, order=True)
class HeadSizes:
    """What a machine's timings depend on beside the sizes of a call.

    Attributes:
        kv_heads: key/value heads, H_kv.
        groups: query heads per key head, g.
        dim: head dimension of queries, keys and values, d.
    """

    kv_heads: int
    groups: int
    dim: int

    def __str__(self) -> str:
        return f"{self.kv_heads} key heads of dimension {self.dim} with {self.groups} query heads each"


@dataclass(frozen=True, order=True)
class KernelCall:
    """One call of a kernel, over all key heads; a size that does not matter to the kernel is 0.

    Attributes:
        kernel: one of `KERNELS`.
        keys: keys attended to, n; of a projection, the rows projected.
        segment: tokens of the segment, T.
        rank: columns: of attention the head dimension it runs at, max(r, r_v); of a projection those it makes; of a
            decomposition the width of the basis; else the head dimension.
    """

    kernel: str
    keys: int
    segment: int
    rank: int


def segment_calls(
    shape: AttentionShape, position: int, chosen: RankCost, previous: RankCost, basis: str, width: int
) -> tuple[KernelCall, ...]:
    """What one segment executes at the chosen rank, update and projections included.

    Args:
        shape: sizes of the layer.
        position: segment number, from 0.
        chosen: rank and value rank to execute.
        previous: those of the last executed segment; its projected columns are cached, see `flops.segment_flops`.
        basis: `refreshed` or `calibrated`.
        width: columns of the refreshed basis.

    Returns:
        The calls, in the order of execution.
    """
    keys, size = shape.keys(position), max(chosen.rank, chosen.value_rank)
    if chosen.rank >= shape.dim:
        return (KernelCall(FULL, keys, shape.segment, shape.dim),)
    columns, cached = projected_columns(shape, [chosen]), projected_columns(shape, [previous])
    refreshed = basis == "refreshed"
    return (
        *(_update(shape, width) if refreshed else ()),
        KernelCall(PROJECTION, shape.groups * shape.segment, 0, chosen.rank),
        # A refreshed basis is padded to the size attention runs at, which is cheaper than padding n projected keys.
        *(_project(keys, size) if refreshed else _grow(shape, position, chosen.rank, cached.rank)),
        *_grow(shape, position, columns.value_rank, cached.value_rank),
        KernelCall(LOW_RANK, keys, shape.segment, size),
    )


def _update(shape: AttentionShape, width: int) -> tuple[KernelCall, ...]:
    return KernelCall(GRAMS, 0, shape.segment, shape.dim), KernelCall(DECOMPOSITION, 0, 0, width)


def _grow(shape: AttentionShape, position: int, wanted: int, cached: int) -> tuple[KernelCall, ...]:
    """The new rows into every wanted column, and the old rows into those that are not cached."""
    old = shape.keys(position) - shape.segment
    return (*_project(shape.segment, wanted), *_project(old, wanted - cached))


def _project(rows: int, columns: int) -> tuple[KernelCall, ...]:
    return (KernelCall(PROJECTION, rows, 0, columns),) if rows > 0 and columns > 0 else ()


@dataclass(frozen=True)
class Operands:
    """Random tensors to run every call of a model's sizes on, laid out as `stream.LayerStream` holds them.

    Attributes:
        sizes: heads and dimension.
        rows: most keys or rows of any call.
    """

    sizes: HeadSizes
    rows: int
    keys: Tensor = field(init=False)
    values: Tensor = field(init=False)
    columns: Tensor = field(init=False)
    held: Grams = field(init=False)

    def __post_init__(self) -> None:
        heads, dim = self.sizes.kv_heads, self.sizes.dim
        random = torch.Generator().manual_seed(0)
        decay = torch.arange(1, dim + 1) ** -0.5  # as real spectra fall: a decomposition of noise is no measure
        keys, values = (torch.randn(heads, self.rows, dim, generator=random) * decay for _ in range(2))
        columns = torch.linalg.qr(torch.randn(heads, dim, dim, generator=random, dtype=torch.float64)).Q
        held = Grams(gram(values[:, : 4 * dim]), gram(keys))
        for name, found in (("keys", keys), ("values", values), ("columns", columns), ("held", held)):
            object.__setattr__(self, name, found)

    def run(self, call: KernelCall) -> Callable[[], object]:
        """The engine's own function on operands of the call's sizes, ready to be called again and again."""
        queries = self.values[:, : self.sizes.groups * call.segment].contiguous()
        keys, values = self.keys[:, : call.keys], self.values[:, : call.keys]
        columns, cut = self.columns[..., : call.rank], queries[..., : call.rank]
        if call.kernel == FULL:
            return partial(full_attention, queries, keys, values, call.segment)
        if call.kernel == LOW_RANK:
            return partial(low_rank_attention, cut, keys, values, columns.float(), call.segment, self.sizes.dim)
        if call.kernel == PROJECTION:
            return partial(project, keys, columns)
        if call.kernel == GRAMS:
            return partial(update_grams, self.held.key, queries, self.keys[:, : call.segment].contiguous())
        return partial(refresh, self.held, columns, decomposition_method(self.sizes.dim, call.rank))
