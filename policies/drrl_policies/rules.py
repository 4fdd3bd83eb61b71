"""Rule policies: what adaptive rank must beat. Each reads little or nothing, and is charged for no more."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drrl_env.envs.play import Observation
from drrl_policies.base import Choices, Policy, Situation


class Fixed(Policy):
    """Always the same rank.

    Args:
        choice: index of the rank.
        rank: the rank itself, for the name.
    """

    def __init__(self, choice: int, rank: int) -> None:
        self.choice, self.name = choice, f"fixed-{rank}"

    def choose(self, situation: Situation) -> Choices:
        """The fixed choice."""
        return np.full(len(situation.masks), self.choice)


class Full(Fixed):
    """Plain full attention.

    Args:
        ranks: number of candidate ranks.
    """

    def __init__(self, ranks: int) -> None:
        super().__init__(ranks - 1, 0)
        self.name = "full"


class Random(Policy):
    """Uniform among the allowed ranks; its exact expected return is `processes.random_return`.

    Args:
        seed: seed of its choices.
    """

    name = "random"

    def __init__(self, seed: int = 0) -> None:
        self._rng = np.random.default_rng(seed)

    def choose(self, situation: Situation) -> Choices:
        """A random allowed choice."""
        noise = self._rng.random(situation.masks.shape)
        return choose_largest(np.where(situation.masks, noise, -1))


class EnergyThreshold(Policy):
    """The smallest rank that keeps at least a share of the score energy; full if none does (adaptive SVD).

    Args:
        share: energy to keep, in (0, 1].
    """

    name = "energy-threshold"
    reads = frozenset({"energy"})

    def __init__(self, share: float) -> None:
        self.share = share

    def choose(self, situation: Situation) -> Choices:
        """First rank whose energy ratio reaches the share."""
        enough = situation.observation["energy"] >= self.share
        enough[:, -1] = True
        return choose_largest(enough)


def observed_layers(observation: Observation, layers: int) -> Choices:
    """The layer of every lane, from the one-hot at the head of the `layer` entry."""
    return choose_largest(observation["layer"][:, :layers])


def choose_largest(values: NDArray[Any]) -> Choices:
    """Index of the largest value of each row, the first of equal ones."""
    found: Choices = values.argmax(-1)
    return found


class LayerTable(Policy):
    """One rank per layer.

    Args:
        choices: choice per layer, (layers,).
    """

    name = "layer-table"
    reads = frozenset({"layer"})

    def __init__(self, choices: Choices) -> None:
        self.choices = np.asarray(choices)

    def choose(self, situation: Situation) -> Choices:
        """The layer's choice."""
        found: Choices = self.choices[observed_layers(situation.observation, len(self.choices))]
        return found


class LayerSegmentTable(Policy):
    """One rank per (layer, segment).

    Args:
        choices: (layers, segments).
    """

    name = "layer-segment-table"
    reads = frozenset({"layer", "position"})

    def __init__(self, choices: Choices) -> None:
        self.choices = np.asarray(choices)

    def choose(self, situation: Situation) -> Choices:
        """The choice of this layer and segment."""
        layers, segments = self.choices.shape
        position = np.rint(situation.observation["position"][:, 0] * segments).astype(int)
        found: Choices = self.choices[
            observed_layers(situation.observation, layers), np.minimum(position, segments - 1)
        ]
        return found


class Oracle(Policy):
    """The exact optimum of each (instance, layer): it knows every outcome beforehand, so nobody can deploy it.

    Args:
        plans: block of the store to its optimal choice per (segment, previous choice).
    """

    name = "oracle"
    privileged = True

    def __init__(self, plans: Mapping[int, NDArray[np.int64]]) -> None:
        self._plans = plans

    def choose(self, situation: Situation) -> Choices:
        """The planned choice.

        Raises:
            ValueError: called with an observation alone, from which nobody can know the block.
        """
        if (situation.blocks < 0).any():
            raise ValueError("policy='oracle': it plans from what was measured; use drrl_policies.rollout.rollout")
        lanes = zip(situation.blocks, situation.positions, situation.previous, strict=True)
        return np.array([self._plans[int(block)][position, previous] for block, position, previous in lanes])
