"""The folders are the architecture: a dependency points one way, and a file stays readable."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from importlinter.cli import lint_imports

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("drrl_env", "agents", "policies", "tests", "benchmarks")
LONGEST = 350


def test_dependencies_point_one_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """agents → policies → envs → models → lowrank, and no Gym word in the mathematics; contracts in pyproject.toml."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert lint_imports(config_filename="pyproject.toml", no_cache=True) == 0


def test_files_stay_short() -> None:
    """At most 350 lines each; the counter-model is one file per algorithm with everything in it."""
    files = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    lengths = {str(path.relative_to(ROOT)): len(path.read_text("utf-8").splitlines()) for path in files}
    assert len(files) > 30
    assert {name: length for name, length in lengths.items() if length > LONGEST} == {}
