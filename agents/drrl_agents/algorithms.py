"""The algorithms `drrl train` offers, which tasks each of them plays, and how one is made.

Their hyperparameters, and why they are what they are, stand in `drrl_agents/hyperparameters/*.yml`.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from sb3_contrib import QRDQN, TQC, TRPO, CrossQ, MaskablePPO, RecurrentPPO
from stable_baselines3 import A2C, DDPG, DQN, PPO, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from drrl_agents.counted_ars import CountedARS
from drrl_agents.hyperparameters import constructor_arguments, plain_values, read_entry
from drrl_env.envs.codecs import resolve_codec
from drrl_env.envs.registration import IDS
from drrl_env.envs.settings import one_of
from drrl_env.envs.tasks import TASKS
from drrl_policies.extractors import FlatVecEnv, flat_transformer_policy_kwargs
from drrl_policies.transformer import transformer_policy_kwargs

POLICIES = ("transformer", "mlp")
"""Command-line names of the networks."""
UNPLAYABLE = ("DRRL-Attention-MO-v0",)
"""Its reward is a vector, which no algorithm here takes."""
PLAYABLE = tuple(task for task in IDS if task not in UNPLAYABLE)
"""Environment ids that some algorithm plays."""
DISCRETE, SEVERAL, BOX = "Discrete", "MultiDiscrete", "Box"
EVERY = (DISCRETE, SEVERAL, BOX)


@dataclass(frozen=True)
class Algorithm:
    """An SB3 algorithm: what it can be given.

    Attributes:
        make: its class.
        file: its file of hyperparameters, named as RL Baselines3 Zoo names the algorithm.
        actions: action spaces it accepts, of `Discrete`, `MultiDiscrete` and `Box`.
        masks: whether it honours action masks.
        dicts: whether it takes Dict observations; flattened ones otherwise.
        policy: SB3's name of its policy.
        extractor: whether it takes a features extractor, which the Transformer is.
        second_order: whether it differentiates gradients again.
    """

    make: Callable[..., BaseAlgorithm]
    file: str
    actions: tuple[str, ...]
    masks: bool = False
    dicts: bool = True
    policy: str = "MultiInputPolicy"
    extractor: bool = True
    second_order: bool = False

    @property
    def defaults(self) -> dict[str, Any]:
        """Hyperparameters, as plain as in its file, for a task that has none of its own."""
        return plain_values(read_entry(self.file))

    @property
    def policies(self) -> tuple[str, ...]:
        """Networks it can have, of `POLICIES`."""
        return POLICIES if self.extractor else ("mlp",)


ALGORITHMS = {
    "maskable-ppo": Algorithm(MaskablePPO, "ppo_mask", (DISCRETE, SEVERAL), masks=True),
    "ppo": Algorithm(PPO, "ppo", EVERY),
    "a2c": Algorithm(A2C, "a2c", EVERY),
    "trpo": Algorithm(TRPO, "trpo", EVERY, second_order=True),
    "recurrent-ppo": Algorithm(RecurrentPPO, "ppo_lstm", EVERY, policy="MultiInputLstmPolicy"),
    "dqn": Algorithm(DQN, "dqn", (DISCRETE,)),
    "qr-dqn": Algorithm(QRDQN, "qrdqn", (DISCRETE,)),
    "sac": Algorithm(SAC, "sac", (BOX,)),
    "tqc": Algorithm(TQC, "tqc", (BOX,)),
    "td3": Algorithm(TD3, "td3", (BOX,)),
    "ddpg": Algorithm(DDPG, "ddpg", (BOX,)),
    "crossq": Algorithm(CrossQ, "crossq", (BOX,), dicts=False, policy="MlpPolicy"),
    "ars": Algorithm(CountedARS, "ars", (DISCRETE, BOX), dicts=False, policy="MlpPolicy", extractor=False),
}
"""Command-line name to algorithm."""


def accepts(algo: str, task: str) -> bool:
    """Whether an algorithm plays a task, be it with `actions="box"`.

    Args:
        algo: a name in `ALGORITHMS`.
        task: an environment id.

    Raises:
        ValueError: an unknown algorithm.
    """
    return task in PLAYABLE and (_kind(task) in _known(algo).actions or box_needed(algo, task))


def box_needed(algo: str, task: str) -> bool:
    """Whether an algorithm plays a task with `actions="box"` only: one rank a step, given as a number.

    Args:
        algo: a name in `ALGORITHMS`.
        task: an environment id.

    Raises:
        ValueError: an unknown algorithm.
    """
    actions = _known(algo).actions
    return task in PLAYABLE and _kind(task) == DISCRETE and DISCRETE not in actions and BOX in actions


def check_pair(algo: str, policy: str, task: str, actions: str | None = None) -> None:
    """Refuses what cannot be trained.

    Args:
        algo: a name in `ALGORITHMS`.
        policy: a name in `POLICIES`.
        task: an environment id.
        actions: what the user wants the actions to be; None for what the algorithm takes.

    Raises:
        ValueError: an unknown name, a task whose actions the algorithm cannot choose, or a network it cannot have; one
            line with the tasks or the networks that fit.
    """
    found = _known(algo)
    one_of("policy", policy, POLICIES)
    one_of("task", task, PLAYABLE)
    if actions is not None:
        _check_actions(algo, task, actions)
    elif not accepts(algo, task):
        chosen = " or ".join(found.actions)
        raise ValueError(f"algo={algo!r}: chooses {chosen}, and {task} is {_kind(task)}; use it on {_fitting(algo)}")
    _check_policy(algo, policy)


def _check_actions(algo: str, task: str, actions: str) -> None:
    """Refuses actions that the algorithm cannot choose, though it may play the task otherwise."""
    kind = resolve_codec(actions, TASKS[task].codec, task).name
    if kind not in ALGORITHMS[algo].actions:
        others = ", ".join(name for name, other in ALGORITHMS.items() if kind in other.actions)
        way = "leave actions out, or " if accepts(algo, task) else ""
        raise ValueError(f"actions={actions!r}: {task} is {kind} then, which {algo} cannot choose; {way}use {others}")


def _check_policy(algo: str, policy: str) -> None:
    one_of("policy", policy, POLICIES)
    if policy not in ALGORITHMS[algo].policies:
        raise ValueError(
            f"policy={policy!r}: {algo} takes no features extractor; use policy='mlp', on {_fitting(algo)}"
        )


def _fitting(algo: str) -> str:
    """The tasks it plays."""
    return ", ".join(task for task in PLAYABLE if accepts(algo, task))


def _known(algo: str) -> Algorithm:
    one_of("algo", algo, tuple(ALGORITHMS))
    return ALGORITHMS[algo]


def _kind(task: str) -> str:
    """The task's own action space."""
    return TASKS[task].codec.name


