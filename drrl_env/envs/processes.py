"""An episode as a finite decision process: every transition of one (instance, layer), by the simulator's own objects.

States and actions are enumerated and put through mechanism and objective as if they were lanes: there is no second
implementation of a reward.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from drrl_env.envs.game import Game
from drrl_env.envs.heads import combinations
from drrl_env.envs.mechanism import Bools, Doubles, Effects, Integers, Lanes
from drrl_env.envs.observation import WINDOW
from drrl_env.envs.solvers.decision import DecisionProcess, random_value
from drrl_env.lowrank.cost_tables import added


@dataclass(frozen=True)
class Process:
    """Every transition of one (instance, layer), and what it says beside its reward.

    Attributes:
        decision: rewards, next states and allowed actions, (segments, states, actions); NaN and False where no lane
            can be.
        askable: whether masks let an agent ask for it, (segments, states, actions).
        actions: the actions by number, (actions, components).
        terms: terms of the reward, (segments, states, actions, terms).
        flops: FLOPs, (segments, states, actions).
    """

    decision: DecisionProcess
    askable: Bools
    actions: Integers
    terms: Doubles
    flops: Doubles


def process(game: Game, block: int, parameter: float = 0.0) -> Process:
    """The decision process of a block; measures what is missing.

    A budget is not part of it: what is left of one is a number, not a state; see `drrl_env.envs.oracle`.

    Args:
        game: the game.
        block: number of the (instance, layer) in its store.
        parameter: what the task drew for the episode.
    """
    mechanism, actions = game.mechanism, combinations(game.mechanism.sizes)
    shape = (game.world.segments, int(np.prod(mechanism.state_sizes)), len(actions))
    start = int(np.ravel_multi_index(mechanism.start, mechanism.state_sizes))
    found = _empty(shape, len(game.objective.terms), actions, start)
    for position in range(shape[0]):
        states = mechanism.states(position)
        rows = np.ravel_multi_index(tuple(states.T), mechanism.state_sizes)
        lanes = _lanes(game, block, position, states.repeat(len(actions), axis=0), parameter)
        _fill(found, game, position, rows, lanes, np.tile(actions, (len(states), 1)))
    return found


def _empty(shape: tuple[int, int, int], terms: int, actions: Integers, start: int) -> Process:
    unknown, nowhere = np.full(shape, np.nan), np.zeros(shape, bool)
    decision = DecisionProcess(unknown, np.zeros(shape, np.int64), nowhere, start)
    return Process(decision, nowhere.copy(), actions, np.full((*shape, terms), np.nan), unknown.copy())


def _lanes(game: Game, block: int, position: int, states: Integers, parameter: float) -> Lanes:
    count, layer = len(states), game.store.origin(block)[1]
    history = np.zeros((count, WINDOW * game.mechanism.heads), np.float32)
    at, of, when = (np.full(count, value, np.int64) for value in (block, layer, position))
    return Lanes(at, of, when, states, history, np.full(count, parameter), np.zeros(count))


def _fill(found: Process, game: Game, position: int, rows: Integers, lanes: Lanes, wanted: Integers) -> None:
    """Writes one segment's rows."""
    mechanism, count = game.mechanism, len(found.actions)
    for lane in range(0, len(wanted), count):
        mechanism.prepare(lanes, lane)
    allowed = mechanism.allowed(lanes)
    done = mechanism.carried_out(lanes, wanted, allowed) if game.masked else wanted
    effects = mechanism.effects(lanes, done)
    terms = np.stack(game.objective.score(effects, lanes), axis=-1)
    after = np.ravel_multi_index(tuple(mechanism.following(lanes, done).T), mechanism.state_sizes)
    _write(found, position, rows, terms, effects, after, (done == wanted).all(-1))
    found.askable[position, rows] = _asked(allowed, wanted, mechanism.sizes).reshape(-1, count)


def _write(
    found: Process, position: int, rows: Integers, terms: Doubles, effects: Effects, after: Integers, same: Bools
) -> None:
    size = (len(rows), len(found.actions))
    found.decision.rewards[position, rows] = added(terms).reshape(size)
    found.decision.following[position, rows] = after.reshape(size)
    found.decision.allowed[position, rows] = same.reshape(size)
    found.terms[position, rows] = terms.reshape(*size, -1)
    found.flops[position, rows] = effects.flops.reshape(size)


def _asked(allowed: Bools, wanted: Integers, sizes: tuple[int, ...]) -> Bools:
    """Whether every component of the wanted actions is unmasked, (lanes,)."""
    offsets = np.cumsum([0, *sizes[:-1]])
    found: Bools = np.asarray(np.take_along_axis(allowed, wanted + offsets, axis=1).all(-1))
    return found


def random_return(found: Process) -> float:
    """Expected return of choosing uniformly among what the masks allow, exact; each component on its own."""
    return random_value(replace(found.decision, allowed=found.askable))
