"""Pictures: ranks by layer and segment, scores side by side, error against FLOPs."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from drrl_policies.rollout import Rollout


def rank_heatmap(found: Rollout, ranks: Sequence[int], layers: int, title: str) -> Figure:
    """Mean executed rank by layer and segment."""
    values, numbers = np.array(ranks, float), np.array([layer for _, layer in found.pairs])
    executed = values[found.executed]
    rows = [executed[numbers == layer].mean(0) for layer in range(layers) if (numbers == layer).any()]
    shown = [layer for layer in range(layers) if (numbers == layer).any()]
    figure = Figure(figsize=(6.4, 0.6 + 0.55 * len(rows) + 0.8), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(np.stack(rows), aspect="auto", vmin=0, vmax=max(ranks), cmap="viridis")
    axes.set(xlabel="segment", ylabel="layer", title=title, yticks=range(len(shown)), yticklabels=shown)
    figure.colorbar(image, ax=axes, label="mean rank")
    return figure


def _draw_scores(
    axes: mpl.axes.Axes, names: Sequence[str], scores: Sequence[float], intervals: Sequence[tuple[float, float]]
) -> None:
    order = np.argsort(scores)
    places = np.arange(len(names))
    for place, index in zip(places, order, strict=True):
        low, high = intervals[index]
        colour = policy_colour(names[index])
        axes.plot([low, high], [place, place], color=colour, linewidth=2, solid_capstyle="butt")
        axes.plot(scores[index], place, "o", color=colour)
        axes.annotate(f"{scores[index]:.3f}", (scores[index], place), (0, 6), textcoords="offset points", ha="center")
    axes.set_yticks(places, [names[index] for index in order])
    axes.axvline(0, color="0.8", zorder=0)
    axes.axvline(1, color="0.8", zorder=0)
    axes.set_ylim(-0.5, len(names) - 0.2)
    axes.set(xlabel="normalised score (random 0, oracle 1) with 95 % interval")


def policy_colour(name: str) -> str:
    """One colour for agents, one for rules, one for what nobody can deploy."""
    if name in ("oracle", "random"):
        return "0.45"
    return "tab:orange" if "seed" in name else "tab:blue"


def comparison_figure(
    names: Sequence[str],
    scores: Sequence[float],
    intervals: Sequence[tuple[float, float]],
    flops: Sequence[float],
    errors: Sequence[float],
    title: str,
) -> Figure:
    """Scores on the left; relative error against all FLOPs counted on the right."""
    figure = Figure(figsize=(12.5, 0.42 * len(names) + 1.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw_scores(left, names, scores, intervals)
    for name, x, y in zip(names, flops, errors, strict=True):
        right.plot(x, y, "o", color=policy_colour(name))
        right.annotate(name, (x, y), (5, 4), textcoords="offset points", fontsize=8)
    right.axvline(1, color="0.8", zorder=0)
    right.margins(x=0.18)
    right.set(xlabel="FLOPs over full attention's, observing and deciding included", ylabel="relative error of output")
    figure.suptitle(title)
    return figure
