"""The timing table: what is measured, that nothing measured is lost, and that a bad table is refused in one line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from drrl_env.lowrank import timings
from drrl_env.lowrank.kernels import DECOMPOSITION, FULL, KERNELS, LOW_RANK, PROJECTION, HeadSizes, KernelCall
from drrl_env.lowrank.timings import COLUMNS, Effort, Grid, grid, measure, read_timings, write_timings

SIZES = HeadSizes(kv_heads=2, groups=2, dim=16)
SMALL = Grid(keys=(16, 32), segments=(8, 16), ranks=(4, 16)).calls(SIZES)
MACHINE = {"processor": "Test Processor", "cores": "2", "date": "2025-01-01"}
EFFORT = Effort(rounds=3, progress=False)


@pytest.fixture
def clocked(monkeypatch):
    """Rounds that take 1, 2, 3, ... milliseconds instead of being measured; gives the numbers of those that ran."""
    ran = []

    def round_of(operands, calls, name, effort):
        ran.append(int(name.split()[1]))
        return [1e-3 * ran[-1]] * len(calls)

    monkeypatch.setattr(timings, "_round", round_of)
    return ran


def fail_after(monkeypatch, rounds):
    """The user interrupts a measurement in the round after so many."""
    whole = timings._round

    def interrupted(operands, calls, name, effort):
        if int(name.split()[1]) > rounds:
            raise KeyboardInterrupt
        return whole(operands, calls, name, effort)

    monkeypatch.setattr(timings, "_round", interrupted)


def test_a_measurement_times_every_call_and_restores_the_threads(tmp_path):
    """Real kernels: each time is above 0, of every kernel; the caller's threads are as they were."""
    before = torch.get_num_threads()
    found = measure(SIZES, SMALL, Effort(rounds=2, threads=2, progress=False), MACHINE, tmp_path / "table.csv")
    assert torch.get_num_threads() == before
    assert set(found.milliseconds) == set(SMALL)
    assert {call.kernel for call in SMALL} == set(KERNELS)
    assert min(found.milliseconds.values()) > 0
    assert [path.name for path in tmp_path.iterdir()] == ["table.csv"]


def test_a_table_is_read_as_it_was_written(tmp_path, clocked):
    """Times, sizes and what it says of the machine; the columns in plain words."""
    found = measure(SIZES, SMALL, EFFORT, MACHINE, tmp_path / "table.csv")
    assert read_timings(tmp_path / "table.csv") == found
    lines = (tmp_path / "table.csv").read_text("utf-8").splitlines()
    assert lines[:3] == [f"# {name}: {fact}" for name, fact in MACHINE.items()]
    assert lines[3] == "kernel,kv_heads,groups,dim,keys,segment,rank,milliseconds"
    assert len(lines) == 4 + len(SMALL)


def test_a_time_is_the_median_over_rounds(tmp_path, clocked):
    """Of 1, 2 and 3 milliseconds, 2: one spoilt round changes nothing."""
    found = measure(SIZES, SMALL, EFFORT, MACHINE, tmp_path / "table.csv")
    assert set(found.milliseconds.values()) == {2.0}


@pytest.mark.parametrize("done", [0, 1, 2])
def test_an_interrupted_calibration_goes_on_where_it_was(done, tmp_path, clocked, monkeypatch):
    """Only the missing rounds are measured, those before count, and until then there is no table."""
    path = tmp_path / "table.csv"
    with monkeypatch.context() as patch:
        fail_after(patch, done)
        with pytest.raises(KeyboardInterrupt):
            measure(SIZES, SMALL, EFFORT, MACHINE, path)
    assert not path.exists()
    found = measure(SIZES, SMALL, EFFORT, {**MACHINE, "date": "2025-01-02"}, path)
    assert clocked == [1, 2, 3]
    assert set(found.milliseconds.values()) == {2.0}
    assert not path.with_name("table.csv.rounds").exists()


