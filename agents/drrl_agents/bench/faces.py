"""How fast each face replays what was measured: random choices, resets included, everything a caller gets built.

Steps are counted per second of this process's processor time: nothing is waited for here, and what else the machine
does should not show.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv

from drrl_env.sb3 import RankVecEnv, make_vec_env

DUMMIES = 8
"""One-lane environments side by side in SB3's own `DummyVecEnv`."""
COLLECTED = 32
"""Steps of every lane in a rollout of PPO."""


@dataclass(frozen=True)
class Face:
    """A way to step.

    Attributes:
        name: what is measured.
        rate: measures one round, steps of all lanes per second of processor time.
        target: steps per second that it should reach; None for none.
    """

    name: str
    rate: Callable[[], float]
    target: int | None = None


def faces(task: str, lanes: int, steps: int, **arguments: Any) -> tuple[Face, ...]:
    """Every face of a task whose instances are measured already.

    Args:
        task: the environment id, of Discrete actions.
        lanes: lanes of the faces that have many.
        steps: steps in a round, all lanes together; more for faces that take no time.
        **arguments: of the environment.
    """
    one, many = gymnasium.make(task, **arguments), make_vec_env(task, lanes, seed=0, **arguments)
    dummy = DummyVecEnv([partial(gymnasium.make, task, **arguments)] * DUMMIES)
    vector = gymnasium.make_vec(task, lanes, vectorization_mode="vector_entry_point", **arguments)
    size = int(one.action_space.n)  # type: ignore[attr-defined]
    wait = f"replayed steps per second through the SB3 face's step_wait, {lanes} lanes, real info dicts built eagerly"
    return (
        Face("replayed steps per second through gym.make", lambda: one_rate(one, choices(size, steps, 1)), 30_000),
        Face(
            f"replayed steps per second through gym.make_vec, vector_entry_point, {lanes} lanes",
            lambda: vector_rate(vector, choices(size, steps, lanes)),
        ),
        Face(wait, lambda: wait_rate(many, choices(size, 4 * steps, lanes)), 500_000),
        Face(
            f"the same, collected by SB3's PPO with an MLP, {lanes} lanes",
            lambda: collect_rate(many),
        ),
        Face(
            f"replayed steps per second through SB3's DummyVecEnv of {DUMMIES} gym.make environments",
            lambda: dummy_rate(dummy, choices(size, steps, DUMMIES)),
        ),
    )


def choices(size: int, steps: int, lanes: int) -> NDArray[np.int64]:
    """Random choices of about `steps` steps, (rounds, lanes)."""
    return np.random.default_rng(0).integers(size, size=(max(1, steps // lanes), lanes))


def one_rate(env: gymnasium.Env[Any, Any], actions: NDArray[np.int64]) -> float:
    """Steps per second of one lane, the resets between episodes in the time and not in the count."""
    ended, plain = True, actions[:, 0].tolist()
    started = time.process_time()
    for choice in plain:
        if ended:
            env.reset()
        _, _, ended, _, _ = env.step(choice)
    return len(plain) / (time.process_time() - started)


def vector_rate(env: gymnasium.vector.VectorEnv[Any, Any, Any], actions: NDArray[np.int64]) -> float:
    """Steps per second of a vector environment; the call that resets a lane takes its time and is no step."""
    env.reset(seed=0)
    count, ended = 0, np.zeros(env.num_envs, bool)
    started = time.process_time()
    for row in actions:
        count += env.num_envs - int(ended.sum())
        _, _, ended, _, _ = env.step(row)
    return count / (time.process_time() - started)


def wait_rate(env: RankVecEnv, actions: NDArray[np.int64]) -> float:
    """Steps per second of `step_wait`, in which lanes are reset too."""
    env.reset()
    spent = 0.0
    for row in actions:
        env.step_async(row)
        started = time.process_time()
        env.step_wait()
        spent += time.process_time() - started
    return actions.size / spent


def dummy_rate(env: DummyVecEnv, actions: NDArray[np.int64]) -> float:
    """Steps per second of SB3's own lanes, one environment after the other."""
    env.reset()
    started = time.process_time()
    for row in actions:
        env.step(row)
    return actions.size / (time.process_time() - started)


class RolloutClock(BaseCallback):
    """Times a rollout's collection.

    Attributes:
        seconds: what the last one took.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seconds = 0.0

    def _on_rollout_start(self) -> None:
        self._began = time.process_time()

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        self.seconds = time.process_time() - self._began


def collect_rate(env: RankVecEnv) -> float:
    """Steps per second at which PPO collects a rollout, its network's decisions included and its training not."""
    size, clock = COLLECTED * env.num_envs, RolloutClock()
    model = PPO("MultiInputPolicy", env, n_steps=COLLECTED, batch_size=size, n_epochs=1, seed=0, device="cpu")
    model.learn(size, callback=clock)
    return size / clock.seconds
