"""`drrl imitate`: behaviour cloning of the oracle, without reinforcement learning."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from drrl_agents.tasks import Task, Tasks
from drrl_agents.training import Train, train


@dataclass(frozen=True)
class Imitate:
    """Clone the oracle of the train split into a policy; `drrl train --imitate` goes on from there with rewards.

    What every action is worth wherever an episode may stand is known exactly on the train split; the policy learns it
    on episodes that follow the oracle but for random strays. See `hyperparameters/imitation.yml`.

    Example: drrl imitate DRRL-Tolerance-v0 --seed 0

    Attributes:
        task: the environment and its arguments; any but DRRL-Layers-v0.
        algo: whose policy is trained: maskable-ppo, ppo, a2c or trpo.
        policy: transformer or mlp.
        seed: seed of everything random.
        instances: spans of the train split; None for all (about a second each to measure).
        validation_instances: spans of the validation split to validate on.
        logdir: folder of all runs.
        threads: torch threads.
        progress: show progress bars.
    """

    task: Tasks = field(default_factory=Task)
    algo: str = "maskable-ppo"
    policy: str = "transformer"
    seed: int = 0
    instances: int | None = 64
    validation_instances: int = 8
    logdir: Path = Path("runs")
    threads: int = 1
    progress: bool = True


def imitate(settings: Imitate) -> Path:
    """Clones the oracle.

    Returns:
        The run's folder, as that of `drrl train`.

    Raises:
        ValueError: an argument is wrong; one line with its name, value and remedy.
    """
    return train(
        Train(
            settings.task,
            settings.algo,
            settings.policy,
            steps=0,
            seed=settings.seed,
            instances=settings.instances,
            validation_instances=settings.validation_instances,
            logdir=settings.logdir,
            imitate=True,
            threads=settings.threads,
            progress=settings.progress,
        )
    )


def run_imitate(settings: Imitate) -> None:
    """Clones and says where the run lies."""
    print(f"run: {imitate(settings)}\ntensorboard --logdir {settings.logdir}")
