"""Pictures of a comparison as inline SVG: scores with intervals, fidelity against FLOPs, ranks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from drrl_agents.page.verdict import RANDOM
from drrl_agents.scoring import Row
from drrl_agents.statistics import Front
from drrl_env.envs.mechanism import Doubles

COLOURS = {"agent": "#b34700", "rule": "#1f5fa8", "offline basis": "#23743a", "oracle": "#555555"}
"""Colour of each kind of policy; all of at least 4.5 : 1 on white."""
WIDTH = 680
LABELS, RIGHT, LINE = 215, 60, 24
NEAR = 4
"""Places of a label so near its point that no line has to lead to it."""
Box = tuple[float, float, float, float]
Point = tuple[float, float]


@dataclass(frozen=True)
class Axis:
    """A linear axis from numbers to pixels.

    Attributes:
        low: number at the beginning.
        high: number at the end.
        start: its pixel.
        stop: that of the end.
    """

    low: float
    high: float
    start: float
    stop: float

    def at(self, value: float) -> float:
        """Pixel of a number."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.stop - self.start)

    def ticks(self) -> list[float]:
        """Four to nine round numbers in it."""
        step = 10 ** math.floor(math.log10((self.high - self.low) / 4))
        step *= next(f for f in (1, 2, 5, 10) if (self.high - self.low) / (step * f) <= 8)
        first = math.ceil(self.low / step - 1e-9)
        return [k * step for k in range(first, math.floor(self.high / step + 1e-9) + 1)]


def axis(values: Sequence[float], start: float, stop: float, margin: float = 0.06) -> Axis:
    """An axis that holds the values, with a margin on either side."""
    low, high = min(values), max(values)
    spare = (high - low) * margin or 0.5
    return Axis(low - spare, high + spare, start, stop)


def svg(width: float, height: float, parts: Iterator[str] | Sequence[str], told: str) -> str:
    """A picture, with what it shows in words for those who do not see it."""
    style = f"min-width:min({width:.0f}px,32rem);max-width:{1.1 * width:.0f}px"
    size = f'viewBox="0 0 {width:.0f} {height:.0f}" style="{style}"'
    return f'<svg role="img" aria-label="{escape(told)}" {size}><title>{escape(told)}</title>{"".join(parts)}</svg>'


def text(x: float, y: float, words: str, anchor: str = "start", more: str = "") -> str:
    """A label."""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{more}>{escape(words)}</text>'


def line(x1: float, y1: float, x2: float, y2: float, colour: str = "#ccc", width: float = 1) -> str:
    """A line."""
    ends = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line {ends} stroke="{colour}" stroke-width="{width}"/>'


def colour(row: Row) -> str:
    """Of a policy's kind; grey for what nobody would deploy."""
    return COLOURS["oracle"] if row.policy == RANDOM else COLOURS[row.kind]


def marker(x: float, y: float, row: Row, size: float = 5) -> str:
    """A mark whose shape tells the kind as its colour does: circle, square, triangle, diamond."""
    kind = "oracle" if row.policy == RANDOM else row.kind
    fill = f'fill="{colour(row)}"'
    if kind == "agent":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{size}" {fill}/>'
    corners = {
        "rule": ((-1, -1), (1, -1), (1, 1), (-1, 1)),
        "offline basis": ((0, -1.2), (1.1, 0.9), (-1.1, 0.9)),
        "oracle": ((0, -1.3), (1.3, 0), (0, 1.3), (-1.3, 0)),
    }[kind]
    points = " ".join(f"{x + a * size * 0.9:.1f},{y + b * size * 0.9:.1f}" for a, b in corners)
    return f'<polygon points="{points}" {fill}/>'


def dot_plot(rows: Sequence[Row]) -> str:
    """Normalised scores with their intervals, the best on top."""
    ordered = sorted(rows, key=lambda row: -row.normalised_score)
    seen = [v for row in rows for v in (row.normalised_score, row.low, row.high) if math.isfinite(v)]
    across, bottom = axis([0, 1, *seen], LABELS, WIDTH - RIGHT), len(ordered) * LINE + 8
    best = ordered[0]
    told = f"Dot plot of normalised scores with 95 % intervals, {best.policy} first with {best.normalised_score:.3f}"
    return svg(WIDTH, bottom + 44, [*_scale(across, bottom), *_dots(ordered, across)], told)


