"""The latency model: a random forest fitted to a table of kernel timings, and the milliseconds of a segment by it.

What is saved is the timings, never a forest: it is fitted when the table is first used, which takes less than a
second and gives the same bits wherever scikit-learn builds the same trees.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import RandomForestRegressor

from drrl_env.lowrank.flops import RankCost
from drrl_env.lowrank.kernels import KERNELS, HeadSizes, KernelCall, segment_calls
from drrl_env.lowrank.timings import Timings, read_timings

if TYPE_CHECKING:
    from drrl_env.envs.world import World

Doubles = NDArray[np.float64]

COMMITTED = "intel-xeon-2-cores.csv"
"""The timing table of `cost="latency"`, named for its machine."""
TREES = 48
HELD_OUT = 5
"""One timing in so many is held out to judge the forest."""
BAR = 0.95
"""R² that a forest must reach on timings held out."""


@dataclass(frozen=True)
class Accuracy:
    """How well a forest foretells timings it was not fitted to.

    Attributes:
        r2: R² of the logarithm of the milliseconds, at most 1.
        relative_error: median of |predicted − timed| / timed.
        points: timings held out.
        by_kernel: the same median for each kernel: R² over all of them owes much to their different sizes.
    """

    r2: float
    relative_error: float
    points: int
    by_kernel: Mapping[str, float]

    @property
    def meets(self) -> bool:
        """Whether R² reaches `BAR`."""
        return self.r2 >= BAR


class Forest:
    """A random forest that foretells the milliseconds of a kernel call.

    Its trees foretell log2 of the time per pair of a key and a query: that changes little from one size to the next,
    where the time itself is a staircase (128 tokens from timings of 64 and 256: 6 % off instead of 47 %).
    Targets and predictions are rounded: what is left of a processor's own last bits of a logarithm must not decide
    how a tree splits.

    Args:
        calls: the calls timed.
        milliseconds: what they took, (calls,).
    """

    def __init__(self, calls: Sequence[KernelCall], milliseconds: Iterable[float]) -> None:
        targets = [round(math.log2(time / _pairs(call)), 6) for call, time in zip(calls, milliseconds, strict=True)]
        self._forest = RandomForestRegressor(TREES, random_state=0, n_jobs=1).fit(_features(calls), targets)

    def predict(self, calls: Sequence[KernelCall]) -> Doubles:
        """Milliseconds of the calls, (calls,), to a nanosecond."""
        logarithms = self._forest.predict(_features(calls)).tolist()
        return np.array([round(2.0**found * _pairs(call), 6) for call, found in zip(calls, logarithms, strict=True)])


def _pairs(call: KernelCall) -> int:
    """Keys times tokens; a size that does not matter counts as 1."""
    return max(1, call.keys) * max(1, call.segment)


def _features(calls: Sequence[KernelCall]) -> Doubles:
    """log2 n, log2 T, columns, and one column per kernel, (calls, 3 + kernels)."""
    rows = [
        (*(round(math.log2(max(1, size)), 6) for size in (call.keys, call.segment)), call.rank, *_kernel(call))
        for call in calls
    ]
    return np.array(rows, np.float64)


def _kernel(call: KernelCall) -> tuple[int, ...]:
    return tuple(int(call.kernel == kernel) for kernel in KERNELS)


def held_out(timings: Timings) -> tuple[tuple[KernelCall, ...], tuple[KernelCall, ...]]:
    """The calls a forest is judged by and those it is fitted to then: every fifth of a fixed shuffle, and the rest."""
    calls = sorted(timings.milliseconds)
    order = np.random.RandomState(0).permutation(len(calls)).tolist()
    judged = set(order[::HELD_OUT])
    return (
        tuple(calls[place] for place in sorted(judged)),
        tuple(call for place, call in enumerate(calls) if place not in judged),
    )


def accuracy(timings: Timings) -> Accuracy:
    """Fits a forest to four fifths of the timings and judges it by the others."""
    judged, fitted = held_out(timings)
    forest = Forest(fitted, [timings.milliseconds[call] for call in fitted])
    true, found = np.array([timings.milliseconds[call] for call in judged]), forest.predict(judged)
    errors = np.abs(found - true) / true
    kernels = {kernel: [call.kernel == kernel for call in judged] for kernel in KERNELS}
    medians = {kernel: float(np.median(errors[mine])) for kernel, mine in kernels.items() if any(mine)}
    return Accuracy(_r2(np.log(true), np.log(found)), float(np.median(errors)), len(judged), medians)


def _r2(true: Doubles, found: Doubles) -> float:
    """Share of the variance that is explained, at most 1."""
    return float(1 - np.square(found - true).sum() / np.square(true - true.mean()).sum())


@dataclass(frozen=True)
class LatencyCost:
    """Milliseconds of a segment by the forest of a timing table.

    Attributes:
        path: the table.
        digest: SHA-256 of its text: two costs are equal where their timings are.
        name: `latency`.
        unit: `ms`.

    Make one with `read` or `committed`.
    """

    path: Path = field(compare=False)
    digest: str
    name: str = field(default="latency", init=False)
    unit: str = field(default="ms", init=False)

    @classmethod
    def read(cls, path: Path) -> LatencyCost:
        """The cost of a table.

        Raises:
            ValueError: the file is missing or holds no timings; one line.
        """
        read_timings(path)
        return cls(path, _digest(path))

    @classmethod
    def committed(cls) -> LatencyCost:
        """The cost of the table that ships with the package."""
        return cls.read(Path(str(resources.files("drrl_env.envs") / "timings" / COMMITTED)))

    def table(self, world: World) -> Doubles:
        """Milliseconds of every transition, (layers, segments, previous, choice)."""
        timings, _ = self._opened()
        self._check(world, timings)
        shape = (world.layers, world.segments, len(world.ranks), len(world.ranks))
        return self._sums([self._calls(world, *place) for place in np.ndindex(shape)]).reshape(shape)

    def full(self, world: World) -> Doubles:
        """Milliseconds of full attention, (segments,)."""
        timings, _ = self._opened()
        self._check(world, timings)
        whole = RankCost(world.shape.dim, world.shape.value_dim)
        return self._sums([segment_calls(world.shape, t, whole, whole, "calibrated", 1) for t in range(world.segments)])

    @staticmethod
    def _calls(world: World, layer: int, position: int, previous: int, choice: int) -> tuple[KernelCall, ...]:
        stream = world.streams[layer]
        chosen, before = stream.costs[choice], stream.costs[previous]
        return segment_calls(stream.shape, position, chosen, before, stream.basis, stream.width)

    def _sums(self, transitions: Sequence[tuple[KernelCall, ...]]) -> Doubles:
        """Milliseconds of each transition; every distinct call is asked of the forest once."""
        times = self.milliseconds({call for calls in transitions for call in calls})
        return np.array([sum(times[call] for call in calls) for calls in transitions])

    def milliseconds(self, calls: Iterable[KernelCall]) -> Mapping[KernelCall, float]:
        """What the forest foretells of each call."""
        asked = sorted(calls)
        return dict(zip(asked, self._opened()[1].predict(asked).tolist(), strict=True))

    def _opened(self) -> tuple[Timings, Forest]:
        return _open(self.path, self.digest)

    def _check(self, world: World, timings: Timings) -> None:
        """A forest knows nothing beyond its table: raises a one-line ValueError for a world that is."""
        shape, model = world.shape, world.measurement.model
        remedy = f"run `drrl calibrate latency --model {model}"
        sizes = HeadSizes(shape.kv_heads, shape.groups, shape.dim)
        if sizes != timings.sizes:
            raise ValueError(
                f"cost={self.path.name!r}: timed for {timings.sizes}, model {model!r} has {sizes}; "
                f"{remedy}` and pass cost=PATH"
            )
        for name, value, size in (
            ("context", shape.keys(world.segments - 1), "keys"),
            ("segment", shape.segment, "segment"),
        ):
            low, high = timings.extent(size)
            if not low <= value <= high:
                raise ValueError(
                    f"{name}={value}: the timings of cost={self.path.name!r} hold {low} to {high}; use one of those, "
                    f"or {remedy} --{name} {value}` and pass cost=PATH"
                )


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_text("utf-8").encode()).hexdigest()


@lru_cache(maxsize=4)
def _open(path: Path, digest: str) -> tuple[Timings, Forest]:
    """The timings and their forest, fitted once per process."""
    if _digest(path) != digest:
        raise ValueError(f"cost={str(path)!r}: the table has changed since it was read; make the environment anew")
    timings = read_timings(path)
    calls = sorted(timings.milliseconds)
    return timings, Forest(calls, [timings.milliseconds[call] for call in calls])
