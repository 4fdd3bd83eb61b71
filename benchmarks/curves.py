"""Writes learning curves into docs/learning.md: `python benchmarks/curves.py runs/DRRL-Tolerance-v0`.

Reads the validation scores that training runs logged and keeps them in benchmarks/learning.csv; picture and table are
made from that file, without an argument from the one that is there.
"""

from __future__ import annotations

import csv
import re
import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from drrl_agents.board.curves import Curve, margin, read_curves

ROOT = Path(__file__).resolve().parent.parent
MARKED = re.compile(r"(<!-- curves: begin -->\n).*?(<!-- curves: end -->)", re.DOTALL)
METRIC = "normalised_score"
SHOWN = 6
"""Steps that the table shows, evenly spread."""
Groups = dict[str, list[Curve]]
"""Policy to its seeds' curves."""


def logged(task: Path) -> Groups:
    """The curves of every finished run in a task's folder of the logdir."""
    found: Groups = {}
    for weights in sorted(task.glob("*/seed-*/policy.safetensors")):
        found.setdefault(weights.parent.parent.name, []).append(read_curves(weights.parent)[METRIC])
    return found


def write_csv(groups: Groups, path: Path) -> None:
    """A row per policy, seed and step."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("policy", "run", "step", METRIC))
        for policy, curves in groups.items():
            for run, curve in enumerate(curves):
                pairs = zip(curve.steps.tolist(), curve.values.tolist(), strict=True)
                writer.writerows((policy, run, step, f"{value:.6f}") for step, value in pairs)


def read_csv(path: Path) -> Groups:
    """What `write_csv` wrote."""
    points: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for row in csv.DictReader(path.open()):
        points.setdefault(row["policy"], {}).setdefault(row["run"], []).append((int(row["step"]), float(row[METRIC])))
    return {policy: [_curve(found) for found in runs.values()] for policy, runs in points.items()}


def _curve(points: list[tuple[int, float]]) -> Curve:
    steps, values = zip(*points, strict=True)
    return Curve(np.array(steps, np.int64), np.array(values))


def draw(groups: Groups, path: Path) -> None:
    """Mean over seeds with its 95 % interval; a policy that was only cloned is a level line."""
    figure = Figure(figsize=(8, 4), layout="constrained")
    axis = figure.subplots()
    end = max(int(curve.steps[-1]) for curves in groups.values() for curve in curves)
    for policy, curves in groups.items():
        found = margin(curves)
        steps = found.steps if len(found.steps) > 1 else np.array([0, end])
        mean, low, high = (np.broadcast_to(each, steps.shape) for each in (found.mean, found.low, found.high))
        (line,) = axis.plot(steps, mean, label=f"{policy} ({len(curves)})")
        axis.fill_between(steps, low, high, color=line.get_color(), alpha=0.2)
    axis.set(xlabel="environment steps", ylabel="normalised score, validation split", ylim=(0.4, 1.0))
    axis.legend(loc="lower right", title="policy (seeds)")
    figure.savefig(path, dpi=110)


def section(groups: Groups) -> str:
    """The picture and a table of means over seeds."""
    lines = ["![Validation score over training, mean over seeds with 95 % interval](learning.png)", ""]
    lines += ["| policy | seeds | step: mean score (lowest, highest seed) |", "|---|---|---|"]
    for policy, curves in groups.items():
        common = sorted(set.intersection(*(set(curve.steps.tolist()) for curve in curves)))
        steps = [common[round(place)] for place in np.linspace(0, len(common) - 1, min(SHOWN, len(common)))]
        cells = [_cell(step, [float(curve.values[curve.steps == step][0]) for curve in curves]) for step in steps]
        lines.append(f"| {policy} | {len(curves)} | {'; '.join(cells)} |")
    return "\n".join(lines)


def _cell(step: int, values: list[float]) -> str:
    return f"{step:,}: {np.mean(values):.3f} ({min(values):.3f}, {max(values):.3f})"


def main(task: Path | None, root: Path = ROOT) -> None:
    """Reads the runs if any are given, then writes picture and section."""
    path, page = root / "benchmarks" / "learning.csv", root / "docs" / "learning.md"
    if task is not None:
        write_csv(logged(task), path)
    groups = read_csv(path)
    draw(groups, root / "docs" / "learning.png")
    page.write_text(MARKED.sub(lambda match: f"{match[1]}{section(groups)}\n{match[2]}", page.read_text()))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
