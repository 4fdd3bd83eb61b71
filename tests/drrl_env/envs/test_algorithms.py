"""Any stable-baselines3 algorithm for discrete actions trains on it with `MultiInputPolicy`."""

from __future__ import annotations

from typing import Any

import gymnasium
import pytest
from sb3_contrib import QRDQN, TRPO, MaskablePPO
from stable_baselines3 import A2C, DQN, PPO
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
