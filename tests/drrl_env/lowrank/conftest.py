"""References for the mathematics: float64, and always from the T x n block of scores itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import pytest
import torch
from torch import Tensor

from drrl_env.lowrank.bases import ScoreBasis, cold, value_basis
from drrl_env.lowrank.flops import AttentionShape, RankCost
from drrl_env.lowrank.grams import Grams, gram, group_queries
from drrl_env.lowrank.offline import EVERY_BASIS, OFFLINE, Subspaces, priced_as, subspaces
from drrl_env.lowrank.stream import LayerBases, LayerStream, Segment, StreamSettings, run_stream


@dataclass(frozen=True)
class Scores:
    """Queries and keys with everything a dense decomposition says of their scores (unscaled, unmasked).

    Attributes:
        queries: (kv_heads, rows, dim), float64.
        keys: (kv_heads, keys, dim), float64.
    """

    queries: Tensor
    keys: Tensor

    @cached_property
    def block(self) -> Tensor:
        """q kᵀ, (kv_heads, rows, keys)."""
        return self.queries @ self.keys.mT

    @cached_property
    def singular_values(self) -> Tensor:
        """Of the block, padded with zeros to (kv_heads, dim)."""
        found = torch.linalg.svdvals(self.block)[..., : self.dim]
        return torch.nn.functional.pad(found, (0, self.dim - found.shape[-1]))

    @property
    def dim(self) -> int:
        """Head dimension."""
        return int(self.queries.shape[-1])

    @property
    def grams(self) -> Grams:
        """Grams of queries and keys."""
        return Grams(gram(self.queries), gram(self.keys))

    def sigma_error(self, basis: ScoreBasis) -> float:
        """Largest error of the basis' singular values, relative to ‖q‖₂‖k‖₂."""
        norms = torch.linalg.matrix_norm(self.queries, 2) * torch.linalg.matrix_norm(self.keys, 2)
        off = basis.energies.sqrt() - self.singular_values[..., : basis.width]
        return float((off.abs().amax(-1) / norms.clamp_min(1e-300)).max())

    def tail(self, rank: int) -> Tensor:
        """‖S − S_r‖_F of the best rank-r block, (kv_heads,)."""
        return torch.linalg.vector_norm(self.singular_values[..., rank:], dim=-1)

    def lost(self, basis: ScoreBasis, rank: int) -> Tensor:
        """‖S − (q P_q)(k P_k)ᵀ‖_F at a rank of the basis, (kv_heads,)."""
        cut = basis.truncate(rank)
        return torch.linalg.matrix_norm(self.block - (self.queries @ cut.query) @ (self.keys @ cut.key).mT)

    def worst_excess(self, basis: ScoreBasis) -> float:
        """Largest (error − optimum)/‖S‖_F over ranks and heads."""
        norm = torch.linalg.matrix_norm(self.block).clamp_min(1e-300)
        ranks = range(1, basis.width + 1)
        return max(float(((self.lost(basis, rank) - self.tail(rank)) / norm).max()) for rank in ranks)


HARD_CASES = (
    "plain", "decaying", "low_rank_queries", "low_rank_keys", "tied", "fewer_keys_than_dims", "fewer_tokens_than_dims",
    "zero_keys_beyond", "zero_head", "scaled_apart", "tiny", "dims_scaled_apart", "tokens_scaled_apart",
)  # fmt: skip


def _hard_case(name: str) -> Scores:
    random = torch.Generator().manual_seed(HARD_CASES.index(name))
    heads, rows, keys, dim = 3, 48, 160, 32
    q = torch.randn(heads, rows, dim, generator=random, dtype=torch.float64)
    k = torch.randn(heads, keys, dim, generator=random, dtype=torch.float64)
    decay, spread = (torch.logspace(a, b, dim, dtype=torch.float64) for a, b in ((0, -4), (-6, 6)))
    mix = torch.linalg.qr(torch.randn(dim, dim, generator=random, dtype=torch.float64)).Q
    few = torch.randn(7, dim, generator=random, dtype=torch.float64)
    alive = torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64)[:, None, None]
    return {
        "plain": lambda: Scores(q, k),
        "decaying": lambda: Scores(q * decay @ mix, k * decay @ mix),
        "low_rank_queries": lambda: Scores(q[..., :7] @ few, k),
        "low_rank_keys": lambda: Scores(q, k[..., :7] @ few),
        "tied": lambda: Scores(torch.linalg.qr(q).Q, torch.linalg.qr(k).Q),
        "fewer_keys_than_dims": lambda: Scores(q[:, :8], k[:, :12]),
        "fewer_tokens_than_dims": lambda: Scores(q[:, :5], k),
        "zero_keys_beyond": lambda: Scores(q, k * (torch.arange(keys) < 20)[:, None]),
        "zero_head": lambda: Scores(q * alive, k * alive.flip(0)),
        "scaled_apart": lambda: Scores(q * 1e6, k * 1e-6),
        "tiny": lambda: Scores(q * 1e-6, k * 1e-6),
        "dims_scaled_apart": lambda: Scores(q * spread, k / spread),
        "tokens_scaled_apart": lambda: Scores(q * spread.repeat(2)[:rows, None], k * spread.repeat(5)[:, None]),
    }[name]()


