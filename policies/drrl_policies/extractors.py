"""Flat observations for algorithms that take no Dict (CrossQ, ARS), and the Transformer on them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env.base_vec_env import VecEnv, VecEnvStepReturn, VecEnvWrapper
from torch import Tensor

from drrl_policies.transformer import TransformerExtractor, entry_sizes, transformer_policy_kwargs


def flat_rows(observation: Mapping[str, NDArray[Any]], space: spaces.Dict) -> NDArray[np.float32]:
    """An observation as one row of numbers, or a batch as one row a lane.

    Args:
        observation: (numbers,) or (lanes, numbers) per entry.
        space: its space; the entries follow one another in this order, as `gymnasium.spaces.flatten` puts them.

    Returns:
        (all numbers,) or (lanes, all numbers), float32.
    """
    return np.concatenate([observation[name] for name in space.spaces], axis=-1, dtype=np.float32)


class FlatVecEnv(VecEnvWrapper):
    """Lanes with their observations flattened; masks, states and seeds go through it.

    What it does not have itself (`action_masks`, `get_state`, `set_state`, `arena`) are the lanes' own, as with every
    wrapper of SB3.

    Args:
        venv: lanes whose observation is a Dict of 1-D boxes.

    Attributes:
        entries: the observation as it was.

    Raises:
        ValueError: the observation is something else.
    """

    def __init__(self, venv: VecEnv) -> None:
        if not isinstance(venv.observation_space, spaces.Dict):
            raise ValueError(
                f"venv: observes a {type(venv.observation_space).__name__}; give lanes that observe a Dict"
            )
        entry_sizes(venv.observation_space)
        self.entries = venv.observation_space
        super().__init__(venv, spaces.flatten_space(self.entries))

    def reset(self) -> NDArray[np.float32]:
        """Begins an episode in every lane; (lanes, all numbers)."""
        found = flat_rows(_entries_of(self.venv.reset()), self.entries)
        self.reset_infos = self.venv.reset_infos
        return found

    def step_wait(self) -> VecEnvStepReturn:
        """The step of the lanes within; `terminal_observation` is flattened too."""
        observation, rewards, dones, infos = self.venv.step_wait()
        for lane in np.flatnonzero(dones):
            infos[lane]["terminal_observation"] = flat_rows(infos[lane]["terminal_observation"], self.entries)
        self.reset_infos = self.venv.reset_infos
        return flat_rows(_entries_of(observation), self.entries), rewards, dones, infos

    def fork(self) -> FlatVecEnv:
        """Independent lanes in the same state."""
        return FlatVecEnv(self.venv.fork())  # type: ignore[attr-defined]

    def __reduce__(self) -> tuple[Any, ...]:
        return FlatVecEnv, (self.venv,)


def _entries_of(observation: Any) -> dict[str, NDArray[Any]]:
    """The observation, known to be a Dict's."""
    assert isinstance(observation, dict)
    return observation


class FlatTransformerExtractor(BaseFeaturesExtractor):
    """The Transformer on flattened observations: it cuts them into their entries again.

    Args:
        observation_space: the flattened observation, one Box.
        sizes: numbers in every entry by name, in the order in which they follow one another.
        **settings: those of `TransformerExtractor`.

    Raises:
        ValueError: the sizes do not add up to the observation.
    """

    def __init__(self, observation_space: spaces.Box, sizes: Mapping[str, int], **settings: Any) -> None:
        if observation_space.shape != (sum(sizes.values()),):
            raise ValueError(
                f"sizes={dict(sizes)}: {sum(sizes.values())} numbers where observations have shape "
                f"{observation_space.shape}; give the sizes of the entries that were flattened"
            )
        boxes: dict[str, spaces.Space[Any]] = {
            name: spaces.Box(-np.inf, np.inf, (size,), np.float32) for name, size in sizes.items()
        }
        inner = TransformerExtractor(spaces.Dict(boxes), **settings)
        super().__init__(observation_space, inner.features_dim)
        self._names, self._sizes = tuple(sizes), tuple(sizes.values())
        self.inner = inner

    def forward(self, observations: Tensor) -> Tensor:
        """The encoded token of this segment, (lanes, features_dim)."""
        entries = dict(zip(self._names, observations.split(self._sizes, dim=-1), strict=True))
        found: Tensor = self.inner(entries)
        return found


def flat_transformer_policy_kwargs(entries: spaces.Dict, features_dim: int = 64) -> dict[str, Any]:
    """`policy_kwargs` for SB3's MlpPolicy with the Transformer as extractor of flattened observations.

    Args:
        entries: the observation before it was flattened.
        features_dim: width of the tokens and of the result.
    """
    found = transformer_policy_kwargs(features_dim)
    settings = {"sizes": entry_sizes(entries), **found["features_extractor_kwargs"]}
    return {
        **found,
        "features_extractor_class": FlatTransformerExtractor,
        "features_extractor_kwargs": settings,
    }
