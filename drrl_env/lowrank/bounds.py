"""Bounds on what a change of the scores or of the values can do to the output; never violated, and tested so.

Per head, for scaled scores over the same visible keys. Bound (a), Eckart–Young, is `changes` on a cold basis.
"""

from __future__ import annotations

import torch
from torch import Tensor


def value_term(values: Tensor, value_columns: Tensor) -> Tensor:
    """max_j ‖(I − P_v P_vᵀ) v_j‖ over the keys: what reduced values add per row, (kv_heads,).

    Args:
        values: (kv_heads, keys, value_dim), keys visible to some query of the segment.
        value_columns: P_v, (kv_heads, value_dim, value_rank).
    """
    residual = values - (values @ value_columns) @ value_columns.mT
    norms: Tensor = torch.linalg.vector_norm(residual, dim=-1)
    return norms.amax(-1)


def output_bound(score_change: Tensor, values: Tensor, value_columns: Tensor, rows: int) -> Tensor:
    """Bound (b): ‖ΔO‖_F ≤ ½ ‖ΔS‖_F · ‖V − 1cᵀ‖₂ + √rows · max_j ‖(I − P_vP_vᵀ)v_j‖.

    Args:
        score_change: ‖ΔS‖_F over visible keys (or unmasked, which is no smaller), (kv_heads,), scaled scores.
        values: (kv_heads, keys, value_dim).
        value_columns: P_v of the reduced values, (kv_heads, value_dim, value_rank).
        rows: query rows per key head, groups · segment.

    Returns:
        (kv_heads,).

    Source: softmax is ½-Lipschitz (arXiv 2510.23012); c is the mean value; design §2, bounds.
    """
    centred = values - values.mean(-2, keepdim=True)
    lipschitz: Tensor = 0.5 * score_change * torch.linalg.matrix_norm(centred, 2)
    reduced: Tensor = rows**0.5 * value_term(values, value_columns)
    return lipschitz + reduced


def row_bound(score_differences: Tensor, visible: Tensor, values: Tensor, value_columns: Tensor) -> Tensor:
    """Bound (c): ‖Δo_i‖ ≤ tanh(osc_i / 4) · diam(V_visible) + max_j ‖(I − P_vP_vᵀ)v_j‖, per query row.

    It needs the full scores, so it is a check and not a guard.

    Args:
        score_differences: Δs, (kv_heads, rows, keys), scaled scores.
        visible: whether a row sees a key, (rows, keys), bool; every row sees one.
        values: (kv_heads, keys, value_dim).
        value_columns: P_v, (kv_heads, value_dim, value_rank).

    Returns:
        (kv_heads, rows).

    Source: design §2, bounds.
    """
    infinite = torch.full_like(score_differences, torch.inf)
    highest = torch.where(visible, score_differences, -infinite).amax(-1)
    lowest = torch.where(visible, score_differences, infinite).amin(-1)
    spread = torch.tanh((highest - lowest) / 4) * diameters(visible, values)
    return spread + value_term(values, value_columns)[:, None]


def diameters(visible: Tensor, values: Tensor) -> Tensor:
    """Largest distance between two values a row sees, (kv_heads, rows)."""
    # The faster way by matrix products cancels in float32 and comes out too small, which a bound must not.
    distances = torch.cdist(values, values, compute_mode="donot_use_mm_for_euclid_dist")
    return torch.stack([distances[:, seen][:, :, seen].amax((-2, -1)) for seen in visible], dim=-1)
