"""Statistics of a segment or of a layer that a deployed policy could afford, each with its cost and its source.

Every one is scaled to about [0, 1]. What a user may extend is the table `STATISTICS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from drrl_env.lowrank.flops import AttentionShape
from drrl_env.lowrank.stream import Segment

DRIFT_RANK = 8
"""Leading columns whose turning between two segments is measured."""
TINY = torch.finfo(torch.float64).tiny
"""Keeps ratios of energies finite where there is no energy at all."""


@dataclass(frozen=True)
class Statistic:
    """A named number, or one per candidate rank, of a segment.

    Attributes:
        name: its name in observations and docs.
        per_rank: whether there is one value per candidate rank.
        flops: what it costs beyond the Grams and the basis, all heads, from (shape, width).
        source: paper and equation, or formula.
        function: computes it, `()` or `(ranks,)`, float64.
    """

    name: str
    per_rank: bool
    flops: Callable[[AttentionShape, int], float]
    source: str
    function: Callable[[Segment], Tensor]


def energy_ratio(segment: Segment) -> Tensor:
    """1 − ‖S − S_r‖² / ‖S‖² over all heads, per candidate rank, at most 1 (below 0 if the basis is worse than none)."""
    return 1 - segment.lost.sum(0) / segment.products.total.sum().clamp_min(TINY)


def residual_level(segment: Segment) -> Tensor:
    """log10 of ‖S − S_r‖ / ‖S‖ per rank, over 4, plus 1: 1 is everything lost, 0 is 1e-4 of the norm lost."""
    return 1 + (1 - energy_ratio(segment)).clamp(1e-8, 1).log10() / 8


def worst_residual_level(segment: Segment) -> Tensor:
    """The same for the head that loses most at each rank."""
    lost = segment.lost / segment.products.total[:, None].clamp_min(TINY)
    return 1 + lost.amax(0).clamp(1e-8, 1).log10() / 8


def column_energies(segment: Segment) -> Tensor:
    """Share of ‖S‖² that each column of the basis takes away, (kv_heads, width), at least 0."""
    total = segment.products.total[:, None].clamp_min(TINY)
    return (-segment.products.residuals.diff(dim=-1) / total).clamp_min(0)


def effective_rank(segment: Segment) -> Tensor:
    """exp(spectral entropy of the energies) / dim, mean over heads; energy outside the basis counts as spread evenly.

    Source: Roy & Vetterli 2007, on energies σ².
    """
    shares, dim = column_energies(segment), segment.settings.shape.dim
    outside = (1 - shares.sum(-1)).clamp_min(0)
    columns = max(1, dim - shares.shape[-1])
    entropy: Tensor = torch.special.entr(shares).sum(-1) + columns * torch.special.entr(outside / columns)
    return entropy.exp().clamp(1, dim).mean() / dim


def stable_rank(segment: Segment) -> Tensor:
    """‖S‖_F² / ‖S‖₂² / dim, mean over heads, with the spectral norm from `spectral_share`."""
    return (1 / _spectral_shares(segment).clamp_min(1 / segment.settings.shape.dim)).mean() / segment.settings.shape.dim


def _spectral_shares(segment: Segment) -> Tensor:
    """σ₁² / ‖S‖_F² per key head from one streaming power step and its Rayleigh quotient."""
    seen = (segment.grams.key @ segment.power[..., None])[..., 0]
    norm = (segment.power * seen).sum(-1)
    stretched = (seen * (segment.grams.query @ seen[..., None])[..., 0]).sum(-1)
    return (stretched / (norm * segment.products.total).clamp_min(TINY)).clamp(0, 1)


def spectral_share(segment: Segment) -> Tensor:
    """σ₁² / ‖S‖_F², mean over heads, in (0, 1]; σ₁ by streaming power iteration (the paper's Eq. 18)."""
    return _spectral_shares(segment).mean()


def nuclear_share(segment: Segment) -> Tensor:
    """L_{1,2} approximation of the nuclear norm over √dim ‖S‖_F, mean over heads, in (0, 1].

    Column norms of the triangular core R_k qᵀ, whose singular values are those of q kᵀ.

    Source: Matrix Nuclear-Norm (arXiv 2410.10672), O(n²) instead of a decomposition.
    """
    ridge = 1e-12 * segment.grams.key.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None, None]
    eye = torch.eye(segment.grams.key.shape[-1], dtype=torch.float64)
    factor: Tensor = torch.linalg.cholesky_ex(segment.grams.key + ridge * eye, upper=True).L
    squared = (factor * (factor @ segment.grams.query)).sum(-1).clamp_min(0)
    bound = (segment.products.total * segment.settings.shape.dim).clamp_min(TINY)
    return (squared.sqrt().sum(-1) / bound.sqrt()).mean()


def subspace_drift(segment: Segment) -> Tensor:
    """1 − mean squared cosine between the leading key subspaces of this segment and the last, in [0, 1]."""
    if segment.previous is None:
        return torch.zeros((), dtype=torch.float64)
    rank = min(DRIFT_RANK, segment.basis.width)
    now, before = (torch.linalg.qr(basis.key[..., :rank]).Q for basis in (segment.basis, segment.previous))
    cosines: Tensor = before.mT @ now
    return 1 - cosines.square().sum((-2, -1)).mean() / rank


def _cheap(per_head: Callable[[int, int], float]) -> Callable[[AttentionShape, int], float]:
    return lambda shape, width: shape.kv_heads * per_head(shape.dim, width)


STATISTICS = {
    statistic.name: statistic
    for statistic in (
        Statistic("energy_ratio", True, _cheap(lambda d, w: 2 * d**2 + w), "paper Eq. 15", energy_ratio),
        Statistic("residual_level", True, _cheap(lambda d, w: w), "log of paper Eq. 15", residual_level),
        Statistic("worst_residual_level", True, _cheap(lambda d, w: w), "as above, worst head", worst_residual_level),
        Statistic("effective_rank", False, _cheap(lambda d, w: 4 * w), "Roy & Vetterli 2007", effective_rank),
        Statistic("stable_rank", False, _cheap(lambda d, w: 2), "Rudelson & Vershynin 2007", stable_rank),
        Statistic("spectral_share", False, _cheap(lambda d, w: 8 * d**2), "paper Eq. 18", spectral_share),
        Statistic("nuclear_share", False, _cheap(lambda d, w: d**3 / 3 + 2 * d**3), "arXiv 2410.10672", nuclear_share),
        Statistic(
            "subspace_drift",
            False,
            _cheap(lambda d, w: 10 * d * DRIFT_RANK**2),
            "principal angles (Björck & Golub 1973)",
            subspace_drift,
        ),
    )
}
"""Every statistic of a segment, by name."""
