"""What every action is worth wherever an episode may stand, exactly: what behaviour cloning is taught from.

The oracle of `drrl_env.envs.optima` is one sequence of actions from the start. A learner that left it, by chance or by
mistake, is taught from where it is: the same dynamic programmes give the return of the best way on after any action.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, cast

import numpy as np
from numpy.typing import NDArray

from drrl_env.envs.head_plans import fill, group_processes
from drrl_env.envs.heads import HeadsMechanism, combinations
from drrl_env.envs.mechanism import Doubles, Integers, Lanes
from drrl_env.envs.objectives import BudgetObjective, LinearObjective
from drrl_env.envs.processes import process
from drrl_env.envs.simulator import Simulator
from drrl_env.envs.solvers.budget import budget_tables
from drrl_env.envs.solvers.decision import DecisionProcess
from drrl_policies.field import Field

CELLS = 512
"""Cells of the grid of what is left of a budget."""
Singles = NDArray[np.float32]


@dataclass(frozen=True)
class Lesson:
    """What a teacher says of some lanes.

    Components of an action whose choices only matter together form a group; a mix is one choice for each of them.

    Attributes:
        gains: return of the best way on after each mix of each group, less that after the best one: 0 for the best,
            below 0 for others, −inf for what must not be done, (lanes, groups, mixes).
        values: discounted return of the best way on, (lanes,).
    """

    gains: Doubles
    values: Doubles


class Teacher(Protocol):
    """Somebody who knows what every action is worth.

    Attributes:
        mixes: the choices of each mix, (mixes, components of a group).
        groups: components of each group, (groups, components of a group).
    """

    mixes: Integers
    groups: Integers

    def teach(self, lanes: Lanes, episodes: Integers) -> Lesson:
        """What is best for lanes that play these episodes of the field, (lanes,)."""


def teacher_of(field: Field, discount: float = 1.0) -> Teacher:
    """The teacher of a field.

    Args:
        field: episodes of a task that replays what was measured.
        discount: of the values; what is best is worked out without.

    Raises:
        ValueError: no dynamic programme answers for this task; one line that names it.
    """
    if field.live:
        raise ValueError(f"task={field.arena.task.id!r}: no exact values away from the oracle's plan; train it by RL")
    if isinstance(field.game.objective, BudgetObjective):
        return BudgetTeacher(field, discount)
    if isinstance(field.game.mechanism, HeadsMechanism):
        return _heads_teacher(field, discount)
    return _process_teacher(field, discount)


class TableTeacher:
    """Teaches from tables over (episode, step, group, state).

    Args:
        mixes: the choices of each mix, (mixes, components of a group).
        groups: components of each group, (groups, components of a group).
        state_sizes: sizes of what a group's state is made of.
        gains: see `Lesson`, (episodes, steps, groups, states, mixes).
        values: of the groups together, (episodes, steps, groups, states).
        offset: what every plan gets in a step.
        discount: of the values.
    """

    def __init__(
        self,
        mixes: Integers,
        groups: Integers,
        state_sizes: tuple[int, ...],
        gains: Singles,
        values: Singles,
        offset: float = 0.0,
        discount: float = 1.0,
    ) -> None:
        self.mixes, self.groups = mixes, groups
        self._sizes, self._gains, self._values = state_sizes, gains, values
        steps = gains.shape[1]
        powers = discount ** np.arange(steps)
        self._ahead = offset * np.append(np.cumsum(powers)[::-1], 0.0)

    def teach(self, lanes: Lanes, episodes: Integers) -> Lesson:
        """See `Teacher`."""
        parts = lanes.state.reshape(len(episodes), len(self.groups), -1)
        states = np.ravel_multi_index(tuple(np.moveaxis(parts, -1, 0)), self._sizes)
        at = episodes[:, None], lanes.position[:, None], np.arange(len(self.groups)), states
        values = self._values[at].sum(-1, dtype=np.float64) + self._ahead.take(lanes.position)
        return Lesson(self._gains[at].astype(np.float64), values)


def _process_teacher(field: Field, discount: float) -> TableTeacher:
    """Where an episode is a finite decision process: all components form one group."""
    game = field.game
    found = [process(game, game.store.block(e.instance, e.layer), e.parameter) for e in field.episodes]
    judged = [_backwards(each.decision, discount) for each in found]
    gains, values = (np.stack(part)[:, :, None] for part in zip(*judged, strict=True))
    mixes = found[0].actions
    return TableTeacher(
        mixes, np.arange(mixes.shape[1])[None], game.mechanism.state_sizes, gains, values, 0.0, discount
    )


def _heads_teacher(field: Field, discount: float) -> TableTeacher:
    """Where error and FLOPs add up over key heads: each forms a group with its query heads.

    Under other rewards than the default ones, and other fidelities, that is what the bound of the oracle is made of.
    """
    game = field.game
    mechanism, weights = cast("HeadsMechanism", game.mechanism), cast("LinearObjective", game.objective).weights
    size, known = game.world.shape.groups, {}
    for block in {game.store.block(e.instance, e.layer) for e in field.episodes}:
        fill(game, block)
        judged = [_backwards(each, discount) for each in group_processes(game, mechanism, weights, block)]
        known[block] = [np.stack(part, axis=1) for part in zip(*judged, strict=True)]
    order = [game.store.block(e.instance, e.layer) for e in field.episodes]
    gains, values = (np.stack([known[block][part] for block in order]) for part in (0, 1))
    ranks = len(game.world.ranks)
    groups = np.arange(mechanism.heads).reshape(-1, size)
    offset = weights.alpha * (1.0 if weights.fidelity == "error" else 0.5)
    return TableTeacher(combinations((ranks,) * size), groups, (ranks,) * size, gains, values, offset, discount)


def _backwards(known: DecisionProcess, discount: float) -> tuple[Singles, Singles]:
    """Gains, (steps, states, actions), and discounted values of the best way, (steps, states)."""
    steps, states, _ = known.rewards.shape
    gains, values = np.full(known.rewards.shape, -np.inf, np.float32), np.zeros((steps, states), np.float32)
    ahead, ahead_discounted, everywhere = np.zeros(states), np.zeros(states), np.arange(states)
    for step in reversed(range(steps)):
        following = known.following[step]
        worth = np.where(known.allowed[step], known.rewards[step] + ahead[following], -np.inf)
        best = worth.argmax(-1)
        ahead = np.where(np.isfinite(worth.max(-1)), worth.max(-1), 0.0)
        gains[step] = worth - ahead[:, None]
        after = known.rewards[step, everywhere, best] + discount * ahead_discounted[following[everywhere, best]]
        ahead_discounted = np.where(known.allowed[step].any(-1), after, 0.0)
        values[step] = ahead_discounted
    return gains, values


class BudgetTeacher:
    """Teaches where a budget is left, from a grid of what may be left; between the bounds of `BudgetTables`.

    Args:
        field: episodes of DRRL-Budget-v0 without a guard.
        discount: unused but for the values: they are multiplied as if the rewards ahead were all equal.
    """

    def __init__(self, field: Field, discount: float) -> None:
        game = field.game
        ranks = len(game.world.ranks)
        self.mixes, self.groups = np.arange(ranks)[:, None], np.zeros((1, 1), np.int64)
        numbers = sorted({game.store.block(e.instance, e.layer) for e in field.episodes})
        known = [process(game, block) for block in numbers]
        tables = [budget_tables(each.decision.rewards, each.flops, None, CELLS) for each in known]
        self._row = np.full(max(numbers) + 1, -1)
        self._row[numbers] = np.arange(len(numbers))
        self._fidelity, self._flops, self._cheapest, self._widths = (
            np.stack([getattr(each, name) for each in tables]) for name in ("fidelity", "flops", "cheapest", "widths")
        )
        self._ahead = np.stack([(0.5 * (each.lower + each.upper)).astype(np.float32) for each in tables])
        self._total = game.mechanism.mean_full * game.world.segments
        steps = self._fidelity.shape[1]
        self._shrink = np.array([(discount ** np.arange(n)).mean() if n else 1.0 for n in range(steps, -1, -1)])

    def teach(self, lanes: Lanes, episodes: Integers) -> Lesson:
        """See `Teacher`."""
        row, step, previous = self._row[lanes.block], lanes.position, lanes.state[:, 0]
        left = (lanes.parameter * self._total - lanes.spent)[:, None] - self._flops[row, step, previous]
        excess = left - self._cheapest[row, step + 1]
        width = self._widths[row, step + 1][:, None]
        open_ = excess >= -1e-6 * width
        place = (excess / width).clip(0, CELLS - 1)
        low = np.floor(place).astype(np.int64)
        high, share = np.minimum(low + 1, CELLS - 1), place - low
        ahead = self._ahead[row, step + 1]
        below, above = (np.take_along_axis(ahead, at[..., None], axis=-1)[..., 0] for at in (low, high))
        ways = np.where(np.isfinite(below), below, 0.0) * (1 - share) + np.where(np.isfinite(above), above, 0.0) * share
        worth = np.where(open_, self._fidelity[row, step, previous] + ways, -np.inf)
        best = worth.max(-1, keepdims=True)
        return Lesson((worth - best)[:, None], best[:, 0] * self._shrink.take(step))


def lanes_of(field: Field) -> Lanes:
    """Where the lanes of a field stand."""
    assert isinstance(field.arena.play, Simulator)
    return field.arena.play.lanes
