"""Environments on short spans of the bundled model, and ways to play them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
import pytest
from numpy.typing import NDArray

import drrl_env  # noqa: F401  (registers the environments)
from drrl_env.envs.single import RankEnv
from drrl_env.envs.store import clear_stores

ENV_ID = "DRRL-Attention-v0"
SHORT = {"context": 512, "instances": 2}
"""Four segments, two spans: everything there is to measure takes a second."""

Make = Callable[..., RankEnv]


@dataclass(frozen=True)
class Step:
    """What an environment gave: at a reset without reward."""

    observation: dict[str, NDArray[np.float32]]
    reward: float
    terminated: bool
    info: dict[str, Any]


Play = Callable[..., list[Step]]


@pytest.fixture(scope="session")
def make() -> Make:
    """Makes an environment, DRRL-Attention-v0 unless another is named, on short spans; arguments override."""

    def make_short(env_id: str = ENV_ID, **arguments: Any) -> RankEnv:
        env = gymnasium.make(env_id, disable_env_checker=True, **{**SHORT, **arguments}).unwrapped
        assert isinstance(env, RankEnv)
        return env

    return make_short


@pytest.fixture(scope="session")
def play() -> Play:
    """Plays an episode: given choices, or random ones of a seed; the first step is the reset."""

    def episode(env: RankEnv, choices: Sequence[Any] | None = None, seed: int = 0, **options: Any) -> list[Step]:
        env.action_space.seed(seed)
        observation, info = env.reset(seed=seed, options=options)
        steps = [Step(observation, 0.0, False, info)]
        while not steps[-1].terminated:
            action = env.action_space.sample() if choices is None else choices[len(steps) - 1]
            observation, reward, terminated, _, info = env.step(action)
            steps.append(Step(observation, reward, terminated, info))
        return steps

    return episode


@pytest.fixture
def fresh() -> Iterator[None]:
    """Nothing is remembered before the test, and nothing it measured afterwards."""
    clear_stores()
    yield
    clear_stores()
