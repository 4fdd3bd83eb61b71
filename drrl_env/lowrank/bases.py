"""Bases of the scores: q kᵀ ≈ (q P_q)(k P_k)ᵀ, columns ordered by energy so that ranks nest.

Three ways to one interface: *cold* (a decomposition from nothing), *warm* (one subspace step from a start)
and *calibrated* (fixed, fitted on calibration text). The first r columns of a basis are its rank r; of a basis with a
core, whose ranks do not nest, that is so on the key side alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from drrl_env.lowrank.grams import Grams

NULL = 1e-13
"""Singular values below this share of the largest are zero: rank-deficient queries or keys stay exact."""
RIDGE = 1e-12
"""Share of the balanced key Gram's trace added to its diagonal, so that its Cholesky factor exists."""


APPLICATIONS = 2
"""Times that a warm step applies G_q G_k."""
SAFE_PIVOT = 1e-5
"""Smallest pivot, as a share of the largest, with which a Cholesky factor of the key Gram is trusted in `cold`."""


class BasisError(ValueError):
    """A basis cannot be computed from what was given."""


@dataclass(frozen=True)
class ScoreBasis:
    """A factor pair for the scores of one segment against all keys.

    Attributes:
        query: P_q, (kv_heads, dim, width), float64.
        key: P_k, (kv_heads, dim, width), float64.
        energies: estimates θ_i of σ_i², descending, (kv_heads, width), float64, unscaled scores.
        core: C, (kv_heads, width, width), float64, of a basis whose ranks do not nest on the query side: the factor of
            rank r there is P_q[:, :r] C[:r, :r]. None where the first r columns of P_q are.
    """

    query: Tensor
    key: Tensor
    energies: Tensor
    core: Tensor | None = None

    @property
    def width(self) -> int:
        """Number of columns."""
        return int(self.key.shape[-1])

    def truncate(self, rank: int) -> ScoreBasis:
        """The factor pair of a rank, core included; its first `rank` columns where ranks nest: a change is a slice."""
        if not 0 < rank <= self.width:
            raise BasisError(f"rank={rank}: the basis has {self.width} columns; use ranks from 1 to {self.width}")
        query = self.query[..., :rank]
        if self.core is not None:
            query = query @ self.core[..., :rank, :rank]
        return ScoreBasis(query, self.key[..., :rank], self.energies[..., :rank])


def triangular(rows: Tensor) -> Tensor:
    """R of rows = Q R in float64, (kv_heads, min(tokens, dim), dim)."""
    factor: Tensor = torch.linalg.qr(rows.to(torch.float64), mode="r").R
    return factor


def product_svd(queries: Tensor, keys: Tensor, width: int) -> ScoreBasis:
    """The best rank-r factors of q kᵀ for every r ≤ width, from triangular factors; the exact reference.

    Args:
        queries: (kv_heads, groups · segment, dim).
        keys: (kv_heads, keys, dim).
        width: columns wanted, at most dim.

    Returns:
        The cold basis; its energies are the squared singular values of q kᵀ to about 1e-10 · ‖q‖₂‖k‖₂.

    Raises:
        BasisError: the width exceeds dim, or the rows are not finite.

    Source: Eckart–Young; the closed form is KQ-SVD's (arXiv 2512.05916); design §2, product SVD.
    """
    _check_width(width, queries.shape[-1])
    _check_finite(queries, keys)
    factor_q, factor_k = triangular(queries), triangular(keys)
    left, sigma, right = torch.linalg.svd(factor_q @ factor_k.mT, full_matrices=False)
    scale = _inverse_root(sigma)
    query = factor_k.mT @ right.mT * scale[..., None, :]
    key = factor_q.mT @ left * scale[..., None, :]
    return _fit_width(query, key, sigma**2, width)


def _inverse_root(sigma: Tensor) -> Tensor:
    """Σ^{-1/2}, zero where a singular value is null."""
    alive = sigma > NULL * sigma[..., :1]
    return torch.where(alive, sigma, torch.ones_like(sigma)).rsqrt() * alive


