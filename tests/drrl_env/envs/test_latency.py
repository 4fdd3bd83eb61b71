"""The latency model: it finds a known law, is judged by what it never saw, and adds up what a segment executes."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from drrl_env.envs.latency import BAR, Forest, LatencyCost, accuracy, held_out
from drrl_env.envs.settings import Measurement
from drrl_env.envs.world import World, open_world
from drrl_env.lowrank.flops import AttentionShape, RankCost
from drrl_env.lowrank.kernels import (
    DECOMPOSITION,
    FULL,
    GRAMS,
    KERNELS,
    LOW_RANK,
    PROJECTION,
    HeadSizes,
    KernelCall,
    segment_calls,
)
from drrl_env.lowrank.timings import Timings, grid, read_timings, write_timings

SIZES = HeadSizes(kv_heads=4, groups=1, dim=64)


def law(call: KernelCall) -> float:
    """Milliseconds of a machine whose kernels take an overhead and a constant time per FLOP."""
    keys, segment = max(1, call.keys), max(1, call.segment)
    return {
        FULL: 0.02 + 2e-6 * keys * segment * 64,
        LOW_RANK: 0.03 + 2e-6 * keys * segment * call.rank,
        PROJECTION: 0.01 + 5e-6 * keys * call.rank,
        GRAMS: 0.02 + 1e-3 * segment,
        DECOMPOSITION: 0.3 + 1e-2 * call.rank,
    }[call.kernel]


def lawful(context: int = 2048) -> Timings:
    """The default grid under the law."""
    calls = grid(64, context, (32, 64, 128, 256)).calls(SIZES)
    return Timings({"processor": "Test Processor"}, SIZES, {call: round(law(call), 6) for call in calls})


@pytest.fixture(scope="module")
def timings() -> Timings:
    return lawful()


@pytest.fixture(scope="module")
def cost(timings: Timings, tmp_path_factory: pytest.TempPathFactory) -> LatencyCost:
    path = tmp_path_factory.mktemp("timings") / "table.csv"
    write_timings(timings, path)
    return LatencyCost.read(path)


@pytest.fixture(scope="module")
def world() -> World:
    return open_world(Measurement(context=512))


def test_a_known_law_is_recovered_at_sizes_it_never_saw(timings):
    """R² ≥ .99 and a median error of at most 5 % on held-out timings."""
    found = accuracy(timings)
    assert found.meets
    assert found.r2 >= 0.99
    assert found.relative_error <= 0.05
    assert set(found.by_kernel) == set(KERNELS)


def test_the_law_is_recovered_between_grid_points(cost):
    """At 1000 keys, 96 tokens and 27 columns, none of them on the grid: within 12 %."""
    calls = [KernelCall(LOW_RANK, 1000, 96, 27), KernelCall(PROJECTION, 1000, 0, 27), KernelCall(FULL, 700, 96, 64)]
    for call, found in cost.milliseconds(calls).items():
        assert found == pytest.approx(law(call), rel=0.12)


def test_what_is_held_out_is_not_fitted_to(timings):
    """Held-out times multiplied at random by 1/8 to 8: a forest that had seen them would still be within 50 %."""
    judged, fitted = held_out(timings)
    assert sorted(judged + fitted) == sorted(timings.milliseconds)
    assert len(judged) == -(-len(timings.milliseconds) // 5)
    assert not set(judged) & set(fitted)
    random = np.random.default_rng(0)
    spoilt = {call: timings.milliseconds[call] * 8 ** random.uniform(-1, 1) for call in judged}
    found = accuracy(replace(timings, milliseconds={**timings.milliseconds, **spoilt}))
    assert found.relative_error > 0.5
    assert found.r2 < 0.9
    seen = Forest(judged, spoilt.values()).predict(judged)
    assert np.median(np.abs(seen - list(spoilt.values())) / list(spoilt.values())) < 0.5


def test_noise_fails_the_bar(timings):
    """Times without any law: R² is near 0, and the accuracy says that it is not enough."""
    random = np.random.default_rng(0)
    noise = {call: float(np.exp(random.normal())) for call in timings.milliseconds}
    found = accuracy(replace(timings, milliseconds=noise))
    assert found.r2 < 0.2 < BAR
    assert not found.meets


def test_two_fits_give_the_same_bits(timings):
    """Of the same table: every prediction at grid points and between them."""
    calls = sorted(timings.milliseconds)
    asked = [*calls, *(replace(call, keys=call.keys + 3) for call in calls)]
    one, two = (Forest(calls, [timings.milliseconds[call] for call in calls]).predict(asked) for _ in range(2))
    assert one.tobytes() == two.tobytes()


def test_another_process_gives_the_same_bits():
    """The committed timings, fitted anew under another hash seed."""
    script = (
        "from drrl_env.envs.latency import LatencyCost; from drrl_env.lowrank.kernels import KernelCall, LOW_RANK;"
        "calls = [KernelCall(LOW_RANK, keys, 128, rank) for keys in range(128, 2049, 100) for rank in range(4, 65)];"
    )
    shown = "repr(sorted(LatencyCost.committed().milliseconds(calls).items()))"
    here: dict[str, object] = {}
    exec(script, here)
    command = [sys.executable, "-c", f"{script} print({shown})"]
    run = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, "PYTHONHASHSEED": "7"})
    assert run.stdout.strip() == eval(shown, here)


def expected_calls(basis: str) -> list[KernelCall]:
    """What the fourth segment runs at rank 16 with value rank 24 after rank 8 with value rank 12, written by hand."""
    update = [KernelCall(GRAMS, 0, 128, 64), KernelCall(DECOMPOSITION, 0, 0, 48)]
    keys = {
        "refreshed": [KernelCall(PROJECTION, 512, 0, 24)],
        "calibrated": [KernelCall(PROJECTION, 128, 0, 16), KernelCall(PROJECTION, 384, 0, 8)],
    }
    return [
        *(update if basis == "refreshed" else []),
        KernelCall(PROJECTION, 128, 0, 16),
        *keys[basis],
        KernelCall(PROJECTION, 128, 0, 24),
        KernelCall(PROJECTION, 384, 0, 12),
        KernelCall(LOW_RANK, 512, 128, 24),
    ]


@pytest.mark.parametrize("basis", ["refreshed", "calibrated"])
def test_a_segments_latency_is_the_sum_of_its_kernels(basis, cost):
    """By hand for one transition, and in the world's table for all of them."""
    shape = AttentionShape(4, 1, 64, 64, 128)
    assert list(segment_calls(shape, 3, RankCost(16, 24), RankCost(8, 12), basis, 48)) == expected_calls(basis)
    world = open_world(Measurement(context=512, basis=basis))
    calls = {}
    for layer, position, before, choice in np.ndindex(4, 4, 8, 8):
        ranks, width = world.streams[layer].costs, world.streams[layer].width
        calls[layer, position, before, choice] = segment_calls(
            shape, position, ranks[choice], ranks[before], basis, width
        )
    times = cost.milliseconds({call for some in calls.values() for call in some})
    for place, found in np.ndenumerate(cost.table(world)):
        assert found == pytest.approx(sum(times[call] for call in calls[place]), rel=1e-12)


