"""What could be reached, and the score between random and that."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from drrl_env.envs.mechanism import Integers


@dataclass(frozen=True)
class Optimum:
    """What could be reached on one instance.

    Attributes:
        task: the environment id.
        instance: URI of the instance.
        layer: the layer.
        parameter: tolerance or budget; 0 where the task draws nothing.
        actions: what to give to `step`, one after the other.
        choices: the same as indices, (steps, components).
        value: return of these actions, replayed through the simulator.
        bound: upper bound on any policy's return; infinite where none is known.
        kind: `exact` (value is the optimum), `bound` (the optimum lies between value and bound) or `lower bound`
            (value was found by search, nothing is known above it).
        random: expected return of choosing uniformly among what masks allow.
        random_error: its standard error where it was sampled; 0 where it is exact.
    """

    task: str
    instance: str
    layer: int
    parameter: float
    actions: list[Any]
    choices: Integers
    value: float
    bound: float
    kind: str
    random: float
    random_error: float

    @property
    def gap(self) -> float:
        """What a better policy could still gain, at most."""
        return self.bound - self.value


def normalised_score(value: float, random: float, best: float) -> float:
    """(R − random) / (oracle − random): random 0, oracle 1. Over instances, of means of returns, not a mean of ratios.

    Raises:
        ValueError: oracle and random are equal; every policy scores the same.
    """
    if best <= random:
        raise ValueError(f"oracle={best} is not above random={random}; there is nothing to choose here")
    return (value - random) / (best - random)
