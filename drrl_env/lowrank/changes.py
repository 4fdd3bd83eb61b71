"""How far the scores move: ‖ΔS‖ between two ranks, of one basis or of two, and to full rank, in d x d work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional

from drrl_env.lowrank.bases import BasisError, ScoreBasis
from drrl_env.lowrank.grams import Grams


@dataclass(frozen=True)
class ScoreProducts:
    """Inner products of the truncated scores S_a (rank a) with each other and with S, unscaled and unmasked.

    Attributes:
        inner: ⟨S_a, S_b⟩ for a, b from 0 to width, (kv_heads, width + 1, width + 1), float64.
        crossed: ⟨S, S_a⟩, (kv_heads, width + 1), float64.
        total: ‖S‖², (kv_heads,), float64.
        dim: head dimension; a rank of this size means S itself.
    """

    inner: Tensor
    crossed: Tensor
    total: Tensor
    dim: int

    @cached_property
    def residuals(self) -> Tensor:
        """‖S − S_a‖² for a from 0 to width, (kv_heads, width + 1)."""
        own = self.inner.diagonal(dim1=-2, dim2=-1)
        return (self.total[:, None] - 2 * self.crossed + own).clamp_min(0)


@dataclass(frozen=True)
class Images:
    """A basis seen through the Grams of a segment: worked out once, it is compared with many others.

    Attributes:
        basis: the basis.
        query: G_q P_q, (kv_heads, dim, width), float64.
        key: G_k P_k, (kv_heads, dim, width), float64.
        total: ‖S‖², unscaled, (kv_heads,), float64.
    """

    basis: ScoreBasis
    query: Tensor
    key: Tensor
    total: Tensor

    def inner(self, other: Images) -> Tensor:
        """⟨S_a, S_b⟩ of truncations of `other` (a) and of this basis (b), (kv_heads, width + 1, width + 1).

        Source: the trace formula of design §2: tr[(P_q1ᵀG_qP_q2)(P_k2ᵀG_kP_k1)] sums (P_q1ᵀG_qP_q2)∘(P_k1ᵀG_kP_k2);
        with cores C_a and C_b it is ⟨C_a, (P_q1ᵀG_qP_q2) C_b (P_k2ᵀG_kP_k1)⟩.
        """
        queries, keys = other.basis.query.mT @ self.query, other.basis.key.mT @ self.key
        if other.basis.core is None and self.basis.core is None:
            return functional.pad((queries * keys).cumsum(-1).cumsum(-2), (1, 0, 1, 0))
        seen = queries[:, None] @ _cores(self.basis) @ keys.mT[:, None]
        return _cores(other.basis).flatten(-2) @ seen.flatten(-2).mT

    @cached_property
    def products(self) -> ScoreProducts:
        """The products of this basis with itself and with S."""
        core = self.basis.core
        if core is None:
            crossed = (self.query * self.key).sum(-2).cumsum(-1)
        else:
            crossed = (core * (self.query.mT @ self.key)).cumsum(-1).cumsum(-2).diagonal(dim1=-2, dim2=-1)
        crossed = functional.pad(crossed, (1, 0))
        return ScoreProducts(self.inner(self), crossed, self.total, int(self.key.shape[-2]))


def _cores(basis: ScoreBasis) -> Tensor:
    """The core of every rank from 0, zeros around it, (kv_heads, width + 1, width, width)."""
    heads, _, width = basis.key.shape
    kept = (torch.arange(width) < torch.arange(width + 1)[:, None]).to(basis.key.dtype)
    core = torch.eye(width, dtype=basis.key.dtype).expand(heads, -1, -1) if basis.core is None else basis.core
    return core[:, None] * kept[:, :, None] * kept[:, None, :]


def images(basis: ScoreBasis, grams: Grams) -> Images:
    """Both images of a basis, 4d²w FLOPs per key head; every comparison then takes 4dw² more."""
    return Images(basis, grams.query @ basis.query, grams.key @ basis.key, grams.total)


def score_products(basis: ScoreBasis, grams: Grams) -> ScoreProducts:
    """The products every ‖ΔS‖ of a segment follows from, in any basis.

    Source: the trace formula of design §2 with G_q and G_k: ⟨S_a, S_b⟩ sums (P_qᵀG_qP_q)∘(P_kᵀG_kP_k).
    """
    return images(basis, grams).products


def ritz_products(basis: ScoreBasis, grams: Grams) -> ScoreProducts:
    """The same for a warm or cold basis of these very Grams, from its energies alone: no product of matrices.

    There S_a is S projected onto the keys' first a directions, so ⟨S_a, S_b⟩ = ⟨S, S_min(a,b)⟩ = Σ_{i ≤ min(a,b)} θ_i.

    Source: design §2, energies.
    """
    kept = functional.pad(basis.energies.cumsum(-1), (1, 0))
    inner = torch.minimum(kept[..., :, None], kept[..., None, :])
    return ScoreProducts(inner, kept, grams.total, int(grams.key.shape[-1]))


def squared_changes(products: ScoreProducts, ranks: Sequence[int]) -> Tensor:
    """‖S_r − S_r'‖_F² for every pair of ranks, exact and unmasked.

    Args:
        products: the products of one basis and segment.
        ranks: ranks to compare, each at most the basis' width, or dim for full attention (S itself).

    Returns:
        (kv_heads, ranks, ranks), float64, of scores scaled by 1/√dim; symmetric, zero diagonal.

    Raises:
        BasisError: a rank is neither within the basis nor full.

    Source: the paper's Eq. 8 where the basis is cold; tr(Eᵀ G_q E G_k)/d, E = I − P_qP_kᵀ, to full rank.
    """
    _check_ranks(ranks, products.inner.shape[-1] - 1, products.dim)
    reduced = torch.tensor([rank if rank < products.dim else 0 for rank in ranks])
    own = products.inner[:, reduced, reduced]
    crossed = products.inner[:, reduced[:, None], reduced]
    pairs = own[:, :, None] + own[:, None, :] - (crossed + crossed.mT)
    changes = _with_full(pairs, products.residuals[:, reduced], [rank >= products.dim for rank in ranks])
    return changes.clamp_min(0) / products.dim


def _check_ranks(ranks: Sequence[int], width: int, dim: int) -> None:
    for rank in ranks:
        if rank != dim and not 0 < rank <= width:
            raise BasisError(f"rank={rank}: the basis has {width} columns; use ranks up to {width}, or {dim} for full")


def _with_full(pairs: Tensor, to_full: Tensor, full: Sequence[bool]) -> Tensor:
    """Puts the distances to the full scores into the rows and columns of full rank."""
    is_full = torch.tensor(full)
    column = torch.where(is_full, torch.zeros_like(to_full), to_full)
    mixed = torch.where(is_full[:, None], column[:, None, :], column[:, :, None])
    return torch.where(is_full[:, None] | is_full, mixed, pairs)


def cross_changes(
    first: ScoreBasis, second: ScoreBasis, grams: Grams, ranks_first: Sequence[int], ranks_second: Sequence[int]
) -> Tensor:
    """‖S_a − S_b‖_F² between a rank of one basis and a rank of another, in the scores of one segment.

    Args:
        first: basis of a.
        second: basis of b; `squared_changes` where it is the first.
        grams: the Grams of the segment; either basis may come from elsewhere.
        ranks_first: ranks a, each at most the first basis' width, or dim for full attention (S itself).
        ranks_second: ranks b, likewise of the second.

    Returns:
        (kv_heads, ranks a, ranks b), float64, of scores scaled by 1/√dim, exact and unmasked.

    Raises:
        BasisError: a rank is neither within its basis nor full.

    Source: design §2, rank change: the trace formula for a change of basis.
    """
    return image_changes(images(first, grams), images(second, grams), ranks_first, ranks_second)


def image_changes(first: Images, second: Images, ranks_first: Sequence[int], ranks_second: Sequence[int]) -> Tensor:
    """`cross_changes` from images under the same Grams: the cheap path where many bases are compared in pairs."""
    (own_a, with_a, at_a, full_a), (own_b, with_b, at_b, full_b) = (
        _side(first, ranks_first),
        _side(second, ranks_second),
    )
    inner = second.inner(first)[:, at_a[:, None], at_b]
    inner = torch.where(full_b, with_a[:, :, None], inner)
    inner = torch.where(full_a[:, None], with_b[:, None, :], inner)
    return (own_a[:, :, None] + own_b[:, None, :] - 2 * inner).clamp_min(0) / first.products.dim


def _side(found: Images, ranks: Sequence[int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of every rank: ‖S_a‖² and ⟨S, S_a⟩, each (kv_heads, ranks), its columns (0 for full), and whether it is full."""
    products = found.products
    _check_ranks(ranks, found.basis.width, products.dim)
    full = torch.tensor([rank >= products.dim for rank in ranks])
    columns = torch.tensor([rank if rank < products.dim else 0 for rank in ranks])
    own, total = products.inner[:, columns, columns], products.total[:, None]
    return torch.where(full, total, own), torch.where(full, total, products.crossed[:, columns]), columns, full
