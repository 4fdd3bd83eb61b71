"""`drrl bench decide`: what one decision of the Transformer policy takes on one core."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sb3_contrib import MaskablePPO

from drrl_agents.algorithms import make_algorithm
from drrl_agents.bench.report import Row
from drrl_env.sb3 import make_vec_env

TASKS = ("DRRL-Attention-v0", "DRRL-Heads-v0", "DRRL-Tolerance-v0")
"""The smallest observation and action, the largest action, and the largest observation."""
LANES = {1: 1.5e-3, 256: 100e-6}
"""Lanes decided for together, to the most that a lane's decision may take, seconds."""
ROUNDS, SETTLING = 200, 10


@dataclass(frozen=True)
class Asked:
    """An untrained agent and what it is asked.

    Attributes:
        model: the agent.
        observation: (lanes, numbers) per entry.
        masks: (lanes, choices), all allowed.
    """

    model: MaskablePPO
    observation: dict[str, NDArray[np.float32]]
    masks: NDArray[np.bool_]


def run(threads: int = 1) -> list[Row]:
    """Times decisions for one lane and for many, through SB3's `predict` and without it."""
    torch.set_num_threads(threads)
    return [row for task in TASKS for lanes, limit in LANES.items() for row in _rows(task, lanes, limit)]


def _rows(task: str, lanes: int, limit: float) -> list[Row]:
    asked = ask(task, lanes)
    many = "one lane" if lanes == 1 else f"{lanes} lanes, each"
    unit, scale = ("ms", 1e3) if lanes == 1 else ("µs", 1e6)
    found = []
    for name, decide in (("predict", predicted), ("the network alone", bare)):
        seconds = seconds_of(lambda decide=decide: decide(asked)) / lanes  # type: ignore[misc]
        text = f"{task}: a decision by {name}, {many}"
        found.append(Row(text, seconds * scale, unit, f"<= {limit * scale:g}", seconds <= limit))
    return found


def ask(task: str, lanes: int) -> Asked:
    """An untrained agent of a task, and as many observations drawn from its space; nothing is measured for it.

    Args:
        task: environment id with discrete choices.
        lanes: observations.
    """
    env = make_vec_env(task, 2, instances=1)
    model = make_algorithm("maskable-ppo", "transformer", env, seed=0)
    assert isinstance(model, MaskablePPO)
    random = np.random.default_rng(0)
    shapes = {name: space.shape or () for name, space in env.arena.observation_space.spaces.items()}
    observation = {name: random.random((lanes, *shape), np.float32) for name, shape in shapes.items()}
    return Asked(model, observation, np.ones((lanes, sum(env.arena.play.sizes)), bool))


def predicted(asked: Asked) -> NDArray[Any]:
    """The choices by SB3's `predict`, with the masks, (lanes, ...)."""
    found, _ = asked.model.predict(asked.observation, deterministic=True, action_masks=asked.masks)
    return found


def bare(asked: Asked) -> NDArray[Any]:
    """The same choices from arrays without `predict`'s checks and conversions: what a deployed policy takes."""
    policy = asked.model.policy
    if policy.training:
        policy.set_training_mode(False)
    with torch.inference_mode():
        tensors = {name: torch.from_numpy(rows) for name, rows in asked.observation.items()}
        logits = policy.action_net(policy.mlp_extractor.forward_actor(policy.pi_features_extractor(tensors)))
        logits = logits.masked_fill(torch.from_numpy(~asked.masks), -torch.inf)
        parts = logits.split(_sizes(asked.model), dim=-1)
        found: NDArray[Any] = torch.stack([part.argmax(-1) for part in parts], dim=-1).numpy()
    return found[:, 0] if len(parts) == 1 else found


def _sizes(model: MaskablePPO) -> list[int]:
    """Choices of every component."""
    space: Any = model.action_space
    return [int(space.n)] if hasattr(space, "n") else space.nvec.tolist()


def seconds_of(work: Callable[[], object], rounds: int = ROUNDS) -> float:
    """Median seconds of the processor that a call takes, once it has settled."""
    for _ in range(SETTLING):
        work()
    taken = []
    for _ in range(rounds):
        start = time.process_time()
        work()
        taken.append(time.process_time() - start)
    return median(taken)
