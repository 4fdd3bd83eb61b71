"""Timings: what the kernels take on one machine, measured once over a grid of sizes and kept as a table.

Rounds are interleaved: every call has its turn in each round, so that a busy moment spoils one round of a call and
not the call. A number is the median over rounds of the fastest repeat in a round. A kernel on one thread waits for
nothing, so its processor time is what it takes on a quiet machine; that is measured, and other programs count little.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path
from statistics import median

import torch
from tqdm import tqdm

from drrl_env.lowrank.attention import causal_mask
from drrl_env.lowrank.kernels import (
    DECOMPOSITION,
    FULL,
    GRAMS,
    KERNELS,
    LOW_RANK,
    PROJECTION,
    HeadSizes,
    KernelCall,
    Operands,
)

COLUMNS = ("kernel", "kv_heads", "groups", "dim", "keys", "segment", "rank", "milliseconds")
"""Columns of a table; see `HeadSizes` and `KernelCall`."""
REPEATS = 3
"""Timed calls of a kernel in one round, after one that fills the processor's cache."""
FINE = 1e-6
"""Coarsest resolution, in seconds, at which a clock can time a kernel."""
REMEDY = "run `drrl calibrate latency` for a new one"


@dataclass(frozen=True)
class Timings:
    """The timings of one machine for one model's sizes.

    Attributes:
        machine: what was measured on and how, by name; no host names.
        sizes: heads and dimension.
        milliseconds: by call, each above 0.
    """

    machine: Mapping[str, str]
    sizes: HeadSizes
    milliseconds: Mapping[KernelCall, float]

    def extent(self, name: str) -> tuple[int, int]:
        """Smallest and largest `keys`, `segment` or `rank` of attention in the table: beyond it nothing is known."""
        found = [getattr(call, name) for call in self.milliseconds if call.kernel == LOW_RANK]
        return min(found), max(found)


@dataclass(frozen=True)
class Grid:
    """The sizes to time, each ascending.

    Attributes:
        keys: keys held, n.
        segments: tokens of a segment, T.
        ranks: columns, r.
    """

    keys: tuple[int, ...]
    segments: tuple[int, ...]
    ranks: tuple[int, ...]

    def calls(self, sizes: HeadSizes) -> tuple[KernelCall, ...]:
        """Every call, neighbours sharing their keys; attention only where the segment is among the keys.

        The two halves of a refresh have one size each, so they are timed at many more: a forest needs neighbours.
        """
        pairs = [(n, t) for n in self.keys for t in self.segments if t <= n]
        rows = sorted({*self.keys, *(sizes.groups * t for t in self.segments)})
        found = (
            *(KernelCall(FULL, n, t, sizes.dim) for n, t in pairs),
            *(KernelCall(LOW_RANK, n, t, r) for n, t in pairs for r in self.ranks),
            *(KernelCall(PROJECTION, n, 0, r) for n in rows for r in self.ranks),
            *(KernelCall(GRAMS, 0, t, sizes.dim) for t in _spread(self.segments[0], self.segments[-1], 8)),
            *(KernelCall(DECOMPOSITION, 0, 0, r) for r in range(self.ranks[0], self.ranks[-1] + 1)),
        )
        return tuple(sorted(found, key=lambda call: (call.keys, call.segment, call.kernel, call.rank)))


