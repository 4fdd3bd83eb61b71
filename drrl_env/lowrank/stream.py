"""The streaming engine: a layer's attention, fed segment by segment, answered at any rank.

Environments, benchmarks and patched models all drive this one object; there is no second implementation.
A refreshed basis starts each segment from the calibrated one and never from the chosen rank, so what is
computed for (segment, basis, rank) does not depend on what was chosen before and can be remembered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional

from drrl_env.lowrank.attention import full_attention, low_rank_attention, output_moments, project
from drrl_env.lowrank.bases import ScoreBasis, refresh
from drrl_env.lowrank.changes import ScoreProducts, ritz_products, score_products, squared_changes
from drrl_env.lowrank.flops import AttentionShape, RankCost, decomposition_method
from drrl_env.lowrank.grams import Grams, empty_key_gram, group_queries, update_grams

SPARE_COLUMNS = 8
"""Columns of a refreshed basis beyond the largest reduced rank: they keep nesting within 2 % of optimal."""


@dataclass(frozen=True)
class LayerBases:
    """The calibrated bases of one layer, fixed at run time.

    Attributes:
        query: P_q, (kv_heads, dim, dim).
        key: P_k, (kv_heads, dim, dim).
        value: P_v, (kv_heads, value_dim, value_dim).
    """

    query: Tensor
    key: Tensor
    value: Tensor


@dataclass(frozen=True)
class StreamSettings:
    """What a stream computes.

    Attributes:
        shape: sizes of the layer and its segments.
        costs: candidate ranks, each with its value rank; rank dim is plain full attention.
        basis: `refreshed` or `calibrated`.
    """

    shape: AttentionShape
    costs: tuple[RankCost, ...]
    basis: str

    @property
    def ranks(self) -> tuple[int, ...]:
        """Candidate ranks, ascending."""
        return tuple(cost.rank for cost in self.costs)

    @property
    def width(self) -> int:
        """Columns of the basis: the largest reduced rank and some to spare, at most dim."""
        reduced = [rank for rank in self.ranks if rank < self.shape.dim]
        return min(self.shape.dim, max(reduced, default=0) + SPARE_COLUMNS)

    @property
    def value_width(self) -> int:
        """Projected value columns kept: enough for every value rank and for kernels of equal head dimensions."""
        wanted = [max(cost.rank, cost.value_rank) for cost in self.costs if cost.rank < self.shape.dim]
        return min(self.shape.value_dim, max(wanted, default=1))


@dataclass(frozen=True)
class Segment:
    """One segment of a stream: what is known before a rank is chosen, and the attention at any rank.

    Attributes:
        settings: the stream's settings.
        bases: the layer's calibrated bases.
        position: number of the segment, from 0.
        queries: grouped, (kv_heads, groups · segment, dim).
        keys: every key so far, (kv_heads, keys, dim).
        values: every value so far, (kv_heads, keys, value_dim).
        reduced_values: v P_v, (kv_heads, keys, value_width).
        kept_keys: k P_k in the calibrated basis, (kv_heads, keys, width); None for a refreshed basis.
        grams: the Grams at this segment.
        basis: the score basis of this segment.
        power: streaming estimate of the leading key direction, (kv_heads, dim).
        previous: the basis of the segment before; None at the first.
    """

    settings: StreamSettings
    bases: LayerBases
    position: int
    queries: Tensor
    keys: Tensor
    values: Tensor
    reduced_values: Tensor
    kept_keys: Tensor | None
    grams: Grams
    basis: ScoreBasis
    power: Tensor
    previous: ScoreBasis | None

    @cached_property
    def products(self) -> ScoreProducts:
        """Inner products of the truncated scores; a refreshed basis brings them as its energies."""
        measure = score_products if self.kept_keys is not None else ritz_products
        return measure(self.basis, self.grams)

    @cached_property
    def changes(self) -> Tensor:
        """‖ΔS‖² between all candidate ranks, (kv_heads, ranks, ranks)."""
        return squared_changes(self.products, self.settings.ranks)

    @cached_property
    def lost(self) -> Tensor:
        """‖S − S_r‖² per candidate rank, unscaled, zero at full rank, (kv_heads, ranks)."""
        dim = self.settings.shape.dim
        columns = [rank if rank < dim else 0 for rank in self.settings.ranks]
        found: Tensor = self.products.residuals[:, columns]
        found[:, [place for place, rank in enumerate(self.settings.ranks) if rank >= dim]] = 0
        return found

    @cached_property
    def full_output(self) -> Tensor:
        """Full attention, (kv_heads, groups · segment, value_dim)."""
        return full_attention(self.queries, self.keys, self.values, self.settings.shape.segment)

    @cached_property
    def _projected(self) -> tuple[Tensor, Tensor]:
        """q P_q and k P_k at the basis' whole width: every rank is a slice of them."""
        keys = self.kept_keys if self.kept_keys is not None else self._project_keys()
        return project(self.queries, self.basis.query), keys

    def _project_keys(self) -> Tensor:
        """k P_k, with empty columns where a value rank is larger: padding P_k is cheaper than padding k P_k."""
        missing = max(0, self.settings.value_width - self.basis.width)
        return project(self.keys, functional.pad(self.basis.key, (0, missing)))

    def output(self, choice: int) -> Tensor:
        """Attention at candidate `choice`, (kv_heads, groups · segment, value_dim)."""
        cost, shape = self.settings.costs[choice], self.settings.shape
        if cost.rank >= shape.dim:
            return self.full_output
        queries, keys = self._projected
        back = self.bases.value[..., : cost.value_rank]
        return low_rank_attention(queries[..., : cost.rank], keys, self.reduced_values, back, shape.segment, shape.dim)

    def moments(self, choice: int) -> Tensor:
        """Moments of candidate `choice` against full attention, (heads, 4); see `attention.output_moments`."""
        return output_moments(self.full_output, self.output(choice), self.settings.shape.segment)


