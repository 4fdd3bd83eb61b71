"""Static rules: the same choices whatever happens, in the action space of any task."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from drrl_env.envs.arena import Arena
from drrl_env.envs.basis import CALIBRATED, KEPT, REFRESHED, BasisMechanism
from drrl_env.envs.simulator import Simulator

Integers = NDArray[np.int64]
Choose = Callable[[int, Arena], Integers]
"""Choices of all lanes, (lanes, components), from the step's number."""


@dataclass(frozen=True)
class Rule:
    """A static rule: the same choices whatever happens.

    Attributes:
        name: what it is called.
        family: rules among which the best is chosen.
        choices: its choices at a step, (components,).
    """

    name: str
    family: str
    choices: Callable[[int], tuple[int, ...]]

    def choose(self, step: int, arena: Arena) -> Integers:
        """The same for every lane."""
        return np.tile(np.array(self.choices(step), np.int64), (lanes_of(arena), 1))


def lanes_of(arena: Arena) -> int:
    """Lanes of an arena."""
    return len(arena.play.masks())


def rules_of(arena: Arena) -> list[Rule]:
    """One rank for all; with every way to use a basis where the agent chooses it."""
    ranks, components = arena.world.ranks, len(arena.play.sizes)
    simulator = arena.play
    if isinstance(simulator, Simulator) and isinstance(simulator.mechanism, BasisMechanism):
        return [rule for choice, rank in enumerate(ranks) for rule in _basis_rules(choice, rank)]
    return [_fixed(f"rank {rank}", "fixed rank", (choice,) * components) for choice, rank in enumerate(ranks)]


def _fixed(name: str, family: str, choices: tuple[int, ...]) -> Rule:
    return Rule(name, family, lambda step: choices)


def _basis_rules(choice: int, rank: int) -> Iterator[Rule]:
    """A rank in a basis that is always calibrated, always refreshed, or refreshed once and then kept."""
    yield _fixed(f"rank {rank}", "fixed rank, always calibrated", (choice, CALIBRATED))
    yield _fixed(f"rank {rank}", "fixed rank, always refreshed", (choice, REFRESHED))
    once = "fixed rank, refreshed once and then kept"
    yield Rule(f"rank {rank}", once, lambda step: (choice, KEPT if step else REFRESHED))