def grid(dim: int, context: int, segments: Sequence[int], quick: bool = False) -> Grid:
    """The grid for a head dimension: every octave of keys in four steps and every 128 keys, ranks by sixteenths.

    Args:
        dim: head dimension.
        context: most keys.
        segments: tokens of a segment, the sizes wanted.
        quick: a third of the keys and half of the ranks, to try things out.
    """
    low = min(segments)
    fine = () if quick else range(low // 128 * 128 + 128, context, 128)
    keys = {*_spread(low, context, 1 if quick else 4), *fine}
    shares = (1, 2, 4, 8, 12, 16) if quick else (1, 2, 3, 4, 5, 6, 8, 10, 12, 14, 16)
    ranks = {max(1, dim * share // 16) for share in shares}
    return Grid(tuple(sorted(keys)), tuple(sorted(set(segments))), tuple(sorted(ranks)))


def _spread(low: int, high: int, steps: int) -> tuple[int, ...]:
    """Whole numbers from `low` to `high`, both included, so many in each octave."""
    octaves = math.log2(high / low)
    return tuple(sorted({*(round(low * 2 ** (k / steps)) for k in range(int(steps * octaves) + 1)), high}))


@dataclass(frozen=True)
class Effort:
    """How carefully to measure.

    Attributes:
        rounds: turns of every call.
        threads: torch threads.
        progress: show a progress bar.
    """

    rounds: int = 9
    threads: int = 1
    progress: bool = True


def measure(
    sizes: HeadSizes, calls: Sequence[KernelCall], effort: Effort, machine: Mapping[str, str], path: Path
) -> Timings:
    """Times the calls and writes the table; one that was interrupted goes on after its last whole round.

    Args:
        sizes: heads and dimension.
        calls: what to time.
        effort: how carefully.
        machine: what the table says of the machine.
        path: the table; finished rounds lie beside it until it is written.

    Returns:
        The timings.
    """
    kept = path.with_name(f"{path.name}.rounds")
    lasting = sorted((name, fact) for name, fact in machine.items() if name != "date")
    key = hashlib.sha256(repr((sizes, tuple(calls), effort.threads, lasting)).encode()).hexdigest()
    rounds = _finished_rounds(kept, key)
    with _threads(effort.threads):
        operands = Operands(sizes, max(max(call.keys, sizes.groups * call.segment) for call in calls))
        for number in range(len(rounds), effort.rounds):
            rounds.append(_round(operands, calls, f"round {number + 1} of {effort.rounds}", effort))
            _write(kept, json.dumps({"key": key, "rounds": rounds}))
    found = (round(1e3 * median(seconds), 6) for seconds in zip(*rounds, strict=True))
    timings = Timings(dict(machine), sizes, dict(zip(calls, found, strict=True)))
    write_timings(timings, path)
    kept.unlink()
    return timings


def _finished_rounds(path: Path, key: str) -> list[list[float]]:
    """The rounds of an interrupted measurement; none where another one was interrupted."""
    try:
        found = json.loads(path.read_text("utf-8"))
        return list(found["rounds"]) if found["key"] == key else []
    except (OSError, ValueError, LookupError, TypeError):
        return []


def _round(operands: Operands, calls: Sequence[KernelCall], name: str, effort: Effort) -> list[float]:
    """Seconds of every call, the fastest of its repeats."""
    clock, found, keys = _clock(effort.threads), [], 0
    for call in tqdm(calls, desc=name, disable=not effort.progress, leave=False):
        if call.keys != keys:
            causal_mask.cache_clear()  # the masks of all sizes together are larger than the tensors
            keys = call.keys
        found.append(_fastest(operands.run(call), clock))
    return found


def _clock(threads: int) -> Callable[[], float]:
    """The thread's own processor time where one thread does all the work and the system counts it finely."""
    own = threads == 1 and time.get_clock_info("thread_time").resolution <= FINE
    return time.thread_time if own else time.perf_counter


def _fastest(work: Callable[[], object], clock: Callable[[], float]) -> float:
    work()
    found = []
    for _ in range(REPEATS):
        started = clock()
        work()
        found.append(clock() - started)
    return min(found)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def write_timings(timings: Timings, path: Path) -> None:
    """Writes the table: the machine in comments, then a header and a row per call, all or nothing."""
    rows = [
        (call.kernel, *astuple(timings.sizes), call.keys, call.segment, call.rank, f"{time:.6f}")
        for call, time in sorted(timings.milliseconds.items())
    ]
    facts = [f"# {name}: {value}" for name, value in timings.machine.items()]
    _write(path, "\n".join([*facts, *(",".join(map(str, row)) for row in (COLUMNS, *rows))]) + "\n")


def _write(path: Path, text: str) -> None:
    """Replaces the file in one step, so that a crash leaves the old one or the new one."""
    draft = path.with_name(f"{path.name}.{os.getpid()}.draft")
    draft.write_text(text, "utf-8")
    draft.replace(path)


def read_timings(path: Path) -> Timings:
    """Reads a table.

    Raises:
        ValueError: no such file, other columns, no rows, mixed sizes, or a number that is none; one line.
    """
    try:
        return parse_timings(path.read_text("utf-8"))
    except OSError as error:
        raise ValueError(f"timings={str(path)!r}: {error.strerror or error}; {REMEDY}") from error
    except ValueError as error:
        raise ValueError(f"timings={str(path)!r}: {error}; {REMEDY}") from error


def parse_timings(text: str) -> Timings:
    """A table from its text.

    Raises:
        ValueError: what is wrong, without the place.
    """
    lines = text.splitlines()
    facts = (line[1:].partition(":") for line in lines if line.startswith("#"))
    rows = list(csv.reader(line for line in lines if line.strip() and not line.startswith("#")))
    if not rows or tuple(rows[0]) != COLUMNS:
        raise ValueError(f"the columns must be {','.join(COLUMNS)}")
    found = [_parse_row(number, row) for number, row in enumerate(rows[1:], 1)]
    if len({sizes for sizes, _, _ in found}) != 1:
        raise ValueError("it must hold rows, all of one kv_heads, groups and dim")
    milliseconds = {call: time for _, call, time in found}
    if len(milliseconds) < len(found):
        raise ValueError("a call is in two rows")
    missing = [kernel for kernel in KERNELS if kernel not in {call.kernel for call in milliseconds}]
    if missing:
        raise ValueError(f"no row of the kernel {missing[0]!r}")
    return Timings({name.strip(): value.strip() for name, _, value in facts}, found[0][0], milliseconds)


def _parse_row(number: int, row: list[str]) -> tuple[HeadSizes, KernelCall, float]:
    try:
        kernel, *middle, last = row
        heads, groups, dim, keys, segment, rank = (int(cell) for cell in middle)
        time = float(last)
    except ValueError as error:
        raise ValueError(f"row {number} must hold a kernel, six whole numbers and milliseconds") from error
    if kernel not in KERNELS:
        raise ValueError(f"row {number}: unknown kernel {kernel!r}")
    if not (math.isfinite(time) and time > 0 and min(heads, groups, dim, rank) > 0 and min(keys, segment) >= 0):
        raise ValueError(f"row {number}: sizes and milliseconds must be positive numbers, not {','.join(row[1:])}")
    return HeadSizes(heads, groups, dim), KernelCall(kernel, keys, segment, rank), time