def _fit_width(query: Tensor, key: Tensor, energies: Tensor, width: int) -> ScoreBasis:
    """Cuts or zero-pads the columns to `width` (a core of few tokens has fewer columns than dim)."""
    missing = max(0, width - key.shape[-1])
    pad = torch.nn.functional.pad
    return ScoreBasis(
        pad(query, (0, missing))[..., :width],
        pad(key, (0, missing))[..., :width],
        pad(energies, (0, missing))[..., :width],
    )


def cold(grams: Grams, width: int) -> ScoreBasis:
    """The same factors from the Gram matrices alone.

    Args:
        grams: the Grams of one segment.
        width: columns wanted, at most dim.

    Returns:
        The basis; singular values are within about 1e-7 · ‖q‖₂‖k‖₂ (a Gram squares the condition).

    Raises:
        BasisError: the width exceeds dim, or the Grams are not finite.

    Source: design §2, cold (≈ 13 d³ FLOPs): a factor of the key Gram, then one symmetric eigenproblem.
    """
    _check_width(width, grams.key.shape[-1])
    scale = _balancing_scale(grams)[..., None]
    outer = scale * scale.mT
    root, dual = _roots(grams.key * outer)
    energies, right = _descending(root.mT @ (grams.query / outer) @ root, width)
    halves = _balancing_root(energies)
    return ScoreBasis(root @ (right / halves) / scale, scale * dual(right * halves), energies)


