"""Numbers under a published environment id never change: a golden trajectory per id, masked actions included."""

from __future__ import annotations

import copy
import json
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drrl_env.envs.registration import IDS
from drrl_env.envs.tasks import TASKS

FOLDER = Path(__file__).resolve().parents[2] / "golden"
BAR = 1e-4
"""What a reward may differ from one processor to another."""
REMEDY = (
    "raise the version suffix (and keep the old one registered or refuse it), or restore the numbers; "
    "a new id gets its file from `python tests/golden/regenerate.py ID`"
)
script = runpy.run_path(str(FOLDER / "regenerate.py"))


def golden(task: str) -> dict[str, Any]:
    """The golden file of an id."""
    path = FOLDER / f"{task}.json"
    assert path.exists(), f"{task} has no golden trajectory: run `python tests/golden/regenerate.py {task}`"
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def differences(wanted: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """What differs between two plays of a case, in words."""
    exact = [name for name in ("start", "choices", "masked", "terminated") if not _same(wanted[name], found[name])]
    rewards = np.abs(np.array(wanted["rewards"]) - np.array(found["rewards"])).max()
    flops = np.abs(np.array(wanted["flops"]) / np.array(found["flops"]) - 1).max()
    close = [f"rewards by {rewards:.2g}"] * bool(rewards > BAR) + [f"flops by a share of {flops:.2g}"] * bool(
        flops > BAR
    )
    return [*exact, *close]


def _same(wanted: Any, found: Any) -> bool:
    """Equal, floats to a relative 1e-9: a drawn parameter goes through a power, which processors round differently."""
    if isinstance(wanted, dict):
        return wanted.keys() == found.keys() and all(_same(wanted[name], found[name]) for name in wanted)
    return bool(np.isclose(wanted, found, rtol=1e-9, atol=0)) if isinstance(wanted, float) else bool(wanted == found)


@pytest.mark.parametrize("task", IDS)
def test_an_id_gives_what_it_gave_when_it_was_published(task: str) -> None:
    """Same start for the same seed, same executed choices; rewards within 1e-4, FLOPs within a share of 1e-4."""
    kept = golden(task)
    assert kept["id"] == task
    assert kept["settings"] == script["SETTINGS"], f"{task} was recorded under other settings; {REMEDY}"
    for name, case in kept["cases"].items():
        found = differences(case, script["played"](task, case))
        assert not found, f"{task}, case {name!r}: {', '.join(found)} changed under the same id; {REMEDY}"


@pytest.mark.parametrize("task", IDS)
def test_a_golden_trajectory_covers_a_whole_episode_and_masked_actions(task: str) -> None:
    """Every case runs to the end; under the guard at least one action was masked and carried out as another."""
    cases = golden(task)["cases"]
    assert set(cases) == set(script["CASES"])
    assert all(case["terminated"] for case in cases.values())
    assert any(cases["guard"]["masked"])


def test_every_golden_file_belongs_to_an_id() -> None:
    """A file of an id that is gone would be compared with nothing."""
    assert {path.stem for path in FOLDER.glob("*.json")} == set(IDS) == set(TASKS)


def test_a_changed_number_is_noticed() -> None:
    """The comparison sees a reward off by 2e-4, one FLOP count, one choice, another instance and another draw."""
    case = golden("DRRL-Tolerance-v0")["cases"]["open"]
    assert not differences(case, copy.deepcopy(case))
    for name, where, value in (
        ("rewards", 3, case["rewards"][3] + 2e-4),
        ("flops", 2, case["flops"][2] * 1.001),
        ("choices", 1, (case["choices"][1] + 1) % 8),
        ("start", "instance", "drrl://bundled/validation/0000-other"),
        ("start", "tolerance", case["start"]["tolerance"] * 1.001),
    ):
        other = copy.deepcopy(case)
        other[name][where] = value
        assert differences(case, other), f"a change of {name} went unnoticed"


def test_a_published_file_is_not_overwritten() -> None:
    """The script refuses to replace a file unless told to, and names the way out."""
    before = (FOLDER / "DRRL-Attention-v0.json").read_text()
    with pytest.raises(SystemExit, match="raise the version suffix"):
        script["write"]("DRRL-Attention-v0", replace=False)
    assert (FOLDER / "DRRL-Attention-v0.json").read_text() == before
