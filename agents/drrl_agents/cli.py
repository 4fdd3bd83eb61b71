"""The `drrl` command."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Annotated, Any

import tyro
from tyro.conf import subcommand

from drrl_agents.bench.command import Bench, run_bench
from drrl_agents.calibrate import Calibrate, run_calibrate
from drrl_agents.check import Check, run_check
from drrl_agents.comparison import Compare, run_compare
from drrl_agents.demo import Demo, run_demo
from drrl_agents.doctor import Doctor, run_doctor
from drrl_agents.evaluation import Evaluate, run_evaluate
from drrl_agents.instances import Instances, run_instances
from drrl_agents.training import Train, train

Command = (
    Annotated[Train, subcommand("train")]
    | Annotated[Evaluate, subcommand("evaluate")]
    | Annotated[Compare, subcommand("compare")]
    | Annotated[Bench, subcommand("bench")]
    | Annotated[Calibrate, subcommand("calibrate")]
    | Annotated[Instances, subcommand("instances")]
    | Annotated[Check, subcommand("check")]
    | Annotated[Demo, subcommand("demo")]
    | Annotated[Doctor, subcommand("doctor")]
)


def run_train(settings: Train) -> None:
    """Trains and says where the run lies."""
    folder = train(settings)
    print(f"run: {folder}\ntensorboard --logdir {settings.resume or settings.logdir}")


RUNNERS: dict[type, Callable[[Any], object]] = {
    Train: run_train,
    Evaluate: run_evaluate,
    Compare: run_compare,
    Bench: run_bench,
    Calibrate: run_calibrate,
    Instances: run_instances,
    Check: run_check,
    Demo: run_demo,
    Doctor: run_doctor,
}
"""Settings of a command to what carries it out."""


def main() -> None:
    """Runs one command; a bad argument ends with one line and exit code 2."""
    settings = tyro.cli(Command, prog="drrl", description="Adaptive rank for low-rank attention.")
    try:
        RUNNERS[type(settings)](settings)
    except ValueError as error:
        print(f"drrl: {error}", file=sys.stderr)
        raise SystemExit(2) from error


if __name__ == "__main__":
    main()
