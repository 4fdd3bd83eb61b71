"""An episode so far, for people: `ansi` text here, the `rgb_array` picture in `picture`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from drrl_env.envs.layers import LayersSimulator
from drrl_env.envs.settings import one_of
from drrl_env.envs.trail import Trail
from drrl_env.lowrank.flops import full_flops

if TYPE_CHECKING:
    from drrl_env.envs.arena import Arena

MODES = ("ansi", "rgb_array")
BLOCKS = " ▁▂▃▄▅▆▇█"
SHADES = ((0.5, "█"), (0.1, "▓"), (0.01, "▒"), (0.001, "░"))
"""A shade for a share of the score energy lost of more than so much; less is blank."""
COLUMNS = 24
"""Segments a text shows, the latest: four characters each, and the labels fit in 120 columns."""
BASIS_MARKS = {"calibrated": "c", "kept": "k", "refreshed": "r"}


def check_render_mode(mode: str | None) -> str | None:
    """The mode, if there is such a one."""
    if mode is not None:
        one_of("render_mode", mode, MODES)
    return mode


def render_lane(mode: str | None, arena: Arena, lane: int, trail: Trail) -> Any:
    """The episode so far: a string for `ansi`, (height, width, 3) uint8 of constant size for `rgb_array`.

    Raises:
        ValueError: no render mode was given when the environment was made.
    """
    if mode is None:
        raise ValueError(
            "render_mode=None: nothing to draw; make the environment with render_mode='ansi' or 'rgb_array'"
        )
    if mode == "ansi":
        return text(arena, lane, trail)
    # matplotlib takes a second to import: only who wants a picture waits for it.
    from drrl_env.envs.picture import picture

    return picture(arena, lane, trail)


def heading(arena: Arena, trail: Trail) -> tuple[str, str]:
    """What is played, and how far it is."""
    drawn = [f"{name} {value:.3f}" for name, value in trail.start.items() if isinstance(value, float)]
    where = [str(trail.start.get("instance", "no episode begun"))]
    if not layers_through(arena) and "layer" in trail.start:
        where.append(f"layer {trail.start['layer']}")
    done = f"{len(trail.steps) // steps_of_segment(arena)} of {arena.world.segments} segments done"
    gained = [] if arena.play.vector else [f"return {trail.total:.3f}"]
    return "   ".join([arena.task.id, *where]), "   ".join([done, *gained, *drawn])


def layers_through(arena: Arena) -> tuple[int, ...]:
    """Layers whose ranks are chosen one after the other in every segment; none where an episode is on one layer."""
    return arena.play.layers if isinstance(arena.play, LayersSimulator) else ()


def steps_of_segment(arena: Arena) -> int:
    """Steps in a segment: one, or one per layer where an episode runs through them."""
    return max(1, len(layers_through(arena)))


def by_segment(values: Iterable[float], steps: int) -> NDArray[np.float64]:
    """Mean over the steps of each segment begun, (segments begun,)."""
    found = list(values)
    return np.array([np.mean(found[first : first + steps]) for first in range(0, len(found), steps)])


def full_ratio(arena: Arena) -> NDArray[np.float64]:
    """FLOPs of full attention over their mean, by segment."""
    found = np.array([full_flops(arena.world.shape, position) for position in range(arena.world.segments)])
    return np.asarray(found / found.mean())


def share_of_full(ratios: NDArray[np.float64], full: NDArray[np.float64]) -> str:
    """What was spent in the segments done over what full attention spends in them."""
    done = len(ratios)
    return f"{ratios.sum() / full[:done].sum():.3f}" if done else "–"


def mean_fidelity(errors: NDArray[np.float64], trail: Trail) -> str:
    """Mean relative error so far, and mean cosine where steps report one."""
    if not len(errors):
        return "nothing done yet"
    cosine = f", mean cosine {np.mean(trail.column('cosine')):.3f}" if "cosine" in trail.steps[0] else ""
    return f"mean {errors.mean():.3f}{cosine}"


def lost_energy(arena: Arena, lane: int) -> NDArray[np.float64]:
    """Share of the score energy each rank loses, up to the segment in front, (segments seen, ranks)."""
    kept = arena.play.spectrum(lane)
    return np.asarray(np.clip(1 - kept, 0, 1))


def text(arena: Arena, lane: int, trail: Trail) -> str:
    """Ranks by segment over the energy each would lose, then cost and error by segment, each with its scale."""
    steps = steps_of_segment(arena)
    begun = max(1, -(-len(trail.steps) // steps), len(lost_energy(arena, lane)))
    shown = range(max(0, begun - COLUMNS), begun)
    grid = _layer_rows(arena, trail, shown) if layers_through(arena) else _rank_rows(arena, lane, trail, shown)
    lines = [*heading(arena, trail), "", f"{'segment':>8} " + "".join(f"{t:>4}" for t in shown), *grid, ""]
    return "\n".join([*lines, *_cost_lines(arena, trail, shown), *_error_lines(trail, steps, shown)])


def _cost_lines(arena: Arena, trail: Trail, shown: range) -> list[str]:
    """FLOPs by segment, milliseconds where they are the cost, and the budget where there is one."""
    ratios = by_segment(trail.column("flops_ratio"), steps_of_segment(arena))
    so_far = f"FLOPs over full attention's mean; so far {share_of_full(ratios, full_ratio(arena))} of full attention"
    found = _bars("cost", ratios, shown, so_far)
    if trail.steps and "latency" in trail.steps[0]:
        found += _bars("latency", by_segment(trail.column("latency"), 1), shown, "milliseconds of the latency model")
    if trail.steps and "budget_left" in trail.steps[0]:
        found.append(f"{'budget':>8}   {trail.steps[-1]['budget_left']:.3f} of full attention's FLOPs left")
    return found


def _error_lines(trail: Trail, steps: int, shown: range) -> list[str]:
    errors = by_segment(trail.column("relative_error"), steps)
    found = _bars("error", errors, shown, f"relative error of the output; {mean_fidelity(errors, trail)}")
    gained = trail.column("log_likelihood_change")
    if gained:
        found.append(f"{'quality':>8}   {np.mean(gained):+.4f} nats per token against the full model")
    return found


def _rank_rows(arena: Arena, lane: int, trail: Trail, shown: range) -> list[str]:
    """A row per candidate rank, the highest first; what was executed is marked."""
    lost, ranks = lost_energy(arena, lane), arena.world.ranks
    rows = [
        f"{f'rank {rank}':>8} " + "".join(_cell(lost, trail, t, place, rank) for t in shown)
        for place, rank in reversed(list(enumerate(ranks)))
    ]
    shades = ", ".join(f"{shade} above {share:g}" for share, shade in SHADES)
    return [*rows, f"{'':>8}   score energy lost: {shades}", f"{'':>8}   {_mark_legend(trail)}"]


def _cell(lost: NDArray[np.float64], trail: Trail, t: int, place: int, rank: int) -> str:
    shade = _shade(lost[t, place]) if t < len(lost) else " "
    mark = _mark(trail.steps[t], rank) if t < len(trail.steps) else None
    return f"  {mark or shade}{shade}"


def _shade(share: float) -> str:
    return next((shade for least, shade in SHADES if share > least), " ")


def _mark(step: dict[str, Any], rank: int) -> str | None:
    """How an executed rank is marked: the number of heads, the kind of basis, or a ring; None if it was not."""
    heads = int((np.ravel(step["rank"]) == rank).sum())
    if not heads:
        return None
    if np.ndim(step["rank"]):
        return str(heads) if heads < 10 else "+"
    return BASIS_MARKS.get(step.get("basis", ""), "●")


def _mark_legend(trail: Trail) -> str:
    first = trail.steps[0] if trail.steps else {}
    if np.ndim(first.get("rank", 0)):
        return "1-9 heads that ran there"
    if "basis" in first:
        return "executed: " + ", ".join(f"{mark} {name}" for name, mark in BASIS_MARKS.items())
    return "● executed"


def _layer_rows(arena: Arena, trail: Trail, shown: range) -> list[str]:
    """A row per layer with the ranks it executed, the last layer first."""
    ranks = {(step["layer"], step["segment"]): step["rank"] for step in trail.steps}
    return [
        f"{f'layer {layer}':>8} " + "".join(f"{ranks.get((layer, t), ''):>4}" for t in shown)
        for layer in reversed(layers_through(arena))
    ]


def _bars(name: str, values: NDArray[np.float64], shown: range, meaning: str) -> list[str]:
    """A bar per segment, the highest one full, and what they mean."""
    highest = float(values.max(initial=0.0)) or 1.0
    heights = [int(np.clip(np.ceil(8 * values[t] / highest), 0, 8)) if t < len(values) else 0 for t in shown]
    bars = "".join(f"  {BLOCKS[height] * 2}" for height in heights)
    return [f"{name:>8} {bars}", f"{'':>8}   {meaning}" + (f"; █ is {highest:.3g}" if len(values) else "")]
