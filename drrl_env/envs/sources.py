"""Bases of earlier segments: what answering a segment in one does, and what changing from one to another does."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from drrl_env.envs.live import LiveLayer
from drrl_env.lowrank.changes import Images, image_changes, images


def source_changes(live: LiveLayer, position: int, slot: int) -> NDArray[np.float64]:
    """‖S_new − S_previous‖ / ‖S‖ over all heads at a segment, between the bases that may be in hand there.

    Args:
        live: the layer, streamed in refreshed bases.
        position: the segment.
        slot: 0: nothing was refreshed before; 1 + s: the last refresh was at segment s, before `position`.

    Returns:
        (2, ranks, 3, ranks): previous basis (calibrated, the slot's), previous rank, new basis (calibrated, the
        slot's, refreshed here), new rank; NaN where the slot has no basis.

    Source: design §2, rank change: tr(Eᵀ G_q E G_k)/d.
    """
    segment = live.segment(position)
    ranks, total = segment.settings.ranks, segment.grams.total.sum().item() / segment.settings.shape.dim
    calibrated, fresh = (images(basis, segment.grams) for basis in (live.basis(-1), segment.basis))
    kept = images(live.basis(slot - 1), segment.grams) if slot else None
    found = np.full((2, len(ranks), 3, len(ranks)), np.nan)
    for before, one in enumerate((calibrated, kept)):
        for after, two in enumerate((calibrated, kept, fresh)):
            if one is not None and two is not None:
                found[before, :, after] = _relative(one, two, ranks, total)
    return found


def _relative(one: Images, two: Images, ranks: tuple[int, ...], total: float) -> NDArray[np.float64]:
    """‖S_a − S_b‖ / ‖S‖ of ranks a of one basis and b of another, (ranks, ranks)."""
    squared: NDArray[np.float64] = image_changes(one, two, ranks, ranks).sum(0).numpy()
    return np.sqrt(squared / total) if total > 0 else np.zeros_like(squared)
