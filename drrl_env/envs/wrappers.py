"""Wrappers for tools that make an environment by its id and can only wrap it."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from drrl_env.envs.codecs import BoxCodec


class BoxActions(
    gymnasium.ActionWrapper[Any, NDArray[np.float32], Any],
    gymnasium.utils.RecordConstructorArgs,
):
    """One number in [-1, 1] in place of an index: what `actions="box"` does, as a wrapper.

    RL Baselines3 Zoo takes it as `env_wrapper: drrl_env.envs.wrappers.BoxActions`, and wraps its evaluation
    environments in it too.

    Args:
        env: an environment whose action is one index.

    Raises:
        ValueError: its actions are something else.
    """

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        if not isinstance(env.action_space, spaces.Discrete):
            raise ValueError(f"env: takes {env.action_space}; wrap one whose action is one index")
        gymnasium.utils.RecordConstructorArgs.__init__(self)
        super().__init__(env)
        self._sizes = (int(env.action_space.n),)
        self.action_space = BoxCodec().space(self._sizes)

    def action(self, action: NDArray[np.float32]) -> int:
        """The index of the part that the number lies in."""
        return int(BoxCodec().decode(action, self._sizes)[0, 0])
