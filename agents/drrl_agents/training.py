"""`drrl train`: one run, from a task to a folder with events, checkpoints, weights and config."""

from __future__ import annotations

import os
import sys
import tempfile
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from drrl_agents.agent import CONFIG, WEIGHTS, as_policy, read_config, save_agent, task_of
from drrl_agents.algorithms import (
    ALGORITHMS,
    box_needed,
    check_pair,
    make_algorithm,
)
from drrl_agents.board.baselines import write_baselines
from drrl_agents.callback import CHECKPOINTS, OnValidation, Plan, RunCallback, plain
from drrl_agents.checkpoints import Checkpoint, between_updates, newest_checkpoint, restore
from drrl_agents.events import EventFiles
from drrl_agents.interrupt import Interrupt
from drrl_agents.run_folder import new_folder, shown, write_config
from drrl_agents.tasks import REPEATS, Task, Tasks, check_played, open_fields
from drrl_agents.warm_start import check_imitation, recipe_from, train_field, warm_start
from drrl_env.envs.settings import positive
from drrl_policies.field import Field
from drrl_policies.rollout import Reference, reference

STEPS = 100_000
"""Environment steps of a run that names none."""
ZIP = "model.zip"
"""The agent in SB3's own format, beside the weights that are loaded without it."""


@dataclass(frozen=True)
class Train:
    """Train an agent on a task and log it to TensorBoard.

    Example: drrl train DRRL-Attention-v0 --algo maskable-ppo --policy transformer --guard paper --seed 0

    Attributes:
        task: the environment and its arguments.
        algo: maskable-ppo, ppo, a2c, trpo, recurrent-ppo, dqn, qr-dqn, sac, tqc, td3, ddpg, crossq or ars.
        policy: transformer or mlp; ars has only the latter.
        steps: environment steps in all; None for 100,000, or for what the run resumed was to do.
        seed: seed of everything random.
        n_envs: lanes of the environment side by side.
        instances: spans of the train split to train on; None for all (about a second each to measure).
        validation_instances: spans of the validation split to validate on.
        validate_every: steps between validations and checkpoints.
        logdir: folder of all runs.
        imitate: clone the oracle on the train split first, as `hyperparameters/imitation.yml` says for the task.
        resume: a run folder to go on with, bit for bit as if it had never stopped; its checkpoints hold no code. Only
            `steps` and `progress` count beside it; with other steps than before the schedules change from there on.
        threads: torch threads.
        progress: show progress bars.
    """

    task: Tasks = field(default_factory=Task)
    algo: str = "maskable-ppo"
    policy: str = "transformer"
    steps: int | None = None
    seed: int = 0
    n_envs: int = 8
    instances: int | None = 64
    validation_instances: int = 8
    validate_every: int = 10_000
    logdir: Path = Path("runs")
    imitate: bool = False
    resume: Path | None = None
    threads: int = 1
    progress: bool = True


def check(settings: Train) -> None:
    """Raises a one-line ValueError for the first argument that is wrong, before any work."""
    check_played(settings.task.env)
    check_pair(settings.algo, settings.policy, settings.task.env, settings.task.actions)
    for name in ("n_envs", "validation_instances", "validate_every", "threads"):
        positive(name, getattr(settings, name))
    if settings.steps is not None and not (settings.imitate and settings.steps == 0):
        positive("steps", settings.steps)
    if settings.imitate:
        check_imitation(settings.algo, settings.task.env)
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


def train(
    settings: Train,
    hyperparameters: dict[str, Any] | None = None,
    on_validation: OnValidation | None = None,
    advice: str | None = None,
) -> Path:
    """Trains one agent.

    Ctrl-C stops it after the rollout under way, with a checkpoint.

    Args:
        settings: what to train, on what, and where to log it.
        hyperparameters: in place of those of the algorithm's file, by name; a resumed run has its own.
        on_validation: told the step and the values of every validation; what it raises ends the training.
        advice: what is said after ctrl-C; None for how to go on with the run.

    Returns:
        The run's folder: config.json, events, checkpoints/, policy.safetensors and model.zip.

    Raises:
        ValueError: an argument is wrong; one line with its name, value and remedy.
        SystemExit: with 130, after ctrl-C; how to go on has been said.
    """
    settings = resumed(settings)
    check(settings)
    found = None if settings.resume is None else newest_checkpoint(settings.resume / CHECKPOINTS)
    if settings.resume is not None and _is_done(settings, found):
        print(f"{settings.resume}: {_done(found)} steps are done; give more --steps to train on", file=sys.stderr)
        return settings.resume
    torch.set_num_threads(settings.threads)
    wanted = [("train", settings.instances), ("validation", settings.validation_instances)]
    fitted, validation = open_fields(settings.task, wanted, settings.progress)
    limits = reference(validation)
    limits.score(limits.oracle)  # refuses episodes with nothing to choose before a folder is made
    folder = settings.resume or new_folder(settings)
    write_config(settings, folder, validation, _done(found), hyperparameters)
    if found is None:
        columns = shown(settings) | read_config(folder)["hyperparameters"]
        named = {name: plain(value) for name, value in columns.items()}
        write_baselines(fitted, validation, folder.parent.parent, _steps(settings), named)
    try:
        _learn(settings, folder, validation, limits, found, on_validation)
    except KeyboardInterrupt:
        print(f"stopped; {advice or f'go on with: drrl train --resume {folder}'}", file=sys.stderr)
        raise SystemExit(130) from None
    return folder


