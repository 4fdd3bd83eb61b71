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
    """The one rank with the highest mean return; of equal ones the highest."""
    candidates = [Fixed(choice, rank) for choice, rank in enumerate(transitions.world.ranks)]
    return max(reversed(candidates), key=lambda policy: mean_return(policy, transitions, pairs))


def best_threshold(transitions: Transitions, pairs: Sequence[Pair]) -> EnergyThreshold:
    """The energy threshold with the highest mean return."""
    candidates = [EnergyThreshold(float(share)) for share in SHARES]
    return max(candidates, key=lambda policy: mean_return(policy, transitions, pairs))


def best_layer_table(transitions: Transitions, pairs: Sequence[Pair]) -> LayerTable:
    """The rank with the highest mean return, layer by layer; of equal ones, and where no episode is, the highest."""
    candidates = [Fixed(choice, rank) for choice, rank in enumerate(transitions.world.ranks)]
    means = np.stack([_layer_means(policy, transitions, pairs) for policy in candidates])
    return LayerTable(len(means) - 1 - means[::-1].argmax(0))


def _layer_means(policy: Policy, transitions: Transitions, pairs: Sequence[Pair]) -> Doubles:
    """Mean return of a policy layer by layer, zero where no episode is, (layers,)."""
    numbers, layers = np.array([layer for _, layer in pairs]), transitions.world.layers
    sums = np.bincount(numbers, rollout(policy, transitions, pairs).returns, minlength=layers)
    found: Doubles = sums / np.maximum(1, np.bincount(numbers, minlength=layers))
    return found


def best_layer_segment_table(transitions: Transitions, pairs: Sequence[Pair]) -> LayerSegmentTable:
    """The sequence of ranks with the highest mean return, layer by layer.

    Exact without a guard: the mean of the rewards is itself a decision process over the previous rank. Under a
    guard the executed rank may differ from the table's, so the better of that plan and of one rank per layer is
    improved an entry at a time.
    """
    planned = LayerSegmentTable(np.stack([_layer_plan(transitions, pairs, k) for k in range(transitions.world.layers)]))
    if transitions.rules.guard.kind == "off":
        return planned
    constant = best_layer_table(transitions, pairs).choices[:, None].repeat(transitions.world.segments, axis=1)
    return _climb(_better(planned, LayerSegmentTable(constant), transitions, pairs), transitions, pairs)


def _layer_plan(transitions: Transitions, pairs: Sequence[Pair], layer: int) -> Choices:
    """The best open-loop choices of a layer, full where no episode is, (segments,)."""
    episodes = [_episode(transitions, pair) for pair in pairs if pair[1] == layer]
    if not episodes:
        return np.full(transitions.world.segments, len(transitions.world.ranks) - 1)
    rewards = np.mean([found.effective for found in episodes], axis=0)
    return oracle(Episode(rewards, np.ones(rewards.shape, bool), episodes[0].identity())).choices


def _better(
    table: LayerSegmentTable, other: LayerSegmentTable, transitions: Transitions, pairs: Sequence[Pair]
) -> LayerSegmentTable:
    """Layer by layer the row with the higher mean return, the first table's where equal."""
    gains = _layer_means(other, transitions, pairs) - _layer_means(table, transitions, pairs)
    return LayerSegmentTable(np.where(gains[:, None] > 1e-12, other.choices, table.choices))


def _climb(table: LayerSegmentTable, transitions: Transitions, pairs: Sequence[Pair]) -> LayerSegmentTable:
    """Changes single entries while that raises the mean return."""
    before = None
    while before is None or (before.choices != table.choices).any():
        before = table
        for position, choice in np.ndindex(transitions.world.segments, len(transitions.world.ranks)):
            changed = table.choices.copy()
            changed[:, position] = choice
            table = _better(table, LayerSegmentTable(changed), transitions, pairs)
    return table


def _episode(transitions: Transitions, pair: Pair) -> Episode:
    return episode(transitions, transitions.store.block(*pair))


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