def _roots(gram: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """A root L, L Lᵀ = gram, and what multiplies by L⁻ᵀ; Cholesky, or eigenvectors where that is near to failing."""
    root, failed = torch.linalg.cholesky_ex(gram)
    pivots = root.diagonal(dim1=-2, dim2=-1)
    if bool(failed.any()) or float((pivots.amin(-1) - SAFE_PIVOT * pivots.amax(-1)).min()) <= 0:
        return _spectral_roots(gram)
    return root, lambda columns: torch.linalg.solve_triangular(root.mT, columns, upper=True)


def _spectral_roots(gram: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """The same from an eigenproblem: directions without energy are dropped, so rank-deficient keys are exact."""
    spectrum, vectors = torch.linalg.eigh(gram)
    alive = spectrum > torch.finfo(torch.float64).eps * spectrum[..., -1:]
    root = torch.where(alive, spectrum, torch.zeros_like(spectrum)).sqrt()
    inverse = torch.where(alive, spectrum, torch.ones_like(spectrum)).rsqrt() * alive
    return vectors * root[..., None, :], lambda columns: vectors * inverse[..., None, :] @ columns


def warm(grams: Grams, start: Tensor) -> ScoreBasis:
    """A subspace step from `start`, then Rayleigh–Ritz, so that columns are ordered by energy.

    The step applies G_q G_k twice before it orthonormalises: once left the tail of rank width − 8 up to 13 % above
    the optimum on the bundled LM (worst head of 512 segments), twice leaves 2.6 %, for 4d² more FLOPs a column.

    Args:
        grams: the Grams of one segment.
        start: key-side columns to begin from, (kv_heads, dim, width); only their span matters.

    Returns:
        The basis of `start`'s width; its energies are Ritz values.

    Raises:
        BasisError: the Grams are not finite, or the keys are zero; there is nothing to decompose.

    Source: subspace iteration on (q kᵀ)ᵀ(q kᵀ) in key coordinates; design §2, incremental update.
    """
    ridged = grams.key.clone()
    ridged.diagonal(dim1=-2, dim2=-1).add_(_ridge(grams))
    factor, failed = torch.linalg.cholesky_ex(ridged, upper=True)
    if bool(failed.any()):
        raise BasisError("key Gram: no Cholesky factor exists, the keys of a head are all zero; use `cold`")
    step = start.to(torch.float64)
    for _ in range(APPLICATIONS):
        step = grams.query @ (ridged @ step)
    ortho = _orthonormal(factor @ step)
    columns = torch.linalg.solve_triangular(factor, ortho, upper=True)
    image = factor.mT @ ortho
    energies, ritz = _descending(image.mT @ (grams.query @ image), start.shape[-1])
    root = _balancing_root(energies)
    return ScoreBasis(image @ (ritz / root), columns @ (ritz * root), energies)


def _check_width(width: int, dim: int) -> None:
    if not 0 < width <= dim:
        raise BasisError(f"width={width}: the head dimension is {dim}; use widths from 1 to {dim}")


def _check_finite(queries: Tensor, keys: Tensor) -> None:
    for name, tensor in (("queries", queries), ("keys", keys)):
        if not bool(torch.isfinite(tensor).all()):
            raise BasisError(f"{name}: NaN or infinite; no basis exists, look for the cause in the model's weights")


def _balancing_scale(grams: Grams) -> Tensor:
    """D for which the dimensions of q/D and kD weigh alike, (kv_heads, dim).

    q kᵀ does not know at which scale a dimension is split between q and k, but a Gram squares that scale, and
    whatever lies under the rounding of its largest entry is lost: with scales of 1e±6, four fifths of the scores.

    Raises:
        BasisError: the Grams are not finite (NaN anywhere in a column shows in its diagonal).
    """
    query, key = (matrix.diagonal(dim1=-2, dim2=-1) for matrix in (grams.query, grams.key))
    _check_finite(query, key)
    return torch.where((query > 0) & (key > 0), query / key, torch.ones_like(key)).sqrt().sqrt()


def _ridge(grams: Grams) -> Tensor:
    """What is added to the diagonal of G_k, (kv_heads, dim): 1e-12 tr(DG_kD) D⁻², the same for any split of scale."""
    squares = _balancing_scale(grams).square()
    trace = (grams.key.diagonal(dim1=-2, dim2=-1) * squares).sum(-1, keepdim=True)
    return RIDGE * trace / squares


def _orthonormal(columns: Tensor) -> Tensor:
    """Q of columns = Q R by Householder reflections, without forming R."""
    ortho: Tensor = torch.linalg.householder_product(*torch.geqrf(columns))
    return ortho


def _descending(symmetric: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """The `width` largest eigenvalues, clipped at zero, and their vectors, largest first; reads one triangle."""
    values, vectors = torch.linalg.eigh(symmetric)
    return values.flip(-1)[..., :width].clamp_min(0), vectors.flip(-1)[..., :width]


def _balancing_root(energies: Tensor) -> Tensor:
    """√σ per column, (kv_heads, 1, width), bounded below: half of each singular value goes to either side.

    The product is the same, and float32 likes it better.
    """
    sigma = energies.sqrt()
    floor = torch.where(sigma[..., :1] > 0, 1e-7 * sigma[..., :1], torch.ones_like(sigma[..., :1]))
    return torch.maximum(sigma, floor).sqrt()[..., None, :]


def refresh(grams: Grams, start: Tensor, method: str) -> ScoreBasis:
    """The refreshed basis of one segment, by the method that `flops.decomposition_method` names.

    Args:
        grams: the Grams of one segment.
        start: calibrated key-side columns, (kv_heads, dim, width).
        method: `warm` or `cold`.

    Raises:
        BasisError: an unknown method, or nothing to decompose.
    """
    if method == "warm":
        return warm(grams, start)
    if method == "cold":
        return cold(grams, int(start.shape[-1]))
    raise BasisError(f"method={method!r}: unknown; use 'warm' or 'cold'")


def value_basis(value_gram: Tensor) -> Tensor:
    """P_v: eigenvectors of vᵀv, leading first, (kv_heads, value_dim, value_dim); v ≈ (v P_v) P_vᵀ.

    Source: design §2, values.
    """
    return _descending(value_gram.to(torch.float64), int(value_gram.shape[-1]))[1]
