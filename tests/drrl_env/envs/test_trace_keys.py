"""A trace is found by what its numbers depend on, all of it and nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from drrl_env.data.instances import Instance, instances, instances_from_text
from drrl_env.envs import live, traces
from drrl_env.envs.arrays import ArraySpec
from drrl_env.envs.ledger import save_all
from drrl_env.envs.settings import Measurement
from drrl_env.envs.store import Store
from drrl_env.envs.tables import BASE, SOURCES, tables
from drrl_env.envs.world import open_world
from drrl_env.lowrank import statistics
from drrl_env.lowrank.views import Statistic, View

SHORT = Measurement(context=256)
LAYER, CHOICES, POSITIONS = 1, range(8), range(2)
SPAN: Instance = instances("train")[0]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own, with traces on."""
    monkeypatch.setenv("DRRL_CACHE", str(tmp_path))
    monkeypatch.delenv("DRRL_TRACES", raising=False)
    return tmp_path


@pytest.fixture
def no_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model is not to be run from here on."""

    def forbidden(*args: Any) -> Any:
        raise AssertionError("measured again")

    monkeypatch.setattr(live, "capture", forbidden)


def new() -> Store:
    """A store that remembers nothing but what is on disk."""
    return Store(open_world(SHORT))


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


def files(folder: Path, suffix: str = ".safetensors") -> list[Path]:
    """Files below a folder."""
    return sorted(path for path in folder.rglob("*") if path.suffix == suffix)


OTHERS = {
    "segment": Measurement(context=256, segment=64),
    "context": Measurement(context=512),
    "ranks": Measurement(context=256, ranks=(8, 64)),
    "value_rank": Measurement(context=256, value_rank="same"),
    "basis": Measurement(context=256, basis="calibrated"),
    "statistics": Measurement(context=256, statistics=("energy_ratio", "stable_rank")),
}


def trace_path(measurement: Measurement = SHORT, span: Instance = SPAN, layer: int = LAYER) -> Path:
    """Where a block's trace lies."""
    return opened(measurement).path(span, layer, BASE)


def test_whatever_numbers_depend_on_has_a_key_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings, span, layer, engine, weights, configuration, tokenizer, calibration, arrays: no two share a file."""
    paths = [trace_path(), trace_path(span=instances("train")[1]), trace_path(layer=2)]
    paths += [trace_path(other) for other in OTHERS.values()]
    facts, specs, folder = opened().facts, tables(open_world(SHORT)), opened().folder.parent
    for name in ("weights", "calibration", "config", "tokenizer"):
        assert facts[name]
        paths.append(traces.Traces({**facts, name: "0"}, specs, folder).path(SPAN, LAYER, BASE))
    further = {BASE: (*specs[BASE], ArraySpec("further", (2, 3)))}
    paths += [traces.Traces(facts, further, folder).path(SPAN, LAYER, BASE), opened().path(SPAN, LAYER, SOURCES)]
    monkeypatch.setattr(traces, "ENGINE_VERSION", traces.ENGINE_VERSION + 1)
    paths.append(trace_path())
    assert len(set(paths)) == len(paths)


def test_an_engine_that_computes_other_numbers_reads_no_old_ones(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """A raised ENGINE_VERSION measures everything anew."""
    measure(new())
    monkeypatch.setattr(traces, "ENGINE_VERSION", traces.ENGINE_VERSION + 1)
    request.getfixturevalue("no_capture")
    with pytest.raises(AssertionError, match="measured again"):
        measure(new())


def test_the_key_says_what_a_text_is_and_not_where_it_lies(tmp_path: Path) -> None:
    """A user's file that was moved keeps its traces; one with other words under the same span's name does not."""
    words = " ".join(f"word {n}" for n in range(4000))
    spans = []
    for folder, text in (("here", words), ("there", words), ("changed", words.replace("word 7 ", "world 7 "))):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "text.txt").write_text(text)
        tokenizer = open_world(SHORT).model.tokenizer
        spans.append(instances_from_text(tmp_path / folder / "text.txt", tokenizer, 256, 1)[0])
    here, there, changed = (trace_path(span=span) for span in spans)
    assert here == there
    assert changed != here
    assert trace_path(span=replace(spans[2], uri=spans[0].uri)) == changed


def mine(view: View) -> torch.Tensor:
    """A user's own."""
    return view.total[:1] * 0


def test_statistics_from_outside_do_not_persist(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No version of ours says when a user changes one."""
    own = Statistic("mine", (1,), lambda sizes, width: 0.0, "here", mine)
    monkeypatch.setitem(statistics.STATISTICS, "mine", own)  # type: ignore[index]
    found = Store(open_world(replace(SHORT, statistics=("energy_ratio", "mine"))))
    measure(found)
    save_all()
    assert files(cache) == []
    open_world.cache_clear()
