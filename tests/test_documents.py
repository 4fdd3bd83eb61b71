"""Pages that are written from tables and measurements are what their scripts write now."""

from __future__ import annotations

import runpy
from pathlib import Path

from drrl_env.envs.describe import page
from drrl_env.envs.observation import entries

ROOT = Path(__file__).resolve().parent.parent


def test_the_environments_page_is_fresh() -> None:
    """docs/DRRL-Attention-v0.md equals `python -m drrl_env.envs.describe`."""
    assert (ROOT / "docs" / "DRRL-Attention-v0.md").read_text() == page()


def test_the_page_names_every_entry() -> None:
    """Each entry of the observation has a row with its shape and source."""
    for entry in entries(8, 4, 256):
        assert f"| `{entry.name}` | ({entry.size},) |" in page()


def test_the_readme_shows_what_the_benchmarks_printed() -> None:
    """Every number between the marks comes from benchmarks/; a typed one would differ from what the script writes."""
    script = runpy.run_path(str(ROOT / "benchmarks" / "readme.py"))
    assert script["measured"]() in (ROOT / "README.md").read_text()
