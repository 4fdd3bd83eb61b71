"""What was measured persists, whole or in part, whenever it leaves memory, and is read where it is first needed."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from drrl_env.data.instances import Instance, instances
from drrl_env.envs import live
from drrl_env.envs.settings import Measurement
from drrl_env.envs.store import Store, clear_stores, open_store
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


SCRIPT = """
from drrl_env.data.instances import instances
from drrl_env.envs.settings import Measurement
from drrl_env.envs.store import open_store
import torch
torch.set_num_threads(1)
store = open_store(Measurement(context=256))
block = store.block(instances("train")[0], 1)
for choice in range(7):
    store.ensure_outcome(block, 1, choice)
"""


def test_another_program_reads_the_same_bits(
    reference: dict[str, np.ndarray], cache: Path, request: pytest.FixtureRequest
) -> None:
    """One that measured a part of a block and ended without saying anything: the part is there, no model is run."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", SCRIPT], check=True, env=environment)
    assert len(files(cache)) == 1
    request.getfixturevalue("no_capture")
    found = numbers(measure(new(), range(7), [1]))
    for name in ("static", "changes", "head_changes"):
        assert np.array_equal(found[name], reference[name]), name
    for name in ("outcomes", "moments"):
        assert np.array_equal(found[name][1, :7], reference[name][1, :7])
        assert np.isnan(found[name][0]).all()
        assert np.isnan(found[name][1, 7]).all()


def test_a_complete_block_is_written_at_once(reference: dict[str, np.ndarray], cache: Path) -> None:
    """With the last rank of the last segment, without anybody asking; before that, nothing is."""
    found = measure(new(), positions=[1])
    measure(found, range(7), [0])
    assert files(cache) == []
    measure(found)
    assert len(files(cache)) == 1
    assert same(numbers(new()), reference)


def test_filling_again_runs_no_model(
    reference: dict[str, np.ndarray], request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store in which everything is on disk is filled by reading."""
    new().fill([SPAN], progress=False)
    request.getfixturevalue("no_capture")
    found = new()
    found.fill([SPAN], progress=False)
    assert found.is_filled(SPAN, range(4))
    assert same(numbers(found), reference)


def test_what_is_partial_is_finished_by_another(reference: dict[str, np.ndarray]) -> None:
    """The first streams one segment of two and measures two ranks; the second goes on from there, to the same bits."""
    measure(new(), [3, 5], [0]).save()
    found = new()
    assert found.ready[found.block(SPAN, LAYER)] == 1
    assert same(numbers(measure(found)), reference)


def evict(found: Store) -> None:
    """Captures another span where there is room for one only."""
    found.captured(instances("train")[1])


def collect(found: Store) -> None:
    """Nobody holds the store any longer."""


LEAVING = {"evicted": evict, "forgotten": Store.forget_live, "saved": Store.save, "collected": collect}


@pytest.mark.parametrize("leaving", LEAVING.values(), ids=LEAVING)
def test_what_is_partial_is_written_when_it_leaves_memory(
    leaving: Callable[[Store], None], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A span dropped for another, live spans forgotten, a store asked to save, a store nobody holds."""
    monkeypatch.setattr(live, "LIVE_BYTES", 1)
    found = measure(new(), [4], [0])
    assert files(cache) == []
    leaving(found)
    del found
    assert len(files(cache)) == 1
    again = new()
    assert not np.isnan(again.outcomes[again.block(SPAN, LAYER), 0, 4]).any()


def test_forgetting_stores_keeps_what_they_measured(no_capture_later: Callable[[], None]) -> None:
    """`clear_stores` writes first: the next store reads."""
    measure(open_store(SHORT), [2], [0])
    clear_stores()
    no_capture_later()
    measure(open_store(SHORT), [2], [0])
    clear_stores()


@pytest.fixture
def no_capture_later(request: pytest.FixtureRequest) -> Callable[[], None]:
    """Forbids running the model from when it is called."""
    return lambda: request.getfixturevalue("no_capture")


def test_a_worker_process_writes_when_it_ends(cache: Path) -> None:
    """Workers of multiprocessing leave without `atexit`; what they measured of a block stays all the same."""

    def job() -> None:
        global kept
        kept = measure(new(), [1], [0])  # held to the end, so that it is not the garbage collector that writes

    assert in_processes(job) == [0]
    assert len(files(cache)) == 1


kept: Store | None = None


def test_bases_of_earlier_segments_persist_apart(
    cache: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """In a file of their own, which other tasks do not read; read back they are the same bits, and nothing is run."""
    found = new()
    block = found.block(SPAN, LAYER)
    found.ensure_source_outcome(block, 1, 1, 3)
    found.ensure_source_changes(block, 1, 1)
    found.save()
    assert len(files(cache)) == 1
    again = new()
    again.block(SPAN, LAYER)
    assert "source_changes" not in vars(again)
    request.getfixturevalue("no_capture")
    again.ensure_source_outcome(block, 1, 1, 3)
    again.ensure_source_changes(block, 1, 1)
    for name in ("source_outcomes", "source_changes"):
        assert np.array_equal(getattr(found, name)[block], getattr(again, name)[block], equal_nan=True)
        assert not np.isnan(getattr(again, name)[block]).all()