def test_a_larger_rank_before_saves_milliseconds_in_a_calibrated_basis(cost):
    """Cached columns are not projected again; a refreshed basis caches no keys, and values either way."""
    table = cost.table(open_world(Measurement(context=512, basis="calibrated", value_rank="same")))
    assert (table[:, 1:, 0, 4] > table[:, 1:, 4, 4]).all()
    assert (table[:, 1:, -1, 4] > table[:, 1:, 0, 4]).all()


@pytest.mark.parametrize(
    ("measurement", "message"),
    [
        (
            Measurement(context=4096),
            r"context=4096: the timings of cost='table\.csv' hold 32 to 2048; .*--context 4096",
        ),
        (Measurement(context=1024, segment=512), r"segment=512: the timings .* hold 32 to 256; .*--segment 512"),
        (Measurement(context=512, segment=16), r"segment=16: the timings .* hold 32 to 256; .*--segment 16"),
    ],
)
def test_a_world_beyond_the_timings_is_refused_in_one_line(measurement, message, cost):
    """A forest cannot extrapolate: the argument, what there is, and the command that measures more."""
    for work in (cost.table, cost.full):
        with pytest.raises(ValueError, match=rf"\A{message}[^\n]*` and pass cost=PATH\Z"):
            work(open_world(measurement))


