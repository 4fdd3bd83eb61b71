"""What a policy is: it says what it reads, what it computes, and which rank it wants."""

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
        masks: allowed choices, (lanes, ranks).
        blocks: numbers of the (instance, layer) in the store, (lanes,); only the oracle may look.
        positions: segment numbers, (lanes,).
        previous: choices executed at the last segment, (lanes,).
    """

    observation: Observation
    masks: Masks
    blocks: Choices
    positions: Choices
    previous: Choices


class Policy(ABC):
    """A way to choose ranks, in batches of lanes.

    Attributes:
        name: its name in tables, charts and files.
        reads: entries of the observation it looks at; comparisons charge them to it.
        deciding_flops: FLOPs of one decision beyond reading.
        privileged: whether it knows what no deployed policy can (the oracle).
    """

    name: str
    reads: frozenset[str] = frozenset()
    deciding_flops: float = 0.0
    privileged: bool = False

    @abstractmethod
    def choose(self, situation: Situation) -> Choices:
        """The wanted choice of every lane, (lanes,), int64; a masked one is carried out at the nearest allowed."""

    def predict(
        self,
        observation: Observation,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = True,
        action_masks: Masks | None = None,
    ) -> tuple[Choices, Any]:
        """The choice in stable-baselines3's form, for one observation or a batch of them."""
        single = observation["position"].ndim == 1
        batch = {name: np.atleast_2d(rows) for name, rows in observation.items()}
        lanes, ranks = batch["previous_rank"].shape
        masks = np.ones((lanes, ranks), bool) if action_masks is None else np.reshape(action_masks, (lanes, ranks))
        unknown = np.full(lanes, -1)
        choices = self.choose(Situation(batch, masks, unknown, unknown, batch["previous_rank"].argmax(-1)))
        return (choices[0] if single else choices), state
