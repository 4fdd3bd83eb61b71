"""Instances small enough to search exhaustively: drawn ones, and real ones played in an environment."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
import pytest
from numpy.typing import NDArray

import drrl_env  # noqa: F401  (registers the environments)

RANKS, SEGMENT, SEGMENTS = (8, 16, 32, 64), 256, 5
COLUMNS = ("cosine", "relative_error", "flops", "flops_ratio", "score_change")

Doubles = NDArray[np.float64]
Bools = NDArray[np.bool_]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Chain:
    """A small instance over (step, previous, choice).

    Attributes:
        rewards: three objectives, (steps, ranks, ranks, 3).
        flops: (steps, ranks, ranks).
        allowed: the last choice always is, (steps, ranks, ranks).
    """

    rewards: Doubles
    flops: Doubles
    allowed: Bools

    def paths(self) -> Integers:
        """Every allowed sequence of choices, lexicographically ascending, (paths, steps)."""
        steps, ranks, _ = self.flops.shape
        return np.array([path for path in itertools.product(range(ranks), repeat=steps) if self._open(path)])

    def _open(self, path: tuple[int, ...]) -> bool:
        previous = (len(self.flops[0]) - 1, *path[:-1])
        return all(self.allowed[t, p, a] for t, (p, a) in enumerate(zip(previous, path, strict=True)))

    def total(self, numbers: NDArray[Any], paths: Integers) -> NDArray[Any]:
        """Sum of a table over every path, step by step, (paths, ...)."""
        previous = np.full(len(paths), self.flops.shape[1] - 1)
        found = np.zeros((len(paths), *numbers.shape[3:]))
        for step, choice in enumerate(paths.T):
            found += numbers[step, previous, choice]
            previous = choice
        return found


def chain(seed: int, steps: int, ranks: int, grid: int = 0, open_share: float = 0.7) -> Chain:
    """A drawn instance; whole numbers below `grid` (many ties, exact sums) if it is given."""
    random = np.random.default_rng(seed)
    shape = (steps, ranks, ranks)
    numbers = random.integers(0, grid, (*shape, 4)).astype(float) if grid else random.random((*shape, 4))
    allowed = random.random(shape) < open_share
    allowed[..., -1] = True
    return Chain(numbers[..., :3].copy(), numbers[..., 3].copy(), allowed)


@pytest.fixture(scope="session")
def draw() -> Callable[..., Chain]:
    """See `chain`."""
    return chain


@pytest.fixture(scope="session", params=(0, 2), ids=("layer 0", "layer 2"))
def real(request: pytest.FixtureRequest) -> Iterator[Chain]:
    """A layer of the bundled model on five segments of 256 tokens with four ranks, NaN before full rank was ever left.

    Every ordered pair (a, b) of ranks is played as a, b, a, b, ...: together these make every transition.
    """
    sizes = {"segment": SEGMENT, "context": SEGMENT * SEGMENTS, "ranks": RANKS}
    env = gymnasium.make("DRRL-Attention-v0", **sizes, instances=1, layer=request.param)
    table = np.full((SEGMENTS, len(RANKS), len(RANKS), len(COLUMNS)), np.nan)
    for pair in itertools.product(range(len(RANKS)), repeat=2):
        previous = len(RANKS) - 1
        env.reset(seed=0)
        for step in range(SEGMENTS):
            choice = pair[step % 2]
            info = env.step(choice)[-1]
            table[step, previous, choice] = [info[name] for name in COLUMNS]
            previous = choice
    assert not np.isnan(table[1:]).any()
    assert np.isnan(table[0, :-1]).all()
    rewards = np.stack([1 - table[..., 1] ** 2, -table[..., 3], -table[..., 4]], axis=-1)
    yield Chain(rewards, table[..., 2], np.ones(table.shape[:3], bool))
    env.close()
