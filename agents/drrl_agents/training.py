"""`drrl train`: one run, from a task to a folder with events, checkpoints, weights and config."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.logger import Logger, configure

from drrl_agents.agent import CONFIG, read_config, task_of
from drrl_agents.algorithms import ALGORITHMS, POLICIES, make_algorithm
from drrl_agents.callback import RunCallback
from drrl_agents.tasks import Field, Task, Tasks, open_fields
from drrl_env.envs.settings import one_of, positive
from drrl_policies.fitting import reference

PACKAGES = ("drrl-env", "gymnasium", "torch", "stable-baselines3", "sb3-contrib", "transformers", "numpy")


@dataclass(frozen=True)
class Train:
    """Train an agent on a task and log it to TensorBoard.

    Example: drrl train DRRL-Attention-v0 --algo maskable-ppo --policy transformer --guard paper --seed 0

    Attributes:
        task: the environment and its arguments.
        algo: maskable-ppo, ppo, a2c, trpo, dqn or qr-dqn.
        policy: transformer or mlp.
        steps: environment steps in all.
        seed: seed of everything random.
        n_envs: lanes of the environment side by side.
        instances: spans of the train split to train on; None for all (about a second each to measure).
        validation_instances: spans of the validation split to validate on.
        validate_every: steps between validations and checkpoints.
        logdir: folder of all runs.
        resume: a run folder to go on with; its checkpoint is an SB3 zip, which runs code when it is loaded,
            so resume runs of your own only. Only `steps` counts beside it.
        threads: torch threads.
        progress: show progress bars.
    """

    task: Tasks = field(default_factory=Task)
    algo: str = "maskable-ppo"
    policy: str = "transformer"
    steps: int = 100_000
    seed: int = 0
    n_envs: int = 8
    instances: int | None = 64
    validation_instances: int = 8
    validate_every: int = 10_000
    logdir: Path = Path("runs")
    resume: Path | None = None
    threads: int = 1
    progress: bool = True


def check(settings: Train) -> None:
    """Raises a one-line ValueError for the first argument that is wrong, before any work."""
    one_of("algo", settings.algo, tuple(ALGORITHMS))
    one_of("policy", settings.policy, tuple(POLICIES))
    for name in ("steps", "n_envs", "validation_instances", "validate_every", "threads"):
        positive(name, getattr(settings, name))
    check_writable(settings.logdir)
    if settings.resume is not None:
        check_writable(settings.resume, "resume")


def check_writable(folder: Path, argument: str = "logdir") -> None:
    """Makes the folder and proves that it can be written to.

    Args:
        folder: the folder.
        argument: what the user calls it, for the error.

    Raises:
        ValueError: it cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = error.strerror or str(error)
        raise ValueError(
            f"{argument}={str(folder)!r}: cannot be written to ({reason}); give a folder that can be"
        ) from error


def train(settings: Train) -> Path:
    """Trains one agent.

    Args:
        settings: what to train, on what, and where to log it.

    Returns:
        The run's folder: config.json, events, checkpoints/ and policy.safetensors.

    Raises:
        ValueError: an argument is wrong; one line with its name, value and remedy.
    """
    settings = resumed(settings)
    check(settings)
    torch.set_num_threads(settings.threads)
    wanted = [("train", settings.instances), ("validation", settings.validation_instances)]
    fields = open_fields(settings.task, wanted, settings.progress)
    folder = settings.resume or new_folder(settings)
    write_config(settings, folder, fields[0])
    model, first = _agent(settings, folder)
    model.set_logger(_logger(folder))
    model.learn(settings.steps - first, callback=_callback(settings, folder, fields[1]), reset_num_timesteps=False)
    model.logger.close()
    return folder


def resumed(settings: Train) -> Train:
    """The settings of the run to go on with, or those given where there is none."""
    if settings.resume is None:
        return settings
    config = read_config(settings.resume, "resume")
    kept = ("algo", "policy", "seed", "n_envs", "instances", "validation_instances", "validate_every", "threads")
    try:
        values: dict[str, Any] = {name: config[name] for name in kept}
    except KeyError as error:
        raise ValueError(f"resume={str(settings.resume)!r}: its {CONFIG} lacks {error}; train it again") from error
    return replace(settings, task=task_of(config), logdir=settings.resume.parent, **values)


def new_folder(settings: Train) -> Path:
    """`logdir/env/algo-policy/seed-N`, with a number behind it if that is taken."""
    parent = settings.logdir / settings.task.env / f"{settings.algo}-{settings.policy}"
    names = [f"seed-{settings.seed}", *(f"seed-{settings.seed}-{number}" for number in range(2, 1000))]
    folder = next(parent / name for name in names if not (parent / name).exists())
    folder.mkdir(parents=True)
    return folder


def write_config(settings: Train, folder: Path, found: Field) -> None:
    """Puts everything that a replay needs beside the events."""
    world = found.game.world
    config = {
        **asdict(settings),
        "command": " ".join(["drrl", *sys.argv[1:]]),
        "model_digest": world.model.digest,
        "calibration_digest": world.calibration.digest(),
        "ranks": world.ranks,
        "hyperparameters": ALGORITHMS[settings.algo].defaults,
        "versions": {name: version(name) for name in PACKAGES},
    }
    partial = folder / (CONFIG + ".partial")
    partial.write_text(json.dumps(config, indent=1, default=str))
    os.replace(partial, folder / CONFIG)


def _agent(settings: Train, folder: Path) -> tuple[BaseAlgorithm, int]:
    """The agent and the step it is at: fresh, or from the newest checkpoint that can be read."""
    env = settings.task.make_lanes("train", settings.instances, settings.n_envs)
    for path in sorted((folder / "checkpoints").glob("step-*.zip"), reverse=True):
        try:
            model = ALGORITHMS[settings.algo].make.load(path, env=env, device="cpu")  # type: ignore[attr-defined]
        except Exception as error:
            print(f"checkpoint {path.name} cannot be read ({error}); going back to the one before", file=sys.stderr)
            continue
        return model, int(model.num_timesteps)
    return make_algorithm(settings.algo, settings.policy, env, settings.seed), 0


def _logger(folder: Path) -> Logger:
    return configure(str(folder), ["tensorboard"])


def _callback(settings: Train, folder: Path, validation: Field) -> RunCallback:
    found = reference(validation.game, validation.pairs)
    shown = {
        "env": settings.task.env,
        "algo": settings.algo,
        "policy": settings.policy,
        "seed": settings.seed,
        "n_envs": settings.n_envs,
        "guard": settings.task.guard,
        "reward": settings.task.reward,
        "cost": settings.task.cost or "the task's own",
        "statistics": " ".join(settings.task.statistics or ("default",)),
        "basis": settings.task.basis,
        "value_rank": settings.task.value_rank,
        "instances": str(settings.instances),
        **ALGORITHMS[settings.algo].defaults,
    }
    masks = ALGORITHMS[settings.algo].masks
    steps, every = settings.steps, settings.validate_every
    return RunCallback(folder, validation, found, shown, steps, every, masks, settings.progress)