def _scale(across: Axis, bottom: float) -> Iterator[str]:
    for tick in across.ticks():
        yield line(across.at(tick), 4, across.at(tick), bottom, "#999" if tick in (0, 1) else "#e4e4e4")
        yield text(across.at(tick), bottom + 16, f"{tick:g}", "middle")
    yield text((across.start + across.stop) / 2, bottom + 36, "normalised score: random 0, oracle 1", "middle")


def _dots(ordered: Sequence[Row], across: Axis) -> Iterator[str]:
    for place, row in enumerate(ordered):
        y = place * LINE + LINE / 2 + 4
        yield text(LABELS - 12, y + 4, row.policy, "end")
        if math.isfinite(row.low):
            yield line(across.at(row.low), y, across.at(row.high), y, colour(row), 3)
        yield marker(across.at(row.normalised_score), y, row)
        yield text(WIDTH - RIGHT + 8, y + 4, f"{row.normalised_score:.3f}".replace("-", "−"))


def pareto_plot(rows: Sequence[Row], front: Front) -> str:
    """Fidelity against all FLOPs counted, a step line along the front."""
    height = 430
    across = axis([1.0, *(row.total_flops_ratio for row in rows)], 60, WIDTH - 110)
    up = axis([1.0, *(row.fidelity for row in rows)], height - 56, 14)
    points = [(across.at(row.total_flops_ratio), up.at(row.fidelity)) for row in rows]
    on = sum(front.on_front.tolist())
    told = f"Scatter plot of fidelity against all FLOPs counted; {on} of {len(rows)} policies are on the Pareto front"
    parts = [*_grid(across, up), *_steps(front, across, up)]
    parts += [marker(*point, row) for point, row in zip(points, rows, strict=True)]
    return svg(WIDTH, height, [*parts, *_names(rows, points)], told)


def _grid(across: Axis, up: Axis) -> Iterator[str]:
    for tick in across.ticks():
        yield line(across.at(tick), up.start, across.at(tick), up.stop, "#999" if abs(tick - 1) < 1e-9 else "#e4e4e4")
        yield text(across.at(tick), up.start + 18, f"{tick:g}", "middle")
    for tick in up.ticks():
        yield line(across.start, up.at(tick), across.stop, up.at(tick), "#e4e4e4")
        yield text(across.start - 8, up.at(tick) + 4, f"{tick:g}", "end")
    middle = (across.start + across.stop) / 2
    yield text(middle, up.start + 40, "FLOPs over full attention's, observing and deciding included", "middle")
    y = (up.start + up.stop) / 2
    yield text(14, y, "fidelity, 1 − squared relative error", "middle", f' transform="rotate(-90 14 {y:.0f})"')


def _steps(front: Front, across: Axis, up: Axis) -> Iterator[str]:
    """The front as steps: between two policies, the cheaper one's fidelity."""
    best = front.points[front.on_front]
    best = best[np.argsort(best[:, 0])]
    path = "".join(
        f"{'H' + format(across.at(x), '.1f') if place else 'M' + format(across.at(x), '.1f') + ' ' + y}"
        f"{'V' + y if place else ''}"
        for place, (x, y) in enumerate((x, format(up.at(value), ".1f")) for x, value in best.tolist())
    )
    yield f'<path d="{path}" fill="none" stroke="#555" stroke-width="1.5" stroke-dasharray="5 3"/>'


def _names(rows: Sequence[Row], points: Sequence[Point]) -> Iterator[str]:
    """A label by each point, where it meets no other label and no point if there is such a place."""
    taken: list[Box] = [(x - 6, y - 6, x + 6, y + 6) for x, y in points]
    for (x, y), names, fill in _together(rows, points):
        width = 6.9 * len(names)
        tried = [(x + dx, y + dy) for dx, dy in _places(width)]
        boxes = [(a, b - 10, a + width, b + 3) for a, b in tried]
        inside = [k for k, box in enumerate(boxes) if box[0] > 62 and box[1] > 0 and box[2] < WIDTH]
        free = [k for k in inside if not any(_meet(boxes[k], box) for box in taken)]
        chosen = (free or inside or [0])[0]
        taken.append(boxes[chosen])
        a, b = tried[chosen]
        if chosen >= NEAR:
            yield line(x, y, a + (0 if a > x else width), b - 4, "#aaa")
        yield text(a, b, names, more=f' fill="{fill}"')


