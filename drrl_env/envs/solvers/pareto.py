"""The best trade-offs of a vector return: the exact Pareto front, one to a stated precision, and its convex part.

A path chooses one of `ranks` at every step, starts from the last (full) rank and is paid a vector per (step, previous,
choice); every objective is to be maximised. A return dominates another if it is no less in every objective and more in
one.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from scipy.spatial import ConvexHull

from drrl_env.envs.solvers.decision import Bools, Doubles, Integers, rank_process, reachable

TOLERANCE = 1e-9
"""What a supported front may miss, as a share of the spread of an objective."""
BATCH = 1024
"""Weights planned for at once."""


@dataclass(frozen=True)
class Front:
    """Returns of which none dominates another.

    Attributes:
        points: returns, lexicographically descending, (points, objectives).
        choices: of a path that attains each, (points, steps).
        precision: every feasible return is dominated by a point up to less than this per objective; 0: exactly.
    """

    points: Doubles
    choices: Integers
    precision: Doubles


@dataclass(frozen=True)
class _Labels:
    """Partial paths of equal length: returns so far (labels, objectives), last choice and label before (labels,)."""

    returns: Doubles
    rank: Integers
    parent: Integers


def undominated(points: Doubles) -> Integers:
    """Indices of the points that no other one dominates, lexicographically descending; one of several equal ones.

    Sorted by the first objective, a point is dominated exactly if one before it is no less in the other two: these are
    kept as a staircase, ascending in the second and descending in the third.

    Args:
        points: (points, objectives), 1 to 3 objectives.

    Raises:
        ValueError: more than 3 objectives.
    """
    _check_objectives(points.shape[-1])
    padded = np.pad(np.asarray(points, float), ((0, 0), (0, 3 - points.shape[-1])))
    order = np.lexsort(padded.T[::-1])[::-1]
    seconds: list[float] = []
    thirds: list[float] = []
    kept: list[int] = []
    for index, (_, second, third) in zip(order.tolist(), padded[order].tolist(), strict=True):
        place = bisect_left(seconds, second)
        if place < len(seconds) and thirds[place] >= third:
            continue
        last = first = bisect_right(seconds, second)
        while first and thirds[first - 1] <= third:
            first -= 1
        seconds[first:last], thirds[first:last] = [second], [third]
        kept.append(index)
    return np.array(kept, np.int64)


def _check_objectives(objectives: int) -> None:
    if not 1 <= objectives <= 3:
        raise ValueError(f"rewards: {objectives} objectives; use 1 to 3")


def front(
    rewards: Doubles,
    allowed: Bools | None = None,
    precision: float | Sequence[float] = 0.0,
    labels: int = 2_000_000,
) -> Front:
    """The Pareto front of an episode by label setting: exact, or to a precision.

    A partial path is dropped if another with the same last choice dominates its return: whatever follows, the other
    stays ahead. With a precision p above 0, returns are compared by the box of width p / (steps + 1) they lie in, after
    every step and once more over all last choices. A dropped path then loses less than a box to one that is kept, per
    objective and comparison, and whatever follows adds the same to both; so in the end less than p is lost.

    Args:
        rewards: (steps, previous, choice, objectives), 1 to 3 objectives.
        allowed: (steps, previous, choice); None: everything.
        precision: what may be lost in total over the episode, one number or one per objective; 0: nothing.
        labels: partial paths that fit into memory and patience.

    Raises:
        ValueError: a negative precision, more than 3 objectives, more partial paths than `labels`; or where an episode
            gets to, rewards that are missing or nothing allowed.
    """
    open_ = _open(rewards, allowed)
    wanted = np.broadcast_to(np.asarray(precision, float), rewards.shape[-1:])
    if not ((wanted >= 0) & (wanted < np.inf)).all():
        raise ValueError(f"precision={precision}: must be 0 or more; use 0 for the exact front")
    layers = [_Labels(np.zeros((1, rewards.shape[-1])), np.array([rewards.shape[1] - 1]), np.zeros(1, np.int64))]
    boxes = wanted / (len(rewards) + 1)
    for step in range(len(rewards)):
        layers.append(_extend(layers[-1], rewards[step], open_[step], boxes))
        if len(layers[-1].rank) > labels:
            raise ValueError(
                f"precision={precision}: {len(layers[-1].rank)} partial paths after step {step}, more than "
                f"labels={labels}; use a larger precision, or `supported_front`"
            )
    kept = undominated(_boxed(layers[-1].returns, boxes))
    kept = kept[undominated(layers[-1].returns[kept])]
    return Front(layers[-1].returns[kept], _trace(layers, kept), wanted.copy())


def _open(rewards: Doubles, allowed: Bools | None) -> Bools:
    """What is allowed where an episode gets to, (steps, previous, choice)."""
    if rewards.ndim != 4 or rewards.shape[1] != rewards.shape[2]:
        raise ValueError(f"rewards: shape {rewards.shape}; use (steps, ranks, ranks, objectives)")
    _check_objectives(rewards.shape[-1])
    process = rank_process(rewards.sum(-1), allowed)
    found: Bools = process.allowed & reachable(process)[:-1, :, None]
    return found


def _extend(labels: _Labels, rewards: Doubles, allowed: Bools, boxes: Doubles) -> _Labels:
    """Every extension by one choice, less the dominated ones."""
    found = []
    for choice in range(rewards.shape[1]):
        parent = np.flatnonzero(allowed[labels.rank, choice])
        returns = labels.returns[parent] + rewards[labels.rank[parent], choice]
        kept = undominated(_boxed(returns, boxes))
        found.append(_Labels(returns[kept], np.full(len(kept), choice), parent[kept]))
    parts = ((part.returns, part.rank, part.parent) for part in found)
    return _Labels(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def _boxed(returns: Doubles, boxes: Doubles) -> Doubles:
    """The box that each return lies in; itself where the width is 0, (labels, objectives).

    Boxes are narrower than asked for by more than rounding can move their edges.
    """
    narrower = np.where(boxes > 0, boxes * (1 - TOLERANCE), 1.0)
    return np.where(boxes > 0, np.floor(returns / narrower), returns)


def _trace(layers: list[_Labels], kept: Integers) -> Integers:
    """The choices that led to labels of the last layer, (labels, steps)."""
    found = []
    for layer in reversed(layers[1:]):
        found.append(layer.rank[kept])
        kept = layer.parent[kept]
    return np.stack(found[::-1], axis=-1)


def supported_front(rewards: Doubles, allowed: Bools | None = None) -> Front:
    """The convex coverage set: the corners of the front, best under some weights of 0 or more. Exact to `TOLERANCE`.

    Outer loop over weights: the known returns and all they dominate span a polytope; the normals of its faces are
    weights, and a plan for each either finds a return beyond the face or proves that no return is. Once no face is
    passed, the polytope holds every feasible return, and its corners are the answer.

    Args:
        rewards: (steps, previous, choice, objectives), 2 or 3 objectives.
        allowed: (steps, previous, choice); None: everything.

    Returns:
        The corners; `precision` is what a weighted sum of returns could still gain, weights summing to 1.

    Raises:
        ValueError: fewer than 2 or more than 3 objectives; or where an episode gets to, rewards that are missing or
            nothing allowed.

    Source: Optimistic Linear Support (Roijers et al., 2015), all corner weights of a round at once; Benson's algorithm.
    """
    open_, objectives = _open(rewards, allowed), rewards.shape[-1]
    if objectives < 2:
        raise ValueError(f"rewards: {objectives} objective; use 2 or 3, or `plan` for one")
    points, choices = _weighted_plans(rewards, open_, np.vstack([np.eye(objectives), np.ones(objectives)]))
    while True:
        points, first = np.unique(points, axis=0, return_index=True)
        choices, spread = choices[first], _spread(points)
        weights, corners = _faces(points / spread)
        found, how = _weighted_plans(rewards, open_, weights / spread)
        gains = (found / spread * weights).sum(-1) - (weights @ (points / spread).T).max(-1)
        beyond = gains > TOLERANCE
        if not beyond.any():
            order = corners[np.lexsort(points[corners].T[::-1])[::-1]]
            return Front(points[order], choices[order], TOLERANCE * spread)
        points, choices = np.vstack([points, found[beyond]]), np.vstack([choices, how[beyond]])


def _spread(points: Doubles) -> Doubles:
    """Range of every objective, 1 where there is none, (objectives,)."""
    found = np.ptp(points, axis=0)
    return np.where(found > 0, found, 1.0)


def _faces(points: Doubles) -> tuple[Doubles, Integers]:
    """Faces of the polytope that points and all they dominate span, and which points are its corners.

    What is dominated is cut off below all points: every objective of a point may fall to that floor.

    Returns:
        (weights (faces, objectives), 0 or more, sum 1; corners (n,)).
    """
    floor, objectives = points.min(0) - 1, points.shape[-1]
    fallen = [np.where(falls, floor, points) for falls in product((False, True), repeat=objectives)]
    hull = ConvexHull(np.concatenate(fallen))
    normals = hull.equations[:, :-1]
    upper = normals[(normals > -TOLERANCE).all(-1)].clip(0)
    weights = np.unique((upper / upper.sum(-1, keepdims=True)).round(12), axis=0)
    return weights, np.sort(hull.vertices[hull.vertices < len(points)]).astype(np.int64)


def _weighted_plans(rewards: Doubles, open_: Bools, weights: Doubles) -> tuple[Doubles, Integers]:
    """The best path under each weighted sum: returns (weights, objectives) and choices (weights, steps)."""
    parts = [_weighted_batch(rewards, open_, weights[at : at + BATCH]) for at in range(0, len(weights), BATCH)]
    return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])


def _weighted_batch(rewards: Doubles, open_: Bools, weights: Doubles) -> tuple[Doubles, Integers]:
    """Viterbi for many weighted sums at once."""
    steps, ranks, _, _ = rewards.shape
    ahead, policy = np.zeros((len(weights), ranks)), np.zeros((steps, len(weights), ranks), np.int64)
    known = np.where(open_[..., None], rewards, 0.0)
    for step in reversed(range(steps)):
        paid = np.einsum("pak,wk->wpa", known[step], weights)
        gains = np.where(open_[step], paid + ahead[:, None, :], -np.inf)
        policy[step] = ranks - 1 - gains[..., ::-1].argmax(-1)
        # Where no episode gets to nothing is open; a finite value keeps it out of sums like inf - inf.
        ahead = np.where(open_[step].any(-1), gains.max(-1), 0.0)
    lanes, previous = np.arange(len(weights)), np.full(len(weights), ranks - 1)
    returns, choices = np.zeros((len(weights), rewards.shape[-1])), np.empty((len(weights), steps), np.int64)
    for step in range(steps):
        choices[:, step] = policy[step, lanes, previous]
        returns += rewards[step, previous, choices[:, step]]
        previous = choices[:, step]
    return returns, choices
