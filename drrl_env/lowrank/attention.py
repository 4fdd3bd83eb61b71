"""Causal attention of one segment against all keys, full or of low rank, and how close two outputs are."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

from drrl_env.lowrank.bases import ScoreBasis


@lru_cache(maxsize=256)
def causal_mask(segment: int, keys: int, groups: int) -> Tensor:
    """Additive mask of the last `segment` queries over `keys` keys, (groups · segment, keys), float32."""
    hidden = torch.ones(segment, keys, dtype=torch.bool).triu(keys - segment + 1)
    return torch.zeros(segment, keys).masked_fill_(hidden, -math.inf).repeat(groups, 1)


def full_attention(queries: Tensor, keys: Tensor, values: Tensor, segment: int, scale: float | None = None) -> Tensor:
    """softmax(q kᵀ · scale + causal mask) v of a segment at the end of the keys.

    Args:
        queries: grouped, (kv_heads, groups · segment, dim).
        keys: (kv_heads, keys, dim).
        values: (kv_heads, keys, value_dim).
        segment: tokens of the segment, the last of the keys.
        scale: factor of the scores; 1/√dim where None.

    Returns:
        (kv_heads, groups · segment, value_dim).
    """
    mask = causal_mask(segment, keys.shape[-2], queries.shape[-2] // segment).to(queries.dtype)
    out = functional.scaled_dot_product_attention(queries[None], keys[None], values[None], attn_mask=mask, scale=scale)
    return out[0]


def project(rows: Tensor, columns: Tensor) -> Tensor:
    """rows · columns in the rows' own precision, (kv_heads, tokens, width)."""
    return rows @ columns.to(rows.dtype)


def low_rank_attention(queries: Tensor, keys: Tensor, values: Tensor, back: Tensor, segment: int, dim: int) -> Tensor:
    """Attention on projected queries, keys and values, of a segment at the end of the keys.

    Fused kernels want equal head dimensions (with only q and k reduced, PyTorch's CPU kernel falls back to a path
    6-50 times slower). So keys and values may come with more columns than are used, which spares a copy of them:
    queries are padded with zeros, that hide the keys' further columns, and `back` takes no further value column.

    Args:
        queries: q P_q, (kv_heads, groups · segment, rank).
        keys: k P_k, (kv_heads, keys, columns), columns ≥ rank.
        values: v P_v, (kv_heads, keys, columns), columns ≥ value_rank.
        back: P_v, (kv_heads, value_dim, value_rank).
        segment: tokens of the segment.
        dim: head dimension of the unprojected queries; the scores are scaled by 1/√dim.

    Returns:
        (kv_heads, groups · segment, value_dim).
    """
    size = max(queries.shape[-1], back.shape[-1])
    parts = (_columns(queries, size), _columns(keys, size), _columns(values, size))
    out = full_attention(*parts, segment, scale=1 / math.sqrt(dim))
    return out[..., : back.shape[-1]] @ back.mT.to(out.dtype)


def _columns(rows: Tensor, size: int) -> Tensor:
    """The first `size` columns, zeros where there are fewer."""
    missing = size - rows.shape[-1]
    return functional.pad(rows, (0, missing)) if missing > 0 else rows[..., :size]


def approximate_attention(
    queries: Tensor, keys: Tensor, values: Tensor, basis: ScoreBasis, value_columns: Tensor, segment: int
) -> Tensor:
    """Low-rank attention from raw queries, keys and values: what `stream` does piece by piece, in one call.

    Args:
        queries: grouped, (kv_heads, groups · segment, dim).
        keys: (kv_heads, keys, dim).
        values: (kv_heads, keys, value_dim).
        basis: score basis of the wanted rank.
        value_columns: P_v of the wanted value rank, (kv_heads, value_dim, value_rank).
        segment: tokens of the segment.

    Returns:
        (kv_heads, groups · segment, value_dim).
    """
    reduced = project(queries, basis.query), project(keys, basis.key), project(values, value_columns)
    return low_rank_attention(*reduced, value_columns, segment, queries.shape[-1])


def output_moments(exact: Tensor, approximate: Tensor, segment: int) -> Tensor:
    """Sums from which cosine and error of any set of heads follow, because they add over heads.

    Args:
        exact: full output, (kv_heads, groups · segment, value_dim).
        approximate: low-rank output, same shape.
        segment: tokens of the segment.

    Returns:
        (heads, 4), float64: ‖O‖², ⟨O, Õ⟩, ‖Õ‖², ‖O − Õ‖².
    """
    full, low = (out.reshape(-1, segment * out.shape[-1]) for out in (exact, approximate))
    rows = torch.stack([full, low, full - low])
    norms = torch.linalg.vector_norm(rows, dim=-1, dtype=torch.float64).square()
    inner = (norms[0] + norms[1] - norms[2]) / 2
    return torch.stack([norms[0], inner, norms[1], norms[2]], dim=-1)


def cosine(moments: Tensor) -> float:
    """Cosine similarity of the concatenated heads' outputs, before W_O, in [-1, 1]; 1 where both are zero."""
    exact, inner, low, _ = moments.sum(0).tolist()
    return float(inner / math.sqrt(exact * low)) if exact * low > 0 else float(exact == low)


def relative_error(moments: Tensor) -> float:
    """‖O − Õ‖_F / ‖O‖_F of the concatenated heads' outputs, before W_O; 0 where both are zero."""
    exact, _, low, difference = moments.sum(0).tolist()
    return math.sqrt(difference / exact) if exact > 0 else float(low > 0)
