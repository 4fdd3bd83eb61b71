"""The algorithms `drrl train` offers, with hyperparameters that suit short episodes of dense reward."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sb3_contrib import QRDQN, TRPO, MaskablePPO
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecEnv

from drrl_env.envs.settings import one_of
from drrl_policies.transformer import transformer_policy_kwargs


@dataclass(frozen=True)
class Algorithm:
    """An SB3 algorithm and its defaults here.

    Attributes:
        make: its class.
        defaults: hyperparameters that differ from SB3's; `drrl train` lets `ent_coef` fall linearly to zero.
        masks: whether it honours action masks.
    """

    make: Callable[..., BaseAlgorithm]
    defaults: dict[str, Any] = field(default_factory=dict)
    masks: bool = False


# Leaving full rank costs at once (the change, and values projected anew) and pays over the segments that follow: with
# gamma 0.3 agents left it two segments late. A constant entropy bonus froze the policy too early (.0005) or kept it
# random (.01), so it falls linearly from .04 to nothing: on the validation split seeds 0 to 3 reached .94 to .98, and
# seed 0 stayed at .82 from .02. Critic and actor share the extractor, and returns of ten rewards swamp it at first:
# with vf_coef .5 one seed stayed at .79 on the validation split that reached .97 with .05.
_ON_POLICY = {"gamma": 0.95, "gae_lambda": 0.95}
_PPO = {
    **_ON_POLICY,
    "n_steps": 128,
    "batch_size": 256,
    "n_epochs": 6,
    "learning_rate": LinearSchedule(1e-3, 1e-5, 1.0),
    "ent_coef": 0.04,
    "vf_coef": 0.05,
}
_OFF_POLICY = {
    "gamma": 0.95, "learning_starts": 1_000, "buffer_size": 100_000, "exploration_fraction": 0.3, "train_freq": 4
}  # fmt: skip

ALGORITHMS = {
    "maskable-ppo": Algorithm(MaskablePPO, _PPO, masks=True),
    "ppo": Algorithm(PPO, _PPO),
    "a2c": Algorithm(A2C, {**_ON_POLICY, "n_steps": 16}),
    "trpo": Algorithm(TRPO, {**_ON_POLICY, "n_steps": 128}),
    "dqn": Algorithm(DQN, _OFF_POLICY),
    "qr-dqn": Algorithm(QRDQN, _OFF_POLICY),
}
"""Command-line name to algorithm."""

POLICIES: dict[str, Callable[[], dict[str, Any]]] = {"transformer": transformer_policy_kwargs, "mlp": dict}
"""Command-line name to `policy_kwargs`."""


def make_algorithm(algo: str, policy: str, env: VecEnv, seed: int) -> BaseAlgorithm:
    """A fresh agent.

    Args:
        algo: a name in `ALGORITHMS`.
        policy: a name in `POLICIES`.
        env: what it trains on.
        seed: seed of weights, sampling and environments.

    Raises:
        ValueError: an unknown name; one line with those there are.
    """
    one_of("algo", algo, tuple(ALGORITHMS))
    one_of("policy", policy, tuple(POLICIES))
    chosen = ALGORITHMS[algo]
    kwargs = POLICIES[policy]()
    return chosen.make("MultiInputPolicy", env, policy_kwargs=kwargs, seed=seed, device="cpu", **chosen.defaults)
