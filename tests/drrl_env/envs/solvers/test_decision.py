"""Plans are what an exhaustive search finds, random values what enumeration averages to."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drrl_env.envs.solvers.decision import (
    DecisionProcess,
    follow,
    plan,
    random_value,
    rank_process,
    reachable,
    separable_plan,
)

SIZES = {"seed": st.integers(0, 10**6), "steps": st.integers(1, 4), "states": st.integers(1, 4)}


def drawn(seed: int, steps: int, states: int, actions: int = 3, grid: int = 3) -> DecisionProcess:
    """A process of whole rewards below `grid`: many ties, exact sums. At least one action is allowed everywhere."""
    random = np.random.default_rng(seed)
    shape = (steps, states, actions)
    allowed = random.random(shape) < 0.6
    np.put_along_axis(allowed, random.integers(0, actions, (steps, states, 1)), True, axis=-1)
    rewards = random.integers(0, grid, shape).astype(float)
    return DecisionProcess(rewards, random.integers(0, states, shape), allowed, int(random.integers(states)))


def played(process: DecisionProcess, actions: tuple[int, ...]) -> tuple[float, list[int]]:
    """(return, states met) of actions, whether allowed or not."""
    states, value = [process.start], 0.0
    for step, action in enumerate(actions):
        value += process.rewards[step, states[-1], action]
        states.append(int(process.following[step, states[-1], action]))
    return value, states


def sequences(process: DecisionProcess) -> Iterator[tuple[int, ...]]:
    """Every allowed sequence of actions, lexicographically ascending."""
    steps, _, actions = process.rewards.shape
    for found in itertools.product(range(actions), repeat=steps):
        states = played(process, found)[1]
        if all(process.allowed[t, s, a] for t, (s, a) in enumerate(zip(states[:-1], found, strict=True))):
            yield found


@given(**SIZES)
def test_a_plan_is_the_best_of_all_sequences_and_ties_go_upward(seed: int, steps: int, states: int) -> None:
    """Its value is the exact maximum, its choices the lexicographically highest of all that reach it."""
    process = drawn(seed, steps, states)
    best = max(sequences(process), key=lambda actions: (played(process, actions)[0], actions))
    found = plan(process)
    assert found.value == played(process, best)[0]
    assert tuple(found.choices) == best == tuple(follow(process, found.policy))


@given(**SIZES)
def test_the_policy_is_best_from_every_state(seed: int, steps: int, states: int) -> None:
    """From every state at every step, met from the start or not, it returns what an exhaustive search does."""
    process = drawn(seed, steps, states)
    policy = plan(process).policy
    for step, state in itertools.product(range(steps), range(states)):
        rest = (process.rewards[step:], process.following[step:], process.allowed[step:])
        later = DecisionProcess(*rest, state)
        best = max(played(later, actions)[0] for actions in sequences(later))
        assert played(later, tuple(follow(later, policy[step:])))[0] == best


def expected(process: DecisionProcess, asked: Any, carried_out: Any) -> float:
    """Average over all sequences of asked actions, each weighed by its probability."""
    total = 0.0
    for wanted in itertools.product(range(process.rewards.shape[-1]), repeat=len(process.rewards)):
        state, value, probability = process.start, 0.0, 1.0
        for step, action in enumerate(wanted):
            probability *= asked[step, state, action] / asked[step, state].sum()
            done = carried_out[step, state, action]
            value += process.rewards[step, state, done]
            state = process.following[step, state, done]
        total += probability * value
    return total


def nearest(process: DecisionProcess) -> Any:
    """Carries out the nearest allowed action, (steps, states, actions)."""
    actions = np.arange(process.rewards.shape[-1])
    apart = np.abs(actions[:, None] - actions[None, :])
    return np.where(process.allowed[:, :, None, :], apart, 99).argmin(-1)


@given(**SIZES)
def test_random_is_the_average_over_all_sequences(seed: int, steps: int, states: int) -> None:
    """To 1e-12: among allowed actions; among all, carried out at the nearest allowed one; among some of these."""
    process = drawn(seed, steps, states)
    as_asked = np.broadcast_to(np.arange(3), process.rewards.shape)
    assert random_value(process) == pytest.approx(expected(process, process.allowed, as_asked), abs=1e-12)
    near, everything = nearest(process), np.ones_like(process.allowed)
    assert random_value(process, near) == pytest.approx(expected(process, everything, near), abs=1e-12)
    some = np.random.default_rng(seed).random(process.rewards.shape) < 0.5
    some[..., 1] = True
    assert random_value(process, near, some) == pytest.approx(expected(process, some, near), abs=1e-12)


@given(**SIZES)
def test_what_no_episode_reaches_may_be_garbage(seed: int, steps: int, states: int) -> None:
    """NaN rewards, following states out of range and empty masks there leave plan and random as they were."""
    process = drawn(seed, steps, states + 1)
    lost = ~reachable(process)[:-1]
    spoilt = DecisionProcess(
        *(np.array(x) for x in (process.rewards, process.following, process.allowed)), process.start
    )
    spoilt.rewards[lost], spoilt.following[lost] = np.nan, 10**9
    spoilt.allowed[lost] = np.random.default_rng(seed).random(spoilt.allowed[lost].shape) < 0.5
    outside = spoilt.allowed & ~lost[..., None]
    spoilt.rewards[~outside] = np.nan
    assert plan(spoilt).value == plan(process).value
    assert np.array_equal(plan(spoilt).choices, plan(process).choices)
    assert random_value(spoilt) == random_value(process)
    near = np.where(lost[..., None], -7, nearest(process))
    assert random_value(spoilt, near) == random_value(process, nearest(process))


def test_the_policy_ignores_what_is_not_measured() -> None:
    """In a state that no episode reaches, unmeasured or leading nowhere, actions are passed over for the known one."""
    following = np.zeros((2, 2, 3), np.int64)
    process = DecisionProcess(np.ones((2, 2, 3)), following, np.ones((2, 2, 3), bool), 0)
    process.rewards[1, 1, 2], following[1, 1, 1] = np.nan, -1
    process.rewards[1, 1, 0] = -5
    found = plan(process)
    assert found.policy.tolist() == [[2, 2], [2, 0]]
    assert found.value == random_value(process) == 2


@pytest.mark.parametrize("act", [plan, random_value])
def test_faults_on_the_way_are_named_with_step_and_state(act: Callable[[DecisionProcess], Any]) -> None:
    """An empty mask, a NaN or a state that does not exist, where an episode gets to, raise instead of counting."""
    following = np.array([[[1, 1], [0, 0]]] * 3)
    process = DecisionProcess(np.ones((3, 2, 2)), following, np.ones((3, 2, 2), bool), 0)
    assert act(process) is not None
    masks, rewards, states = process.allowed.copy(), process.rewards.copy(), following.copy()
    masks[1, 1], rewards[2, 0, 1], states[1, 1, 0] = False, np.nan, 2
    with pytest.raises(ValueError, match=r"allowed\[1, 1\].*may do nothing"):
        act(replace(process, allowed=masks))
    with pytest.raises(ValueError, match=r"rewards\[2, 0, 1\]=nan.*measure it"):
        act(replace(process, rewards=rewards))
    with pytest.raises(ValueError, match=r"following\[1, 1, 0\]=2"):
        act(replace(process, following=states))
    with pytest.raises(ValueError, match=r"start=2.*0 to 1"):
        act(replace(process, start=2))
    with pytest.raises(ValueError, match=r"allowed: shape \(3, 2, 1\)"):
        act(replace(process, allowed=masks[..., :1]))


def test_random_asks_for_something_and_carries_out_what_is_allowed() -> None:
    """A map to a forbidden action, and a state where nothing is asked for, raise with step and state."""
    process = drawn(0, 2, 1)
    process.allowed[:, 0] = [[True, True, True], [True, False, True]]
    as_asked = np.broadcast_to(np.arange(3), process.rewards.shape)
    everything = np.ones_like(process.allowed)
    with pytest.raises(ValueError, match=r"carried_out\[1, 0, 1\]=1.*\[0, 2\]"):
        random_value(process, as_asked, everything)
    everything[1, 0] = False
    with pytest.raises(ValueError, match=r"asked\[1, 0\]"):
        random_value(process, nearest(process), everything)


@given(seed=st.integers(0, 10**6), steps=st.integers(1, 2), groups=st.integers(1, 3))
def test_groups_planned_one_by_one_are_the_best_joint_plan(seed: int, steps: int, groups: int) -> None:
    """The best of all joint sequences, every combination of what the groups may do, is the sum of the plans."""
    processes = [drawn(seed + group, steps, 2) for group in range(groups)]
    joint = itertools.product(*(list(sequences(process)) for process in processes))
    best = max(sum(played(p, a)[0] for p, a in zip(processes, actions, strict=True)) for actions in joint)
    found = separable_plan(processes)
    assert found.value == best
    assert found.choices.shape == (steps, groups)
    for process, actions, policy in zip(processes, found.choices.T, found.policies, strict=True):
        assert np.array_equal(follow(process, policy), actions)


def test_groups_have_one_length() -> None:
    """None, or groups of two lengths, are refused."""
    with pytest.raises(ValueError, match="at least one group"):
        separable_plan([])
    with pytest.raises(ValueError, match=r"\[1, 2\] steps"):
        separable_plan([drawn(0, 1, 2), drawn(0, 2, 2)])


def test_the_oracle_of_a_real_layer_is_the_best_of_all_sequences(real: Any) -> None:
    """All 1024 of a layer of the bundled model, to 1e-12; its first step is unmeasured but for full rank."""
    rewards, paths = real.rewards @ np.array([1.0, 0.3, 0.05]), real.paths()
    found, returns = plan(rank_process(rewards)), real.total(rewards, paths)
    assert found.value == pytest.approx(returns.max(), abs=1e-12)
    assert np.array_equal(found.choices, paths[returns.argmax()])
    assert random_value(rank_process(rewards)) == pytest.approx(returns.mean(), abs=1e-12)
