"""`drrl check ID`: whether an environment is what it says, with your model, text and settings."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field

import torch

from drrl_agents.tasks import Task, Tasks
from drrl_env.checking import INSTANCES, CheckError, check_env
from drrl_env.envs.settings import positive


@dataclass(frozen=True)
class Check:
    """Check an environment: determinism, here, in another process and across faces; masks, rewards, states, bounds.

    Example: drrl check DRRL-Heads-v0 --guard paper --steps 1000

    Attributes:
        task: environment id and its arguments.
        steps: random steps.
        split: split whose instances are played.
        instances: how many of them.
        seed: of episodes and actions.
        threads: torch threads.
    """

    task: Tasks = field(default_factory=Task)
    steps: int = 10_000
    split: str = "train"
    instances: int = INSTANCES
    seed: int = 0
    threads: int = 1


def run_check(settings: Check) -> None:
    """Prints what was found good; the first thing that is wrong ends it with one line and exit code 1."""
    positive("threads", settings.threads)
    torch.set_num_threads(settings.threads)
    arguments = {**settings.task.arguments(), "split": settings.split, "instances": settings.instances}
    try:
        print(check_env(settings.task.env, settings.steps, settings.seed, **arguments))
    except CheckError as error:
        print(f"drrl: {error}", file=sys.stderr)
        raise SystemExit(1) from error