def test_another_models_timings_are_refused_in_one_line(world, timings, tmp_path):
    """Eight heads of dimension 32 say nothing of four of 64."""
    write_timings(replace(timings, sizes=HeadSizes(8, 2, 32)), tmp_path / "table.csv")
    wrong = r"\Acost='table\.csv': timed for 8 key heads of dimension 32 [^\n]*calibrate latency --model bundled`"
    with pytest.raises(ValueError, match=wrong):
        LatencyCost.read(tmp_path / "table.csv").table(world)


def test_a_table_that_changes_under_an_environment_is_noticed(world, timings, tmp_path):
    """It is not fitted to other numbers than those it was made with."""
    path = tmp_path / "table.csv"
    write_timings(timings, path)
    cost = LatencyCost.read(path)
    write_timings(replace(timings, milliseconds={c: 2 * t for c, t in timings.milliseconds.items()}), path)
    with pytest.raises(ValueError, match=r"\Acost='[^\n]*: the table has changed since it was read; make the env"):
        cost.table(world)
    assert LatencyCost.read(path) != cost


@pytest.fixture(scope="module")
def committed() -> Timings:
    return read_timings(LatencyCost.committed().path)


def test_the_committed_table_reaches_the_bar(committed):
    """R² ≥ .95 on held-out timings; a median error of at most 5 %, and 10 % for the worst kernel."""
    found = accuracy(committed)
    assert found.r2 >= BAR
    assert found.relative_error <= 0.05
    assert max(found.by_kernel.values()) <= 0.1
    assert found.points > 500


def test_the_committed_table_names_a_machine_and_no_host(committed):
    """Processor, cores, threads, torch and the date; nothing that names this computer or a place on it."""
    assert {"processor", "cores", "threads", "torch", "date"} <= set(committed.machine)
    said = " ".join(committed.machine.values())
    assert platform.node() not in said
    assert str(Path.home()) not in said


def test_the_committed_timings_vary_with_keys_and_rank(committed):
    """Full attention grows from segment to segment, and 8, 24 and 64 columns differ by a fifth at least."""
    cost = LatencyCost.committed()
    full = [KernelCall(FULL, keys, 128, 64) for keys in range(128, 4097, 128)]
    times = cost.milliseconds(full)
    # A step of 3 % at 4096 keys is within the timings' own noise, so neighbours may tie; every fourth may not.
    assert all(times[full[k + 4]] > times[full[k]] for k in range(len(full) - 4))
    for keys in (512, 1024, 2048):
        low, middle, high = (
            cost.milliseconds([c])[c] for c in (KernelCall(LOW_RANK, keys, 128, r) for r in (8, 24, 64))
        )
        assert 1.2 * low < middle
        assert 1.2 * middle < high


def test_the_default_does_not_depend_on_what_was_calibrated(tmp_path, monkeypatch):
    """A user's own table in the cache folder changes nothing until it is named: the id is deterministic."""
    before = LatencyCost.committed()
    monkeypatch.setenv("DRRL_CACHE", str(tmp_path))
    (tmp_path / "timings").mkdir()
    write_timings(lawful(512), tmp_path / "timings" / before.path.name)
    assert LatencyCost.committed() == before
    assert before.path.parent.parent == Path(sys.modules[LatencyCost.__module__].__file__).parent
