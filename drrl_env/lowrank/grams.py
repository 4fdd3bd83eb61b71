"""Gram matrices of queries and keys: all that the decompositions need of the past, in d x d numbers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Grams:
    """What a layer knows of its scores at one segment.

    Attributes:
        query: qᵀq of this segment's queries, (kv_heads, dim, dim), float64; a group's queries are stacked.
        key: kᵀk of every key so far, (kv_heads, dim, dim), float64.
    """

    query: Tensor
    key: Tensor

    @property
    def total(self) -> Tensor:
        """‖q kᵀ‖_F² = tr(G_q G_k), (kv_heads,): the energy of all unscaled scores; design §2."""
        return (self.query * self.key).sum((-2, -1))


def gram(rows: Tensor) -> Tensor:
    """rowsᵀ rows in float64.

    Args:
        rows: (kv_heads, tokens, dim), any float type.

    Returns:
        (kv_heads, dim, dim), float64.
    """
    exact = rows.to(torch.float64)
    return exact.mT @ exact


def group_queries(queries: Tensor, kv_heads: int) -> Tensor:
    """Stacks the queries of each group for their one key head.

    Args:
        queries: (heads, segment, dim); the query heads of a group are neighbours, as transformers has them.
        kv_heads: number of key heads; divides `heads`.

    Returns:
        (kv_heads, groups · segment, dim).
    """
    return queries.reshape(kv_heads, -1, queries.shape[-1])


def empty_key_gram(kv_heads: int, dim: int) -> Tensor:
    """The Gram of no keys, (kv_heads, dim, dim), float64."""
    return torch.zeros(kv_heads, dim, dim, dtype=torch.float64)


def update_grams(key_gram: Tensor, queries: Tensor, keys: Tensor) -> Grams:
    """Adds a segment's keys to the key Gram; the cost does not depend on how many keys came before.

    Args:
        key_gram: kᵀk of the keys before this segment, (kv_heads, dim, dim), float64.
        queries: this segment's queries, grouped, (kv_heads, groups · segment, dim).
        keys: this segment's keys, (kv_heads, segment, dim).

    Returns:
        The Grams at this segment.

    Source: design §2, incremental update.
    """
    exact = keys.to(torch.float64)
    return Grams(query=gram(queries), key=torch.baddbmm(key_gram, exact.mT, exact))