@pytest.mark.parametrize("other", ["machine", "sizes", "threads", "damaged"])
def test_rounds_of_another_measurement_are_not_taken(other, tmp_path, clocked, monkeypatch):
    """Another machine, other sizes, other threads, or a file cut in two: everything is measured anew."""
    path = tmp_path / "table.csv"
    with monkeypatch.context() as patch:
        fail_after(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            measure(SIZES, SMALL, EFFORT, MACHINE, path)
    kept = path.with_name("table.csv.rounds")
    if other == "damaged":
        kept.write_text(kept.read_text("utf-8")[:50], "utf-8")
    sizes = HeadSizes(1, 2, 16) if other == "sizes" else SIZES
    machine = {**MACHINE, "processor": "Other"} if other == "machine" else MACHINE
    effort = Effort(3, threads=2, progress=False) if other == "threads" else EFFORT
    measure(sizes, SMALL, effort, machine, path)
    assert clocked == [1, 2, 1, 2, 3]


def test_a_crash_while_writing_leaves_the_old_table(tmp_path, clocked, monkeypatch):
    """The new table takes the old one's place in one step, or not at all."""
    path = tmp_path / "table.csv"
    found = measure(SIZES, SMALL, EFFORT, MACHINE, path)
    old = path.read_text("utf-8")

    def crash(self, text, *_):
        with self.open("w", encoding="utf-8") as file:
            file.write(text[: len(text) // 2])
        raise OSError("no space left")

    monkeypatch.setattr(Path, "write_text", crash)
    with pytest.raises(OSError, match="no space left"):
        write_timings(found, path)
    assert path.read_text("utf-8") == old


def table(*rows):
    return "\n".join(["# processor: any", ",".join(COLUMNS), *rows]) + "\n"


GOOD = tuple(f"{kernel},2,2,16,32,8,4,0.5" for kernel in KERNELS)
BAD = {
    "empty": ("", "the columns must be kernel,kv_heads"),
    "other columns": ("n,T,r,ms\n1,2,3,4\n", "the columns must be kernel,kv_heads"),
    "no rows": (table(), "must hold rows"),
    "zero": (table("projection,2,2,16,32,8,4,0"), "row 1: sizes and milliseconds must be positive numbers"),
    "negative": (table(*GOOD, "projection,2,2,16,64,8,4,-1.5"), "row 6: sizes and milliseconds must be positive"),
    "not a number": (table("projection,2,2,16,32,8,4,nan"), "row 1: sizes and milliseconds must be positive numbers"),
    "infinite": (table("projection,2,2,16,32,8,4,inf"), "row 1: sizes and milliseconds must be positive numbers"),
    "no rank": (table("projection,2,2,16,32,8,0,1"), "row 1: sizes and milliseconds must be positive numbers"),
    "words": (table("projection,2,2,16,32,8,4,fast"), "row 1 must hold a kernel, six whole numbers"),
    "too short": (table("projection,2,2,16,32,8"), "row 1 must hold a kernel, six whole numbers"),
    "unknown kernel": (table("softmax,2,2,16,32,8,4,1"), "row 1: unknown kernel 'softmax'"),
    "mixed sizes": (table(*GOOD, "projection,4,2,16,32,8,4,1"), "all of one kv_heads, groups and dim"),
    "a call twice": (table(*GOOD, GOOD[0]), "a call is in two rows"),
    "a kernel missing": (table(*GOOD[:-1]), "no row of the kernel 'decomposition'"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_table_is_refused_in_one_line(name, tmp_path):
    """It names the file, what is wrong with it, and the command that makes a good one."""
    path = tmp_path / "table.csv"
    text, wrong = BAD[name]
    path.write_text(text, "utf-8")
    with pytest.raises(ValueError, match=r"\Atimings='.*table\.csv': [^\n]*; run `drrl calibrate latency`") as error:
        read_timings(path)
    assert wrong in str(error.value)


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00"])
def test_a_file_that_is_none_is_refused_in_one_line(content, tmp_path):
    """Missing, or not text."""
    path = tmp_path / "table.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"\Atimings='.*table\.csv': [^\n]*; run `drrl calibrate latency`"):
        read_timings(path)


@given(
    dim=st.sampled_from([8, 16, 64, 96, 128]),
    context=st.integers(512, 9000),
    segments=st.sets(st.integers(16, 512), min_size=1, max_size=4),
    quick=st.booleans(),
)
def test_a_grid_reaches_what_was_asked_for_and_not_beyond(dim, context, segments, quick):
    """Both ends are grid points, neighbours lie within an octave, and no call is twice or longer than its keys."""
    found = grid(dim, context, sorted(segments), quick)
    assert (found.keys[0], found.keys[-1]) == (min(segments), context)
    assert all(low < high <= 2 * low for low, high in zip(found.keys, found.keys[1:], strict=False))
    assert found.ranks[-1] == dim
    calls = found.calls(HeadSizes(2, 2, dim))
    assert len(set(calls)) == len(calls)
    assert all(call.segment <= call.keys for call in calls if call.kernel in (FULL, LOW_RANK))
    assert max(call.keys for call in calls if call.kernel == PROJECTION) >= 2 * max(segments)
    widths = [call.rank for call in calls if call.kernel == DECOMPOSITION]
    assert (min(widths), max(widths)) == (found.ranks[0], dim)


def test_the_default_grid_holds_every_segment_of_the_default_context():
    """At 128 tokens and 2048: attention of each of the 16 segments at each default rank was itself timed."""
    calls = set(grid(64, 4096, (32, 64, 128, 256, 512)).calls(HeadSizes(4, 1, 64)))
    for keys in range(128, 2049, 128):
        assert KernelCall(FULL, keys, 128, 64) in calls
        assert {KernelCall(LOW_RANK, keys, 128, rank) for rank in (8, 12, 16, 20, 24, 32, 40, 64)} <= calls
