"""A trained agent as a policy: weights in safetensors beside a JSON config, so that loading runs no pickle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from stable_baselines3.common.base_class import BaseAlgorithm
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from drrl_agents.algorithms import ALGORITHMS, make_algorithm
from drrl_agents.tasks import Task
from drrl_policies.base import Choices, Policy, Situation

WEIGHTS, CONFIG = "policy.safetensors", "config.json"


class AgentPolicy(Policy):
    """An SB3 agent, deterministic; it is charged for every entry of the observation and for its own FLOPs.

    Args:
        model: the agent.
        name: its name in tables.
        masks: whether it honours action masks.

    Attributes:
        space: the observations it was built for.
    """

    def __init__(self, model: BaseAlgorithm, name: str, masks: bool) -> None:
        self.name, self._model, self._masks = name, model, masks
        self.space = model.observation_space
        self.reads = frozenset(_spaces(model))
        self.deciding_flops = decision_flops(model)

    def choose(self, situation: Situation) -> Choices:
        """The agent's best choices."""
        arguments: dict[str, Any] = {"action_masks": situation.masks} if self._masks else {}
        choices, _ = self._model.predict(situation.observation, deterministic=True, **arguments)
        return np.asarray(choices, np.int64)


def decision_flops(model: BaseAlgorithm) -> float:
    """FLOPs of one decision, counted by PyTorch on one observation."""
    zeros = {name: np.zeros((1, *(space.shape or ())), np.float32) for name, space in _spaces(model).items()}
    observation, _ = model.policy.obs_to_tensor(zeros)
    # PyTorch's counter sees neither the fused path of its encoder in evaluation mode nor fused attention on a CPU.
    was_training = model.policy.training
    model.policy.train()
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        model.policy._predict(observation, deterministic=True)
    model.policy.train(was_training)
    return float(counter.get_total_flops())


def _spaces(model: BaseAlgorithm) -> dict[str, spaces.Space[Any]]:
    """Entries of the observation it was built for."""
    assert isinstance(model.observation_space, spaces.Dict)
    return dict(model.observation_space.spaces)


def save_agent(model: BaseAlgorithm, folder: Path) -> None:
    """Writes the policy's weights, atomically."""
    tensors = {name: tensor.contiguous().clone() for name, tensor in model.policy.state_dict().items()}
    partial = folder / (WEIGHTS + ".partial")
    save_file(tensors, partial)
    partial.replace(folder / WEIGHTS)


def read_config(folder: Path, argument: str = "run") -> dict[str, Any]:
    """The run's config.

    Args:
        folder: the run.
        argument: what the user calls it, for errors.

    Raises:
        ValueError: the folder is not a run, or its config is damaged.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise ValueError(f"{argument}={str(folder)!r}: no {CONFIG} is there; give a folder that `drrl train` wrote")
    try:
        found: dict[str, Any] = json.loads(path.read_text())
        task_of(found)
        agent_name(found)
    except (ValueError, TypeError, KeyError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"{argument}={str(folder)!r}: its {CONFIG} is damaged ({reason}); train it again") from error
    return found


def task_of(config: dict[str, Any]) -> Task:
    """The task a run was trained on."""
    values = dict(config["task"])
    values["text"] = None if values["text"] is None else Path(values["text"])
    for name in ("ranks", "statistics"):
        given = values.get(name)  # runs from before there was a choice of statistics name none
        values[name] = None if given is None else tuple(given)
    return Task(**values)


def load_agent(folder: Path, argument: str = "run") -> AgentPolicy:
    """The trained agent of a run folder; reads JSON and safetensors only.

    Args:
        folder: the run.
        argument: what the user calls it, for errors.

    Raises:
        ValueError: the folder is not a finished run, or its weights are damaged or of another task.
    """
    config = read_config(folder, argument)
    if not (folder / WEIGHTS).is_file():
        raise ValueError(f"{argument}={str(folder)!r}: no {WEIGHTS} is there yet; finish it with drrl train --resume")
    # Two: PPO warns of a batch larger than what a single environment fills.
    env = task_of(config).make_lanes("train", 1, 2)
    model = make_algorithm(config["algo"], config["policy"], env, config["seed"])
    try:
        model.policy.load_state_dict(_finite(load_file(folder / WEIGHTS)))
    except (OSError, SafetensorError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"{argument}={str(folder)!r}: its {WEIGHTS} cannot be used ({reason}); train it again"
        ) from error
    return AgentPolicy(model, agent_name(config), ALGORITHMS[config["algo"]].masks)


def _finite(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    for name, tensor in weights.items():
        if not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{name} holds NaN or infinity")
    return weights


def agent_name(config: dict[str, Any]) -> str:
    """`<algorithm>-<policy>-seed<seed>`."""
    return f"{config['algo']}-{config['policy']}-seed{config['seed']}"
