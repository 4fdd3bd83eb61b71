"""`drrl calibrate latency`: times the engine's kernels on this machine and judges the model fitted to them."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from datetime import date
from errno import EISDIR
from pathlib import Path

import tyro

from drrl_agents.bench.report import machine
from drrl_env.envs.settings import one_of, positive
from drrl_env.envs.world import cache_folder
from drrl_env.lowrank.kernels import HeadSizes
from drrl_env.lowrank.timings import Effort, grid, measure

CALIBRATIONS = ("latency",)
"""What can be calibrated."""
ROUNDS, QUICK_ROUNDS = 9, 3


@dataclass(frozen=True)
class Calibrate:
    """Measure this machine: `latency` times the attention kernels for `cost=PATH`; minutes, and it can be interrupted.

    Attributes:
        name: latency.
        model: bundled, a folder or a Hugging Face name; its heads are timed.
        context: most tokens a layer holds, at most the model's own context.
        segment: tokens of a segment, one or more sizes.
        out: where the table goes; a file in the cache folder if left out.
        quick: a coarse grid in half a minute, to try things out.
        threads: torch threads.
        progress: show a progress bar.
    """

    name: tyro.conf.Positional[str]
    model: str = "bundled"
    context: int = 4096
    segment: tuple[int, ...] = (32, 64, 128, 256, 512)
    out: Path | None = None
    quick: bool = False
    threads: int = 1
    progress: bool = True


def run_calibrate(settings: Calibrate) -> None:
    """Times, fits, prints how good the fit is and what to do with the table; exit code 1 where R² is too low."""
    from drrl_env.envs.latency import BAR, accuracy

    one_of("name", settings.name, CALIBRATIONS)
    sizes, context = _sizes(settings)
    path = _writable(settings.out or cache_folder() / "timings" / f"{sizes.kv_heads}x{sizes.groups}x{sizes.dim}.csv")
    calls = grid(sizes.dim, context, settings.segment, settings.quick).calls(sizes)
    effort = Effort(QUICK_ROUNDS if settings.quick else ROUNDS, settings.threads, settings.progress)
    try:
        timings = measure(sizes, calls, effort, _facts(settings), path)
    except KeyboardInterrupt:
        print("drrl: interrupted; the same command goes on after the last whole round", file=sys.stderr)
        raise SystemExit(130) from None
    found = accuracy(timings)
    print(f"{len(calls)} timings: {path}")
    print(f"held-out R² {found.r2:.4f}, median relative error {found.relative_error:.1%}, {found.points} timings")
    print("median relative error by kernel: " + ", ".join(f"{name} {x:.1%}" for name, x in found.by_kernel.items()))
    print(f'use them: gymnasium.make("drrl_env:DRRL-Latency-v0", cost="{path}")')
    if not found.meets:
        print(f"R² is below {BAR}: the machine was busy or the grid too coarse; measure again when it is quiet")
        raise SystemExit(1)


def _sizes(settings: Calibrate) -> tuple[HeadSizes, int]:
    """The model's heads, and the longest context that it and the settings allow."""
    from drrl_env.models.language_model import load_language_model

    for name, values in (
        ("context", (settings.context,)),
        ("segment", settings.segment),
        ("threads", (settings.threads,)),
    ):
        for value in values:
            positive(name, value)
    model = load_language_model(settings.model)
    context, shape = min(settings.context, model.context), model.shape(1)
    if not settings.segment or max(settings.segment) > context:
        raise ValueError(f"segment={settings.segment}: give sizes up to context={context}")
    return HeadSizes(shape.kv_heads, shape.groups, shape.dim), context


def _writable(path: Path) -> Path:
    """The path, its folder made: minutes of measuring should not be lost for want of a place."""
    try:
        if path.is_dir():
            raise IsADirectoryError(EISDIR, "is a folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_name(f"{path.name}.rounds").touch()
    except OSError as error:
        raise ValueError(f"out={str(path)!r}: {error.strerror}; name a file in a folder you can write to") from error
    return path


def _facts(settings: Calibrate) -> dict[str, str]:
    """What the table says of the machine, and when."""
    facts = {name: str(value) for name, value in machine().items()}
    return {**facts, "threads": str(settings.threads), "date": date.today().isoformat()}
