"""The `rgb_array` picture: ranks by segment over the spectrum, cost so far, error, and what a task adds."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from drrl_env.envs.ranks import RankMechanism
from drrl_env.envs.render import (
    by_segment,
    full_ratio,
    heading,
    layers_through,
    lost_energy,
    mean_fidelity,
    share_of_full,
    steps_of_segment,
)
from drrl_env.envs.simulator import Simulator
from drrl_env.envs.trail import Trail

if TYPE_CHECKING:
    from drrl_env.envs.arena import Arena

SIZE, DPI = (8.0, 6.4), 100
"""Inches and dots per inch: 640 x 800 pixels, whatever is drawn."""
LEAST_LOST = 1e-4
"""Share of the score energy where colours begin."""
HEAD_MARKERS = (
    ("o", "white"), ("s", "tab:orange"), ("^", "tab:pink"), ("D", "tab:cyan"),
    ("v", "tab:red"), ("P", "lime"), ("X", "tab:gray"), ("p", "tab:olive"),
)  # fmt: skip
MOST_NUMBERS = 256
"""Cells of (layer, segment) that numbers fit into."""
MOST_HEADS = 8
"""Heads drawn one by one; of more, mean and range."""
BASIS_MARKERS = {"calibrated": "s", "kept": "^", "refreshed": "o"}
SMALL = 8
Draw = Callable[[Any, "Arena", Trail], None]


def picture(arena: Arena, lane: int, trail: Trail) -> NDArray[np.uint8]:
    """The episode so far, (640, 800, 3)."""
    figure = Figure(figsize=SIZE, dpi=DPI)
    canvas: Any = FigureCanvasAgg(figure)  # matplotlib leaves its methods untyped
    panels = _panels(trail, arena)
    beside, top, *lower = _grid(figure, len(panels))
    if layers_through(arena):
        _layer_grid(top, beside, arena, trail)
    else:
        _spectrum(top, beside, arena, lane)
        _executed(top, arena, trail)
    for draw, axes in zip(panels, lower, strict=True):
        draw(axes, arena, trail)
        axes.tick_params(labelsize=SMALL)
    _clock(lower[-1], arena)
    figure.text(0.01, 0.99, "\n".join(heading(arena, trail)), fontsize=10, va="top", linespacing=1.4)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _grid(figure: Figure, panels: int) -> list[Any]:
    """Axes of the colour bar, of the ranks and of each panel below; in fixed places, so that a film does not jitter."""
    heights = [5.0 - 0.9 * panels, *(1 for _ in range(panels))]
    place = {"left": 0.1, "right": 0.9, "top": 0.875, "bottom": 0.075, "hspace": 0.1, "wspace": 0.03}
    cells = figure.add_gridspec(1 + panels, 2, height_ratios=heights, width_ratios=[40, 1], **place)
    first = figure.add_subplot(cells[0, 0])
    rest = [figure.add_subplot(cells[row, 0], sharex=first) for row in range(1, 1 + panels)]
    for axes in [first, *rest[:-1]]:
        axes.tick_params(labelbottom=False)
    return [figure.add_subplot(cells[0, 1]), first, *rest]


def _panels(trail: Trail, arena: Arena) -> list[Draw]:
    """What stands below the ranks."""
    cost: Draw = _latency if _milliseconds(arena) is not None else _flops
    budget, likelihood = [_budget] * ("budget" in trail.start), [_likelihood] * bool(layers_through(arena))
    return [cost, _error, *budget, *likelihood]


def _clock(axes: Any, arena: Arena) -> None:
    axes.set_xlabel(f"segment ({arena.world.measurement.segment} tokens each)", fontsize=9)
    axes.set_xlim(-0.5, arena.world.segments - 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(16, integer=True))


def _spectrum(axes: Any, beside: Any, arena: Arena, lane: int) -> None:
    """A heatmap of the score energy that each candidate rank loses, as far as it was streamed."""
    ranks, lost = arena.world.ranks, lost_energy(arena, lane)
    shown = np.full((len(ranks), arena.world.segments), np.nan)
    shown[:, : len(lost)] = lost.T.clip(LEAST_LOST)
    axes.set_facecolor("0.93")
    image = axes.imshow(shown, origin="lower", aspect="auto", cmap="viridis_r", norm=LogNorm(LEAST_LOST, 1))
    bar = axes.figure.colorbar(image, cax=beside, extend="min")
    bar.set_label(
        f"share of score energy lost\n({arena.world.measurement.basis} basis; grey: not streamed)", fontsize=9
    )
    axes.set_yticks(range(len(ranks)), [str(rank) for rank in ranks])
    axes.set_ylabel("rank", fontsize=9)


def _executed(axes: Any, arena: Arena, trail: Trail) -> None:
    """Executed ranks: one a segment, one per head, or with the kind of basis; a red edge where an action was masked."""
    first = trail.steps[0] if trail.steps else {}
    if np.ndim(first.get("rank", 0)):
        _heads(axes, arena, trail)
    elif "basis" in first:
        _kinds(axes, arena, trail)
    elif trail.steps:
        _scatter(axes, arena, trail, range(len(trail.steps)), marker="o", color="white", label="executed rank")
    if trail.steps:
        _masked(axes, arena, trail)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncol=9, fontsize=SMALL, frameon=False, borderpad=0.1)


def _scatter(axes: Any, arena: Arena, trail: Trail, steps: Any, **style: Any) -> None:
    places = [arena.world.ranks.index(int(trail.steps[t]["rank"])) for t in steps]
    axes.scatter(list(steps), places, **{"s": 48, "edgecolors": "black", "linewidths": 1, "zorder": 3, **style})


def _kinds(axes: Any, arena: Arena, trail: Trail) -> None:
    for kind, marker in BASIS_MARKERS.items():
        steps = [t for t, step in enumerate(trail.steps) if step["basis"] == kind]
        label = kind + (" (its age beside it)" if kind == "kept" else "")
        _scatter(axes, arena, trail, steps, marker=marker, color="white", label=label, s=64)
        for t in steps if kind == "kept" else []:
            place = arena.world.ranks.index(int(trail.steps[t]["rank"]))
            aside: dict[str, Any] = {"xytext": (7, 0), "textcoords": "offset points", "va": "center", "fontsize": SMALL}
            box = {"boxstyle": "round,pad=0.1", "fc": "white", "ec": "none", "alpha": 0.8}
            axes.annotate(str(trail.steps[t]["basis_age"]), (t, place), bbox=box, **aside)


def _heads(axes: Any, arena: Arena, trail: Trail) -> None:
    """A marker per head side by side in its segment; mean and range where heads are many."""
    ranks = np.array(trail.column("rank"))
    places = np.searchsorted(arena.world.ranks, ranks)
    at, heads = np.arange(len(ranks)), ranks.shape[1]
    if heads > MOST_HEADS:
        reach = np.abs(np.stack([places.min(1), places.max(1)]) - places.mean(1))
        range_style: dict[str, Any] = {"fmt": "o", "color": "white", "mec": "black", "ecolor": "black"}
        axes.errorbar(at, places.mean(1), reach, capsize=3, label=f"mean and range of {heads} heads", **range_style)
        return
    for head in range(heads):
        aside = (head - (heads - 1) / 2) * 0.84 / heads
        marker, colour = HEAD_MARKERS[head % len(HEAD_MARKERS)]
        style: dict[str, Any] = {"s": min(60, 150 / heads), "edgecolors": "black", "linewidths": 0.7, "zorder": 3}
        axes.scatter(at + aside, places[:, head], label=f"head {head}", marker=marker, color=colour, **style)
    for edge in range(len(ranks) + 1):
        axes.axvline(edge - 0.5, color="white", linewidth=0.8)


def _masked(axes: Any, arena: Arena, trail: Trail) -> None:
    """Where another action was carried out than was asked for: crosses above the ranks."""
    steps, above = [t for t, step in enumerate(trail.steps) if step["masked_action"]], len(arena.world.ranks)
    if steps:
        axes.plot(steps, [above - 0.1] * len(steps), "x", color="red", markersize=6, label="action was masked")
        axes.set_ylim(-0.5, above + 0.3)


def _layer_grid(axes: Any, beside: Any, arena: Arena, trail: Trail) -> None:
    """The rank of every (layer, segment), as colour and number."""
    ranks, layers, segments = arena.world.ranks, layers_through(arena), arena.world.segments
    shown = np.full((len(layers), segments), np.nan)
    for step in trail.steps:
        row, place = layers.index(step["layer"]), ranks.index(step["rank"])
        shown[row, step["segment"]] = place
        style: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": SMALL}
        if shown.size <= MOST_NUMBERS:
            dark = place < (len(ranks) - 1) / 2
            axes.text(step["segment"], row, str(step["rank"]), color="white" if dark else "black", **style)
    axes.set_facecolor("0.93")
    image = axes.imshow(shown, origin="lower", aspect="auto", cmap="viridis", vmin=0, vmax=len(ranks) - 1)
    bar = axes.figure.colorbar(image, cax=beside, ticks=range(len(ranks)))
    bar.ax.set_yticklabels([str(rank) for rank in ranks])
    bar.set_label("executed rank (grey: to come)", fontsize=9)
    axes.set_yticks(range(len(layers)), [str(layer) for layer in layers])
    axes.set_ylabel("layer", fontsize=9)


def _flops(axes: Any, arena: Arena, trail: Trail) -> None:
    full, spent = full_ratio(arena), by_segment(trail.column("flops_ratio"), steps_of_segment(arena))
    _bars_under(axes, spent, full, "full attention")
    axes.set_ylabel("FLOPs ÷ mean\nof full", fontsize=SMALL)


def _latency(axes: Any, arena: Arena, trail: Trail) -> None:
    full = _milliseconds(arena)
    assert full is not None
    _bars_under(axes, np.array(trail.column("latency"), float), full, "full attention")
    axes.set_ylabel("latency model\n(ms)", fontsize=SMALL)


def _milliseconds(arena: Arena) -> NDArray[np.float64] | None:
    """Milliseconds of full attention by segment, where the cost is latency."""
    if arena.rules.cost == "flops" or not isinstance(arena.play, Simulator):
        return None
    mechanism = arena.play.mechanism
    return mechanism.full_cost if isinstance(mechanism, RankMechanism) else None


def _bars_under(axes: Any, spent: NDArray[np.float64], full: NDArray[np.float64], name: str) -> None:
    """What was spent by segment, under what full attention spends."""
    axes.bar(range(len(spent)), spent, color="tab:orange", width=0.7)
    axes.stairs(full, np.arange(len(full) + 1) - 0.5, color="0.35", linestyle="--", baseline=None, label=name)
    axes.set_ylim(0, 1.45 * max(full.max(), spent.max(initial=0)))
    title = f"so far {share_of_full(spent, full)} of full attention"
    axes.legend(loc="upper left", fontsize=SMALL, ncol=2, frameon=False, title=None, borderpad=0.1)
    axes.text(0.99, 0.92, title, transform=axes.transAxes, ha="right", va="top", fontsize=9)


def _error(axes: Any, arena: Arena, trail: Trail) -> None:
    steps = steps_of_segment(arena)
    errors = by_segment(trail.column("relative_error"), steps)
    tolerance = trail.start.get("tolerance")
    colours = ["tab:red" if tolerance is not None and e > tolerance else "tab:blue" for e in errors]
    axes.bar(range(len(errors)), errors, color=colours, width=0.7)
    if tolerance is not None:
        label = f"tolerance {tolerance:.3f} (red: exceeded)"
        axes.axhline(tolerance, color="black", linestyle="--", linewidth=1, label=label)
        axes.legend(loc="upper left", fontsize=SMALL, frameon=False, borderpad=0.1)
    axes.set_ylim(0, 1.45 * max(errors.max(initial=0.05), tolerance or 0))
    axes.set_ylabel("error ‖ΔO‖/‖O‖" if steps == 1 else "error ‖ΔO‖/‖O‖\n(mean of layers)", fontsize=SMALL)
    if len(errors):
        axes.text(0.99, 0.92, mean_fidelity(errors, trail), transform=axes.transAxes, ha="right", va="top", fontsize=9)


def _budget(axes: Any, arena: Arena, trail: Trail) -> None:
    """What is left of the budget after each segment, over full attention's FLOPs of the whole episode."""
    budget = float(trail.start["budget"])
    left = [budget, *trail.column("budget_left")]
    axes.stairs(left, np.arange(len(left) + 1) - 1.5, color="tab:green", fill=True, alpha=0.5)
    ahead = np.append(np.cumsum(full_ratio(arena)[::-1])[::-1], 0)[1:] / arena.world.segments
    axes.plot(range(len(ahead)), ahead, "--", color="0.35", linewidth=1, label="what full attention still needs")
    axes.legend(loc="upper right", fontsize=SMALL, frameon=False, borderpad=0.1)
    axes.set_ylim(0, 1.2 * max(budget, float(ahead.max())))
    axes.set_ylabel("budget left\n(share of full)", fontsize=SMALL)
    axes.text(0.01, 0.08, f"left {left[-1]:.3f} of {budget:.3f}", transform=axes.transAxes, fontsize=9)


def _likelihood(axes: Any, arena: Arena, trail: Trail) -> None:
    """Change of the true next-token log-likelihood by segment, against the full model."""
    gained = [
        (step["segment"], step["log_likelihood_change"]) for step in trail.steps if "log_likelihood_change" in step
    ]
    values = [change for _, change in gained]
    axes.bar([segment for segment, _ in gained], values, color="tab:purple", width=0.7)
    axes.axhline(0, color="0.35", linewidth=0.8)
    axes.set_ylim(1.2 * min([*values, -0.01]), 0.6 * max(map(abs, [*values, 0.01])))
    axes.set_ylabel("log-likelihood\n(nats per token)", fontsize=SMALL)
    if values:
        words = f"mean {np.mean(values):+.4f} against the full model"
        axes.text(0.99, 0.94, words, transform=axes.transAxes, ha="right", va="top", fontsize=9)
