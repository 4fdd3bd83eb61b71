"""Entries of the observation that follow from what was executed; mechanisms and objectives put them together."""

from __future__ import annotations

from drrl_env.envs.observation import WINDOW, Entry
from drrl_env.lowrank.flops import AttentionShape


def free(shape: AttentionShape, width: int) -> float:
    """Costs nothing to read."""
    return 0.0


def previous_rank(ranks: int, heads: int = 1) -> Entry:
    """The rank executed last, one-hot; head after head where every head has one."""
    meaning = "rank executed at the last segment, one-hot; full at the start"
    each = " (head after head)" if heads > 1 else ""
    return Entry("previous_rank", ranks * heads, 0.0, 1.0, False, free, meaning + each, "paper r_{t-1}")


def window_ranks(components: int = 1) -> Entry:
    """Ranks executed at the last segments."""
    meaning = f"ranks executed at the last {WINDOW} segments over dim, latest last; zero before the first"
    each = ", all heads of a segment side by side" if components > 1 else ""
    return Entry("window_ranks", WINDOW * components, 0.0, 1.0, False, free, meaning + each, "history")


CLOCK = Entry("position", 1, 0.0, 1.0, False, free, "segments done over segments in the episode", "clock")
"""Where the episode is."""