@pytest.fixture(params=HARD_CASES)
def hard_case(request: pytest.FixtureRequest) -> Scores:
    """Queries and keys of each kind that breaks a careless decomposition."""
    return _hard_case(request.param)


@pytest.fixture(scope="session")
def make_scores() -> Callable[..., Scores]:
    """Builds `Scores` from queries and keys, or by the name of a hard case."""
    return lambda *parts: _hard_case(*parts) if isinstance(parts[0], str) else Scores(*(p.double() for p in parts))


def decaying_rows(shape: Sequence[int], seed: int, power: float = 1.0) -> Tensor:
    """Random rows in float32 of a fixed decaying covariance, (heads, tokens, dim), as a stationary text gives."""
    heads, tokens, dim = shape
    mix = torch.linalg.qr(torch.randn(heads, dim, dim, generator=torch.Generator().manual_seed(7))).Q
    rows = torch.randn(heads, tokens, dim, generator=torch.Generator().manual_seed(seed))
    return (rows * torch.arange(1, dim + 1) ** -power) @ mix


@pytest.fixture(scope="session")
def make_rows() -> Callable[..., Tensor]:
    """See `decaying_rows`."""
    return decaying_rows


def fit_bases(tensors: Sequence[Tensor], shape: AttentionShape, kind: str = "calibrated") -> LayerBases:
    """Calibrated bases, or those of an offline one, from whole-sequence (queries, keys, values)."""
    queries, keys, values = tensors
    grams, value = Grams(gram(group_queries(queries, shape.kv_heads)), gram(keys)), value_basis(gram(values)).float()
    if kind in OFFLINE:
        found = subspaces(grams)
        return OFFLINE[kind](Subspaces(found.query.float(), found.key.float()), value)
    basis = cold(grams, shape.dim)
    return LayerBases(basis.query.float(), basis.key.float(), value)


@dataclass(frozen=True)
class ToyLayer:
    """A small layer on a stationary sequence, and its bases calibrated on another.

    Attributes:
        settings: ranks 3, 5, 8 and 16 of 16 with value ranks 2, 9, 8 and 16; two query heads to a key head.
        bases: calibrated bases.
        tensors: (queries, keys, values), (heads, tokens, dim).
    """

    settings: StreamSettings
    bases: LayerBases
    tensors: tuple[Tensor, Tensor, Tensor]

    @property
    def segments(self) -> int:
        """Segments of the sequence."""
        return int(self.tensors[0].shape[-2] // self.settings.shape.segment)

    def fresh(self) -> LayerStream:
        """A stream that has seen nothing."""
        return LayerStream(self.settings, self.bases, self.segments * self.settings.shape.segment)

    def run(self) -> list[Segment]:
        """Every segment of the sequence."""
        return run_stream(self.fresh(), self.tensors, self.segments)


TOY_COSTS = (RankCost(3, 2), RankCost(5, 9), RankCost(8, 8), RankCost(16, 16))


def _toy_layer(kind: str, tokens: int = 48, dim: int = 16, costs: Sequence[RankCost] = TOY_COSTS) -> ToyLayer:
    shape = AttentionShape(kv_heads=2, groups=2, dim=dim, value_dim=dim, segment=8)
    sizes = [(4, tokens, dim), (2, tokens, dim), (2, tokens, dim)]
    text, other = (tuple(decaying_rows(s, 10 * j + i) for i, s in enumerate(sizes)) for j in (1, 2))
    bases = fit_bases(other, shape, kind)
    return ToyLayer(StreamSettings(shape, tuple(costs), priced_as(kind)), bases, (text[0], text[1], text[2]))


@pytest.fixture(params=EVERY_BASIS)
def toy_layer(request: pytest.FixtureRequest) -> ToyLayer:
    """A toy layer of each basis."""
    return _toy_layer(request.param)


@pytest.fixture(scope="session")
def make_toy_layer() -> Callable[..., ToyLayer]:
    """Builds toy layers of a basis, a length, a dimension and candidate costs."""
    return _toy_layer


@pytest.fixture(scope="session")
def with_power() -> Callable[[Segment, Tensor], Segment]:
    """The segment with another leading direction."""
    return lambda segment, power: replace(segment, power=power)
