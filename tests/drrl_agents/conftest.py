"""One short training run, shared: MaskablePPO with the Transformer under the paper's guard, 512 steps."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from drrl_agents.cli import main
from drrl_agents.tasks import Task
from drrl_agents.training import Train, train
from drrl_env.envs.store import Store

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
