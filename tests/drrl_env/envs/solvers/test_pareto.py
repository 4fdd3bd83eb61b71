"""Fronts are what an exhaustive search finds; a precision is kept; supported points are the corners of the hull."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linprog

from drrl_env.envs.solvers.pareto import Front, front, supported_front, undominated

Draw = Callable[..., Any]
"""Draws an instance, see `conftest.chain`."""
SIZES = {
    "seed": st.integers(0, 10**6),
    "steps": st.integers(1, 4),
    "ranks": st.integers(2, 4),
    "grid": st.sampled_from((0, 4)),
    "objectives": st.integers(2, 3),
}


def best_of(points: Any) -> set[tuple[float, ...]]:
    """Points that no other one dominates, by comparing all with all."""
    found = np.unique(points, axis=0)
    no_less = (found[None] >= found[:, None]).all(-1)
    np.fill_diagonal(no_less, False)
    return {tuple(point) for point in found[~no_less.any(1)]}


def as_set(points: Any) -> set[tuple[float, ...]]:
    """Points as a set; none is there twice."""
    found = {tuple(point) for point in points}
    assert len(found) == len(points)
    return found


def check_attained(found: Any, rewards: Any, answer: Front) -> None:
    """Choices are allowed and return the points, which descend."""
    assert (found.total(found.allowed, answer.choices) == answer.choices.shape[1]).all()
    assert np.array_equal(found.total(rewards, answer.choices), answer.points)
    assert [tuple(p) for p in answer.points] == sorted(map(tuple, answer.points), reverse=True)


@given(seed=st.integers(0, 10**6), objectives=st.integers(1, 3), grid=st.sampled_from((2, 6, 1000)))
def test_undominated_points_are_those_of_all_comparisons(seed: int, objectives: int, grid: int) -> None:
    """80 points with many ties, or few; of equal points one stays."""
    points = np.random.default_rng(seed).integers(0, grid, (80, objectives)).astype(float)
    assert as_set(points[undominated(points)]) == best_of(points)


@given(**SIZES)
def test_the_exact_front_is_that_of_all_paths(
    draw: Draw, seed: int, steps: int, ranks: int, grid: int, objectives: int
) -> None:
    """Bit for bit, with 2 and 3 objectives, masks and ties; and its choices attain it."""
    found = draw(seed, steps, ranks, grid)
    rewards = found.rewards[..., :objectives]
    answer = front(rewards, found.allowed)
    assert as_set(answer.points) == best_of(found.total(rewards, found.paths()))
    check_attained(found, rewards, answer)


@given(**SIZES, precision=st.sampled_from((0.05, 0.3, 1.0, (0.5, 0.0, 0.1))))
def test_a_precision_is_kept(
    draw: Draw, seed: int, steps: int, ranks: int, grid: int, objectives: int, precision: Any
) -> None:
    """Every feasible return is dominated by a point up to the precision, per objective; points are feasible."""
    found = draw(seed, steps, ranks, grid)
    rewards = found.rewards[..., :objectives]
    if isinstance(precision, tuple):
        precision = precision[:objectives]
    answer = front(rewards, found.allowed, precision)
    check_attained(found, rewards, answer)
    lost = found.total(rewards, found.paths())[:, None] - answer.points[None]
    assert (lost <= answer.precision).all(-1).any(-1).all()
    assert as_set(answer.points) <= as_set(np.unique(found.total(rewards, found.paths()), axis=0))


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_what_differs_by_more_than_the_precision_stays(steps: int) -> None:
    """Trade-offs .11 apart in both objectives, then full rank: with precision .1 all eight are kept, with .5 fewer."""
    rewards, allowed = np.zeros((steps + 1, 8, 8, 2)), np.ones((steps + 1, 8, 8), bool)
    rewards[-2] = 0.11 * np.stack([np.arange(8), -np.arange(8)], axis=-1)
    allowed[-1, :, :-1] = False
    assert len(front(rewards, allowed, 0.1).points) == 8
    assert len(front(rewards, allowed, 0.5 * steps).points) < 8


@pytest.mark.parametrize("pays", np.linspace(0.1, 3, 30))
def test_what_is_lost_adds_up_to_less_than_the_precision(pays: float) -> None:
    """Ten times the lower choice pays a little, then nobody chooses: each time it may be lost, and in all under 1."""
    rewards, allowed = np.zeros((20, 2, 2, 1)), np.ones((20, 2, 2), bool)
    rewards[::2, :, 0], allowed[1::2, :, 0] = pays / 21, False
    assert 10 * pays / 21 - front(rewards, allowed, 1.0).points.max() < 1


def test_a_precision_makes_fronts_smaller(draw: Draw) -> None:
    """10 steps of 4 ranks: a tenth per step in each objective leaves under two thirds of the exact front."""
    found = draw(0, 10, 4, open_share=1.0)
    assert len(front(found.rewards, precision=1.0).points) * 3 < len(front(found.rewards).points) * 2


def margin(point: Any, others: Any) -> float:
    """How far a point can be ahead of all others under weights of 0 or more that sum to 1 (a linear programme)."""
    objectives = len(point)
    limits = np.column_stack([others - point, np.ones(len(others))])
    sums = np.append(np.ones(objectives), 0.0)[None]
    ranges = [(0, 1)] * objectives + [(None, None)]
    answer = linprog(-np.eye(objectives + 1)[-1], limits, np.zeros(len(others)), sums, [1.0], ranges)
    assert answer.status == 0
    return float(-answer.fun)


@given(**SIZES)
def test_supported_points_are_the_corners_of_the_hull(
    draw: Draw, seed: int, steps: int, ranks: int, grid: int, objectives: int
) -> None:
    """A point of the exact front is among them exactly if it is ahead of all others under some weights."""
    found = draw(seed, steps, min(ranks, 3), grid)
    rewards = found.rewards[..., :objectives]
    answer, exact = supported_front(rewards, found.allowed), front(rewards, found.allowed).points
    check_attained(found, rewards, answer)
    supported = as_set(answer.points)
    assert supported <= as_set(exact)
    for index, point in enumerate(exact):
        ahead = margin(point, np.delete(exact, index, axis=0)) if len(exact) > 1 else 1.0
        assert tuple(point) in supported or ahead < 1e-7
        assert tuple(point) not in supported or ahead > -1e-9


@given(seed=st.integers(0, 10**6), grid=st.sampled_from((0, 4)), objectives=st.integers(2, 3))
def test_no_weighted_sum_of_returns_beats_the_supported_points(
    draw: Draw, seed: int, grid: int, objectives: int
) -> None:
    """Under 200 random weights, edges of the simplex among them, the best of all paths is a supported point to 1e-8."""
    found = draw(seed, 4, 4, grid)
    rewards = found.rewards[..., :objectives]
    weights = np.random.default_rng(seed).dirichlet(np.full(objectives, 0.3), 200)
    weights[:50, 0] = 0
    best = (found.total(rewards, found.paths()) @ weights.T).max(0)
    found_best = (supported_front(rewards, found.allowed).points @ weights.T).max(0)
    assert np.allclose(best, found_best, rtol=0, atol=1e-8)


def test_a_point_in_a_hollow_is_on_the_front_but_not_supported() -> None:
    """Returns (0, 4), (1, 1), (4, 0): the middle one is best under no weights; a point on an edge is no corner."""
    rewards = np.zeros((1, 3, 3, 2))
    rewards[0, -1] = [[0, 4], [1, 1], [4, 0]]
    assert front(rewards).points.tolist() == [[4, 0], [1, 1], [0, 4]]
    assert supported_front(rewards).points.tolist() == [[4, 0], [0, 4]]
    rewards[0, -1, 1] = 2
    assert supported_front(rewards).points.tolist() == [[4, 0], [0, 4]]
    rewards[0, -1, 1] = 2.001
    assert len(supported_front(rewards).points) == 3


def test_what_no_episode_reaches_may_be_missing(draw: Draw) -> None:
    """NaN before full rank was left, and wherever nothing is allowed, changes neither front."""
    found = draw(2, 4, 3)
    clean = [solve(found.rewards, found.allowed).points for solve in (front, supported_front)]
    found.rewards[0, :-1] = np.nan
    found.rewards[~found.allowed] = np.nan
    found.allowed[0, :-1] = False
    for solve, wanted in zip((front, supported_front), clean, strict=True):
        assert np.array_equal(solve(found.rewards, found.allowed).points, wanted)


def test_faults_are_named(draw: Draw) -> None:
    """Too many partial paths, a negative precision, objectives, missing rewards, and a mask that is empty."""
    found = draw(0, 4, 3)
    with pytest.raises(ValueError, match=r"labels=3; use a larger precision"):
        front(found.rewards, labels=3)
    for precision in (-0.1, float("nan"), (0.1, -1, 0)):
        with pytest.raises(ValueError, match=r"precision=.*must be 0 or more"):
            front(found.rewards, precision=precision)
    with pytest.raises(ValueError, match="4 objectives"):
        front(np.zeros((2, 2, 2, 4)))
    with pytest.raises(ValueError, match="1 objective"):
        supported_front(found.rewards[..., :1])
    with pytest.raises(ValueError, match=r"use \(steps, ranks, ranks, objectives\)"):
        front(found.rewards[0])
    for solve in (front, supported_front):
        rewards, allowed = found.rewards.copy(), found.allowed.copy()
        rewards[1, 2, 2, 1], allowed[2, 2] = np.nan, False
        with pytest.raises(ValueError, match=r"allowed\[2, 2\]"):
            solve(found.rewards, allowed)
        with pytest.raises(ValueError, match=r"rewards\[1, 2, 2\]=nan"):
            solve(rewards)


def test_trade_offs_of_a_real_layer_are_those_of_all_paths(real: Any) -> None:
    """A layer of the bundled model, (fidelity, −FLOPs, −change), 1024 paths: exact, precise and supported."""
    everything = real.total(real.rewards, real.paths())
    exact, supported = front(real.rewards), supported_front(real.rewards)
    assert as_set(exact.points) == best_of(everything)
    assert 2 < len(supported.points) < len(exact.points)
    assert as_set(supported.points) <= as_set(exact.points)
    weights = np.random.default_rng(0).dirichlet(np.ones(3), 500)
    assert np.allclose((everything @ weights.T).max(0), (supported.points @ weights.T).max(0), rtol=0, atol=1e-8)
    rough = front(real.rewards, precision=0.1)
    assert len(rough.points) < len(exact.points)
    assert ((everything[:, None] - rough.points[None]) <= 0.1).all(-1).any(-1).all()
