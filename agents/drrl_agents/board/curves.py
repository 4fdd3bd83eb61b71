"""Means over seeds of what training runs wrote, step by step, and the charts that show them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.stats import t as student
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard.writer import SummaryWriter

from drrl_agents.statistics.bootstrap import CONFIDENCE
from drrl_env.envs.mechanism import Doubles, Integers

CHARTS = {
    "normalised_score": "normalised score (random 0, oracle 1)",
    "return": "return",
    "relative_error": "relative error of the output",
    "flops_ratio": "attention's FLOPs over full attention's",
    "total_flops_ratio": "the same with observing and deciding",
}
"""Metric to the title of its chart."""
GROUP = "validation-mean"
"""First word of the tags: TensorBoard folds them up together, and after `validation`."""
ENDS = ("mean", "low", "high")


@dataclass(frozen=True)
class Curve:
    """A metric over training steps.

    Attributes:
        steps: environment steps, ascending, (points,).
        values: (points,).
    """

    steps: Integers
    values: Doubles


@dataclass(frozen=True)
class Margin:
    """A metric's mean over seeds and its interval, step by step; all (points,)."""

    steps: Integers
    mean: Doubles
    low: Doubles
    high: Doubles


def read_curves(folder: Path) -> dict[str, Curve]:
    """The validation metrics of a run that are charted, those that it has."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 1, "histograms": 1}).Reload()
    tags = {name: f"validation/{name}" for name in CHARTS}
    there = set(events.Tags()["scalars"])
    return {name: _curve(events, tag) for name, tag in tags.items() if tag in there}


def _curve(events: EventAccumulator, tag: str) -> Curve:
    """A tag's points; of those with one step the last, which a resumed run wrote."""
    points = {point.step: point.value for point in events.Scalars(tag)}
    steps = np.array(sorted(points), np.int64)
    return Curve(steps, np.array([points[step] for step in steps.tolist()]))


def margin(curves: Sequence[Curve]) -> Margin:
    """Mean over seeds with Student's t interval for it; the mean alone where there is one seed.

    Seeds validated at other steps than each other are interpolated between theirs, up to the shortest's last.
    """
    end = min(curve.steps[-1] for curve in curves)
    steps = np.unique(np.concatenate([curve.steps[curve.steps <= end] for curve in curves]))
    values = np.stack([np.interp(steps, curve.steps, curve.values) for curve in curves])
    half = half_width(values)
    return Margin(steps, values.mean(0), values.mean(0) - half, values.mean(0) + half)


def half_width(values: Doubles) -> Doubles:
    """Half the 95 % interval of the mean over seeds, normal errors assumed; (seeds, points) to (points,)."""
    count = len(values)
    if count == 1:
        return np.zeros(values.shape[1])
    found: Doubles = student.ppf((1 + CONFIDENCE) / 2, count - 1) * values.std(0, ddof=1) / np.sqrt(count)
    return found


def write_margins(writer: SummaryWriter, task: str, margins: Mapping[str, Margin]) -> None:
    """Mean, low and high of every metric."""
    for name, found in margins.items():
        for tag, values in zip(tags(task, name), (found.mean, found.low, found.high), strict=True):
            for step, value in zip(found.steps.tolist(), values.tolist(), strict=True):
                writer.add_scalar(tag, value, step)


def tags(task: str, metric: str) -> list[str]:
    """Tags of a metric's mean, low and high; a task has its own, so that charts of a logdir do not mix tasks."""
    return [f"{GROUP}/{task}/{metric}/{end}" for end in ENDS]


def flat_margins(task: str, values: Mapping[str, float]) -> dict[str, float]:
    """Tag to value for what has no seeds: mean, low and high are one."""
    return {tag: values[name] for name in CHARTS if name in values for tag in tags(task, name)}


def layout(task: str) -> dict[str, dict[str, list[object]]]:
    """The charts of a task, as `SummaryWriter.add_custom_scalars` takes them."""
    shown = reversed(CHARTS.items())  # TensorBoard shows the last first
    charts: dict[str, list[object]] = {title: ["Margin", tags(task, name)] for name, title in shown}
    return {f"{task}, validation during training: mean over seeds with 95 % interval": charts}
