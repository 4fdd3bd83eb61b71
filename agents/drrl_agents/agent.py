"""Agents as policies: live ones as they are, trained ones from a run folder, whose files run no pickle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from drrl_agents.tasks import Task, check_played
from drrl_env.envs.arena import Arena
from drrl_env.envs.settings import one_of
from drrl_policies.card import CODECS, Card, entries_of
from drrl_policies.field import Field
from drrl_policies.learnt import LearntPolicy
from drrl_policies.networks import FAMILIES, describe
from drrl_policies.trained import CARD, TrainedPolicy, load_trained, save_trained
from drrl_policies.trained import WEIGHTS as WEIGHTS

CONFIG = "config.json"


class AgentPolicy(LearntPolicy):
    """A live SB3 agent, deterministic; it is charged for every entry of the observation and for its own FLOPs.

    Args:
        model: the agent.
        name: its name in tables.
        masks: whether it honours action masks.
        sizes: number of choices in each component of an action.
        entries: the observation it sees, flattened or not.
    """

    def __init__(
        self, model: BaseAlgorithm, name: str, masks: bool, sizes: tuple[int, ...], entries: spaces.Dict
    ) -> None:
        codec = CODECS[type(model.action_space).__name__]
        super().__init__(model.policy, name, masks, entries, codec, sizes, decision_flops(model))


def as_policy(model: BaseAlgorithm, name: str, masks: bool, field: Field) -> AgentPolicy:
    """An agent as a policy to be played on a field."""
    return AgentPolicy(model, name, masks, field.sizes, field.arena.observation_space)


def decision_flops(model: BaseAlgorithm) -> float:
    """FLOPs of one decision, counted by PyTorch on one observation; zero where nothing of it is PyTorch's."""
    policy, zeros, was_training = model.policy, _zeros(model.observation_space), model.policy.training
    # PyTorch's counter sees neither the fused path of its encoder in evaluation mode nor fused attention on a CPU;
    # but CrossQ's layers with running means can do nothing with one observation in training mode.
    for module in policy.modules():
        module.training = not any(True for _ in module.buffers(recurse=False))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        policy.set_training_mode = lambda mode: None  # type: ignore[method-assign]
        policy.predict(zeros, episode_start=np.ones(1, bool), deterministic=True)
    del policy.set_training_mode
    policy.train(was_training)
    return float(counter.get_total_flops())


def _zeros(space: spaces.Space[Any]) -> Any:
    """One observation of zeros."""
    if isinstance(space, spaces.Dict):
        return {name: np.zeros((1, *(each.shape or ())), np.float32) for name, each in space.spaces.items()}
    return np.zeros((1, *(space.shape or ())), np.float32)


def save_agent(model: BaseAlgorithm, folder: Path) -> None:
    """Writes the policy's weights and card into a run folder, each file whole or not at all.

    Args:
        model: the agent.
        folder: the run, its config written.

    Raises:
        ValueError: the folder is no run.
        OSError: they cannot be written.
    """
    save_trained(model.policy, folder, card_of(model, read_config(folder)))


def card_of(model: BaseAlgorithm, config: dict[str, Any]) -> Card:
    """The card of an agent, not yet evaluated.

    Args:
        model: the agent, with the lanes it was trained in.
        config: its run's config.
    """
    lanes = model.get_env()
    assert lanes is not None
    arena: Arena = lanes.get_attr("arena")[0]
    task = task_of(config)
    extractor, network = describe(model, config["algo"])
    return Card(
        task=task.env,
        arguments=plain_arguments(task),
        name=agent_name(config),
        algorithm=config["algo"],
        extractor=extractor,
        network=network,
        observation=entries_of(arena.observation_space),
        actions=type(model.action_space).__name__,
        sizes=tuple(int(size) for size in arena.play.sizes),
        ranks=tuple(int(rank) for rank in arena.world.ranks),
        deciding_flops=decision_flops(model),
        command=str(config.get("command", "")),
        versions=dict(config.get("versions", {})),
    )


def plain_arguments(task: Task) -> dict[str, Any]:
    """Keyword arguments of the task's environment as JSON can hold them."""
    return {name: str(value) if isinstance(value, Path) else value for name, value in task.arguments().items()}


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
    for name in ("ranks", "statistics", "tolerance", "budget"):
        given = values.get(name)  # runs from before there was a choice of statistics name none
        values[name] = None if given is None else tuple(given)
    return Task(**values)


def load_agent(folder: Path, argument: str = "run") -> TrainedPolicy:
    """The trained agent of a run folder; reads JSON and safetensors only.

    Args:
        folder: the run.
        argument: what the user calls it, for errors.

    Raises:
        ValueError: the folder is not a finished run, its weights are damaged, or config and card are of two runs.
    """
    config = read_config(folder, argument)
    task = task_of(config)
    check_played(task.env)
    one_of("algo", config["algo"], tuple(FAMILIES))
    if not (folder / WEIGHTS).is_file():
        raise ValueError(f"{argument}={str(folder)!r}: no {WEIGHTS} is there yet; finish it with drrl train --resume")
    found = load_trained(folder, argument)
    if (found.card.task, found.card.name) != (task.env, agent_name(config)):
        raise ValueError(
            f"{argument}={str(folder)!r}: its {CONFIG} is of {agent_name(config)} on {task.env} and its "
            f"{CARD} of {found.card.name} on {found.card.task}; train it again"
        )
    return found


def agent_name(config: dict[str, Any]) -> str:
    """`<algorithm>-<policy>-seed<seed>`."""
    return f"{config['algo']}-{config['policy']}-seed{config['seed']}"
