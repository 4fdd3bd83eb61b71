"""The oracle of DRRL-Heads-v0: key head by key head, since error and FLOPs add up over them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from drrl_env.envs.game import Game
from drrl_env.envs.heads import HeadsMechanism, combinations
from drrl_env.envs.mechanism import Bools, Doubles, Integers, Lanes
from drrl_env.envs.observation import WINDOW
from drrl_env.envs.settings import Reward
from drrl_env.envs.solvers.decision import DecisionProcess, random_value, separable_plan

LARGEST = 4096
"""Rank combinations of one key head's group that are still solved exactly."""


@dataclass(frozen=True)
class HeadsPlan:
    """The best ranks of every head.

    Attributes:
        choices: (segments, heads).
        bound: upper bound on any return.
        exact: whether the choices reach it.
        random: expected return of random choices; None where it is not exact.
    """

    choices: Integers
    bound: float
    exact: bool
    random: float | None


def heads_optimum(game: Game, block: int) -> HeadsPlan:
    """The best ranks of every head of a block; measures what is missing.

    Raises:
        ValueError: groups with too many combinations of ranks.
    """
    mechanism = cast("HeadsMechanism", game.mechanism)
    weights = cast("Any", game.objective).weights
    fill(game, block)
    processes = group_processes(game, mechanism, weights, block)
    best, offset = separable_plan(processes), _offset(game, weights)
    exact = weights.fidelity == "error" and weights.gamma == 0
    random = sum(random_value(each) for each in processes) + offset if exact else None
    return HeadsPlan(_side_by_side(best.choices, mechanism), best.value + offset, exact, random)


def fill(game: Game, block: int) -> None:
    """Measures every rank of every segment of a block."""
    for position in range(game.world.segments):
        for choice in range(len(game.world.ranks)):
            game.store.ensure_outcome(block, position, choice)


def _offset(game: Game, weights: Reward) -> float:
    """What every plan gets: the part of the fidelity that does not depend on the ranks."""
    return game.world.segments * weights.alpha * (1.0 if weights.fidelity == "error" else 0.5)


def group_processes(game: Game, mechanism: HeadsMechanism, weights: Reward, block: int) -> list[DecisionProcess]:
    """A decision process per key head over the ranks of its query heads.

    Their rewards add up to the task's (less `_offset`) where fidelity is the squared error and change costs nothing.
    Otherwise they bound it from above: cos ≤ √X ≤ (1 + X)/2 with X = Σ w_h cos_h², w_h the head's share of ‖O‖²
    (Cauchy–Schwarz over heads), and √(Σ c_h²) ≥ Σ c_h / √H.
    """
    groups, ranks = game.world.shape.groups, len(game.world.ranks)
    if ranks**groups > LARGEST:
        raise ValueError(f"model: {ranks} ranks for {groups} heads a group are too many to plan; use fewer ranks=")
    mixes = combinations((ranks,) * groups)
    gains, change = _gains(game, weights, block), _change(game, weights, block)
    flops, allowed = _group_flops(game, mechanism, weights, block, mixes), _allowed(game, mechanism, block)
    following = np.broadcast_to(np.arange(len(mixes)), (game.world.segments, len(mixes), len(mixes)))
    found = []
    for first in range(0, mechanism.heads, groups):
        rewards, open_ = flops.copy(), np.ones(flops.shape, bool)
        for place in range(groups):
            own = mixes[:, place]
            rewards += gains[:, first + place][:, None, own]
            rewards -= change[:, first + place][:, own[:, None], own]
            open_ &= allowed[:, first + place][:, own[:, None], own]
        found.append(DecisionProcess(rewards, following, open_, len(mixes) - 1))
    return found


def _gains(game: Game, weights: Reward, block: int) -> Doubles:
    """What a head's rank adds to the fidelity term, (segments, heads, ranks)."""
    moments = game.store.moments[block].transpose(0, 2, 1, 3)
    exact, inner, low, difference = (moments[..., part] for part in range(4))
    total = exact[:, :, :1].sum(1, keepdims=True)
    if weights.fidelity == "error":
        return np.asarray(-weights.alpha * difference / total)
    own = np.where(low > 0, inner * inner / np.where(low > 0, low, 1.0), 0.0)
    return np.asarray(0.5 * weights.alpha * own / total)


def _change(game: Game, weights: Reward, block: int) -> Doubles:
    """What a head's change of rank costs, (segments, heads, previous, ranks)."""
    found: Doubles = weights.gamma * np.sqrt(game.store.head_changes[block]) / np.sqrt(game.world.shape.heads)
    return found


def _group_flops(game: Game, mechanism: HeadsMechanism, weights: Reward, block: int, mixes: Integers) -> Doubles:
    """−β · FLOPs ratio of one group, (segments, previous mixes, mixes)."""
    layer, groups = game.store.origin(block)[1], game.world.shape.groups
    tables = mechanism.tables[layer]
    queries = sum(tables.queries[:, mixes[:, place]] for place in range(groups))
    # `mixes` of whole layers: every key head shows the same group, the first is looked at.
    wide = np.tile(mixes, (1, game.world.shape.kv_heads))
    numbers = tables.mixes(wide)[:, 0]
    keys = tables.keys[:, numbers][:, :, numbers]
    found: Doubles = -weights.beta * (np.asarray(queries)[:, None] + keys) / mechanism.mean_full
    return found


def _allowed(game: Game, mechanism: HeadsMechanism, block: int) -> Bools:
    """What the guard allows a head, (segments, heads, previous, ranks)."""
    segments, heads, ranks = game.world.segments, mechanism.heads, len(game.world.ranks)
    found = np.empty((segments, heads, ranks, ranks), bool)
    for previous in range(ranks):
        lanes = _standing(game, block, previous)
        for lane in range(segments):
            mechanism.prepare(lanes, lane)
        found[:, :, previous] = mechanism.allowed(lanes).reshape(segments, heads, ranks)
    return found


def _standing(game: Game, block: int, previous: int) -> Lanes:
    """A lane at every segment, all heads at one previous rank."""
    segments, heads = game.world.segments, game.world.shape.heads
    zeros = np.zeros(segments, np.int64)
    history = np.zeros((segments, WINDOW * heads), np.float32)
    state = np.full((segments, heads), previous, np.int64)
    layer = game.store.origin(block)[1]
    return Lanes(
        zeros + block, zeros + layer, np.arange(segments), state, history, np.zeros(segments), np.zeros(segments)
    )


def _side_by_side(choices: Integers, mechanism: HeadsMechanism) -> Integers:
    """Numbers of mixes per group to choices per head, (segments, heads)."""
    groups, ranks = mechanism.world.shape.groups, len(mechanism.world.ranks)
    mixes = combinations((ranks,) * groups)
    return np.concatenate([mixes[choices[:, group]] for group in range(choices.shape[1])], axis=1)
