"""What a policy is: it says what it reads, what it computes, and which choices it wants."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drrl_env.envs.play import Observation

Choices = NDArray[np.int64]
Masks = NDArray[np.bool_]


@dataclass(frozen=True)
class Situation:
    """What is in front of every lane.

    Attributes:
        observation: the observation, (lanes, size) per entry.
        masks: allowed choices of every component side by side, (lanes, sum of sizes).
        episodes: number of the lane's episode in its field, -1 where nobody knows, (lanes,); only the oracle may look.
        steps: steps done in the episode, -1 where nobody knows, (lanes,); only the oracle may look.
    """

    observation: Observation
    masks: Masks
    episodes: Choices
    steps: Choices


class Policy(ABC):
    """A way to choose ranks, in batches of lanes.

    Attributes:
        name: its name in tables, charts and files.
        sizes: number of choices in each component of an action.
        reads: entries of the observation it looks at; comparisons charge them to it.
        deciding_flops: FLOPs of one decision beyond reading.
        privileged: whether it knows what no deployed policy can (the oracle).
    """

    name: str
    sizes: tuple[int, ...]
    reads: frozenset[str] = frozenset()
    deciding_flops: float = 0.0
    privileged: bool = False

    @abstractmethod
    def choose(self, situation: Situation) -> Choices:
        """The wanted choices, (lanes, components), int64; a masked one is carried out at the nearest allowed."""

    def predict(
        self,
        observation: Observation,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = True,
        action_masks: Masks | None = None,
    ) -> tuple[Choices, Any]:
        """The choices in stable-baselines3's form, for one observation or a batch of them.

        Returns:
            Indices, (lanes,) where an action has one component and else (lanes, components), without the lanes for one
            observation; and `state` as it was given.
        """
        single = next(iter(observation.values())).ndim == 1
        batch = {name: np.atleast_2d(rows) for name, rows in observation.items()}
        lanes, width = len(next(iter(batch.values()))), sum(self.sizes)
        masks = np.ones((lanes, width), bool) if action_masks is None else np.reshape(action_masks, (lanes, width))
        unknown = np.full(lanes, -1)
        choices = self.choose(Situation(batch, masks, unknown, unknown))
        found = choices[:, 0] if len(self.sizes) == 1 else choices
        return (found[0] if single else found), state


def by_component(masks: Masks, sizes: tuple[int, ...]) -> list[Masks]:
    """What stands side by side in (lanes, sum of sizes), component by component."""
    return np.split(masks, np.cumsum(sizes)[:-1], axis=-1)