def _together(rows: Sequence[Row], points: Sequence[Point]) -> Iterator[tuple[Point, str, str]]:
    """Points with their names and colour; those that lie on one another once, with the first two names."""
    groups: dict[tuple[int, int], list[int]] = {}
    for k, (x, y) in enumerate(points):
        groups.setdefault((round(x / 2), round(y / 2)), []).append(k)
    for mine in groups.values():
        names = ", ".join(rows[k].policy for k in mine[:2]) + (f" and {len(mine) - 2} more" if len(mine) > 2 else "")
        yield points[mine[0]], names, colour(rows[mine[0]])


def _places(width: float) -> list[Point]:
    """Where a label may stand about its point: `NEAR` near ones, then others, the nearest first."""
    near = [(9.0, 4.0), (-9 - width, 4.0), (-width / 2, -10.0), (-width / 2, 19.0)]
    far = [(x, 4 + side * rise) for rise in range(14, 120, 13) for side in (-1, 1) for x in (16.0, -16 - width)]
    return [*near, *far]


def _meet(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


CELL, NUMBERED, MOST, SHADES = 22, 256, 1024, 32
"""Pixels of a heatmap's cell; the most cells that have their numbers in them; the most there are; shades beyond."""


def heatmap(ranks: Doubles, layers: Sequence[int], top: float, told: str) -> str:
    """Mean rank by layer and segment, dark where it is high, (layers, segments); long texts in bins of segments."""
    bins = np.array_split(np.arange(ranks.shape[1]), min(ranks.shape[1], max(1, MOST // len(ranks))))
    shown = np.stack([ranks[:, each].mean(-1) for each in bins], axis=-1)
    left, wide, (rows, columns) = 30, CELL + 6, shown.shape
    parts = [text(left - 6, (k + 0.7) * CELL, str(layer), "end") for k, layer in enumerate(layers)]
    marked = range(0, columns, max(1, columns // 8))
    parts += [text(left + (k + 0.5) * wide, rows * CELL + 13, str(bins[k][0]), "middle") for k in marked]
    parts += _numbered(shown, left, wide, top) if shown.size <= NUMBERED else _shaded(shown, left, wide, top)
    return svg(left + columns * wide + 2, rows * CELL + 18, parts, told)


def _numbered(ranks: Doubles, left: float, wide: float, top: float) -> Iterator[str]:
    for (row, column), rank in np.ndenumerate(ranks):
        x, y, shade = left + column * wide, row * CELL, _shade(rank / top)
        dark = sum(w * (c / 255) ** 2.2 for w, c in zip((0.2126, 0.7152, 0.0722), shade, strict=True)) < 0.18
        yield f'<rect x="{x:.0f}" y="{y}" width="{wide}" height="{CELL}" fill="rgb{shade}"/>'
        yield text(x + wide / 2, y + 15, f"{rank:.0f}", "middle", ' fill="#fff"' if dark else "")


def _shaded(ranks: Doubles, left: float, wide: float, top: float) -> Iterator[str]:
    """One path for all cells of a shade: a third of what as many rectangles take."""
    levels = np.clip(np.rint(ranks / top * SHADES), 0, SHADES).astype(int)
    for level in np.unique(levels):
        cells = "".join(
            f"M{left + c * wide:.0f} {r * CELL}h{wide}v{CELL}h-{wide}z" for r, c in np.argwhere(levels == level)
        )
        yield f'<path fill="rgb{_shade(level / SHADES)}" d="{cells}"/>'


def _shade(level: float) -> tuple[int, int, int]:
    """From nearly white to dark blue."""
    pale, deep = (240, 245, 251), (10, 52, 110)
    red, green, blue = (round(a + (b - a) * min(1.0, max(0.0, level))) for a, b in zip(pale, deep, strict=True))
    return red, green, blue
