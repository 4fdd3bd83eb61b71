"""`drrl tune`: hyperparameters from a search on the validation split, resumable, the study kept beside its values."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState
from rich.console import Console
from rich.table import Table

from drrl_agents.algorithms import ALGORITHMS, check_pair, hyperparameters_of
from drrl_agents.hyperparameters.writing import check_entry_file, write_entry
from drrl_agents.tasks import Task, Tasks, check_played
from drrl_agents.training import Train, check_writable, train
from drrl_env.envs.settings import one_of, positive

AGAIN = "run the same command again to go on with the study"
DIVERGED = re.compile(r"invalid values:\n.*nan", re.DOTALL)
"""What PyTorch's distributions say where a network has become NaN."""
Suggest = Callable[[Trial], dict[str, Any]]


@dataclass(frozen=True)
class Tune:
    """Search hyperparameters with Optuna on the validation split; run it again to go on with a study.

    The first trial has the present values, so the best is never worse than those in trials of this length.

    Example: drrl tune DRRL-Tolerance-v0 --algo qr-dqn --policy mlp --trials 20

    Attributes:
        task: the environment and its arguments.
        algo: maskable-ppo, qr-dqn or tqc.
        policy: transformer or mlp.
        trials: trials of the study in all, those of earlier calls included.
        steps: environment steps of a trial.
        validations: times a trial is validated; the pruner may end it at each but the last.
        seed: seed of the agents; the sampler's is drawn from it and the number of trials done.
        instances: spans of the train split to train on.
        validation_instances: spans of the validation split that a trial is judged on.
        n_envs: lanes of the environment side by side.
        study: file of the study, a journal that Optuna reads; None for one in the logdir.
        write: write the best values into this file of hyperparameters; None only shows them.
        logdir: folder of the trials' runs.
        threads: torch threads.
        progress: show progress bars.
    """

    task: Tasks = field(default_factory=Task)
    algo: str = "maskable-ppo"
    policy: str = "transformer"
    trials: int = 20
    steps: int = 50_000
    validations: int = 4
    seed: int = 0
    instances: int | None = 64
    validation_instances: int = 8
    n_envs: int = 8
    study: Path | None = None
    write: Path | None = None
    logdir: Path = Path("runs")
    threads: int = 1
    progress: bool = True


def ppo_space(trial: Trial) -> dict[str, Any]:
    """MaskablePPO."""
    return {
        "learning_rate": f"lin_{_log(trial, 'learning_rate', 2e-4, 3e-3)}",
        "n_steps": trial.suggest_categorical("n_steps", [32, 64, 128]),
        "batch_size": trial.suggest_categorical("batch_size", [128, 256, 512]),
        "n_epochs": trial.suggest_int("n_epochs", 3, 10),
        "gamma": trial.suggest_categorical("gamma", [0.8, 0.9, 0.95, 0.99]),
        "gae_lambda": trial.suggest_categorical("gae_lambda", [0.8, 0.9, 0.95, 1.0]),
        "ent_coef": _log(trial, "ent_coef", 1e-3, 0.1),
        "vf_coef": _log(trial, "vf_coef", 0.01, 0.5),
    }


def _value_space(trial: Trial) -> dict[str, Any]:
    """What learning from a replay buffer has in common."""
    return {
        "learning_rate": _log(trial, "learning_rate", 1e-4, 3e-3),
        "batch_size": trial.suggest_categorical("batch_size", [64, 128, 256]),
        "gamma": trial.suggest_categorical("gamma", [0.0, 0.5, 0.8, 0.9, 0.95]),
        "train_freq": trial.suggest_categorical("train_freq", [1, 2, 4]),
        "learning_starts": trial.suggest_categorical("learning_starts", [200, 1000, 2000]),
    }


def quantile_space(trial: Trial) -> dict[str, Any]:
    """QR-DQN."""
    return {
        **_value_space(trial),
        "exploration_fraction": _log(trial, "exploration_fraction", 0.05, 0.5),
        "exploration_final_eps": _log(trial, "exploration_final_eps", 0.01, 0.1),
        "target_update_interval": trial.suggest_categorical("target_update_interval", [250, 400, 1000, 4000]),
    }


def tqc_space(trial: Trial) -> dict[str, Any]:
    """TQC."""
    return {
        **_value_space(trial),
        "tau": _log(trial, "tau", 0.002, 0.05),
        "top_quantiles_to_drop_per_net": trial.suggest_int("top_quantiles_to_drop_per_net", 0, 5),
    }


def _log(trial: Trial, name: str, low: float, high: float) -> float:
    """A number on a logarithmic scale, to three digits: what a file shows is what was tried."""
    return float(f"{trial.suggest_float(name, low, high, log=True):.3g}")


SPACES: dict[str, Suggest] = {"maskable-ppo": ppo_space, "qr-dqn": quantile_space, "tqc": tqc_space}
"""Algorithm to the space that is searched."""


