"""What an agent sees: a flat Dict of 1-D float32 boxes, each entry with its shape, range, cost and source.

An observation has a *static* part that depends on (instance, layer, segment) only, and is remembered, and a
*history* part that depends on the ranks executed so far.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from drrl_env.lowrank.flops import AttentionShape
from drrl_env.lowrank.statistics import STATISTICS
from drrl_env.lowrank.stream import Segment
from drrl_env.lowrank.weights import WEIGHT_STATISTICS

WINDOW = 4
"""Past segments an observation shows."""
CHUNKS, COMPONENTS = 8, 16
"""Chunk means of a segment's embeddings, and principal components each is described by."""
SEGMENT_STATISTICS = (
    "residual_level",
    "worst_residual_level",
    "effective_rank",
    "stable_rank",
    "spectral_share",
    "subspace_drift",
)
"""Statistics of a segment in the entries `segment` and `window`, in this order."""
LIMIT = 8.0
"""Entries are clipped to ±LIMIT, far beyond their usual range."""

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Entry:
    """One entry of the observation.

    Attributes:
        name: its key.
        size: numbers in it.
        low: smallest value.
        high: largest value.
        needs_basis: whether a policy that reads it pays for the Grams and the basis of every segment.
        flops: FLOPs per segment beyond those, all heads, from (shape, width).
        meaning: what it is, for the docs.
        source: paper, equation or formula.
    """

    name: str
    size: int
    low: float
    high: float
    needs_basis: bool
    flops: Callable[[AttentionShape, int], float]
    meaning: str
    source: str


def _free(shape: AttentionShape, width: int) -> float:
    return 0.0


def _statistics_flops(shape: AttentionShape, width: int) -> float:
    return sum(STATISTICS[name].flops(shape, width) for name in ("energy_ratio", *SEGMENT_STATISTICS))


def _token_flops(hidden: int) -> Callable[[AttentionShape, int], float]:
    """Chunk means over the segment's embeddings and their projection."""
    return lambda shape, width: shape.segment * hidden + CHUNKS * 2 * hidden * COMPONENTS


def segment_size(ranks: int) -> int:
    """Numbers in the statistics of one segment."""
    return sum(ranks if STATISTICS[name].per_rank else 1 for name in SEGMENT_STATISTICS)


def entries(ranks: int, layers: int, hidden: int) -> tuple[Entry, ...]:
    """The entries of an environment with `ranks` candidates on a model of `layers` layers and width `hidden`."""
    size = segment_size(ranks)
    weights = 3 * len(WEIGHT_STATISTICS)
    return (
        Entry(
            "energy", ranks, -LIMIT, 1.0, True, STATISTICS["energy_ratio"].flops,
            "share of the score energy that each candidate rank keeps, this segment, all heads", "paper Eq. 15",
        ),
        Entry(
            "segment", size, -LIMIT, LIMIT, True, _statistics_flops,
            f"statistics of this segment: {', '.join(SEGMENT_STATISTICS)}", "see docs of the statistics",
        ),
        Entry(
            "window", WINDOW * size, -LIMIT, LIMIT, True, _statistics_flops,
            f"the same of the last {WINDOW} segments, latest last; zero before the first", "as `segment`",
        ),
        Entry(
            "layer", layers + weights, -LIMIT, LIMIT, False, _free,
            "layer one-hot, then 10·mean, √fan_in·deviation, (α − 2)/4 of W_Q, W_K, W_V", "paper w_t; HTSR",
        ),
        Entry(
            "tokens", CHUNKS * COMPONENTS, -LIMIT, LIMIT, False, _token_flops(hidden),
            f"{CHUNKS} chunk means of the segment's embeddings in {COMPONENTS} whitened principal components, "
            "scaled by the root of the chunk's length", "paper h_t",
        ),
        Entry(
            "previous_rank", ranks, 0.0, 1.0, False, _free,
            "rank executed at the last segment, one-hot; full at the start", "paper r_{t-1}",
        ),
        Entry(
            "window_ranks", WINDOW, 0.0, 1.0, False, _free,
            f"ranks executed at the last {WINDOW} segments over dim, latest last; zero before the first", "history",
        ),
        Entry("position", 1, 0.0, 1.0, False, _free, "segments done over segments in the episode", "clock"),
    )  # fmt: skip


STATIC = ("energy", "segment", "window", "layer", "tokens")
"""Entries that are remembered; the others follow from the ranks executed so far."""


@dataclass(frozen=True)
class Layout:
    """Where each static entry lies in a remembered row.

    Attributes:
        entries: all entries, in the order of the observation.
        slices: columns of each static entry.
        width: length of a static row.
    """

    entries: tuple[Entry, ...]
    slices: dict[str, slice]
    width: int


def layout(found: tuple[Entry, ...]) -> Layout:
    """The layout of a set of entries."""
    slices, start = {}, 0
    for entry in found:
        if entry.name in STATIC:
            slices[entry.name] = slice(start, start + entry.size)
            start += entry.size
    return Layout(found, slices, start)


def segment_row(segment: Segment) -> Floats:
    """`SEGMENT_STATISTICS` of one segment, clipped, (segment_size,)."""
    found = [torch.atleast_1d(STATISTICS[name].function(segment)) for name in SEGMENT_STATISTICS]
    return to_floats(torch.cat(found))


def energy_row(segment: Segment) -> Floats:
    """Energy ratio per candidate rank, clipped below, (ranks,)."""
    return to_floats(STATISTICS["energy_ratio"].function(segment))


def layer_row(layer: int, layers: int, weights: Tensor) -> Floats:
    """One-hot of the layer and its weight statistics."""
    one_hot = torch.zeros(layers)
    one_hot[layer] = 1
    return to_floats(torch.cat([one_hot, weights.float()]))


def token_rows(embeddings: Tensor, mean: Tensor, components: Tensor, segment: int) -> Floats:
    """Chunk means of every segment's embeddings in principal components.

    Args:
        embeddings: (tokens, hidden).
        mean: (hidden,).
        components: whitened, (hidden, COMPONENTS).
        segment: tokens of a segment, at least CHUNKS.

    Returns:
        (segments, CHUNKS · COMPONENTS); a mean of independent tokens would have unit variance.
    """
    rows = (embeddings - mean).split(segment)
    chunks = [torch.stack([part.mean(0) * len(part) ** 0.5 for part in row.tensor_split(CHUNKS)]) for row in rows]
    return to_floats(torch.stack([(chunk @ components).flatten() for chunk in chunks]))


def to_floats(values: Tensor) -> Floats:
    """float32 within ±LIMIT."""
    found: Floats = values.clamp(-LIMIT, LIMIT).to(torch.float32).numpy()
    return found


def observing_flops(found: tuple[Entry, ...], names: frozenset[str], shape: AttentionShape, width: int) -> float:
    """FLOPs per segment of reading these entries, beyond the Grams and the basis.

    The window repeats what was computed for earlier segments, and energies are part of the segment's statistics:
    neither is paid twice.
    """
    paid = {"segment" if name == "window" else name for name in names}
    if "segment" in paid:
        paid.discard("energy")
    return sum(entry.flops(shape, width) for entry in found if entry.name in paid)


def needs_basis(found: tuple[Entry, ...], names: frozenset[str]) -> bool:
    """Whether reading these entries takes the Grams and the basis of every segment."""
    return any(entry.needs_basis for entry in found if entry.name in names)
