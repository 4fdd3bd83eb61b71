"""Policies that were learnt: an SB3 policy in the form of the rules it competes with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.policies import BasePolicy

from drrl_env.envs.codecs import Codec
from drrl_policies.base import Choices, Masks, Policy, Situation
from drrl_policies.extractors import flat_rows


class LearntPolicy(Policy):
    """An SB3 policy in our form: it is charged for every entry of the observation.

    A recurrent one remembers its lanes from one `choose` to the next and forgets them where an episode begins.

    Args:
        network: SB3's policy.
        name: its name in tables.
        masks: whether it honours action masks.
        entries: the observation it sees, flattened or not.
        codec: how its actions become choices.
        sizes: number of choices in each component of an action.
        deciding_flops: FLOPs of one decision.

    Attributes:
        network: SB3's policy.
        entries: the observation it sees, flattened or not.
    """

    def __init__(
        self,
        network: BasePolicy,
        name: str,
        masks: bool,
        entries: spaces.Dict,
        codec: Codec,
        sizes: tuple[int, ...],
        deciding_flops: float,
    ) -> None:
        self.network, self.name, self.entries, self.sizes = network, name, entries, sizes
        self.reads, self.deciding_flops = frozenset(entries.spaces), deciding_flops
        self._masks, self._codec = masks, codec
        self._state: tuple[NDArray[Any], ...] | None = None

    def choose(self, situation: Situation) -> Choices:
        """The best choices, (lanes, components); masks are honoured where the algorithm knows them."""
        begun, lanes = situation.steps == 0, len(situation.steps)
        known = self._state is not None and self._state[0].shape[1] == lanes and not begun.all()
        actions, self._state = self.predict(
            situation.observation, self._state if known else None, begun, action_masks=situation.masks
        )
        return self._codec.decode(actions, self.sizes)

    def predict(
        self,
        observation: Mapping[str, NDArray[Any]],
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = True,
        action_masks: Masks | None = None,
    ) -> tuple[NDArray[Any], Any]:
        """Actions as the environment takes them, as stable-baselines3 gives them.

        Args:
            observation: (size,) per entry, or (lanes, size) for a batch.
            state: memory of a recurrent policy, from the last call; None at first.
            episode_start: whether an episode begins here, (lanes,); a recurrent policy forgets.
            deterministic: the best action, or a sampled one.
            action_masks: allowed choices of every component side by side, (sum of sizes,) or (lanes, sum of sizes);
                an algorithm that knows no masks ignores them.

        Returns:
            Action, shaped as the action space's, or (lanes, ...) for a batch; and the memory.

        Raises:
            ValueError: the observation is not what the policy was trained on; one line.
        """
        masks = {} if action_masks is None or not self._masks else {"action_masks": self._allowed(action_masks)}
        return self.network.predict(self._seen(observation), state, episode_start, deterministic, **masks)

    def _seen(self, observation: Mapping[str, NDArray[Any]]) -> Any:
        """The observation as the network takes it."""
        names = self.entries.spaces
        if set(observation) != set(names):
            raise ValueError(f"observation: has {', '.join(sorted(observation))}; {self.name} needs {', '.join(names)}")
        rows = {name: np.asarray(observation[name], np.float32) for name in names}
        for name, row in rows.items():
            (size,) = names[name].shape or ()
            if row.ndim not in (1, 2) or row.shape[-1] != size:
                raise ValueError(f"observation[{name!r}]: shape {row.shape}; use ({size},) or (lanes, {size})")
        return rows if isinstance(self.network.observation_space, spaces.Dict) else flat_rows(rows, self.entries)

    def _allowed(self, masks: Masks) -> Masks:
        """The masks, (lanes, sum of sizes)."""
        width = sum(self.sizes)
        if np.shape(masks)[-1:] != (width,):
            raise ValueError(f"action_masks: shape {np.shape(masks)}; use ({width},) or (lanes, {width})")
        return np.asarray(masks, bool).reshape(-1, width)