class LayerStream:
    """One layer's attention over one sequence, fed a segment at a time.

    Args:
        settings: sizes, candidate ranks and basis.
        bases: the layer's calibrated bases.
        capacity: tokens to make room for.
    """

    def __init__(self, settings: StreamSettings, bases: LayerBases, capacity: int) -> None:
        shape = settings.shape
        self.settings, self.bases, self.position = settings, bases, 0
        self._key_gram = empty_key_gram(shape.kv_heads, shape.dim)
        self._keys = torch.empty(shape.kv_heads, capacity, shape.dim)
        self._values = torch.empty(shape.kv_heads, capacity, shape.value_dim)
        self._reduced_values = torch.empty(shape.kv_heads, capacity, settings.value_width)
        self._kept_keys = torch.empty(shape.kv_heads, capacity, settings.width if settings.basis == "calibrated" else 0)
        self._calibrated = _calibrated_basis(bases, settings.width)
        self._power = self._calibrated.key[..., 0]
        self._previous: ScoreBasis | None = None

    def advance(self, queries: Tensor, keys: Tensor, values: Tensor) -> Segment:
        """Takes in the next segment: its keys update the Grams, and the basis is refreshed.

        Args:
            queries: (heads, segment, dim), after the positional encoding.
            keys: (kv_heads, segment, dim), after the positional encoding.
            values: (kv_heads, segment, value_dim).

        Returns:
            The segment, ready to be answered at any candidate rank.

        Raises:
            ValueError: the segment is not of the settings' size, or the stream is full.
        """
        grouped = group_queries(queries, self.settings.shape.kv_heads)
        self._append(keys, values)
        grams = update_grams(self._key_gram, grouped, keys)
        self._key_gram, self._power = grams.key, _power_step(grams, self._power)
        segment = self._segment(grouped, grams)
        self._previous, self.position = segment.basis, self.position + 1
        return segment

    def _append(self, keys: Tensor, values: Tensor) -> None:
        """Stores the new rows and their projections into the fixed bases."""
        size = self.settings.shape.segment
        if keys.shape[-2] != size:
            raise ValueError(f"keys: {keys.shape[-2]} tokens; this stream takes segments of {size}")
        rows = slice(self.position * size, (self.position + 1) * size)
        if rows.stop > self._keys.shape[-2]:
            raise ValueError(f"segment {self.position}: capacity={self._keys.shape[-2]} is used up; give a larger one")
        self._keys[:, rows], self._values[:, rows] = keys, values
        self._reduced_values[:, rows] = project(values, self.bases.value[..., : self.settings.value_width])
        if self.settings.basis == "calibrated":
            self._kept_keys[:, rows] = project(keys, self._calibrated.key)

    def _segment(self, queries: Tensor, grams: Grams) -> Segment:
        held = self.settings.shape.keys(self.position)
        calibrated = self.settings.basis == "calibrated"
        return Segment(
            settings=self.settings,
            bases=self.bases,
            position=self.position,
            queries=queries,
            keys=self._keys[:, :held],
            values=self._values[:, :held],
            reduced_values=self._reduced_values[:, :held],
            kept_keys=self._kept_keys[:, :held] if calibrated else None,
            grams=grams,
            basis=self._calibrated if calibrated else self._refresh(grams),
            power=self._power,
            previous=self._previous,
        )

    def _refresh(self, grams: Grams) -> ScoreBasis:
        method = decomposition_method(self.settings.shape.dim, self.settings.width)
        return refresh(grams, self._calibrated.key, method)


def _calibrated_basis(bases: LayerBases, width: int) -> ScoreBasis:
    """The calibrated basis as a score basis; its energies belong to the calibration text and are not a segment's."""
    query, key = bases.query[..., :width].double(), bases.key[..., :width].double()
    return ScoreBasis(query, key, torch.full(key.shape[::2], torch.nan, dtype=torch.float64))


def _power_step(grams: Grams, vector: Tensor) -> Tensor:
    """One step of streaming power iteration on G_q G_k, unit length (the paper's Eq. 18)."""
    image = (grams.query @ (grams.key @ vector[..., None]))[..., 0]
    length: Tensor = torch.linalg.vector_norm(image, dim=-1, keepdim=True)
    return image / length.clamp_min(torch.finfo(image.dtype).tiny)


def run_stream(stream: LayerStream, tensors: Sequence[Tensor], segments: int) -> list[Segment]:
    """Feeds the first `segments` segments of whole-sequence (queries, keys, values), each (heads, tokens, dim)."""
    size = stream.settings.shape.segment
    found = []
    for position in range(segments):
        rows = slice(position * size, (position + 1) * size)
        found.append(stream.advance(*(tensor[:, rows] for tensor in tensors)))
    return found
