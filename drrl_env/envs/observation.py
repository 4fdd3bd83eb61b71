"""What an agent sees: a flat Dict of 1-D float32 boxes, each entry with its shape, range, cost and source.

An observation has a *static* part that depends on (instance, layer, segment) only, and is remembered, and a
*history* part that depends on the ranks executed so far (see `drrl_env.envs.history`). The static part shows the
statistics somebody selected: `energy_ratio` in the entry `energy`, those of a segment in `segment` and `window`, of the
weights in `layer`, of the text in `tokens`; an entry with nothing to show is absent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from drrl_env.lowrank.flops import AttentionShape
from drrl_env.lowrank.statistics import select_statistics, with_needed
from drrl_env.lowrank.stream import Segment
from drrl_env.lowrank.views import Sizes, Statistic, View
from drrl_env.lowrank.weights import MATRICES

WINDOW = 4
"""Past segments an observation shows."""
CHUNKS, COMPONENTS = 8, 16
"""Chunk means of a segment's embeddings, and principal components each is described by."""
LIMIT = 8.0
"""Entries are clipped to ±LIMIT, far beyond their usual range."""

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Part:
    """A statistic that an entry shows.

    Attributes:
        statistic: the statistic.
        sizes: what its shape and cost follow from.
    """

    statistic: Statistic
    sizes: Sizes

    @property
    def size(self) -> int:
        """Numbers in it."""
        return self.statistic.size(self.sizes)

    def read(self, view: View) -> Tensor:
        """Its value, checked."""
        return self.statistic.value(view, self.statistic.resolve(self.sizes))


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
        parts: statistics it shows, in this order.
    """

    name: str
    size: int
    low: float
    high: float
    needs_basis: bool
    flops: Callable[[AttentionShape, int], float]
    meaning: str
    source: str
    parts: tuple[Part, ...] = ()


def static_entries(
    names: Sequence[str] | None, ranks: int, layers: int, shape: AttentionShape, hidden: int
) -> tuple[Entry, ...]:
    """The entries that are remembered.

    Args:
        names: statistics to show; None for `drrl_env.lowrank.statistics.DEFAULT_STATISTICS`.
        ranks: candidate ranks.
        layers: attention layers of the model.
        shape: sizes of a layer and its segments.
        hidden: width of the embeddings.

    Returns:
        Of `energy`, `segment`, `window`, `layer` and `tokens`, in this order, those with something to show; `layer`
        always.

    Raises:
        ValueError: a name is unknown or repeated.
    """
    sizes = Sizes(shape, ranks, hidden, CHUNKS, COMPONENTS)
    parts: dict[str, list[Part]] = {"energy": [], "segment": [], "layer": [], "tokens": []}
    for statistic in select_statistics(names):
        parts[_home(statistic)].append(Part(statistic, sizes))
    energy, segment, layer, tokens = (tuple(found) for found in parts.values())
    found = (
        _entry("energy", energy, "statistics of this segment: ", high=1.0),
        _entry("segment", segment, "statistics of this segment: "),
        _entry("window", segment, f"those of the last {WINDOW} segments, latest last, zero before the first: ", WINDOW),
        _entry("layer", layer, "the layer, one-hot" + ", then of W_Q, W_K, W_V: " * bool(layer), ahead=layers),
        _entry("tokens", tokens, "the segment's text: "),
    )  # fmt: skip
    return tuple(entry for entry in found if entry.size)


def _home(statistic: Statistic) -> str:
    """The entry that shows a statistic."""
    if statistic.name == "energy_ratio":
        return "energy"
    return {"segment": "segment", "weights": "layer", "text": "tokens"}[statistic.level]


def _entry(
    name: str, parts: tuple[Part, ...], meaning: str, times: int = 1, ahead: int = 0, high: float = LIMIT
) -> Entry:
    """An entry that shows statistics, `times` over, after `ahead` numbers of its own."""
    shown = ", ".join(part.statistic.name for part in parts)
    sources = dict.fromkeys(part.statistic.source for part in parts)
    return Entry(
        name,
        ahead + times * sum(part.size for part in parts),
        -LIMIT,
        high,
        any(part.statistic.needs_basis for part in parts),
        lambda shape, width: _parts_flops(parts, shape, width),
        meaning + shown,
        "; ".join(sources) or "one-hot",
        parts,
    )


def _parts_flops(parts: Iterable[Part], shape: AttentionShape, width: int) -> float:
    """FLOPs of statistics and what they are worked out from, each paid once."""
    sizes = {part.statistic.name: replace(part.sizes, shape=shape) for part in parts}
    if not sizes:
        return 0.0
    shared = next(iter(sizes.values()))
    return sum(statistic.flops(sizes.get(statistic.name, shared), width) for statistic in with_needed(sizes))


@dataclass(frozen=True)
class Layout:
    """Where each static entry lies in a remembered row.

    Attributes:
        entries: the static entries, in the order of the observation.
        slices: columns of each.
        width: length of a static row.
    """

    entries: tuple[Entry, ...]
    slices: dict[str, slice]
    width: int


def layout(found: tuple[Entry, ...]) -> Layout:
    """The layout of a set of static entries."""
    slices, start = {}, 0
    for entry in found:
        slices[entry.name] = slice(start, start + entry.size)
        start += entry.size
    return Layout(found, slices, start)


def view_of(segment: Segment, weights: Tensor, tokens: Floats) -> View:
    """What the statistics of a segment are worked out from.

    Args:
        segment: the segment.
        weights: the layer's row of weight statistics, (9,).
        tokens: the segment's row of `token_rows`.
    """
    chunks = torch.from_numpy(tokens).reshape(CHUNKS, COMPONENTS)
    return View(segment, weights.reshape(len(MATRICES), -1), chunks)


def entry_row(entry: Entry, view: View, layer: int) -> Floats:
    """What an entry of `static_entries` shows, clipped; `window` is put together from rows of `segment` elsewhere."""
    if entry.name == "layer":
        return _layer_row(entry, view, layer)
    return to_floats(torch.cat([part.read(view).flatten() for part in entry.parts]))


def _layer_row(entry: Entry, view: View, layer: int) -> Floats:
    """One-hot of the layer and its weight statistics, matrix by matrix."""
    one_hot = torch.zeros(entry.size - sum(part.size for part in entry.parts))
    one_hot[layer] = 1
    found = [part.read(view).reshape(len(MATRICES), -1) for part in entry.parts]
    weights = torch.cat(found, dim=1).flatten().float() if found else one_hot[:0]
    return to_floats(torch.cat([one_hot, weights]))


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

    The window repeats what was computed for earlier segments, and many statistics are worked out from the same
    energies: nothing is paid twice.
    """
    read = [entry for entry in found if entry.name in names]
    parts = [part for entry in read for part in entry.parts]
    return _parts_flops(parts, shape, width) + sum(entry.flops(shape, width) for entry in read if not entry.parts)


def needs_basis(found: tuple[Entry, ...], names: frozenset[str]) -> bool:
    """Whether reading these entries takes the Grams and the basis of every segment."""
    return any(entry.needs_basis for entry in found if entry.name in names)
