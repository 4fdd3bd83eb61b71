"""The folder of a training run: where it lies, and the config in it."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drrl_agents.agent import CONFIG, read_config
from drrl_agents.algorithms import hyperparameters_of
from drrl_agents.warm_start import described, recipe_of
from drrl_policies.field import Field

if TYPE_CHECKING:
    from drrl_agents.training import Train

PACKAGES = ("drrl-env", "gymnasium", "torch", "stable-baselines3", "sb3-contrib", "transformers", "numpy")


def new_folder(settings: Train) -> Path:
    """`logdir/env/algo-policy/seed-N`, with a number behind it if that is taken; `suffix` behind the policy."""
    parent = settings.logdir / settings.task.env / f"{settings.algo}-{settings.policy}{suffix(settings)}"
    names = [f"seed-{settings.seed}", *(f"seed-{settings.seed}-{number}" for number in range(2, 1000))]
    folder = next(parent / name for name in names if not (parent / name).exists())
    folder.mkdir(parents=True)
    return folder


def suffix(settings: Train) -> str:
    """What tells a cloned agent's folder from one without."""
    if not settings.imitate:
        return ""
    return "-cloned" if settings.steps == 0 else "-cloned-rl"


def write_config(
    settings: Train,
    folder: Path,
    field: Field,
    done: int,
    hyperparameters: dict[str, Any] | None = None,
) -> None:
    """Puts everything that a replay needs beside the events; a resumed run keeps it and adds where it went on.

    Args:
        settings: of the run, its steps settled.
        folder: the run's.
        field: what it is validated on; its world has the digests.
        done: steps that are done.
        hyperparameters: in place of those of the algorithm's file, by name.
    """
    command = " ".join(["drrl", *sys.argv[1:]])
    if settings.resume is not None:
        config = read_config(folder, "resume")
        again = {"command": command, "from": done, "steps": settings.steps}
        config |= {"steps": settings.steps, "resumed": [*config.get("resumed", ()), again]}
    else:
        world = field.arena.world
        config = {
            **asdict(settings),
            "command": command,
            "model_digest": world.model.digest,
            "calibration_digest": world.calibration.digest(),
            "ranks": world.ranks,
            "hyperparameters": _hyperparameters(settings, hyperparameters or {}),
            "imitation": described(recipe_of(settings.task.env)) if settings.imitate else None,
            "versions": {name: version(name) for name in PACKAGES},
        }
    partial = folder / (CONFIG + ".partial")
    partial.write_text(json.dumps(config, indent=1, default=str))
    os.replace(partial, folder / CONFIG)


def _hyperparameters(settings: Train, given: dict[str, Any]) -> dict[str, Any]:
    """The algorithm's, what differs after cloning, and what was given."""
    after = recipe_of(settings.task.env).then if settings.imitate else {}
    return {**hyperparameters_of(settings.algo, settings.task.env), **after, **given}


def shown(settings: Train) -> dict[str, Any]:
    """What the HParams tab shows."""
    return {
        "env": settings.task.env,
        "algo": settings.algo,
        "policy": settings.policy,
        "seed": settings.seed,
        "n_envs": settings.n_envs,
        "guard": settings.task.guard,
        "reward": settings.task.reward,
        "cost": settings.task.cost or "the task's own",
        "statistics": " ".join(settings.task.statistics or ("default",)),
        "basis": settings.task.basis or "the task's own",
        "value_rank": settings.task.value_rank,
        "instances": str(settings.instances),
    }
