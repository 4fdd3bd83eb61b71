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
from drrl_agents.export import Export, run_export
from drrl_agents.imitate import Imitate, run_imitate
from drrl_agents.instances import Instances, run_instances
from drrl_agents.training import Train, train
from drrl_agents.tune import Tune, run_tune
from drrl_agents.validate import Validate, run_validate

Command = (
    Annotated[Train, subcommand("train")]
    | Annotated[Imitate, subcommand("imitate")]
    | Annotated[Tune, subcommand("tune")]
    | Annotated[Evaluate, subcommand("evaluate")]
    | Annotated[Export, subcommand("export")]
    | Annotated[Compare, subcommand("compare")]
    | Annotated[Validate, subcommand("validate")]
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
    Imitate: run_imitate,
    Tune: run_tune,
    Evaluate: run_evaluate,
    Export: run_export,
    Compare: run_compare,
    Validate: run_validate,
    Bench: run_bench,
    Calibrate: run_calibrate,
    Instances: run_instances,
    Check: run_check,
    Demo: run_demo,
    Doctor: run_doctor,
}
"""Settings of a command to what carries it out."""


def main() -> None:
    """Runs one command; a bad argument, or a file that cannot be used, ends with one line and exit code 2."""
    settings = tyro.cli(Command, prog="drrl", description="Adaptive rank for low-rank attention.")
    try:
        RUNNERS[type(settings)](settings)
    except (ValueError, OSError) as error:
        print(f"drrl: {error}", file=sys.stderr)
        raise SystemExit(2) from error


if __name__ == "__main__":
    main()
