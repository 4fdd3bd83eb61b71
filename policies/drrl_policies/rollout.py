"""Playing a policy over the episodes of a field, and counting everything it cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from drrl_env.envs.oracle import normalised_score
from drrl_env.envs.play import Batch, Episode
from drrl_policies.accounts import cache_ratio, overhead
from drrl_policies.base import Choices, Policy, Situation
from drrl_policies.field import Field

Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class Rollout:
    """What a policy did, episode by episode.

    Attributes:
        policy: its name.
        episodes: the episodes.
        rewards: of every step, (episodes, steps), or (episodes, steps, terms) where the reward is a vector.
        terms: terms of the reward of every step, by name, (episodes, steps) each.
        columns: what else every step reports, by name, (episodes, steps) each.
        executed: choices carried out, (episodes, steps, components).
        wanted: choices asked for, (episodes, steps, components).
        ranks: candidate ranks.
        rank_components: how many components of a choice are ranks; they come first.
        overhead: FLOPs of observing and deciding, per episode, (episodes,).
        cache_ratio: KV-cache bytes read over those of full attention, (episodes,).
    """

    policy: str
    episodes: tuple[Episode, ...]
    rewards: Doubles
    terms: dict[str, Doubles]
    columns: dict[str, Doubles]
    executed: Choices
    wanted: Choices
    ranks: tuple[int, ...]
    rank_components: int
    overhead: Doubles
    cache_ratio: Doubles

    @property
    def returns(self) -> Doubles:
        """Return of every episode, (episodes,); (episodes, terms) where the reward is a vector."""
        found: Doubles = self.rewards.sum(1)
        return found

    @property
    def executed_ranks(self) -> Doubles:
        """Rank carried out at every step, the mean over heads where each has its own, (episodes, steps)."""
        found: Doubles = np.array(self.ranks, float)[self.executed[..., : self.rank_components]].mean(-1)
        return found

    def total_ratio(self, mean_full: float) -> Doubles:
        """FLOPs of attention, observing and deciding over full attention's, per episode."""
        found: Doubles = (self.columns["flops"].sum(-1) + self.overhead) / (mean_full * self.rewards.shape[1])
        return found


def rollout(policy: Policy, field: Field) -> Rollout:
    """Plays every episode of a field, all in lanes; measures what was never measured."""
    play, batches, wanted = field.arena.play, list[Batch](), list[Choices]()
    play.begin(range(len(field.episodes)), field.episodes)
    for step in range(field.steps):
        wanted.append(policy.choose(look(field, step)))
        batches.append(play.step(wanted[-1]))
    executed = np.stack([batch.actions for batch in batches], axis=1)
    return Rollout(
        policy.name,
        field.episodes,
        np.stack([batch.rewards for batch in batches], axis=1),
        _stacked([dict(batch.terms) for batch in batches]),
        _stacked([dict(batch.columns) for batch in batches]),
        executed,
        np.stack(wanted, axis=1),
        field.arena.world.ranks,
        field.rank_components,
        overhead(policy, field, executed),
        cache_ratio(field, executed),
    )


def look(field: Field, step: int) -> Situation:
    """What is in front of the lanes before a step."""
    count, play = len(field.episodes), field.arena.play
    return Situation(play.observe(), play.masks(), np.arange(count), np.full(count, step))


def _stacked(steps: Sequence[dict[str, Doubles]]) -> dict[str, Doubles]:
    """Name to (episodes, steps)."""
    return {name: np.stack([step[name] for step in steps], axis=1) for name in steps[0]}


@dataclass(frozen=True)
class Reference:
    """What random and the oracle reach on the same episodes.

    Attributes:
        random: expected return of random, (episodes,).
        oracle: return of the oracle's plans, (episodes,).
    """

    random: Doubles
    oracle: Doubles

    def score(self, returns: Doubles) -> float:
        """Normalised score of returns on these episodes: a ratio of means."""
        return normalised_score(float(returns.mean()), float(self.random.mean()), float(self.oracle.mean()))

    def regret(self, returns: Doubles, steps: int) -> float:
        """Mean return lost to the oracle per step."""
        return float((self.oracle - returns).mean()) / steps


def reference(field: Field) -> Reference:
    """What random and the oracle reach on these episodes; see `drrl_env.envs.optima` for what is exact."""
    return Reference(np.array([o.random for o in field.optima]), np.array([o.value for o in field.optima]))
