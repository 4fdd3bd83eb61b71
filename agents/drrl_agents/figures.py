"""Pictures: ranks by layer and segment, scores side by side, error against FLOPs."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from drrl_agents.scoring import Row
from drrl_agents.statistics import Front
from drrl_policies.accounts import step_layers, step_positions
from drrl_policies.field import Field
from drrl_policies.rollout import Rollout


def rank_heatmap(found: Rollout, field: Field, title: str) -> Figure:
    """Mean executed rank by layer and segment."""
    executed, numbers, positions = found.executed_ranks, step_layers(field), step_positions(field)
    shown = np.unique(numbers).tolist()
    rows = [[executed[(numbers == k) & (positions == t)].mean() for t in np.unique(positions)] for k in shown]
    figure = Figure(figsize=(6.4, 0.6 + 0.55 * len(rows) + 0.8), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(np.array(rows), aspect="auto", vmin=0, vmax=max(found.ranks), cmap="viridis")
    axes.set(xlabel="segment", ylabel="layer", title=title, yticks=range(len(shown)), yticklabels=shown)
    figure.colorbar(image, ax=axes, label="mean rank")
    return figure


COLOURS = {"agent": "tab:orange", "rule": "tab:blue", "offline basis": "tab:green", "oracle": "0.45"}
"""Colour of each kind of policy."""


def policy_colour(found: Row) -> str:
    """One colour for a kind; grey for what nobody would deploy."""
    return "0.45" if found.policy == "random" else COLOURS[found.kind]


def _draw_scores(axes: mpl.axes.Axes, rows: Sequence[Row]) -> None:
    ordered = sorted(rows, key=lambda row: row.normalised_score)
    for place, found in enumerate(ordered):
        colour, score = policy_colour(found), found.normalised_score
        axes.plot([found.low, found.high], [place, place], color=colour, linewidth=2, solid_capstyle="butt")
        axes.plot(score, place, "o", color=colour)
        axes.annotate(f"{score:.3f}", (score, place), (0, 6), textcoords="offset points", ha="center", fontsize=8)
    axes.set_yticks(range(len(ordered)), [found.policy for found in ordered])
    axes.axvline(0, color="0.8", zorder=0)
    axes.axvline(1, color="0.8", zorder=0)
    axes.set_ylim(-0.5, len(ordered) - 0.2)
    axes.set(xlabel="normalised score (random 0, oracle 1) with 95 % interval")


def draw_front(axes: mpl.axes.Axes, rows: Sequence[Row], front: Front) -> None:
    """Fidelity against all FLOPs counted; a step line along the Pareto front."""
    for found in rows:
        colour, point = policy_colour(found), (found.total_flops_ratio, found.fidelity)
        axes.plot(*point, "o", color=colour)
        axes.annotate(found.policy, point, (5, 4), textcoords="offset points", fontsize=7)
    best = front.points[front.on_front]
    best = best[np.argsort(best[:, 0])]
    axes.step(best[:, 0], best[:, 1], where="post", color="0.6", linewidth=1, zorder=0)
    axes.axvline(1, color="0.8", zorder=0)
    axes.margins(x=0.18)
    axes.set(
        xlabel="FLOPs over full attention's, observing and deciding included",
        ylabel="fidelity, 1 - squared relative error",
        title=f"hypervolume without the oracle {front.hypervolume:.3f}",
    )


def comparison_figure(rows: Sequence[Row], front: Front, title: str) -> Figure:
    """Scores on the left; fidelity against all FLOPs counted on the right."""
    figure = Figure(figsize=(13.5, 0.36 * len(rows) + 2.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw_scores(left, rows)
    draw_front(right, rows, front)
    figure.suptitle(title)
    return figure


def pareto_figure(rows: Sequence[Row], front: Front, title: str) -> Figure:
    """Fidelity against all FLOPs counted."""
    figure = Figure(figsize=(7.5, 5), layout="constrained")
    draw_front(figure.add_subplot(), rows, front)
    figure.suptitle(title)
    return figure
