"""One segment of a stream: what is known before a rank is chosen, and its attention at any rank and in any basis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional

from drrl_env.lowrank.attention import full_attention, low_rank_attention, output_moments, project
from drrl_env.lowrank.bases import BasisError, ScoreBasis
from drrl_env.lowrank.changes import ScoreProducts, ritz_products, score_products, squared_changes
from drrl_env.lowrank.flops import AttentionShape, RankCost
from drrl_env.lowrank.grams import Grams, gram

SPARE_COLUMNS = 8
"""Columns of a refreshed basis beyond the largest reduced rank: they keep nesting within 2 % of optimal."""


@dataclass(frozen=True)
class LayerBases:
    """The calibrated bases of one layer, fixed at run time.

    Attributes:
        query: P_q, (kv_heads, dim, dim).
        key: P_k, (kv_heads, dim, dim).
        value: P_v, (kv_heads, value_dim, value_dim).
        core: of a score basis whose ranks do not nest, (kv_heads, dim, dim), float64; see `ScoreBasis`.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    core: Tensor | None = None


@dataclass(frozen=True)
class StreamSettings:
    """What a stream computes.

    Attributes:
        shape: sizes of the layer and its segments.
        costs: candidate ranks, each with its value rank; rank dim is plain full attention.
        basis: `refreshed`, or `calibrated`: the layer's fixed bases, whichever they are.
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
        kept_keys: k P_k in this very basis, (kv_heads, keys, width); None: worked out when first asked for.
        grams: the Grams at this segment.
        basis: the score basis it is answered in; NaN energies where they do not belong to this segment's Grams.
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
        """Inner products of the truncated scores; a basis refreshed at this segment brings them as its energies."""
        measure = score_products if bool(self.basis.energies.isnan().any()) else ritz_products
        return measure(self.basis, self.grams)

    @cached_property
    def head_products(self) -> ScoreProducts:
        """The same per query head, (heads, ...): each with the Gram of its own queries instead of its group's."""
        shape = self.settings.shape
        if shape.groups == 1:
            return self.products
        query, key = (side.repeat_interleave(shape.groups, 0) for side in (self.basis.query, self.basis.key))
        core = None if self.basis.core is None else self.basis.core.repeat_interleave(shape.groups, 0)
        own = gram(self.queries.reshape(shape.heads, shape.segment, shape.dim))
        basis = unmeasured_basis(query, key, core)
        return score_products(basis, Grams(own, self.grams.key.repeat_interleave(shape.groups, 0)))

    @cached_property
    def changes(self) -> Tensor:
        """‖ΔS‖² between all candidate ranks, (kv_heads, ranks, ranks)."""
        return squared_changes(self.products, self.settings.ranks)

    @cached_property
    def head_changes(self) -> Tensor:
        """‖ΔS_h‖² of every query head, (heads, ranks, ranks); those of a group add up to `changes` of its key head.

        They do to rounding in a calibrated or kept basis; a refreshed one measures a group by its energies instead.
        """
        return squared_changes(self.head_products, self.settings.ranks)

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

    def _project_queries(self, rank: int) -> Tensor:
        """q P_q of a rank: a slice where ranks nest, a projection of its own where they do not."""
        if self.basis.core is None:
            return self._projected[0][..., :rank]
        return project(self.queries, self.basis.truncate(rank).query)

    def _project_keys(self) -> Tensor:
        """k P_k, with empty columns where a value rank is larger: padding P_k is cheaper than padding k P_k."""
        missing = max(0, self.settings.value_width - self.basis.width)
        return project(self.keys, functional.pad(self.basis.key, (0, missing)))

    def output(self, choice: int) -> Tensor:
        """Attention at candidate `choice`, (kv_heads, groups · segment, value_dim)."""
        cost, shape = self.settings.costs[choice], self.settings.shape
        if cost.rank >= shape.dim:
            return self.full_output
        queries, keys = self._project_queries(cost.rank), self._projected[1]
        back = self.bases.value[..., : cost.value_rank]
        return low_rank_attention(queries, keys, self.reduced_values, back, shape.segment, shape.dim)

    def moments(self, choice: int) -> Tensor:
        """Moments of candidate `choice` against full attention, (heads, 4); see `attention.output_moments`."""
        return output_moments(self.full_output, self.output(choice), self.settings.shape.segment)

    def head_output(self, choices: Sequence[int]) -> Tensor:
        """Attention with every query head at a candidate of its own, (kv_heads, groups · segment, value_dim).

        Args:
            choices: candidate of every query head, (heads,); those of a group are neighbours.

        Raises:
            ValueError: not one candidate per query head, or an unknown one.
        """
        shape = self.settings.shape
        _check_choices(choices, shape.heads, len(self.settings.costs))
        found = torch.empty(shape.heads, shape.segment, shape.value_dim, dtype=self.queries.dtype)
        for choice in set(choices):
            heads = [head for head, wanted in enumerate(choices) if wanted == choice]
            found[heads] = self.output(choice).reshape(found.shape)[heads]
        return found.reshape(shape.kv_heads, -1, shape.value_dim)

    def head_moments(self, choices: Sequence[int]) -> Tensor:
        """Moments of `head_output` against full attention, (heads, 4); see `attention.output_moments`."""
        return output_moments(self.full_output, self.head_output(choices), self.settings.shape.segment)

    def with_basis(self, basis: ScoreBasis | None, settings: StreamSettings | None = None) -> Segment:
        """The same segment answered in another basis; full attention, if it is there already, is shared.

        Args:
            basis: one refreshed at an earlier segment, which this one keeps: it has gone stale, and its energies are
                not this segment's. None: the layer's calibrated one.
            settings: other candidate costs (value ranks of a calibrated basis are others), same shape; None: the same.

        Raises:
            BasisError: the basis has fewer columns than the largest reduced rank.
            ValueError: the settings are of another shape.
        """
        wanted = self.settings if settings is None else settings
        if basis is None:
            found = calibrated_basis(self.bases, wanted.width)
        else:
            found = unmeasured_basis(basis.query, basis.key, basis.core)
        _check_variant(found, self.settings, wanted)
        values = self.reduced_values
        if wanted.value_width > values.shape[-1]:
            values = project(self.values, self.bases.value[..., : wanted.value_width])
        variant = replace(self, settings=wanted, basis=found, reduced_values=values, kept_keys=None)
        if "full_output" in vars(self):
            vars(variant)["full_output"] = self.full_output
        return variant


