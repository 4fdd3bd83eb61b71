"""Fitting rule policies on the train split, and planning with what was measured."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from drrl_env.envs.game import Game
from drrl_env.envs.mechanism import Doubles
from drrl_env.envs.processes import Process, process, random_return
from drrl_env.envs.solvers.decision import DecisionProcess, plan
from drrl_policies.base import Choices, Policy
from drrl_policies.rollout import Pair, Reference, rollout
from drrl_policies.rules import EnergyThreshold, Fixed, Full, LayerSegmentTable, LayerTable, Oracle, Random

SHARES = 1 - np.logspace(-4, -0.3, 48)
"""Energy shares a threshold is chosen from, .9999 to .5."""


def mean_return(policy: Policy, game: Game, pairs: Sequence[Pair]) -> float:
    """Mean return of a policy over the episodes."""
    return float(rollout(policy, game, pairs).returns.mean())


def best_fixed(game: Game, pairs: Sequence[Pair]) -> Fixed:
    """The one rank with the highest mean return; of equal ones the highest."""
    candidates = [Fixed(choice, rank) for choice, rank in enumerate(game.world.ranks)]
    return max(reversed(candidates), key=lambda policy: mean_return(policy, game, pairs))


def best_threshold(game: Game, pairs: Sequence[Pair]) -> EnergyThreshold:
    """The energy threshold with the highest mean return."""
    candidates = [EnergyThreshold(float(share)) for share in SHARES]
    return max(candidates, key=lambda policy: mean_return(policy, game, pairs))


def best_layer_table(game: Game, pairs: Sequence[Pair]) -> LayerTable:
    """The rank with the highest mean return, layer by layer; of equal ones, and where no episode is, the highest."""
    candidates = [Fixed(choice, rank) for choice, rank in enumerate(game.world.ranks)]
    means = np.stack([_layer_means(policy, game, pairs) for policy in candidates])
    return LayerTable(len(means) - 1 - means[::-1].argmax(0))


def _layer_means(policy: Policy, game: Game, pairs: Sequence[Pair]) -> Doubles:
    """Mean return of a policy layer by layer, zero where no episode is, (layers,)."""
    numbers, layers = np.array([layer for _, layer in pairs]), game.world.layers
    sums = np.bincount(numbers, rollout(policy, game, pairs).returns, minlength=layers)
    found: Doubles = sums / np.maximum(1, np.bincount(numbers, minlength=layers))
    return found


def best_layer_segment_table(game: Game, pairs: Sequence[Pair]) -> LayerSegmentTable:
    """The sequence of ranks with the highest mean return, layer by layer.

    Exact without a guard: the mean of the rewards is itself a decision process over the previous rank. Under a
    guard the executed rank may differ from the table's, so the better of that plan and of one rank per layer is
    improved an entry at a time.
    """
    planned = LayerSegmentTable(np.stack([_layer_plan(game, pairs, k) for k in range(game.world.layers)]))
    if game.rules.guard.kind == "off":
        return planned
    constant = best_layer_table(game, pairs).choices[:, None].repeat(game.world.segments, axis=1)
    return _climb(_better(planned, LayerSegmentTable(constant), game, pairs), game, pairs)


def _layer_plan(game: Game, pairs: Sequence[Pair], layer: int) -> Choices:
    """The best open-loop choices of a layer, full where no episode is, (segments,)."""
    episodes = [_episode(game, pair) for pair in pairs if pair[1] == layer]
    if not episodes:
        return np.full(game.world.segments, len(game.world.ranks) - 1)
    rewards = np.mean([found.decision.rewards for found in episodes], axis=0)
    following = np.broadcast_to(np.arange(rewards.shape[-1]), rewards.shape)
    return plan(DecisionProcess(rewards, following, np.ones(rewards.shape, bool), rewards.shape[-1] - 1)).choices


def _better(table: LayerSegmentTable, other: LayerSegmentTable, game: Game, pairs: Sequence[Pair]) -> LayerSegmentTable:
    """Layer by layer the row with the higher mean return, the first table's where equal."""
    gains = _layer_means(other, game, pairs) - _layer_means(table, game, pairs)
    return LayerSegmentTable(np.where(gains[:, None] > 1e-12, other.choices, table.choices))


def _climb(table: LayerSegmentTable, game: Game, pairs: Sequence[Pair]) -> LayerSegmentTable:
    """Changes single entries while that raises the mean return."""
    before = None
    while before is None or (before.choices != table.choices).any():
        before = table
        for position, choice in np.ndindex(game.world.segments, len(game.world.ranks)):
            changed = table.choices.copy()
            changed[:, position] = choice
            table = _better(table, LayerSegmentTable(changed), game, pairs)
    return table


def _episode(game: Game, pair: Pair) -> Process:
    return process(game, game.store.block(*pair))


def reference(game: Game, pairs: Sequence[Pair]) -> Reference:
    """What random and the oracle reach on these episodes, exact."""
    episodes = [_episode(game, pair) for pair in pairs]
    best = np.array([plan(found.decision).value for found in episodes])
    return Reference(tuple(pairs), np.array([random_return(found) for found in episodes]), best)


def oracle_policy(game: Game, pairs: Sequence[Pair]) -> Oracle:
    """The oracle of these episodes."""
    blocks = {game.store.block(*pair): pair for pair in pairs}
    return Oracle({block: plan(_episode(game, pair).decision).policy for block, pair in blocks.items()})


def rule_policies(game: Game, train: Sequence[Pair], seed: int = 0) -> list[Policy]:
    """Every rule policy, fitted on the train episodes; a threshold only where energies are observed."""
    observed = EnergyThreshold.reads <= set(game.world.layout.slices)
    return [
        Random(seed),
        Full(len(game.world.ranks)),
        best_fixed(game, train),
        *([best_threshold(game, train)] if observed else []),
        best_layer_table(game, train),
        best_layer_segment_table(game, train),
    ]
