"""Rule policies: what adaptive rank must beat. Each reads little or nothing, and is charged for no more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drrl_env.envs.play import Observation
from drrl_policies.base import Choices, Policy, Situation, by_component

Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class Bins:
    """Where what the task draws for an episode (a tolerance, a budget) falls, as it is observed.

    Attributes:
        entry: entry of the observation whose first number shows it.
        edges: ascending inner edges, (bins - 1,).
    """

    entry: str
    edges: tuple[float, ...]

    def of(self, observation: Observation) -> Choices:
        """The bin of every lane, (lanes,)."""
        found: Choices = np.searchsorted(self.edges, observation[self.entry][:, 0].astype(np.float64))
        return found


class Table(Policy):
    """Choices that were fixed beforehand: the same always, or by layer, by step, and by what the task drew.

    A table is charged for nothing: the layer, the clock and the task's own number cost nothing to read.

    Args:
        name: its name.
        sizes: number of choices in each component of an action.
        choices: (layers, steps, bins, components); an axis of length 1 is not looked at.
        bins: bins of what the task drew; None where `choices` has one.
    """

    def __init__(self, name: str, sizes: tuple[int, ...], choices: Choices, bins: Bins | None = None) -> None:
        self.name, self.sizes, self.choices, self.bins = name, sizes, np.asarray(choices, np.int64), bins
        layers, steps, _, _ = self.choices.shape
        looked = {"layer": layers > 1, "position": steps > 1, **({bins.entry: True} if bins else {})}
        self.reads = frozenset(entry for entry, used in looked.items() if used)

    def choose(self, situation: Situation) -> Choices:
        """What the table holds."""
        seen, (layers, steps, _, _) = situation.observation, self.choices.shape
        nothing = np.zeros(len(situation.masks), np.int64)
        layer = observed_layers(seen, layers) if layers > 1 else nothing
        step = observed_steps(seen, steps) if steps > 1 else nothing
        drawn = nothing if self.bins is None else self.bins.of(seen)
        found: Choices = self.choices[layer, step, drawn]
        return found


def constant(name: str, sizes: tuple[int, ...], choices: Sequence[int]) -> Table:
    """Always the same choices, (components,)."""
    return Table(name, sizes, np.array(choices, np.int64)[None, None, None])


class Random(Policy):
    """Uniform among the allowed choices, component by component.

    Args:
        sizes: number of choices in each component of an action.
        seed: seed of its choices.
    """

    name = "random"

    def __init__(self, sizes: tuple[int, ...], seed: int = 0) -> None:
        self.sizes, self._rng = sizes, np.random.default_rng(seed)

    def choose(self, situation: Situation) -> Choices:
        """Random allowed choices."""
        noise = np.where(situation.masks, self._rng.random(situation.masks.shape), -1.0)
        return np.stack([choose_largest(part) for part in by_component(noise, self.sizes)], axis=-1)


class EnergyThreshold(Policy):
    """The smallest rank that keeps at least a share of the score energy; full if none does (adaptive SVD).

    Args:
        sizes: number of choices in each component of an action.
        share: energy to keep, in (0, 1].
        ranks: components that are ranks; the others take their first choice (the calibrated basis).
    """

    name = "energy-threshold"
    reads = frozenset({"energy"})

    def __init__(self, sizes: tuple[int, ...], share: float, ranks: int = 1) -> None:
        self.sizes, self.share, self._ranks = sizes, share, ranks

    def choose(self, situation: Situation) -> Choices:
        """First rank whose energy ratio reaches the share, in every component of ranks."""
        return self._spread(situation.observation["energy"] >= self.share)

    def _spread(self, enough: NDArray[np.bool_]) -> Choices:
        enough[:, -1] = True
        found = np.zeros((len(enough), len(self.sizes)), np.int64)
        found[:, : self._ranks] = choose_largest(enough)[:, None]
        return found


class ToleranceThreshold(EnergyThreshold):
    """The smallest rank that loses at most κ·ε² of the score energy, ε the tolerance; full if none does.

    Args:
        sizes: number of choices in each component of an action.
        scale: κ, above 0.
    """

    name = "tolerance-threshold"
    reads = frozenset({"energy", "tolerance"})

    def __init__(self, sizes: tuple[int, ...], scale: float) -> None:
        super().__init__(sizes, 1.0)
        self.scale = scale

    def choose(self, situation: Situation) -> Choices:
        """First rank whose lost energy is within κ·ε²."""
        seen = situation.observation
        tolerance = 10 ** (4 * (seen["tolerance"].astype(np.float64) - 1))  # the entry shows 1 + log10(ε)/4
        return self._spread(1 - seen["energy"] <= self.scale * tolerance**2)


def observed_layers(observation: Observation, layers: int) -> Choices:
    """The layer of every lane, from the one-hot at the head of the `layer` entry."""
    return choose_largest(observation["layer"][:, :layers])


def observed_steps(observation: Observation, steps: int) -> Choices:
    """Steps done, from the clock; the last step once the episode has ended."""
    done = np.rint(observation["position"][:, 0] * steps).astype(np.int64)
    return np.minimum(done, steps - 1)


def choose_largest(values: NDArray[Any]) -> Choices:
    """Index of the largest value of each row, the first of equal ones."""
    found: Choices = values.argmax(-1)
    return found


class Oracle(Policy):
    """The optimum of each episode of a field: it knows every outcome beforehand, so nobody can deploy it.

    Args:
        sizes: number of choices in each component of an action.
        plans: optimal choices, (episodes, steps, components).
    """

    name = "oracle"
    privileged = True

    def __init__(self, sizes: tuple[int, ...], plans: Choices) -> None:
        self.sizes, self._plans = sizes, plans

    def choose(self, situation: Situation) -> Choices:
        """The planned choices.

        Raises:
            ValueError: called with an observation alone, from which nobody can know the episode.
        """
        if (situation.episodes < 0).any():
            raise ValueError("policy='oracle': it plans from what was measured; use drrl_policies.rollout.rollout")
        found: Choices = self._plans[situation.episodes, situation.steps]
        return found
