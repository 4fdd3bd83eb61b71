"""What a statistic is, and what it is worked out from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod

import torch
from torch import Tensor

from drrl_env.lowrank.flops import AttentionShape
from drrl_env.lowrank.stream import Segment
from drrl_env.lowrank.weights import MATRICES

LEVELS = ("segment", "weights", "text")
"""What a statistic may be of."""
TINY = torch.finfo(torch.float64).tiny
"""Keeps ratios of energies finite where there is no energy at all."""
LOWEST_RATIO = -8.0
"""Where the energy ratio is cut: a calibrated basis can see energy in scores that have next to none."""


@dataclass(frozen=True)
class Sizes:
    """What the shapes and costs of statistics follow from.

    Attributes:
        shape: sizes of a layer and its segments.
        ranks: candidate ranks.
        hidden: width of the embeddings.
        chunks: chunk means that describe a segment's text.
        components: principal components of each.
    """

    shape: AttentionShape
    ranks: int
    hidden: int
    chunks: int
    components: int

    @property
    def symbols(self) -> Mapping[str, int]:
        """What the symbols in `Statistic.shape` stand for."""
        own = {"ranks": self.ranks, "chunks": self.chunks, "components": self.components, "matrices": len(MATRICES)}
        return {**own, "kv_heads": self.shape.kv_heads, "heads": self.shape.heads, "dim": self.shape.dim}


@dataclass(frozen=True)
class View:
    """What statistics are worked out from; shared quantities are worked out once.

    Attributes:
        segment: the segment as streamed.
        weights: `WEIGHT_STATISTICS` of the layer's W_Q, W_K, W_V, (matrices, 3).
        tokens: chunk means of the segment's embeddings in whitened principal components, (chunks, components).
    """

    segment: Segment
    weights: Tensor
    tokens: Tensor

    @property
    def dim(self) -> int:
        """Head dimension."""
        return self.segment.settings.shape.dim

    @cached_property
    def total(self) -> Tensor:
        """‖S‖² per head, unscaled, above zero, (kv_heads,)."""
        return self.segment.products.total.clamp_min(TINY)

    @cached_property
    def energy_ratio(self) -> Tensor:
        """1 − ‖S − S_r‖² / ‖S‖² over all heads, at least `LOWEST_RATIO`, (ranks,)."""
        found = 1 - self.segment.lost.sum(0) / self.segment.products.total.sum().clamp_min(TINY)
        return found.clamp_min(LOWEST_RATIO)

    @cached_property
    def head_losses(self) -> Tensor:
        """‖S − S_r‖² / ‖S‖² of every head by itself, (kv_heads, ranks)."""
        return self.segment.lost / self.total[:, None]

    @cached_property
    def spectral_shares(self) -> Tensor:
        """σ₁² / ‖S‖² from one streaming power step and its Rayleigh quotient, (kv_heads,)."""
        grams, power = self.segment.grams, self.segment.power
        seen = (grams.key @ power[..., None])[..., 0]
        norm = (power * seen).sum(-1)
        stretched = (seen * (grams.query @ seen[..., None])[..., 0]).sum(-1)
        return (stretched / (norm * self.segment.products.total).clamp_min(TINY)).clamp(0, 1)


@dataclass(frozen=True)
class Statistic:
    """A named number, or array of numbers, that a policy may see.

    Attributes:
        name: its name in `statistics=`, observations and docs.
        shape: its axes, each a number or one of `Sizes.symbols`; () for one number.
        flops: what it costs per segment, all heads, from (sizes, width of the basis), beyond the Grams, the basis and
            what it needs. The weights' statistics are worked out once per model: 0 per segment.
        source: paper and equation, or formula.
        function: computes it, float, of `shape`; the first line of its docstring is its meaning in the docs.
        level: `segment` (the entries `segment` and `window`), `weights` (`layer`; its first axis is "matrices") or
            `text` (`tokens`).
        needs_basis: whether it takes the Grams and the basis of the segment; what reads the Grams alone is charged
            for both.
        needs: statistics it is worked out from; their cost is paid once, however many need them.
        low: smallest value.
        high: largest value.

    Raises:
        ValueError: an unknown level, or a shape that does not fit it.
    """

    name: str
    shape: tuple[str | int, ...]
    flops: Callable[[Sizes, int], float]
    source: str
    function: Callable[[View], Tensor]
    level: str = "segment"
    needs_basis: bool = True
    needs: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if self.level not in LEVELS:
            raise ValueError(
                f"statistic {self.name!r}: level={self.level!r}: unknown; use one of {', '.join(map(repr, LEVELS))}"
            )
        if self.level == "weights" and self.shape[:1] != ("matrices",):
            raise ValueError(
                f"statistic {self.name!r}: shape={self.shape}: one of the weights begins with 'matrices'; "
                f"use shape=('matrices',)"
            )

    def resolve(self, sizes: Sizes) -> tuple[int, ...]:
        """Its shape in numbers.

        Raises:
            ValueError: a symbol is unknown.
        """
        symbols = sizes.symbols
        for axis in self.shape:
            if not isinstance(axis, int) and axis not in symbols:
                raise ValueError(
                    f"statistic {self.name!r}: shape={self.shape}: {axis!r} is unknown; "
                    f"use numbers or {', '.join(map(repr, symbols))}"
                )
        return tuple(axis if isinstance(axis, int) else symbols[axis] for axis in self.shape)

    def size(self, sizes: Sizes) -> int:
        """Numbers in it."""
        return prod(self.resolve(sizes))

    def value(self, view: View, shape: tuple[int, ...]) -> Tensor:
        """What the function gives, checked.

        Raises:
            ValueError: another shape than was declared, NaN, or an infinite number.
        """
        found = self.function(view)
        if tuple(found.shape) != shape:
            raise ValueError(
                f"statistic {self.name!r}: gave shape {tuple(found.shape)} but declares {shape}; make them agree"
            )
        if not bool(torch.isfinite(found).all()):
            raise ValueError(f"statistic {self.name!r}: NaN or infinite at segment {view.segment.position}; bound it")
        return found
