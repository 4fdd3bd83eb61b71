"""Arguments of every environment, by name."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from drrl_env.envs.settings import Guard, Reward


@dataclass(frozen=True)
class Arguments:
    """Arguments of every environment.

    Attributes:
        model: `bundled`, a folder, or a Hugging Face name.
        layer: layer to play on; None for a random one each episode (DRRL-Layers-v0: for all of them).
        segment: tokens of a segment.
        context: tokens of an instance.
        ranks: candidate ranks, ascending, the last full; None for shares of the head dimension.
        value_rank: `balanced`, `same`, a number, or None for full values.
        basis: `refreshed`, or one fitted beforehand on calibration text: `calibrated` (the product SVD, KQ-SVD's), or
            the literature's `keys-pca` and `separate-svd` at the same cost; None for the task's own.
        split: `train`, `validation` or `test`; None for train, or for all spans of a user's own `text`.
        instances: how many of the split, or a list of their URIs (`?layer=N` behind them names the layer); None for
            all.
        text: a user's own text file instead of the bundled text; of every four of its spans a split gets
            two (train) or one (validation, test).
        reward: `default` (the task's own), `paper` or a `Reward`.
        guard: `off`, `paper`, `conformal` or a `Guard`.
        statistics: names of the statistics to observe; None for the default ones.
        tolerance: ε of DRRL-Tolerance-v0, a number or (low, high) from which it is drawn.
        budget: FLOPs budget of DRRL-Budget-v0, a fraction of full attention's or (low, high).
        cost: what the reward charges: `flops`, `latency`, or a timing table of your own; None for the task's own.
        actions: `discrete` (indices), or `box` (a number in [-1, 1], for SAC, TD3, DDPG, TQC and CrossQ) where one
            rank is chosen a step; None for the task's own. A lane's state fits either.
    """

    model: str = "bundled"
    layer: int | None = None
    segment: int = 128
    context: int = 2048
    ranks: Sequence[int] | None = None
    value_rank: str | int | None = "balanced"
    basis: str | None = None
    split: str | None = None
    instances: int | Sequence[str] | None = None
    text: str | Path | None = None
    reward: str | Reward = "default"
    guard: str | Guard = "off"
    statistics: Sequence[str] | None = None
    tolerance: float | tuple[float, float] | None = None
    budget: float | tuple[float, float] | None = None
    cost: str | Path | None = None
    actions: str | None = None


def known_arguments(task: str, given: Mapping[str, Any]) -> Arguments:
    """The arguments by name.

    Raises:
        ValueError: one that no environment has; one line with the nearest that there is.
    """
    names = [each.name for each in fields(Arguments)]
    for name in given:
        if name not in names:
            near = difflib.get_close_matches(name, names, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"use {', '.join(names)}"
            raise ValueError(f"{name}={given[name]!r}: {task} has no such argument; {hint}")
    return Arguments(**given)
