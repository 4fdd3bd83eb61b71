"""Pages that are written from tables and measurements are what their scripts write now, and their examples run."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path

import numpy as np
import pytest

import drrl_env
from drrl_agents.tasks import Task
from drrl_env.envs import describe
from drrl_env.envs.arguments import Arguments
from drrl_env.envs.pages.markdown import attributes
from drrl_env.envs.pages.scores import measured
from drrl_env.envs.processes import process
from drrl_env.envs.registration import IDS
from drrl_env.envs.tasks import TASKS
from drrl_env.lowrank.statistics import STATISTICS

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
STALE = f"is stale: run `{describe.COMMAND}`"
LINK = re.compile(r"\]\((?!https?://)([^)#]+)\)")
EXAMPLE = re.compile(r"```python\n(.*?)```", re.DOTALL)


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    """Every generated page as it would be written now."""
    return describe.pages()


def test_every_page_is_fresh(pages: dict[str, str]) -> None:
    """docs/ holds what `python -m drrl_env.envs.describe --write` writes, a page for each id and nothing of another."""
    for name, text in pages.items():
        path = DOCS / name
        assert path.is_file(), f"docs/{name} {STALE}"
        assert path.read_text() == text, f"docs/{name} {STALE}"
    assert {path.stem for path in DOCS.glob("DRRL-*.md")} == set(IDS)


@pytest.mark.parametrize("task", TASKS)
def test_a_page_names_everything_there_is(task: str, pages: dict[str, str]) -> None:
    """Every entry of the observation with shape and source, every argument that counts, every term of the reward."""
    text, arena = pages[f"{task}.md"], describe.arena_of(task)
    for entry in arena.play.entries:
        assert f"| `{entry.name}` | ({entry.size},) |" in text
        assert entry.source.replace("|", "/") in text
    assert all(f"`{term}`" in text for term in arena.play.terms)
    assert ("| `tolerance` | `None`" in text) == (arena.task.parameter == "tolerance")
    assert ("| `budget` | `None`" in text) == (arena.task.parameter == "budget")
    assert str(arena.action_space) in text
    assert not re.search(r"\{\w+\}", EXAMPLE.sub("", text)), "a placeholder was left open"


def test_every_statistic_has_a_row(pages: dict[str, str]) -> None:
    """Name, cost and source of each are on the page of the statistics."""
    for statistic in STATISTICS.values():
        assert any(
            line.startswith(f"| `{statistic.name}` |") and line.endswith(f"| {statistic.source} |")
            for line in pages["statistics.md"].splitlines()
        ), statistic.name


def test_every_attribute_of_arguments_is_documented() -> None:
    """The table of arguments is read from a docstring: one forgotten there would be missing without a sound."""
    for task in TASKS:
        text = describe.arguments_table(task)
        assert text.count("\n") - 1 == len(attributes(Arguments)) - 2 + bool(TASKS[task].parameter)


def test_scores_are_those_that_were_measured(pages: dict[str, str]) -> None:
    """Each task has an oracle of score 1 and a random of score 0, and its page shows every row of the benchmark."""
    rows = measured()["rows"]
    assert {row["task"] for row in rows} == set(TASKS), "run `drrl bench tasks --json > benchmarks/tasks.json`"
    for row in rows:
        assert f"| {row['baseline']} |" in pages[f"{row['task']}.md"]
        if row["normalised_score"] is not None and row["baseline"] in ("random", "oracle"):
            assert row["normalised_score"] == pytest.approx(float(row["baseline"] == "oracle"), abs=1e-9)


@pytest.mark.parametrize("task", TASKS)
def test_the_examples_run(task: str, pages: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    """Every block of Python on a page, on one short span and with few steps: an example that fails teaches nothing."""
    blocks = EXAMPLE.findall(pages[f"{task}.md"])
    assert len(blocks) >= 2
    for block in blocks:
        short = block.replace("instances=16", "instances=1, context=256, layer=0").replace("10_000", "1")
        short = short.replace("n_steps=128", "n_steps=4").replace("learning_starts=256", "learning_starts=8")
        exec(compile(short, f"{task}.md", "exec"), {})
    assert task in capsys.readouterr().out


@pytest.mark.parametrize("task", [task for task in TASKS if task != "DRRL-Layers-v0"])  # whose search is slow
def test_the_oracle_is_asked_as_the_page_says(task: str, pages: dict[str, str]) -> None:
    """The expression on the page, on a short episode: an optimum no worse than random, or a front."""
    asked = re.search(r"`(drrl_env\.(?:oracle|pareto)\([^`]*)\)`", " ".join(pages[f"{task}.md"].split()))
    assert asked is not None
    known = {"drrl_env": drrl_env, "info": {"tolerance": 0.3, "budget": 1.0}}
    found = eval(f"{asked[1]}, context=256)", known)
    if "pareto" in asked[1]:
        assert found.points.shape == (len(found.choices), 3)
    else:
        assert found.random <= found.value + 2 * found.random_error
        assert found.value <= found.bound


def test_links_lead_somewhere() -> None:
    """Every relative link of the README and of docs/ names a file that is there."""
    for page in (ROOT / "README.md", *DOCS.glob("*.md")):
        for target in LINK.findall(page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_readme_links_every_environment_through_the_index() -> None:
    """The README leads to docs/README.md, which lists every id."""
    assert "(docs/README.md)" in (ROOT / "README.md").read_text()
    assert all(f"[{task}]({task}.md)" in (DOCS / "README.md").read_text() for task in TASKS)


def test_the_readme_shows_what_the_benchmarks_printed() -> None:
    """Every number between the marks comes from benchmarks/; a typed one would differ from what the script writes."""
    script = runpy.run_path(str(ROOT / "benchmarks" / "readme.py"))
    assert script["measured"]() in (ROOT / "README.md").read_text()


def test_the_page_on_learning_shows_what_the_predictions_are_worth() -> None:
    """Stale otherwise: run `python benchmarks/tolerance.py --page`."""
    script = runpy.run_path(str(ROOT / "benchmarks" / "tolerance.py"))
    report = json.loads((ROOT / "benchmarks" / "tolerance.json").read_text())
    assert script["section"](report) in (DOCS / "learning.md").read_text()
    scores = [row["score"] for row in report["rows"]]
    assert scores[-3:] == sorted(scores[-3:]), "better predictions were worth less"


def test_a_plan_is_worth_what_its_predictions_are() -> None:
    """Bar: the oracle's return where errors are known to a millionth, less where they are believed to be a third."""
    script = runpy.run_path(str(ROOT / "benchmarks" / "tolerance.py"))
    field = Task("DRRL-Tolerance-v0", context=512).field("train", 4, 2, progress=False)
    store = field.game.store
    processes = [process(field.game, store.block(e.instance, e.layer), e.parameter) for e in field.episodes]
    beliefs = script["believed"](field, field, script["ridge"], False)
    sure = [each.sharper(1e-6) for each in beliefs]
    assert script["played"](field, processes, sure) == pytest.approx(1, abs=1e-6)
    misled = [script["Beliefs"](each.known, each.means - np.log(3), each.deviations) for each in sure]
    assert script["played"](field, processes, misled) < 0.95
