"""Statistics of a layer's weights: mean, spread and the heavy-tail exponent of their spectra."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

MATRICES = ("W_Q", "W_K", "W_V")
"""Matrices of a layer that statistics are of, in this order."""
WEIGHT_STATISTICS = ("mean", "deviation", "alpha")
"""Per matrix, in this order: 10·mean, √fan_in·standard deviation, (α − 2)/4."""


def heavy_tail_exponent(weight: Tensor) -> float:
    """Exponent α of a power law fitted to the tail of the eigenvalues of WᵀW.

    The tail begins where the Kolmogorov–Smirnov distance between fit and data is smallest; α is its
    maximum-likelihood estimate there.

    Args:
        weight: (outputs, inputs).

    Returns:
        α > 1; heavy-tailed (well-trained) layers have 2 to 6. Infinite where fewer than two singular values differ
        from zero: there is no tail.

    Source: Clauset, Shalizi & Newman 2009; HTSR/SETOL (Martin & Mahoney).
    """
    spectrum = torch.linalg.svdvals(weight.double()).square().sort().values
    logs = spectrum[spectrum > 1e-12 * spectrum[-1]].log()
    fits = [_tail_fit(logs[start:]) for start in range(len(logs) - 1)]
    return min(fits, default=(0.0, math.inf))[1]


def _tail_fit(logs: Tensor) -> tuple[float, float]:
    """KS distance and α of the tail whose sorted log eigenvalues are given."""
    count = len(logs)
    excess = logs - logs[0]
    alpha = 1 + count / float(excess.sum().clamp_min(1e-12))
    model = 1 - torch.exp(-(alpha - 1) * excess)
    data = torch.arange(count, dtype=logs.dtype) / count
    return float((model - data).abs().max()), alpha


def weight_statistics(weights: Sequence[Tensor]) -> Tensor:
    """`WEIGHT_STATISTICS` of each matrix, one after the other, (3 · len(weights),), about unit scale.

    Args:
        weights: for example (W_Q, W_K, W_V), each (outputs, inputs).
    """
    rows = []
    for weight in weights:
        exact = weight.double()
        spread = exact.std() * weight.shape[-1] ** 0.5
        rows += [10 * float(exact.mean()), float(spread), (heavy_tail_exponent(weight) - 2) / 4]
    return torch.tensor(rows, dtype=torch.float64)
