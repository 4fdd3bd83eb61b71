"""One short training run, shared: MaskablePPO with the Transformer under the paper's guard, 512 steps."""

from __future__ import annotations

import csv
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from drrl_agents.cli import main
from drrl_agents.comparison import Comparison, entry, outcome
from drrl_agents.comparison_files import write_summary
from drrl_agents.entrants import AGENT, RULE, Entrant, basis_entrants, oracle_entrant, single
from drrl_agents.episodes import write_episodes
from drrl_agents.scoring import judge
from drrl_agents.tasks import Task
from drrl_agents.training import Train, train
from drrl_env.envs.arena import open_arena
from drrl_env.envs.store import Store
from drrl_policies.fitting import full
from drrl_policies.rollout import Reference, reference
from drrl_policies.rules import EnergyThreshold, Random

Drrl = Callable[..., tuple[int, str]]
"""Runs the `drrl` command in this process; gives its exit code and what it wrote to stderr."""


@pytest.fixture(scope="session")
def task() -> Task:
    """Four segments in a calibrated basis: ranks below full pay at once, and the guard forbids some."""
    return Task(context=512, basis="calibrated", guard="paper")


@pytest.fixture(scope="session")
def settings(task: Task) -> Train:
    """Two rollouts of 256 steps, a checkpoint after each."""
    counts = {"instances": 2, "validation_instances": 2, "n_envs": 2}
    return Train(task, steps=512, validate_every=256, progress=False, **counts)


@pytest.fixture(scope="session")
def finished_run(settings: Train, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run's folder; tests copy it before they change anything."""
    return train(replace(settings, logdir=tmp_path_factory.mktemp("runs")))


@pytest.fixture
def run_copy(finished_run: Path, tmp_path: Path) -> Path:
    """A copy of the run to damage or to go on with."""
    return Path(shutil.copytree(finished_run, tmp_path / "logdir" / "seed-0"))


@pytest.fixture
def drrl(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Drrl:
    """See `Drrl`."""

    def run(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["drrl", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        return code, capsys.readouterr().err

    return run


@pytest.fixture
def _no_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measuring a span fails the test: an argument must be refused before any work."""

    def refuse(*_: object, **__: object) -> None:
        pytest.fail("measuring began before the arguments were checked")

    monkeypatch.setattr(Store, "fill", refuse)
    monkeypatch.setattr(Store, "ensure_segment", refuse)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Commands set the number of torch threads; the next test starts from one again."""
    yield
    torch.set_num_threads(1)


def compared(task: Task, instances: int = 2, guessed: Reference | None = None, bases: bool = True) -> Comparison:
    """Two rules, two seeds of what stands for an agent, the offline bases and the oracle, on a few test spans."""
    found = task.field("test", instances, repeats=2, progress=False)
    made, sizes = judge(found, guessed or reference(found)), found.sizes
    agent = Entrant("an-agent", AGENT, (Random(sizes, 1), Random(sizes, 2)), (0, 1), task)
    entrants = [agent, single(Random(sizes), RULE, task), single(full(found), RULE, task)]
    if EnergyThreshold.reads <= set(found.arena.world.layout.slices):
        entrants.append(single(EnergyThreshold(sizes, 0.99, found.rank_components), RULE, task))
    entries = [entry(each, found, made) for each in entrants]
    for each in basis_entrants(task, 0.9) if bases else ():
        own = replace(each.task.field("test", instances, progress=False, measure=False), episodes=found.episodes)
        own = replace(own, arena=open_arena(task.env, len(found.episodes), each.task.arguments()))
        entries.append(entry(each, own, made))
    if guessed is None:
        entries.append(entry(oracle_entrant(found, task), found, made))
    return outcome(task, "test", entries, made)


@pytest.fixture(scope="session")
def compared_small() -> Comparison:
    """A task that draws a parameter, under a guard that forbids some ranks: eight episodes of four steps."""
    return compared(Task("DRRL-Tolerance-v0", context=512, basis="calibrated", guard="paper", layer=2), 4)


@pytest.fixture(scope="session")
def compared_heads() -> Comparison:
    """A task whose actions have several components."""
    return compared(Task("DRRL-Heads-v0", context=512, layer=1), 1)


class Cells:
    """Changes CSV files as text."""

    def rows(self, path: Path) -> list[dict[str, str]]:
        """The rows by column."""
        with path.open(newline="") as file:
            return list(csv.DictReader(file))

    def write(self, path: Path, rows: list[dict[str, str]]) -> None:
        """Writes them, the header first."""
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)

    def tamper(self, path: Path, row: int, **changes: Callable[[str], str]) -> dict[str, str]:
        """Changes cells of one row, counted from 1 below the header; gives the row as it was."""
        rows = self.rows(path)
        before = dict(rows[row - 1])
        for name, change in changes.items():
            rows[row - 1][name.rstrip("_")] = change(before[name.rstrip("_")])
        self.write(path, rows)
        return before


@pytest.fixture
def cells() -> Cells:
    """See `Cells`."""
    return Cells()


@pytest.fixture(scope="session")
def compare_few() -> Callable[..., Comparison]:
    """`compared`: the outcome of a few policies on some test spans of a task."""
    return compared


@pytest.fixture
def episodes_file(compared_small: Comparison, tmp_path: Path) -> Path:
    """`episodes.csv` of it, with `comparison.csv` beside it."""
    write_summary(compared_small, tmp_path / "comparison.csv")
    return write_episodes(compared_small, tmp_path / "episodes.csv")
