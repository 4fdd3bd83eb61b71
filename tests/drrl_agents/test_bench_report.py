"""What `drrl bench` prints."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
import torch

from drrl_agents.bench import update
from drrl_agents.bench.report import Row, machine, render, to_json

ROWS = [Row("update, n=512", 0.002, "ms"), Row("speed", 41.0, "ratio", ">= 40", True), Row("flat", 1.5, "ratio", "<= 1.3", False)]  # fmt: skip  # noqa: E501


def test_json_is_exactly_one_object_with_the_promised_keys(capsys):
    """`machine`, and `rows` of name, value, unit, target, meets: what a script reads; a second line would break it."""
    to_json(ROWS)
    printed = capsys.readouterr().out
    found = json.loads(printed)
    assert printed.count("\n") == 1
    assert list(found) == ["machine", "rows"]
    assert [list(row) for row in found["rows"]] == [["name", "value", "unit", "target", "meets"]] * 3
    assert found["rows"][0] == {"name": "update, n=512", "value": 0.002, "unit": "ms", "target": None, "meets": None}


def test_a_value_that_is_no_number_is_refused():
    """NaN is not JSON: a reader would fail later and elsewhere."""
    with pytest.raises(ValueError, match="JSON compliant"):
        to_json([Row("broken", float("nan"), "ms")])


def test_the_machine_is_described_and_not_named():
    """Processor, cores, threads, versions and platform; neither the host's name nor a path on it."""
    facts = machine()
    assert list(facts) == ["processor", "cores", "threads", "python", "torch", "platform"]
    assert facts["threads"] == torch.get_num_threads()
    text = json.dumps(facts)
    assert socket.gethostname() not in text
    assert str(Path.home()) not in text


def test_the_table_says_which_bars_are_met(capsys):
    """Every row with its bar, yes or no, and nothing where there is no bar."""
    render(ROWS)
    lines = capsys.readouterr().out.splitlines()
    assert any("speed" in line and ">= 40" in line and "yes" in line for line in lines)
    assert any("flat" in line and "<= 1.3" in line and "no" in line for line in lines)


def test_update_times_every_variant_at_every_length(monkeypatch):
    """One round over small layers: each variant runs on its own layer and gives a positive time."""
    monkeypatch.setattr(update, "HEADS", 1)
    names = set(update.works(256))
    times = update.measure({keys: update.works(keys) for keys in (256, 512)}, rounds=1)
    assert set(times) == {(name, keys) for name in names for keys in (256, 512)}
    assert all(seconds > 0 for seconds in times.values())