def resumed(settings: Train) -> Train:
    """The settings of the run to go on with, or those given where there is none; with the number of steps."""
    if settings.resume is None:
        task = settings.task
        if task.actions is None and box_needed(settings.algo, task.env):
            task = replace(task, actions="box")
        return replace(settings, task=task, steps=STEPS if settings.steps is None else settings.steps)
    config = read_config(settings.resume, "resume")
    kept = ("algo", "policy", "seed", "n_envs", "instances", "validation_instances", "validate_every", "threads")
    values: dict[str, Any] = {"imitate": config.get("imitate", False)}
    try:
        values |= {name: config[name] for name in kept}
        steps = config["steps"] if settings.steps is None else settings.steps
    except KeyError as error:
        raise ValueError(f"resume={str(settings.resume)!r}: its {CONFIG} lacks {error}; train it again") from error
    return replace(settings, task=task_of(config), steps=steps, logdir=settings.resume.parent, **values)


def _is_done(settings: Train, found: Checkpoint | None) -> bool:
    """Whether a resumed run has nothing left to do."""
    folder = settings.resume
    assert folder is not None
    return _done(found) >= _steps(settings) and (folder / WEIGHTS).is_file() and (folder / ZIP).is_file()


def _done(found: Checkpoint | None) -> int:
    return 0 if found is None else found.step


def _steps(settings: Train) -> int:
    assert settings.steps is not None
    return settings.steps


def _learn(
    settings: Train,
    folder: Path,
    validation: Field,
    limits: Reference,
    found: Checkpoint | None,
    on_validation: OnValidation | None,
) -> None:
    """Trains from the checkpoint, or from the start where there is none, to the end."""
    env = settings.task.make_lanes("train", settings.instances, settings.n_envs)
    values = read_config(folder)["hyperparameters"]
    model = make_algorithm(settings.algo, settings.policy, env, settings.seed, values)
    events = EventFiles(folder, None if settings.resume is None else -1 if found is None else found.step)
    model.set_logger(Logger(str(folder), [events]))
    # Counting its FLOPs runs the networks once: before the checkpoint's state is put in.
    policy = as_policy(model, "agent", ALGORITHMS[settings.algo].masks, validation)
    plan = Plan(folder, _steps(settings), settings.validate_every, shown(settings) | values, settings.progress)
    if found is not None:
        _restore(model, found, plan.steps)
    else:
        _prepare(model, settings, folder, events)
    try:
        with Interrupt() as interrupt:
            callback = RunCallback(plan, policy, validation, limits, found, interrupt, on_validation)
            try:
                with between_updates(model, callback.between_updates):
                    _run(model, plan.steps, callback)
            finally:
                callback.close()
    finally:
        model.logger.close()
    _save(model, folder)


def _prepare(model: BaseAlgorithm, settings: Train, folder: Path, events: EventFiles) -> None:
    """Standardises the inputs and, if asked for, clones the oracle; the loss is shown by epoch."""
    known = read_config(folder).get("imitation")
    recipe = None if known is None else recipe_from(known)
    repeats = REPEATS if recipe is None else recipe.repeats
    field = train_field(settings.task, settings.instances, repeats, settings.seed, settings.progress)
    for epoch, loss in enumerate(warm_start(model, field, recipe, settings.seed, settings.progress)):
        events.write({"imitation/loss": loss}, {"imitation/loss": ()}, epoch)


def _run(model: BaseAlgorithm, steps: int, callback: RunCallback) -> None:
    # SB3 counts on-policy iterations from where `learn` was called: each is logged, A2C's too. Of off-policy episodes
    # it may log one in so many only as lanes can end at once, or a step would show twice.
    every = max(4, model.n_envs) if isinstance(model, OffPolicyAlgorithm) else 1
    left = max(steps - model.num_timesteps, 0)
    model.learn(left, callback=callback, log_interval=every, reset_num_timesteps=False)


def _restore(model: BaseAlgorithm, found: Checkpoint, steps: int) -> None:
    """Puts a checkpoint's state into a fresh agent, and says what keeps the rest from being the same bits."""
    restore(model, found.tree)
    before = found.tree["steps"]
    if before != steps:
        model._update_current_progress_remaining(model.num_timesteps, steps)
        text = f"from step {found.step} on the schedules run to {steps} steps instead of {before}"
        print(f"{text}: not what {steps} steps in one go would have given", file=sys.stderr)
    for name, then in found.tree["versions"].items():
        if version(name) != then:
            print(f"{name} is {version(name)} and was {then}: the rest may round otherwise", file=sys.stderr)


def _save(model: BaseAlgorithm, folder: Path) -> None:
    """Writes the finished agent: weights, and SB3's own zip.

    Raises:
        ValueError: they cannot be written.
    """
    partial = folder / f"partial-{ZIP}"
    try:
        save_agent(model, folder)
        model.save(partial)
        os.replace(partial, folder / ZIP)
    except (OSError, SafetensorError) as error:
        partial.unlink(missing_ok=True)
        raise ValueError(
            f"run={str(folder)!r}: trained, but cannot be saved ({error}); make room and run "
            f"drrl train --resume {folder}"
        ) from error
