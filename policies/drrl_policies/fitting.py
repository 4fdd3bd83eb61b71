"""Fitting rule policies on the train split, and planning with what was measured."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from drrl_env.envs.oracle import Episode, episode, oracle, random_return
from drrl_env.envs.store import Doubles
from drrl_env.envs.transitions import Transitions
from drrl_policies.base import Choices, Policy
from drrl_policies.rollout import Pair, Reference, rollout
from drrl_policies.rules import EnergyThreshold, Fixed, Full, LayerSegmentTable, LayerTable, Oracle, Random

SHARES = 1 - np.logspace(-4, -0.3, 48)
"""Energy shares a threshold is chosen from, .9999 to .5."""


def mean_return(policy: Policy, transitions: Transitions, pairs: Sequence[Pair]) -> float:
    """Mean return of a policy over the episodes."""
    return float(rollout(policy, transitions, pairs).returns.mean())


def best_fixed(transitions: Transitions, pairs: Sequence[Pair]) -> Fixed:
    """The one rank with the highest mean return."""
    candidates = [Fixed(choice, rank) for choice, rank in enumerate(transitions.world.ranks)]
    return max(candidates, key=lambda policy: mean_return(policy, transitions, pairs))


def best_threshold(transitions: Transitions, pairs: Sequence[Pair]) -> EnergyThreshold:
    """The energy threshold with the highest mean return."""
    candidates = [EnergyThreshold(float(share)) for share in SHARES]
    return max(candidates, key=lambda policy: mean_return(policy, transitions, pairs))


def best_layer_table(transitions: Transitions, pairs: Sequence[Pair]) -> LayerTable:
    """The rank with the highest mean return, layer by layer."""
    layers = np.array([layer for _, layer in pairs])
    returns = np.stack(
        [rollout(Fixed(c, r), transitions, pairs).returns for c, r in enumerate(transitions.world.ranks)]
    )
    means = [returns[:, layers == layer].mean(-1) for layer in range(transitions.world.layers)]
    return LayerTable(np.array([_upper_argmax(row) for row in means]))


def _upper_argmax(values: Doubles) -> int:
    """Index of the maximum; of equal ones the last."""
    return int(len(values) - 1 - values[::-1].argmax())


def best_layer_segment_table(transitions: Transitions, pairs: Sequence[Pair]) -> LayerSegmentTable:
    """The sequence of ranks with the highest mean return, layer by layer.

    Exact without a guard: the mean of the rewards is itself a decision process over the previous rank. Under a
    guard the executed rank may differ from the table's, which the plan only sees in its rewards.
    """
    rows = []
    for layer in range(transitions.world.layers):
        episodes = [_episode(transitions, pair) for pair in pairs if pair[1] == layer]
        rows.append(_mean_plan(episodes) if episodes else np.full(transitions.world.segments, 0))
    return LayerSegmentTable(np.stack(rows))


def _episode(transitions: Transitions, pair: Pair) -> Episode:
    return episode(transitions, transitions.store.block(*pair))


def _mean_plan(episodes: Sequence[Episode]) -> Choices:
    rewards = np.mean([found.effective for found in episodes], axis=0)
    return oracle(Episode(rewards, np.ones(rewards.shape, bool), episodes[0].identity())).choices


def reference(transitions: Transitions, pairs: Sequence[Pair]) -> Reference:
    """What random and the oracle reach on these episodes, exact."""
    episodes = [_episode(transitions, pair) for pair in pairs]
    best = np.array([oracle(found).value for found in episodes])
    return Reference(tuple(pairs), np.array([random_return(found) for found in episodes]), best)


def oracle_policy(transitions: Transitions, pairs: Sequence[Pair]) -> Oracle:
    """The oracle of these episodes."""
    blocks = {transitions.store.block(*pair): pair for pair in pairs}
    return Oracle({block: oracle(_episode(transitions, pair)).policy for block, pair in blocks.items()})


def rule_policies(transitions: Transitions, train: Sequence[Pair], seed: int = 0) -> list[Policy]:
    """Every rule policy, fitted on the train episodes."""
    return [
        Random(seed),
        Full(len(transitions.world.ranks)),
        best_fixed(transitions, train),
        best_threshold(transitions, train),
        best_layer_table(transitions, train),
        best_layer_segment_table(transitions, train),
    ]
