"""Any stable-baselines3 algorithm trains on the task with its kind of action, with `MultiInputPolicy`."""

from __future__ import annotations

from typing import Any

import gymnasium
import pytest
from gymnasium.wrappers import FlattenObservation
from sb3_contrib import QRDQN, TQC, TRPO, CrossQ, MaskablePPO
from stable_baselines3 import A2C, DDPG, DQN, PPO, SAC, TD3
from stable_baselines3.common.vec_env import SubprocVecEnv

from drrl_env.envs.settings import Guard

ON_POLICY = {"n_steps": 16, "batch_size": 16}
ALGORITHMS: dict[str, tuple[Any, dict[str, Any]]] = {
    "PPO": (PPO, {**ON_POLICY, "n_epochs": 1}),
    "A2C": (A2C, {"n_steps": 8}),
    "DQN": (DQN, {"learning_starts": 16, "buffer_size": 64, "batch_size": 8}),
    "MaskablePPO": (MaskablePPO, {**ON_POLICY, "n_epochs": 1}),
    "QRDQN": (QRDQN, {"learning_starts": 16, "buffer_size": 64, "batch_size": 8}),
    "TRPO": (TRPO, ON_POLICY),
}


CONTINUOUS = (SAC, TD3, DDPG, TQC)
OFF_POLICY = {"learning_starts": 16, "buffer_size": 64, "batch_size": 8}


@pytest.mark.parametrize("algorithm", CONTINUOUS)
def test_the_algorithm_for_continuous_actions_trains(algorithm: Any) -> None:
    """32 steps of DRRL-Attention-Continuous-v0, then a prediction in its box."""
    env = gymnasium.make("DRRL-Attention-Continuous-v0", context=512, instances=1)
    agent = algorithm("MultiInputPolicy", env, seed=0, device="cpu", **OFF_POLICY).learn(32)
    assert agent.num_timesteps == 32
    observation, _ = env.reset(seed=0)
    assert env.action_space.contains(agent.predict(observation, deterministic=True)[0])


def test_crossq_trains_on_flattened_observations() -> None:
    """It has no `MultiInputPolicy`; Gymnasium's FlattenObservation is the way in."""
    env = FlattenObservation(gymnasium.make("DRRL-Attention-Continuous-v0", context=512, instances=1))
    agent = CrossQ("MlpPolicy", env, seed=0, device="cpu", **OFF_POLICY).learn(32)
    observation, _ = env.reset(seed=0)
    assert env.action_space.contains(agent.predict(observation, deterministic=True)[0])


SEVERAL: dict[Any, dict[str, Any]] = {
    PPO: {"n_steps": 8, "batch_size": 8},
    A2C: {"n_steps": 8},
    TRPO: {"n_steps": 8, "batch_size": 8},
    MaskablePPO: {"n_steps": 8, "batch_size": 8},
}


@pytest.mark.parametrize("algorithm", SEVERAL)
@pytest.mark.parametrize("task", ["DRRL-Heads-v0", "DRRL-Basis-v0"])
def test_the_algorithm_for_several_components_trains(task: str, algorithm: Any) -> None:
    """16 steps of a MultiDiscrete task, then a prediction in its space."""
    env = gymnasium.make(task, context=512, instances=1, guard="paper")
    agent = algorithm("MultiInputPolicy", env, seed=0, device="cpu", **SEVERAL[algorithm]).learn(16)
    observation, _ = env.reset(seed=0)
    assert env.action_space.contains(agent.predict(observation, deterministic=True)[0])


@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_algorithm_trains(name: str) -> None:
    """48 steps, a dozen episodes, then a prediction; MaskablePPO finds the masks behind gym.make's wrappers."""
    algorithm, settings = ALGORITHMS[name]
    env = gymnasium.make("DRRL-Attention-v0", context=512, instances=1, guard="paper")
    agent = algorithm("MultiInputPolicy", env, seed=0, device="cpu", **settings).learn(48)
    assert agent.num_timesteps >= 48
    observation, _ = env.reset(seed=0)
    assert env.action_space.contains(int(agent.predict(observation, deterministic=True)[0]))


def test_a_masked_agent_never_asks_for_what_is_not_allowed() -> None:
    """MaskablePPO under a guard that leaves only full rank: every executed choice is the one asked for."""
    env = gymnasium.make("DRRL-Attention-v0", context=512, instances=1, guard=Guard("paper", 1e-9, 0.0))
    agent = MaskablePPO("MultiInputPolicy", env, seed=0, n_steps=16, batch_size=16, device="cpu").learn(16)
    observation, info = env.reset(seed=1)
    terminated = False
    while not terminated:
        action, _ = agent.predict(observation, action_masks=info["action_mask"])
        observation, _, terminated, _, info = env.step(int(action))
        assert info["masked_action"] is False


@pytest.mark.slow
def test_it_runs_in_subprocess_workers() -> None:
    """Through the id that imports the package; a bare id dies in a worker that never imported it."""

    def make() -> gymnasium.Env[Any, Any]:
        return gymnasium.make("drrl_env:DRRL-Attention-v0", context=512, instances=1)

    vector = SubprocVecEnv([make, make], start_method="spawn")
    try:
        agent = PPO("MultiInputPolicy", vector, n_steps=8, batch_size=16, seed=0, device="cpu").learn(32)
        assert agent.num_timesteps >= 32
    finally:
        vector.close()
