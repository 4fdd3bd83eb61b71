"""What was computed persists: whole or in part, under its own key, whatever crashes and whoever else writes."""

from __future__ import annotations

import errno
import logging
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from drrl_env.data.instances import Instance, instances
from drrl_env.envs import live, traces
from drrl_env.envs.settings import Measurement
from drrl_env.envs.store import Store
from drrl_env.envs.tables import BASE, tables
from drrl_env.envs.world import open_world

SHORT = Measurement(context=256)
LAYER, CHOICES, POSITIONS = 1, range(8), range(2)
FORK = multiprocessing.get_context("fork")
SPAN: Instance = instances("train")[0]

Job = Callable[[], None]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own, with traces on."""
    monkeypatch.setenv("DRRL_CACHE", str(tmp_path))
    monkeypatch.delenv("DRRL_TRACES", raising=False)
    return tmp_path


@pytest.fixture(scope="module")
def reference() -> dict[str, np.ndarray]:
    """Everything of a block, measured without traces."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DRRL_TRACES", "off")
        found = new()
        found.fill([SPAN], [LAYER], progress=False)
        return numbers(found)


@pytest.fixture
def no_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model is not to be run from here on."""

    def forbidden(*args: Any) -> Any:
        raise AssertionError("measured again")

    monkeypatch.setattr(live, "capture", forbidden)


def new() -> Store:
    """A store that remembers nothing but what is on disk."""
    return Store(open_world(SHORT))


def numbers(found: Store) -> dict[str, np.ndarray]:
    """The span's block, copied."""
    block, segments = found.block(SPAN, LAYER), found.world.segments
    arrays = {name: getattr(found, name)[block].copy() for name in ("changes", "head_changes", "outcomes", "moments")}
    return {**arrays, "static": found.static[block * segments : (block + 1) * segments].copy()}


def opened(measurement: Measurement = SHORT) -> traces.Traces:
    """The traces of a measurement."""
    world = open_world(measurement)
    found = traces.open_traces(world, tables(world))
    assert found is not None
    return found


def measure(found: Store, choices: Any = CHOICES, positions: Any = POSITIONS) -> Store:
    """Measures some ranks of the span's block."""
    for position in positions:
        for choice in choices:
            found.ensure_outcome(found.block(SPAN, LAYER), position, choice)
    return found


def same(one: dict[str, np.ndarray], two: dict[str, np.ndarray]) -> bool:
    """Whether every bit is equal and nothing is missing."""
    return all(np.array_equal(one[name], two[name]) and not np.isnan(one[name]).any() for name in one)


def files(folder: Path, suffix: str = ".safetensors") -> list[Path]:
    """Files below a folder."""
    return sorted(path for path in folder.rglob("*") if path.suffix == suffix)


def in_processes(*jobs: Job) -> list[int | None]:
    """Runs jobs in processes of their own, at once; their exit codes."""
    # A forked child inherits the worlds that were loaded, not what a new store in it will measure.
    torch.set_num_threads(1)
    started = [FORK.Process(target=job) for job in jobs]
    for process in started:
        process.start()
    for process in started:
        process.join(60)
    return [process.exitcode for process in started]


def test_processes_fill_the_same_block_together(
    reference: dict[str, np.ndarray], request: pytest.FixtureRequest
) -> None:
    """Four workers, as a vector environment has, write other ranks of one block at the same moment: none is lost."""
    barrier = FORK.Barrier(4)

    def job(share: int) -> None:
        found = measure(new(), range(share, 8, 4))
        barrier.wait(60)
        found.save()

    assert in_processes(*(lambda share=share: job(share) for share in range(4))) == [0] * 4
    request.getfixturevalue("no_capture")
    assert same(numbers(measure(new())), reference)


def test_two_writers_of_other_parts_merge(reference: dict[str, np.ndarray], request: pytest.FixtureRequest) -> None:
    """Neither knew of the other when it began: the second adds, and does not replace."""
    one, two = new(), new()
    measure(one, range(4))
    measure(two, range(4, 8), [1])
    measure(two, range(3, 8), [0])
    one.save()
    two.save()
    request.getfixturevalue("no_capture")
    assert same(numbers(measure(new())), reference)


