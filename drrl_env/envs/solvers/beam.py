"""Beam search over live nodes: for closed loops, where a transition is known only once it was run."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from heapq import heappush, heappushpop
from math import isfinite
from typing import Generic, TypeVar

Node = TypeVar("Node")
Expand = Callable[[Node], Iterable[tuple[int, Node, float]]]
"""The children of a node: (action, child, reward so far); none where an episode ends. May be a generator."""


@dataclass(frozen=True)
class BeamPlan:
    """The best that a beam search found.

    Attributes:
        actions: from the root to the best leaf.
        lower_bound: its return; the optimum is this or more.
        exhaustive: whether nothing was given up, which makes the bound the optimum.
        expanded: nodes expanded.
    """

    actions: tuple[int, ...]
    lower_bound: float
    exhaustive: bool
    expanded: int


@dataclass(frozen=True)
class _Entry(Generic[Node]):
    """A node on the way; compared by priority, and among equals by the path: later expansions win."""

    priority: float
    path: tuple[int, ...]
    actions: tuple[int, ...]
    reward: float
    node: Node

    def __lt__(self, other: _Entry[Node]) -> bool:
        return (self.priority, self.path) < (other.priority, other.path)


def beam_search(
    root: Node,
    expand: Expand[Node],
    width: int,
    depth: int,
    heuristic: Callable[[Node], float] | None = None,
    progress: Callable[[int, float], None] | None = None,
) -> BeamPlan:
    """Expands the `width` best nodes of each depth; a lower bound on the optimum, exact where nothing is given up.

    A child that cannot enter the beam is let go at once, and a parent once it was expanded, so no more than twice
    `width` nodes and one (with the caches of a language model) are alive.

    Args:
        root: where to start.
        expand: runs a node's actions; see `Expand`. Called once per node, best first.
        width: nodes kept per depth.
        depth: longest path.
        heuristic: what a child may still gain, added to the reward so far when nodes are compared; never reported, and
            not asked at the last depth.
        progress: told (depth, best reward so far) after every depth.

    Returns:
        The best leaf: a node of the last depth, or one without children. Ties go to what was expanded from later
        children, so to higher actions where `expand` ascends.

    Raises:
        ValueError: a width or depth below 1, or a reward or heuristic that is not finite.
    """
    for name, value in (("width", width), ("depth", depth)):
        if value < 1:
            raise ValueError(f"{name}={value}: must be a whole number of at least 1")
    beam: list[_Entry[Node]] = [_Entry(0.0, (), (), 0.0, root)]
    best: _Entry[Node] | None = None
    given_up = expanded = 0
    for level in range(1, depth + 1):
        following: list[_Entry[Node]] = []
        last = level == depth
        while beam:
            entry = beam.pop()
            children, lost = _grow(entry, expand, None if last else heuristic, width, following)
            # At the last depth what is given up is no better than what is kept.
            given_up, expanded = given_up + (0 if last else lost), expanded + 1
            best = best if children else _better(best, entry)
        beam = sorted(following)
        if not beam:
            break
        if progress is not None:
            progress(level, max(entry.reward for entry in beam))
    for entry in beam:
        best = _better(best, entry)
    assert best is not None, "a beam ends in children, or in a node without any"
    return BeamPlan(best.actions, best.reward, not given_up, expanded)


def _better(best: _Entry[Node] | None, entry: _Entry[Node]) -> _Entry[Node]:
    """The leaf with the higher reward; among equals the later path."""
    if best is None or (entry.reward, entry.path) > (best.reward, best.path):
        return entry
    return best


def _grow(
    entry: _Entry[Node],
    expand: Expand[Node],
    heuristic: Callable[[Node], float] | None,
    width: int,
    following: list[_Entry[Node]],
) -> tuple[int, int]:
    """Puts the children of an entry that fit into the next beam, a heap; gives (children, children given up)."""
    lost, index = 0, -1
    for index, (action, child, reward) in enumerate(expand(entry.node)):
        priority = reward + (heuristic(child) if heuristic else 0.0)
        if not (isfinite(reward) and isfinite(priority)):
            raise ValueError(
                f"expand: reward {reward} and priority {priority} of action {action} after {entry.actions}"
            )
        grown = _Entry(priority, (*entry.path, index), (*entry.actions, action), reward, child)
        if len(following) < width:
            heappush(following, grown)
        else:
            heappushpop(following, grown)
            lost += 1
    return index + 1, lost
