"""Fitting what standardises observations, before an agent sees its first."""

from __future__ import annotations

import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm

from drrl_policies.field import Field
from drrl_policies.rollout import look
from drrl_policies.rules import Random
from drrl_policies.standard import Standard

LIVE_INSTANCES = 2
"""Instances whose observations are enough where every step is computed live."""


def fit_inputs(model: BaseAlgorithm, field: Field, seed: int = 0) -> bool:
    """Fits every `Standard` of an agent's networks on what random choices see on train episodes.

    Args:
        model: the agent; one whose networks hold none stays as it is.
        field: episodes of the train split.
        seed: of the random choices.

    Returns:
        Whether there was anything to fit.
    """
    found = [module for module in model.policy.modules() if isinstance(module, Standard)]
    if found:
        rows = observed(field, seed)
        for module in found:
            module.fit(rows)
    return bool(found)


def observed(field: Field, seed: int = 0) -> dict[str, torch.Tensor]:
    """What random choices see, (episodes · steps, numbers) per entry."""
    play, policy, rows = field.arena.play, Random(field.sizes, seed), []
    play.begin(range(len(field.episodes)), field.episodes)
    for step in range(field.steps):
        situation = look(field, step)
        rows.append(situation.observation)
        play.step(policy.choose(situation))
    return {name: torch.from_numpy(np.concatenate([row[name] for row in rows])) for name in rows[0]}