def die(*args: Any) -> Any:
    """What a power cut does."""
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_a_kill_in_the_middle_of_a_write_leaves_the_old_file(
    moment: str, reference: dict[str, np.ndarray], cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Killed before the bytes are on disk, or before the name is: what was written before is read without complaint."""
    measure(new(), [3], [0]).save()
    (path,) = files(cache)
    before = path.read_bytes()

    def job() -> None:
        setattr(os, moment, die)
        measure(new())

    assert in_processes(job) == [-signal.SIGKILL]
    assert path.read_bytes() == before
    assert len(files(cache, ".partial")) == 1
    found = new()
    assert not np.isnan(found.outcomes[found.block(SPAN, LAYER), 0, 3]).any()
    # The lock of the dead is free: nobody waits.
    assert same(numbers(measure(found)), reference)
    assert same(numbers(new()), reference)
    assert caplog.records == []


def test_what_a_crash_left_is_deleted_once_it_is_old(cache: Path) -> None:
    """A partial file of two hours ago goes; one of just now may be somebody's at work."""
    folder = opened().folder
    folder.mkdir(parents=True)
    old, fresh = folder / "a.1.0.partial", folder / "b.2.0.partial"
    for path in (old, fresh):
        path.write_bytes(b"half of a tr")
    os.utime(old, (time.time() - 7200,) * 2)
    measure(new(), [3], [0]).save()
    assert files(cache, ".partial") == [fresh]


def flip(path: Path) -> None:
    """One bit of the numbers."""
    raw = bytearray(path.read_bytes())
    raw[-10] ^= 1
    path.write_bytes(bytes(raw))


def other_key(path: Path) -> None:
    """A sound file under another's name."""
    one = new()
    one.ensure_outcome(one.block(SPAN, 2), 0, 0)
    one.save()
    other = opened().path(SPAN, 2, BASE)
    path.write_bytes(other.read_bytes())
    other.unlink()


def foreign(path: Path) -> None:
    """Sound as a file, but its rows lie beyond the block's."""
    found = measure(new(), [3], [0])
    entries = {name: (at + 99, rows) for name, (at, rows) in found._ledger.table(BASE).entries(0).items()}
    path.write_bytes(traces._packed(entries, opened()._key(SPAN, LAYER, BASE), SPAN.uri))


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "a flipped bit": flip,
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "cut in its header": lambda path: path.write_bytes(path.read_bytes()[:50]),
    "empty": lambda path: path.write_bytes(b""),
    "no safetensors": lambda path: path.write_bytes(os.urandom(4096)),
    "a header that claims the world": lambda path: path.write_bytes(b"\xff" * 64),
    "another key": other_key,
    "other arrays": foreign,
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_file_is_dropped_in_one_line_and_measured_anew(
    damage: Callable[[Path], Any], reference: dict[str, np.ndarray], cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The line names the file; the numbers are those they were, and the next reader finds a sound file."""
    measure(new())
    (path,) = files(cache)
    damage(path)
    found = new()
    found.block(SPAN, LAYER)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert str(path) in record.getMessage()
    assert "\n" not in record.getMessage()
    assert same(numbers(measure(found)), reference)
    assert same(numbers(new()), reference)
    assert len(caplog.records) == 1


def full_disk(*args: Any) -> Any:
    """What a full disk says."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_is_said_once_and_stops_nothing(
    call: str,
    reference: dict[str, np.ndarray],
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Blocks cannot be written: one line with the remedy, right numbers, no rubble; with room again, they persist."""
    with monkeypatch.context() as patch:
        patch.setattr(os, call, full_disk)
        found = measure(new())
        found.fill([SPAN], [0, 2], progress=False)
        assert same(numbers(found), reference)
    (record,) = caplog.records
    assert "No space left on device" in record.getMessage()
    assert "DRRL_CACHE" in record.getMessage()
    assert "\n" not in record.getMessage()
    assert files(cache) == files(cache, ".partial") == []
    measure(new())
    assert len(files(cache)) == 1


def test_a_cache_that_cannot_be_written_stops_nothing(
    reference: dict[str, np.ndarray], cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A file lies where the folder should: one line, and on without."""
    (cache / "file").write_text("in the way")
    monkeypatch.setenv("DRRL_CACHE", str(cache / "file"))
    for _ in range(2):
        assert same(numbers(measure(new())), reference)
    assert len(caplog.records) == 1


def test_switched_off_nothing_is_written_or_read(
    reference: dict[str, np.ndarray], cache: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """DRRL_TRACES=off: no file, and what files there are stay unread."""
    with monkeypatch.context() as patch:
        patch.setenv("DRRL_TRACES", "off")
        assert same(numbers(measure(new())), reference)
        assert not (cache / "traces").exists()
    measure(new())
    monkeypatch.setenv("DRRL_TRACES", "off")
    request.getfixturevalue("no_capture")
    with pytest.raises(AssertionError, match="measured again"):
        measure(new())


def test_a_misspelt_switch_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Better than to go on writing."""
    monkeypatch.setenv("DRRL_TRACES", "no")
    with pytest.raises(ValueError, match="DRRL_TRACES='no': unknown; use one of 'on', 'off'"):
        new()