def check(settings: Tune) -> None:
    """Raises a one-line ValueError for the first argument that is wrong, before any work."""
    one_of("algo", settings.algo, tuple(SPACES))
    check_played(settings.task.env)
    check_pair(settings.algo, settings.policy, settings.task.env, settings.task.actions)
    for name in ("trials", "steps", "validations", "validation_instances", "n_envs", "threads"):
        positive(name, getattr(settings, name))
    check_writable(settings.logdir)
    check_writable(study_file(settings).parent, "study")
    if settings.write is not None:
        check_entry_file(settings.write, ALGORITHMS[settings.algo].file)


def study_file(settings: Tune) -> Path:
    """The journal of the study."""
    named = f"{settings.task.env}-{settings.algo}-{settings.policy}.journal"
    return settings.study or settings.logdir / "studies" / named


def tune(settings: Tune) -> optuna.Study:
    """Goes on with the study until it has its trials.

    Raises:
        ValueError: an argument is wrong; one line with its name, value and remedy.
    """
    check(settings)
    study = open_study(settings)
    while (done := _finished(study)) < settings.trials:
        study.sampler = optuna.samplers.TPESampler(seed=settings.seed + done, n_startup_trials=8)
        study.optimize(lambda trial: _try(trial, settings), n_trials=1)
    return study


def open_study(settings: Tune) -> optuna.Study:
    """The study in its journal, made if it is not there; trials that a killed process left running are given up.

    Raises:
        ValueError: the journal is of another task, algorithm, network or length of trials.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = JournalStorage(JournalFileBackend(str(study_file(settings))))
    name = f"{settings.task.env} {settings.algo} {settings.policy} {settings.steps} steps"
    others = [found for found in optuna.get_all_study_names(storage) if found != name]
    if others:
        raise ValueError(f"study={str(study_file(settings))!r}: holds {others[0]!r}, not {name!r}; name another file")
    pruner = optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=1)
    study = optuna.create_study(
        storage=storage, study_name=name, direction="maximize", pruner=pruner, load_if_exists=True
    )
    for left in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        study.tell(left.number, state=TrialState.FAIL)
    if not study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED, TrialState.WAITING)):
        study.enqueue_trial(present_values(settings.algo, settings.task.env))
    return study


def present_values(algo: str, task: str) -> dict[str, Any]:
    """What the space of an algorithm has to be drawn as for the values that it has now: of the file, or SB3's own."""
    drawn = optuna.create_study().ask()
    SPACES[algo](drawn)
    own, usual = hyperparameters_of(algo, task), inspect.signature(ALGORITHMS[algo].make).parameters
    found = {name: own.get(name, usual[name].default) for name in drawn.params}
    return {name: float(value[4:]) if str(value).startswith("lin_") else value for name, value in found.items()}


def _finished(study: optuna.Study) -> int:
    return len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED)))


def _try(trial: Trial, settings: Tune) -> float:
    """Trains one agent; the normalised score of its last validation. One whose weights become NaN counts as pruned."""
    found = SPACES[settings.algo](trial)
    trial.set_user_attr("hyperparameters", found)
    scores: list[float] = []

    def judge(step: int, values: dict[str, float]) -> None:
        scores.append(values["normalised_score"])
        trial.report(scores[-1], len(scores))
        if step < settings.steps and trial.should_prune():
            raise optuna.TrialPruned

    try:
        train(_trial_run(settings, trial.number), found, judge, AGAIN)
    except ValueError as error:
        if DIVERGED.search(str(error)) is None:
            raise
        raise optuna.TrialPruned from error
    return scores[-1]


def _trial_run(settings: Tune, number: int) -> Train:
    """The run of a trial."""
    return Train(
        settings.task,
        settings.algo,
        settings.policy,
        settings.steps,
        settings.seed,
        settings.n_envs,
        settings.instances,
        settings.validation_instances,
        max(1, settings.steps // settings.validations),
        settings.logdir / "trials" / f"trial-{number:03d}",
        threads=settings.threads,
        progress=settings.progress,
    )


def best_trials(study: optuna.Study) -> list[FrozenTrial]:
    """The finished trials, best first."""
    done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return sorted(done, key=lambda trial: -(trial.value or 0.0))


def run_tune(settings: Tune) -> optuna.Study:
    """Tunes, prints the best trials and, if asked, writes the best values."""
    settings = replace(settings, study=study_file(settings))
    study = tune(settings)
    ranked = best_trials(study)
    table = Table(title=f"{study.study_name}: {len(ranked)} of {_finished(study)} trials went to the end")
    for head in ("trial", "validation score", "hyperparameters"):
        table.add_column(head)
    for trial in ranked[:5]:
        shown = ", ".join(f"{name}={value}" for name, value in trial.user_attrs["hyperparameters"].items())
        table.add_row(str(trial.number), f"{trial.value:.4f}", shown)
    Console().print(table)
    if settings.write is not None and ranked:
        best = ranked[0]
        source = f"drrl tune, best of {_finished(study)} trials ({study.study_name}): validation {best.value:.3f}"
        write_entry(settings.write, settings.task.env, best.user_attrs["hyperparameters"], source)
        print(f"wrote {settings.write}")
    return study
