"""`drrl demo`: train, compare and show, in minutes."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from drrl_agents.comparison import Compare, run_compare
from drrl_agents.tasks import Task
from drrl_agents.training import Train, check_writable, train


@dataclass(frozen=True)
class Demo:
    """Train MaskablePPO with the Transformer policy on real text, then compare it on the test split.

    Attributes:
        quick: a small setting of about two minutes, for CI.
        seed: seed of the agent.
        logdir: folder of the runs.
        threads: torch threads.
    """

    quick: bool = False
    seed: int = 0
    logdir: Path = Path("runs")
    threads: int = 1


def run_demo(settings: Demo) -> None:
    """One seed of the agent under the paper's guard, beside the rules and the oracle."""
    check_writable(settings.logdir)
    train_spans, test_spans, validation_spans = (8, 4, 4) if settings.quick else (64, 32, 8)
    steps = 12_000 if settings.quick else 100_000
    started, console, task = time.monotonic(), Console(stderr=True), Task(guard="paper")
    console.print(f"[bold]1/2[/bold] training MaskablePPO on {train_spans} spans of real text")
    training = Train(
        task=task,
        steps=steps,
        seed=settings.seed,
        instances=train_spans,
        validation_instances=validation_spans,
        logdir=settings.logdir,
        threads=settings.threads,
    )
    run = train(training)
    console.print(f"[bold]2/2[/bold] comparing on {test_spans} spans of the test split")
    run_compare(
        Compare(
            task=task,
            runs=(run,),
            instances=test_spans,
            train_instances=train_spans,
            logdir=settings.logdir,
            threads=settings.threads,
        )
    )
    console.print(f"took {time.monotonic() - started:.0f} s")