def hyperparameters_of(algo: str, task: str | None = None) -> dict[str, Any]:
    """Hyperparameters of an algorithm on a task, as plain as in its file: JSON can hold them.

    Args:
        algo: a name in `ALGORITHMS`.
        task: an environment id; None for those of any task.

    Raises:
        ValueError: an unknown algorithm.
    """
    return plain_values(read_entry(_known(algo).file, task))


def fit_env(algo: str, env: VecEnv) -> VecEnv:
    """The lanes as an algorithm takes them: flattened where it takes no Dict, and else themselves.

    Args:
        algo: a name in `ALGORITHMS`.
        env: lanes; flattened ones stay as they are.

    Raises:
        ValueError: an unknown algorithm, or one that cannot choose the actions of these lanes.
    """
    found = _known(algo)
    kind = type(env.action_space).__name__
    if kind not in found.actions:
        way = "; use actions='box'" if kind == DISCRETE else ""
        raise ValueError(f"algo={algo!r}: chooses {' or '.join(found.actions)}, and these lanes take {kind}{way}")
    return env if found.dicts or isinstance(env, FlatVecEnv) else FlatVecEnv(env)


def policy_kwargs(algo: str, policy: str, env: VecEnv) -> dict[str, Any]:
    """What the network adds to the `policy_kwargs` of the hyperparameters.

    Args:
        algo: a name in `ALGORITHMS`.
        policy: a name in `POLICIES`.
        env: lanes from `fit_env`.
    """
    if policy == "mlp":
        return {}
    if isinstance(env, FlatVecEnv):
        return flat_transformer_policy_kwargs(env.entries)
    return transformer_policy_kwargs(second_order=ALGORITHMS[algo].second_order)


def make_algorithm(
    algo: str, policy: str, env: VecEnv, seed: int, hyperparameters: dict[str, Any] | None = None
) -> BaseAlgorithm:
    """A fresh agent.

    Args:
        algo: a name in `ALGORITHMS`.
        policy: a name in `POLICIES`.
        env: what it trains on; flattened here where that is needed.
        seed: seed of weights, sampling and environments.
        hyperparameters: every value, as plain as in the file; None for the file's own. Nothing of the file is added: a
            run that is resumed keeps what it began with.

    Raises:
        ValueError: an unknown name, or what does not fit together; one line with the remedy.
    """
    found = _known(algo)
    _check_policy(algo, policy)
    lanes = fit_env(algo, env)
    values = hyperparameters_of(algo, _task_of(lanes)) if hyperparameters is None else hyperparameters
    arguments = constructor_arguments(values, found.make, lanes.action_space)
    # Each agent has its own: SAC, A2C and DDPG write into the policy_kwargs they are given.
    networks = deepcopy({**arguments.pop("policy_kwargs", {}), **policy_kwargs(algo, policy, lanes)})
    return found.make(found.policy, lanes, policy_kwargs=networks, seed=seed, device="cpu", **arguments)


def _task_of(env: VecEnv) -> str | None:
    """The task that lanes play, where they say so."""
    found = env.get_attr("arena")[0].task.id if env.has_attr("arena") else None
    assert found is None or isinstance(found, str)
    return found
