"""`drrl calibrate latency`: measures, judges, keeps the timings whatever they are, and says what to do with them."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from drrl_agents import calibrate
from drrl_env.envs.costs import resolve_cost
from drrl_env.lowrank.timings import Timings, read_timings, write_timings

SMALL = ("--context", 128, "--segment", 32, 64, "--no-progress")


@pytest.fixture
def measured(monkeypatch):
    """Timings by a law times a factor per call, instead of the clock's; gives what was asked to be measured."""
    asked = []

    def with_factor(factor):
        def measure(sizes, calls, effort, machine, path):
            asked.append((sizes, calls, effort, machine))
            times = {
                call: (0.01 + 1e-6 * (call.keys + 1) * (call.segment + 1) * call.rank) * factor(place)
                for place, call in enumerate(calls)
            }
            found = Timings(machine, sizes, times)
            write_timings(found, path)
            return found

        monkeypatch.setattr(calibrate, "measure", measure)
        return asked

    return with_factor


def test_a_good_fit_is_reported_and_its_use_shown(measured, drrl, monkeypatch, tmp_path):
    """Exit code 0; R², median error and the line to type; the table is the one that was asked for."""
    (asked, printed), path = (measured(lambda place: 1.0), []), tmp_path / "new" / "mine.csv"
    monkeypatch.setattr("builtins.print", lambda *words, **_: printed.append(" ".join(map(str, words))))
    code, said = drrl("calibrate", "latency", *SMALL, "--out", path)
    assert code == 0, said
    text = "\n".join(printed)
    assert "held-out R² 0.9" in text
    assert "median relative error" in text
    assert f'cost="{path}"' in text
    ((sizes, calls, _, machine),) = asked
    assert (sizes.kv_heads, sizes.groups, sizes.dim) == (4, 1, 64)
    assert max(call.keys for call in calls) == 128
    assert {call.segment for call in calls if call.kernel == "full attention"} == {32, 64}
    assert {"processor", "cores", "threads", "torch", "date"} <= set(machine)
    assert resolve_cost(path).path == path


def test_a_bad_fit_fails_and_keeps_the_timings(measured, drrl, monkeypatch, tmp_path):
    """Times that differ tenfold without reason: exit code 1 and one line that says so; the table is there."""
    measured(lambda place: 10 ** math.sin(12345.678 * (place + 1) ** 2))
    printed = []
    monkeypatch.setattr("builtins.print", lambda *words, **_: printed.append(" ".join(map(str, words))))
    code, _ = drrl("calibrate", "latency", *SMALL, "--out", tmp_path / "mine.csv")
    assert code == 1
    assert printed[-1].startswith("R² is below 0.95")
    assert read_timings(tmp_path / "mine.csv").milliseconds


def test_the_table_goes_to_the_cache_folder_and_the_default_stays(measured, drrl, monkeypatch, tmp_path):
    """$DRRL_CACHE/timings, named for the heads; `cost="latency"` is the committed table as before."""
    monkeypatch.setenv("DRRL_CACHE", str(tmp_path))
    before = resolve_cost("latency")
    measured(lambda place: 1.0)
    assert drrl("calibrate", "latency", *SMALL)[0] == 0
    assert [path.name for path in (tmp_path / "timings").iterdir() if path.suffix == ".csv"] == ["4x1x64.csv"]
    assert resolve_cost("latency") == before


def test_the_clock_is_read(drrl, tmp_path):
    """Nothing replaced: a small grid is timed for real. Whether the fit is good on a busy machine is not asserted."""
    path = tmp_path / "mine.csv"
    code, said = drrl("calibrate", "latency", *SMALL, "--quick", "--out", path)
    assert code in (0, 1), said
    assert min(read_timings(path).milliseconds.values()) > 0
    assert [found.name for found in tmp_path.iterdir()] == ["mine.csv"]


def test_an_interruption_says_how_to_go_on(drrl, monkeypatch, tmp_path):
    """Control-C: exit code 130, one line and no traceback."""

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(calibrate, "measure", interrupt)
    code, said = drrl("calibrate", "latency", *SMALL, "--out", tmp_path / "mine.csv")
    assert (code, said) == (130, "drrl: interrupted; the same command goes on after the last whole round\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("energy",), "name='energy': unknown; use one of 'latency'"),
        (("latency", "--segment", 256, "--context", 128), "give sizes up to context=128"),
        (("latency", "--segment", 0), "segment=0: must be a whole number of at least 1"),
        (("latency", "--threads", 0), "threads=0: must be a whole number of at least 1"),
        (("latency", "--context", -5), "context=-5: must be a whole number of at least 1"),
        (("latency", "--model", "no/such/model"), "model='no/such/model'"),
        (("latency", "--out", Path(__file__).parent), "is a folder; name a file"),
        (("latency", "--out", Path(__file__) / "mine.csv"), "name a file in a folder you can write to"),
    ],
)
def test_a_wrong_argument_is_refused_before_anything_is_measured(arguments, said, drrl, monkeypatch):
    """Exit code 2 and one line that names it."""
    monkeypatch.setattr(calibrate, "measure", lambda *_: pytest.fail("measuring began"))
    code, error = drrl("calibrate", *arguments)
    assert code == 2
    assert said in error
    assert len(error.strip().splitlines()) == 1
