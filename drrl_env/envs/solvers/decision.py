"""Exact plans of small deterministic decision processes, and what choosing at random returns in them.

A task hands over its transitions as arrays over (step, state, action); a state is whatever its future depends on (the
previous rank; for the Basis task rank and refresh time), an action the flat index of a joint choice. What no episode
reaches may be unmeasured: NaN rewards and following states out of range there do no harm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]
Bools = NDArray[np.bool_]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class DecisionProcess:
    """Every transition of an episode of fixed length.

    Attributes:
        rewards: (steps, states, actions), float64; anything where no episode gets to.
        following: state after the action, (steps, states, actions), int64; anything where no episode gets to.
        allowed: (steps, states, actions), bool; never empty where an episode gets to.
        start: state before the first step.
    """

    rewards: Doubles
    following: Integers
    allowed: Bools
    start: int


@dataclass(frozen=True)
class Plan:
    """The best an agent can do.

    Attributes:
        choices: best action per step from the start, (steps,).
        value: its return.
        policy: best action for each (step, state), (steps, states); arbitrary where there is no known way to the end.
    """

    choices: Integers
    value: float
    policy: Integers


@dataclass(frozen=True)
class SeparablePlan:
    """The best an agent can do where groups do not influence each other.

    Attributes:
        choices: best action per step and group, (steps, groups).
        value: its return, the sum over groups.
        policies: best action for each (step, state of that group) per group, (steps, states) each.
    """

    choices: Integers
    value: float
    policies: tuple[Integers, ...]


def rank_process(rewards: Doubles, allowed: Bools | None = None) -> DecisionProcess:
    """The process whose state is the previous choice and which starts from the last one.

    Args:
        rewards: (steps, previous, choice).
        allowed: (steps, previous, choice); None: everything.
    """
    following = np.broadcast_to(np.arange(rewards.shape[-1]), rewards.shape)
    open_ = np.ones(rewards.shape, bool) if allowed is None else allowed
    return DecisionProcess(rewards, following, open_, rewards.shape[-1] - 1)


def reachable(process: DecisionProcess) -> Bools:
    """States that allowed actions lead to from the start, (steps + 1, states).

    Raises:
        ValueError: arrays that do not fit together, a start that is no state; or on the way nothing is allowed, a
            reward is not finite, or a following state does not exist. The step and the state are named.
    """
    _check_shapes(process)
    steps, states, _ = process.rewards.shape
    found = np.zeros((steps + 1, states), bool)
    found[0, process.start] = True
    for step in range(steps):
        _check_step(process, step, np.flatnonzero(found[step]))
        used = process.allowed[step] & found[step][:, None]
        found[step + 1, process.following[step][used]] = True
    return found


def _check_shapes(process: DecisionProcess) -> None:
    shape = process.rewards.shape
    for name in ("following", "allowed"):
        other = getattr(process, name).shape
        if len(shape) != 3 or other != shape:
            raise ValueError(f"{name}: shape {other} beside rewards of {shape}; use (steps, states, actions) for both")
    if not 0 <= process.start < shape[1]:
        raise ValueError(f"start={process.start}: there are {shape[1]} states; use one of 0 to {shape[1] - 1}")


def _check_step(process: DecisionProcess, step: int, states: Integers) -> None:
    """Raises where an episode would get stuck or meet what was not measured."""
    allowed, rewards = process.allowed[step, states], process.rewards[step, states]
    following = process.following[step, states]
    empty = np.flatnonzero(~allowed.any(-1))
    if len(empty):
        raise ValueError(
            f"allowed[{step}, {states[empty[0]]}]: an episode gets there and may do nothing; allow an action"
        )
    for name, wrong in (("rewards", ~np.isfinite(rewards)), ("following", ~_exists(following, process))):
        bad = np.argwhere(wrong & allowed)
        if len(bad):
            row, action = bad[0]
            value = getattr(process, name)[step, states[row], action]
            raise ValueError(
                f"{name}[{step}, {states[row]}, {action}]={value}: an episode gets there; measure it or disallow it"
            )


def _exists(following: Integers, process: DecisionProcess) -> Bools:
    found: Bools = (following >= 0) & (following < process.rewards.shape[1])
    return found


def _usable(process: DecisionProcess) -> tuple[Bools, Integers]:
    """Transitions that can be planned with, and a state that exists after each, (steps, states, actions) both."""
    exists = _exists(process.following, process)
    return process.allowed & exists & np.isfinite(process.rewards), np.where(exists, process.following, 0)


def plan(process: DecisionProcess) -> Plan:
    """The return-maximal actions, exact (Viterbi); ties go to the highest action index.

    Raises:
        ValueError: see `reachable`.
    """
    reachable(process)
    usable, following = _usable(process)
    steps, states, actions = process.rewards.shape
    ahead, policy = np.zeros(states), np.empty((steps, states), np.int64)
    for step in reversed(range(steps)):
        gains = np.where(usable[step], process.rewards[step] + ahead[following[step]], -np.inf)
        policy[step] = actions - 1 - gains[:, ::-1].argmax(-1)
        ahead = gains.max(-1)
    return Plan(follow(process, policy), float(ahead[process.start]), policy)


def follow(process: DecisionProcess, policy: Integers) -> Integers:
    """The actions of a policy table, (steps, states), from the start, (steps,)."""
    state, found = process.start, []
    for step, row in enumerate(policy):
        found.append(int(row[state]))
        state = int(process.following[step, state, found[-1]])
    return np.array(found, np.int64)


def random_value(process: DecisionProcess, carried_out: Integers | None = None, asked: Bools | None = None) -> float:
    """Expected return of asking for actions uniformly at random, exact.

    Args:
        process: the decision process.
        carried_out: action carried out for each that is asked for, (steps, states, actions); None: as asked.
        asked: which actions are asked for, all with equal probability, (steps, states, actions), bool (for example the
            product of the masks of a MultiDiscrete space); None: the allowed ones, or all if `carried_out` is given.

    Raises:
        ValueError: see `reachable`; or where an episode gets to, nothing is asked for or what is carried out is not
            allowed.
    """
    reached = reachable(process)[:-1]
    if asked is None:
        asked = process.allowed if carried_out is None else np.ones_like(process.allowed)
    _check_asked(reached, asked)
    if carried_out is not None:
        carried_out = _lawful(process, reached[..., None] & asked, carried_out)
    usable, following = _usable(process)
    ahead = np.zeros(process.rewards.shape[1])
    for step in reversed(range(len(reached))):
        gains = np.where(usable[step], process.rewards[step] + ahead[following[step]], 0.0)
        if carried_out is not None:
            gains = np.take_along_axis(gains, carried_out[step], axis=-1)
        ahead = np.where(asked[step], gains, 0.0).sum(-1) / np.maximum(asked[step].sum(-1), 1)
    return float(ahead[process.start])


def _check_asked(reached: Bools, asked: Bools) -> None:
    empty = np.argwhere(reached & ~asked.any(-1))
    if len(empty):
        step, state = empty[0]
        raise ValueError(f"asked[{step}, {state}]: an episode gets there and nothing is asked for; ask for an action")


def _lawful(process: DecisionProcess, used: Bools, carried_out: Integers) -> Integers:
    """The map where it is used, checked, and any action elsewhere, (steps, states, actions)."""
    known = (carried_out >= 0) & (carried_out < process.rewards.shape[-1])
    found: Integers = np.where(used & known, carried_out, 0)
    wrong = np.argwhere(used & ~(known & np.take_along_axis(process.allowed, found, axis=-1)))
    if len(wrong):
        step, state, action = wrong[0]
        raise ValueError(
            f"carried_out[{step}, {state}, {action}]={carried_out[step, state, action]}: is not allowed there; "
            f"carry out one of {np.flatnonzero(process.allowed[step, state]).tolist()}"
        )
    return found


def separable_plan(processes: Sequence[DecisionProcess]) -> SeparablePlan:
    """The best joint actions of groups whose rewards add and whose states and masks do not meet, exact.

    A joint return is then a sum in which every group has a term of its own, and the maximum of the sum is the sum of
    the maxima: groups are planned one by one, where their product would have actions ** groups joint actions.

    Raises:
        ValueError: no group, groups of different length, or see `reachable`.
    """
    lengths = {len(process.rewards) for process in processes}
    if len(lengths) != 1:
        raise ValueError(
            f"processes: groups of {sorted(lengths)} steps; use one length for all, and at least one group"
        )
    plans = [plan(process) for process in processes]
    choices = np.stack([found.choices for found in plans], axis=-1)
    return SeparablePlan(choices, float(sum(found.value for found in plans)), tuple(found.policy for found in plans))
