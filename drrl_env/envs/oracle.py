"""What can be reached: exact optimum, exact random, and the score between them.

Under a fixed instance every transition is known, so an episode is a small decision process over
(segment, previous rank), solved by dynamic programming.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from drrl_env.envs.simulator import REWARD
from drrl_env.envs.store import Doubles
from drrl_env.envs.transitions import Transitions

Choices = NDArray[np.int64]


@dataclass(frozen=True)
class Episode:
    """Every transition of one (instance, layer).

    Attributes:
        rewards: (segments, previous, choice), float64.
        allowed: (segments, previous, choice), bool.
        executed: choice carried out for each choice, (segments, previous, choice).
    """

    rewards: Doubles
    allowed: NDArray[np.bool_]
    executed: Choices

    @property
    def effective(self) -> Doubles:
        """Reward of asking for a choice: that of the choice carried out, (segments, previous, choice)."""
        return np.take_along_axis(self.rewards, self.executed, axis=-1)

    def identity(self) -> Choices:
        """Carries out every choice as asked for."""
        return np.broadcast_to(np.arange(self.rewards.shape[-1]), self.rewards.shape)


def episode(transitions: Transitions, block: int) -> Episode:
    """The whole decision process of a block; measures what is missing."""
    rewards = transitions.complete(block)[..., REWARD].copy()
    return Episode(rewards, transitions.masks(block).copy(), transitions.carried_out(block).copy())


@dataclass(frozen=True)
class Plan:
    """The best an agent can do.

    Attributes:
        choices: best choice per segment from the start, (segments,).
        value: its return.
        policy: best choice for each (segment, previous), (segments, ranks).
    """

    choices: Choices
    value: float
    policy: Choices


def oracle(found: Episode) -> Plan:
    """The return-maximal choices, exact (Viterbi over previous ranks); ties go to the higher rank."""
    segments, ranks, _ = found.rewards.shape
    ahead, policy = np.zeros(ranks), np.empty((segments, ranks), np.int64)
    for position in reversed(range(segments)):
        gains = np.where(found.allowed[position], found.rewards[position] + ahead, -np.inf)
        policy[position] = ranks - 1 - gains[:, ::-1].argmax(-1)
        ahead = gains.max(-1)
    return Plan(_follow(policy), float(ahead[-1]), policy)


def _follow(policy: Choices) -> Choices:
    """The choices a policy table makes from the start (previous rank full)."""
    previous, found = policy.shape[1] - 1, []
    for row in policy:
        previous = int(row[previous])
        found.append(previous)
    return np.array(found, np.int64)


def random_return(found: Episode) -> float:
    """Expected return of choosing uniformly among the allowed ranks, exact."""
    ahead = np.zeros(found.rewards.shape[1])
    for rewards, allowed in zip(found.rewards[::-1], found.allowed[::-1], strict=True):
        gains = np.where(allowed, rewards + ahead, 0.0)
        ahead = gains.sum(-1) / allowed.sum(-1)
    return float(ahead[-1])


def normalised_score(value: float, random: float, best: float) -> float:
    """(R − random) / (oracle − random): random 0, oracle 1. Over instances, of means of returns, not a mean of ratios.

    Raises:
        ValueError: oracle and random are equal; every policy scores the same.
    """
    if best <= random:
        raise ValueError(f"oracle={best} is not above random={random}; there is nothing to choose here")
    return (value - random) / (best - random)