def unmeasured_basis(query: Tensor, key: Tensor, core: Tensor | None = None) -> ScoreBasis:
    """Factors, each (kv_heads, dim, width), whose energies are not those of the segment at hand, hence NaN."""
    return ScoreBasis(query, key, torch.full(key.shape[::2], torch.nan, dtype=torch.float64), core)


def calibrated_basis(bases: LayerBases, width: int) -> ScoreBasis:
    """The calibrated basis as a score basis; its energies belong to the calibration text and are not a segment's."""
    core = None if bases.core is None else bases.core[..., :width, :width]
    return unmeasured_basis(bases.query[..., :width].double(), bases.key[..., :width].double(), core)


def _check_choices(choices: Sequence[int], heads: int, ranks: int) -> None:
    if len(choices) != heads or not all(0 <= choice < ranks for choice in choices):
        raise ValueError(f"choices={list(choices)}: must be {heads} numbers, one a query head, from 0 to {ranks - 1}")


def _check_variant(basis: ScoreBasis, own: StreamSettings, wanted: StreamSettings) -> None:
    """A slice past the last column would silently run at a smaller rank."""
    if wanted.shape != own.shape:
        raise ValueError(f"settings.shape={wanted.shape}: this segment has {own.shape}; give settings of that shape")
    largest = max((rank for rank in wanted.ranks if rank < own.shape.dim), default=0)
    if basis.width < largest:
        raise BasisError(f"basis: {basis.width} columns; rank {largest} is a candidate, give one at least that wide")
