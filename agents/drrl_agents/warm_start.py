"""Before the first step of reinforcement learning: inputs standardised, and if asked for the oracle cloned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm

from drrl_agents.hyperparameters import plain_values, read_entry
from drrl_agents.imitation import Cloning, clone, demonstrate, joined
from drrl_agents.inputs import LIVE_INSTANCES, fit_inputs
from drrl_agents.tasks import Task
from drrl_agents.teachers import teacher_of
from drrl_policies.field import Field

FILE = "imitation"
"""File of hyperparameters with how to clone, and what then differs in reinforcement learning."""
THEN = "then"
"""Its entry of the latter."""


@dataclass(frozen=True)
class Recipe:
    """How a task's oracle is cloned.

    Attributes:
        passes: demonstrations of every train episode, each with random strays of its own.
        repeats: episodes per (instance, layer) where the task draws something.
        discount: of the returns that the critic learns.
        cloning: the gradient steps.
        then: hyperparameters of the reinforcement learning that follows, in place of the algorithm's.
    """

    passes: int
    repeats: int
    discount: float
    cloning: Cloning
    then: dict[str, Any]


def recipe_of(task: str) -> Recipe:
    """The recipe of a task, from `hyperparameters/imitation.yml`."""
    values = plain_values(read_entry(FILE, task))
    own = {name: values.pop(name) for name in ("passes", "repeats", "discount")}
    then = values.pop(THEN, {})
    return Recipe(**own, cloning=Cloning(**values), then=then)


def described(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain JSON."""
    return asdict(recipe)


def recipe_from(values: Mapping[str, Any]) -> Recipe:
    """The recipe that `described` put into plain JSON."""
    return Recipe(**{**values, "cloning": Cloning(**values["cloning"])})


def check_imitation(algo: str, task: str) -> None:
    """Raises a one-line ValueError where nobody can be cloned."""
    if algo not in ("maskable-ppo", "ppo", "a2c", "trpo"):
        raise ValueError(f"imitate=True: algo={algo!r} has no actor to teach; use maskable-ppo, ppo, a2c or trpo")
    if task == "DRRL-Layers-v0":
        raise ValueError(
            f"imitate=True: {task} is computed live and has no exact values away from the oracle's plan; train it by "
            "reinforcement learning alone"
        )


def train_field(task: Task, instances: int | None, repeats: int, seed: int, progress: bool) -> Field:
    """Train episodes to look at before training; few where they are computed live."""
    live = task.env == "DRRL-Layers-v0"
    count = min(instances or LIVE_INSTANCES, LIVE_INSTANCES) if live else instances
    return task.field("train", count, repeats, seed, progress)


def warm_start(model: BaseAlgorithm, field: Field, recipe: Recipe | None, seed: int, progress: bool) -> list[float]:
    """Fits the inputs and, with a recipe, clones the oracle.

    Returns:
        Mean loss of every epoch of cloning.
    """
    state = torch.get_rng_state()
    fit_inputs(model, field, seed)
    losses: list[float] = []
    if recipe is not None:
        teacher = teacher_of(field, recipe.discount)
        seeds = np.random.SeedSequence(seed).generate_state(recipe.passes).tolist()
        known = joined([demonstrate(field, teacher, each) for each in seeds])
        losses = clone(model, known, recipe.cloning, seed, progress)
    torch.set_rng_state(state)  # what reinforcement learning draws does not depend on what came before it
    return losses
