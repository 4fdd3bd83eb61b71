"""Offline bases of the literature: fitted on calibration text like the calibrated one, at its very cost.

The calibrated basis is KQ-SVD's product SVD of q kᵀ. The two here look at one side at a time. Each reads r columns of
k P_k and projects queries by a (dim, r) matrix that is fixed beforehand, so at equal rank it costs the FLOPs and the
cache bytes of the calibrated one, whose value basis and value ranks it shares. What a policy observes is charged as in
the calibrated one, too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from drrl_env.lowrank.flops import BASES
from drrl_env.lowrank.grams import Grams
from drrl_env.lowrank.segment import LayerBases


@dataclass(frozen=True)
class Subspaces:
    """Principal directions of one layer's queries and keys over the calibration text, leading first.

    Attributes:
        query: V_q, eigenvectors of the summed qᵀq, (kv_heads, dim, dim); a group's queries are stacked.
        key: V_k, eigenvectors of the summed kᵀk, (kv_heads, dim, dim).
    """

    query: Tensor
    key: Tensor


def subspaces(grams: Grams) -> Subspaces:
    """The principal directions that Grams of calibration text have."""
    return Subspaces(*(torch.linalg.eigh(side).eigenvectors.flip(-1) for side in (grams.query, grams.key)))


def keys_pca(found: Subspaces, value: Tensor) -> LayerBases:
    """q kᵀ ≈ (q V_k)(k V_k)ᵀ: the keys' principal components, whatever the queries are.

    Args:
        found: principal directions of the layer.
        value: P_v of the calibrated bases, (kv_heads, value_dim, value_dim).

    Source: Loki (arXiv 2406.02542), on keys after the positional encoding.
    """
    return LayerBases(found.key, found.key, value)


def separate_svd(found: Subspaces, value: Tensor) -> LayerBases:
    """q kᵀ ≈ (q V_q V_qᵀ)(k V_k V_kᵀ)ᵀ, q and k truncated apart to the same rank: P_q = V_qV_qᵀV_k, P_k = V_k.

    Its ranks do not nest: P_q of rank r is V_q[:, :r] (V_qᵀV_k)[:r, :r], hence the core.

    Args:
        found: principal directions of the layer.
        value: P_v of the calibrated bases, (kv_heads, value_dim, value_dim).

    Source: separate truncated SVDs of Q and K as in arXiv 2512.15973's code, here fitted offline.
    """
    return LayerBases(found.query, found.key, value, found.query.double().mT @ found.key.double())


OFFLINE: dict[str, Callable[[Subspaces, Tensor], LayerBases]] = {"keys-pca": keys_pca, "separate-svd": separate_svd}
"""Bases of the literature that play against the calibrated one, by the name that `basis=` takes."""
EVERY_BASIS = (*BASES, *OFFLINE)
"""All values of `basis=`."""


def priced_as(basis: str) -> str:
    """Of `flops.BASES` the one whose account a basis has: an offline one costs what the calibrated one does."""
    return "calibrated" if basis in OFFLINE else basis
