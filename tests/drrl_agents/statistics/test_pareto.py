"""Fronts and hypervolumes equal what a ruler measures on a drawing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from drrl_agents.statistics import contributions, hypervolume, nondominated, pareto_front

NAMES = ("fixed-8", "fixed-32", "agent", "wasteful", "twin", "dear", "full")
FLOPS = np.array([0.2, 0.6, 0.4, 0.7, 0.2, 1.3, 1.0])
FIDELITY = np.array([0.5, 0.9, 0.8, 0.7, 0.5, 0.99, 1.0])
POINTS = np.column_stack([FLOPS, FIDELITY])
# a staircase: up to .5 from .2 on, up to .8 from .4 on, up to .9 from .6 on
AREA = 0.8 * 0.5 + 0.6 * 0.3 + 0.4 * 0.1
CLOUDS = st.integers(1, 8).flatmap(lambda n: arrays(float, (n, 2), elements=st.integers(0, 10))).map(lambda a: a / 10)


def area(points, reference=(1.0, 0.0)):
    """By a grid of tenths: cells that some point dominates."""
    centres = (np.arange(10) + 0.5) / 10
    flops, fidelity = np.meshgrid(centres, centres)
    inside = (flops < reference[0]) & (fidelity > reference[1])
    covered = np.zeros_like(inside)
    for cost, kept in points:
        covered |= (cost < flops) & (fidelity < kept)
    return (covered & inside).sum() / 100


def test_the_front_is_what_nothing_else_beats():
    """Cheaper and as good, or as cheap and better, beats; equals stand together; `dear` loses to full attention."""
    front = pareto_front(NAMES, FLOPS, FIDELITY)
    on_front = [name for name, on in zip(NAMES, front.on_front, strict=True) if on]
    assert on_front == ["fixed-8", "fixed-32", "agent", "twin", "full"]


def test_hypervolume_is_the_sum_of_rectangles():
    """.8 × .5 + .6 × .3 + .4 × .1 against full attention's cost and nothing kept."""
    assert hypervolume(POINTS) == pytest.approx(AREA)
    assert pareto_front(NAMES, FLOPS, FIDELITY).hypervolume == pytest.approx(AREA)


def test_full_attention_saves_nothing_and_covers_nothing():
    """Nor does what costs more, or keeps less than nothing."""
    assert hypervolume(np.array([[1.0, 1.0], [1.3, 1.0], [0.5, -0.2]])) == 0
    assert hypervolume(np.empty((0, 2))) == 0


def test_the_reference_is_taken():
    """With costs up to 1.5 and fidelity from .5 on: (1.5 − .4) × .3 for the agent; without `full`, `dear` steps in."""
    found = pareto_front(NAMES, FLOPS, FIDELITY, (1.5, 0.5))
    assert found.hypervolume_of(["agent"]) == pytest.approx(1.1 * 0.3)
    assert found.hypervolume == pytest.approx(1.1 * 0.3 + 0.9 * 0.1 + 0.5 * 0.1)
    assert found.contributions[NAMES.index("full")] == pytest.approx(0.5 * 0.1 - 0.2 * 0.09)


def test_a_contribution_is_what_would_be_lost():
    """The agent's corner is .2 × .3 wide of fixed-8 and fixed-32; twins lose nothing, for the other stays."""
    found = dict(zip(NAMES, pareto_front(NAMES, FLOPS, FIDELITY).contributions, strict=True))
    assert found["agent"] == pytest.approx(0.2 * 0.3)
    assert found["fixed-32"] == pytest.approx(0.4 * 0.1)
    for name in ("fixed-8", "twin", "wasteful", "dear", "full"):
        assert found[name] == pytest.approx(0)


def test_a_point_just_behind_takes_over_what_is_lost():
    """Without the first, the second still covers .5 × .7: only .5 × .8 less that is lost. Ignoring it would say .4."""
    assert contributions(np.array([[0.5, 0.8], [0.5, 0.7]])) == pytest.approx([0.05, 0])


def test_families_are_measured_on_their_own():
    """Fixed ranks cover .8 × .5 + .4 × .4; the agent adds its corner to them, and they add theirs to it."""
    front = pareto_front(NAMES, FLOPS, FIDELITY)
    fixed = ["fixed-8", "fixed-32"]
    assert front.hypervolume_of(fixed) == pytest.approx(0.8 * 0.5 + 0.4 * 0.4)
    assert front.hypervolume_of([]) == 0
    assert front.gain(["agent"], over=fixed) == pytest.approx(0.2 * 0.3)
    assert front.gain(iter(["wasteful"]), over=iter(fixed)) == pytest.approx(0)


@given(CLOUDS)
def test_hypervolume_is_the_area_on_a_grid(points):
    """Any points on tenths, against cells counted one by one."""
    assert hypervolume(points) == pytest.approx(area(points))
    assert hypervolume(points, (0.8, 0.3)) == pytest.approx(area(points, (0.8, 0.3)))


@given(CLOUDS)
def test_contributions_are_differences_of_hypervolumes(points):
    """Of all points less all but one; nothing off the front contributes."""
    lost = [area(points) - area(np.delete(points, i, 0)) for i in range(len(points))]
    found = contributions(points)
    assert found.tolist() == pytest.approx(lost)
    assert found[~nondominated(points)].tolist() == pytest.approx([0] * int((~nondominated(points)).sum()))


@given(CLOUDS)
def test_the_front_is_dominance_by_the_book(points):
    """Pair by pair."""
    for i, (cost, kept) in enumerate(points):
        beaten = any(c <= cost and k >= kept and (c, k) != (cost, kept) for c, k in points)
        assert nondominated(points)[i] == (not beaten)


@given(CLOUDS, st.integers(0, 7))
def test_a_policy_that_joins_never_covers_less(points, taken):
    """And the front alone covers what all do."""
    assume(taken < len(points))
    assert hypervolume(points) >= hypervolume(np.delete(points, taken, 0)) - 1e-12
    assert hypervolume(points[nondominated(points)]) == pytest.approx(hypervolume(points))


def test_what_cannot_be_drawn_is_refused():
    """Names twice, names unknown, points that are not finite, and points that are not pairs."""
    front = pareto_front(NAMES, FLOPS, FIDELITY)
    with pytest.raises(ValueError, match="two policies share one"):
        pareto_front(["a", "a"], FLOPS[:2], FIDELITY[:2])
    with pytest.raises(ValueError, match="policy 'nobody' is not on this front; use one of fixed-8"):
        front.hypervolume_of(["nobody"])
    with pytest.raises(ValueError, match="give finite"):
        pareto_front(["a"], np.array([np.nan]), np.array([1.0]))
    with pytest.raises(ValueError, match=r"of shape \(2, 3\)"):
        nondominated(np.zeros((2, 3)))
