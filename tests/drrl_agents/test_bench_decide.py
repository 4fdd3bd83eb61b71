"""`drrl bench decide` times the decisions an agent really makes; no bar on a time here."""

from __future__ import annotations

import numpy as np
import pytest

from drrl_agents.bench import decide


@pytest.mark.parametrize("task", decide.TASKS)
def test_both_ways_decide_alike(task):
    """The bare network chooses what `predict` does, with every action allowed and with half of them masked."""
    asked = decide.ask(task, 8)
    np.testing.assert_array_equal(decide.bare(asked), decide.predicted(asked))
    asked.masks[:, ::2] = False
    np.testing.assert_array_equal(decide.bare(asked), decide.predicted(asked))
    assert (decide.bare(asked) % 2 == 1).all()


def test_every_row_has_its_bar(monkeypatch):
    """Milliseconds for one lane and microseconds a lane for many, here of calls that take half a second."""
    monkeypatch.setattr(decide, "seconds_of", lambda work: work() is not None and 0.5)
    rows = decide.run()
    assert len(rows) == 2 * len(decide.TASKS) * len(decide.LANES)
    assert {(row.unit, row.value, row.target) for row in rows} == {
        ("ms", 500.0, "<= 1.5"),
        ("µs", 0.5 / 256 * 1e6, "<= 100"),
    }
    assert not any(row.meets for row in rows)


def test_seconds_are_the_median_of_calls(monkeypatch):
    """Of three calls that take 1, 5 and 2 seconds it is 2; calls before them are not counted."""
    ticks = iter([0.0, 1.0, 1.0, 6.0, 6.0, 8.0])
    monkeypatch.setattr(decide.time, "process_time", lambda: next(ticks))
    called = []
    assert decide.seconds_of(lambda: called.append(1), rounds=3) == 2.0
    assert len(called) == 3 + decide.SETTLING
