"""Tuned values take their place in a file of hyperparameters, and nothing else in it moves."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from drrl_agents.hyperparameters import FOLDER
from drrl_agents.hyperparameters.writing import write_entry

TASK = "DRRL-Tolerance-v0"
VALUES = {"learning_rate": "lin_0.002", "batch_size": 64, "ent_coef": 1e-05, "policy_kwargs": {"net_arch": [64, 64]}}


@pytest.fixture(params=sorted(path.name for path in FOLDER.glob("*.yml") if path.stem != "imitation"))
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of each file that ships."""
    return Path(shutil.copy(FOLDER / request.param, tmp_path))


def yaml_entry(path: Path) -> dict[str, Any]:
    """What a file says of the task; nothing if it does not name it."""
    found: dict[str, Any] = yaml.safe_load(path.read_text()).get(TASK, {})
    return found


def test_the_entry_is_the_default_with_the_values(path):
    """Read back: every value as it was given, numbers as numbers, and what they do not name as the default has it.

    But how the Zoo wraps the task stays: without it TQC would be given an index to choose.
    """
    wrapper = {"env_wrapper": entry["env_wrapper"]} if "env_wrapper" in (entry := yaml_entry(path)) else {}
    write_entry(path, TASK, VALUES, "from a study")
    found = yaml.safe_load(path.read_text())
    assert found[TASK] == {**found["default"], **wrapper, **VALUES}
    assert type(found[TASK]["ent_coef"]) is float


def test_everything_else_stands_as_it_stood(path):
    """Line by line, comments and order too: what is gone or new belongs to the one entry."""
    before, entries = path.read_text(), yaml.safe_load(path.read_text())
    write_entry(path, TASK, VALUES, "from a study")
    after = yaml.safe_load(path.read_text())
    assert {name: each for name, each in after.items() if name != TASK} == {
        name: each for name, each in entries.items() if name != TASK
    }
    assert [name for name in after if name != TASK] == [name for name in entries if name != TASK]
    place = before.find(f"{TASK}:")
    head = before[:place].rpartition("\n\n")[0] if place >= 0 else before.rstrip()
    assert path.read_text().startswith(head)
    if place >= 0:
        assert path.read_text().endswith(before[place:].partition("\n\n")[2])
    assert not list(path.parent.glob("*.partial"))


def test_writing_again_replaces_what_was_written(path):
    """One entry, one line on its source: the last ones."""
    write_entry(path, TASK, VALUES, "first")
    write_entry(path, TASK, {"gamma": 0.5}, "second")
    text = path.read_text()
    assert text.count(f"\n{TASK}:") == 1
    assert ("# first" in text, text.count("# second")) == (False, 1)
    found = yaml.safe_load(text)
    wrapper = {"env_wrapper": found[TASK]["env_wrapper"]} if "env_wrapper" in found[TASK] else {}
    assert found[TASK] == {**found["default"], **wrapper, "gamma": 0.5}


def test_a_new_task_is_appended(path):
    """Behind the others."""
    write_entry(path, "DRRL-New-v0", VALUES, "from a study")
    assert list(yaml.safe_load(path.read_text()))[-1] == "DRRL-New-v0"


def test_a_file_without_a_default_to_build_on_is_refused_and_left_alone(tmp_path):
    """One line with the way out."""
    path = tmp_path / "own.yml"
    path.write_text(f"{TASK}:\n  gamma: 0.9\n")
    with pytest.raises(ValueError, match=r"^write='[^\n]*own.yml': has no `default: &default` entry; give[^\n]*$"):
        write_entry(path, TASK, VALUES, "from a study")
    assert path.read_text() == f"{TASK}:\n  gamma: 0.9\n"
