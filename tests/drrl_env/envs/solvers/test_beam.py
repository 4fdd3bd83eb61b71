"""A beam is a lower bound, and the optimum where it gives nothing up."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar
from weakref import WeakSet

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drrl_env.envs.solvers.beam import BeamPlan, beam_search

SIZES = {"seed": st.integers(0, 10**6), "depth": st.integers(1, 5), "actions": st.integers(1, 3)}
EVERYTHING = 3**5


@dataclass(frozen=True, eq=False)
class Place:
    """A node of a tree whose rewards are drawn from its path; counts those alive.

    Attributes:
        seed: of the tree.
        path: actions so far.
        reward: sum so far.
    """

    alive: ClassVar[WeakSet[Place]] = WeakSet()
    seed: int
    path: tuple[int, ...] = ()
    reward: float = 0.0

    def __post_init__(self) -> None:
        Place.alive.add(self)

    def gains(self, actions: int) -> list[float]:
        """Whole numbers, so that ties are frequent and sums exact."""
        drawn = np.random.default_rng([self.seed, len(self.path), *self.path]).integers(-4, 5, actions)
        return [float(gain) for gain in drawn]


@dataclass
class Tree:
    """Expands places, and remembers which; paths that end early do so where their last actions are 1, 1."""

    actions: int
    ends_early: bool = False
    most_alive: int = 0
    expanded: int = 0

    def __call__(self, place: Place) -> Iterator[tuple[int, Place, float]]:
        self.expanded += 1
        if self.ends_early and place.path[-2:] == (1, 1):
            return
        for action, gain in enumerate(place.gains(self.actions)):
            reward = place.reward + gain
            yield action, Place(place.seed, (*place.path, action), reward), reward
            self.most_alive = max(self.most_alive, len(Place.alive))


def leaves(tree: Tree, place: Place, depth: int) -> Iterator[Place]:
    """Every leaf down to a depth."""
    children = list(tree(place)) if depth else []
    if not children:
        yield place
    for _, child, _ in children:
        yield from leaves(tree, child, depth - 1)


def best_leaf(tree: Tree, seed: int, depth: int) -> Place:
    """The highest return; of equal ones the highest actions."""
    return max(leaves(tree, Place(seed), depth), key=lambda place: (place.reward, place.path))


@given(**SIZES, ends_early=st.booleans())
def test_a_beam_that_holds_everything_finds_the_optimum(seed: int, depth: int, actions: int, ends_early: bool) -> None:
    """Best of all leaves, early ones included, ties upward; and it says that nothing was given up."""
    tree = Tree(actions, ends_early)
    best = best_leaf(tree, seed, depth)
    found = beam_search(Place(seed), tree, EVERYTHING, depth)
    assert (found.actions, found.lower_bound, found.exhaustive) == (best.path, best.reward, True)


@given(**SIZES, ends_early=st.booleans(), width=st.integers(1, 6))
def test_a_narrow_beam_is_a_lower_bound(seed: int, depth: int, actions: int, ends_early: bool, width: int) -> None:
    """Never above the optimum, which it is where nothing was given up; its actions return what it says."""
    tree = Tree(actions, ends_early)
    best = best_leaf(tree, seed, depth)
    found = beam_search(Place(seed), tree, width, depth)
    assert found.lower_bound <= best.reward
    assert found.lower_bound == best.reward or not found.exhaustive
    assert found.lower_bound == returned(seed, found.actions, actions)
    assert found == beam_search(Place(seed), tree, width, depth)


def returned(seed: int, path: tuple[int, ...], actions: int) -> float:
    """The sum of rewards on a path."""
    return sum(Place(seed, path[:at]).gains(actions)[action] for at, action in enumerate(path))


@given(**SIZES)
def test_a_beam_of_one_is_greedy(seed: int, depth: int, actions: int) -> None:
    """At every depth the best reward, of equal ones the highest action."""
    place, path = Place(seed), ()
    for _ in range(depth):
        gains = place.gains(actions)
        path = (*path, max(range(actions), key=lambda action, gains=gains: (gains[action], action)))
        place = Place(seed, path)
    assert beam_search(Place(seed), Tree(actions), 1, depth).actions == path


@given(**SIZES)
def test_a_perfect_heuristic_makes_a_beam_of_one_find_the_optimum(seed: int, depth: int, actions: int) -> None:
    """It guides what is kept and is not part of what is reported."""
    tree = Tree(actions)

    def to_come(place: Place) -> float:
        return best_leaf_from(tree, place, depth - len(place.path)) - place.reward

    found = beam_search(Place(seed), tree, 1, depth, to_come)
    assert found.lower_bound == best_leaf(tree, seed, depth).reward


def best_leaf_from(tree: Tree, place: Place, depth: int) -> float:
    """The highest return below a place."""
    return max(leaf.reward for leaf in leaves(tree, place, depth))


def test_a_heuristic_does_not_judge_the_last_depth() -> None:
    """There is nothing to come after it: one that prefers the worst child changes nothing at depth 1."""
    for seed in range(10):
        greedy = beam_search(Place(seed), Tree(3), 1, 1)
        assert beam_search(Place(seed), Tree(3), 1, 1, lambda place: -100 * place.reward) == greedy


def test_the_best_nodes_are_expanded_first() -> None:
    """Rewards of the places expanded at one depth descend."""
    met: list[Place] = []

    def expand(place: Place) -> Iterator[tuple[int, Place, float]]:
        met.append(place)
        return Tree(3)(place)

    beam_search(Place(2), expand, 9, 3)
    rewards = [place.reward for place in met if len(place.path) == 2]
    assert len(set(rewards)) > 2
    assert rewards == sorted(rewards, reverse=True)


def test_wider_beams_find_more_on_the_whole() -> None:
    """Over 40 trees of depth 5 the sum of returns rises from width 1 to 4 to all; greedy misses the optimum in some."""
    totals = [sum(beam_search(Place(s), Tree(3), width, 5).lower_bound for s in range(40)) for width in (1, 4, 243)]
    assert totals[0] < totals[1] < totals[2]


def test_no_more_nodes_are_alive_than_twice_the_width() -> None:
    """And the child just expanded (and the root, held by the caller); each node is expanded once."""
    gc.collect()
    root, tree = Place(5), Tree(3)
    before = len(Place.alive) - 1
    found = beam_search(root, tree, 4, 6)
    assert tree.most_alive - before <= 2 * 4 + 2
    assert found.expanded == tree.expanded == 1 + 3 + 4 * 4


def test_progress_is_told_after_every_depth() -> None:
    """Depth and the best reward so far; the last one told is the bound."""
    told: list[tuple[int, float]] = []
    found = beam_search(Place(1), Tree(3), 3, 4, progress=lambda depth, best: told.append((depth, best)))
    assert [depth for depth, _ in told] == [1, 2, 3, 4]
    assert told[-1][1] == found.lower_bound


def test_a_root_without_children_is_the_leaf() -> None:
    """No actions, a return of 0, nothing given up."""
    assert beam_search(Place(0), Tree(0), 2, 3) == BeamPlan((), 0.0, True, 1)


@pytest.mark.parametrize("fault", [float("nan"), float("inf")])
def test_faults_are_named(fault: float) -> None:
    """Rewards and heuristics that are not finite, and beams of no width or depth."""
    with pytest.raises(ValueError, match=r"expand: reward .* of action 7 after \(\)"):
        beam_search(Place(0), lambda place: [(7, place, fault)], 1, 2)
    with pytest.raises(ValueError, match=r"priority .* of action 0 after \(\)"):
        beam_search(Place(0), Tree(2), 1, 2, heuristic=lambda place: fault)
    with pytest.raises(ValueError, match="width=0"):
        beam_search(Place(0), Tree(2), 0, 2)
    with pytest.raises(ValueError, match="depth=0"):
        beam_search(Place(0), Tree(2), 1, 0)
