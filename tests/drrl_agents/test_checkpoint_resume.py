"""A run that was stopped anywhere and resumed is the run that was not: weights, state and TensorBoard, bit for bit."""

from __future__ import annotations

import errno
import multiprocessing
import os
import pickle
import random
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer.record_writer import RecordWriter

import drrl_agents.run_folder
import drrl_agents.training
from drrl_agents.algorithms import ALGORITHMS, hyperparameters_of
from drrl_agents.callback import CHECKPOINTS, RunCallback
from drrl_agents.checkpoints import Checkpoint, newest_checkpoint
from drrl_agents.tasks import PLAYED, Task
from drrl_agents.training import Train, train

ROLLOUT = {"n_steps": 18, "batch_size": 18, "n_epochs": 2}
REPLAY = {"learning_starts": 32, "batch_size": 16, "buffer_size": 100, "train_freq": 3}
REPLAYING = ("dqn", "qr-dqn", "sac", "tqc", "td3", "ddpg", "crossq")
SMALL: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("maskable-ppo", "ppo"), ROLLOUT),
    "recurrent-ppo": {**ROLLOUT, "policy_kwargs": {"lstm_hidden_size": 16}},
    "a2c": {"n_steps": 18},
    "trpo": {"n_steps": 18, "batch_size": 18},
    **dict.fromkeys(REPLAYING, REPLAY),
    **{algo: {**REPLAY, "target_update_interval": 20} for algo in ("dqn", "qr-dqn")},
    "ars": {"n_delta": 2, "n_top": 1, "n_eval_episodes": 2},
}
"""Rollouts that end within episodes of four steps; a replay buffer that is full, and begins anew, after 100 steps."""
FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
STOPPED_FROM = {**dict.fromkeys(SMALL, 108), **dict.fromkeys(REPLAYING, 102), "ars": 128}
"""Where the first update ends at which 100 steps are done."""
QUICK = ("dqn", "sac", "ars")  # target network and ε, learned entropy coefficient, flattened random search


class Killed(Exception):  # noqa: N818  (not an error of the run's)
    """Stops a run in the middle of a rollout, as a signal would."""


def stop_at(patch: pytest.MonkeyPatch, step: int) -> None:
    """The next run dies at this step."""
    inner = RunCallback._on_step

    def dying(self: RunCallback) -> bool:
        if self.num_timesteps >= step:
            raise Killed
        return inner(self)

    patch.setattr(RunCallback, "_on_step", dying)


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Tag to (step, value), as TensorBoard reads all of a run's event files; without the wall clock's."""
    read = EventAccumulator(str(folder), size_guidance={"scalars": 0, "histograms": 0, "images": 0}).Reload()
    shown = {tag: [(e.step, e.value) for e in read.Scalars(tag)] for tag in read.Tags()["scalars"] if tag != "time/fps"}
    shown |= {tag: [(e.step, e.histogram_value.sum) for e in read.Histograms(tag)] for tag in read.Tags()["histograms"]}
    return {**shown, **{tag: [(event.step, 0.0) for event in read.Images(tag)] for tag in read.Tags()["images"]}}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """The finished agent's."""
    return load_file(folder / "policy.safetensors")


def check_same(resumed: Path, whole: Path) -> None:
    """Final weights, everything TensorBoard shows, each step once, and every number of the last checkpoint."""
    check_no_doubled_steps(resumed)
    one, other = weights(resumed), weights(whole)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    shown, expected = ({tag: repr(points) for tag, points in scalars(run).items()} for run in (resumed, whole))
    assert shown == expected  # in repr NaN equals itself
    last, wanted = newest(resumed), newest(whole)
    assert last.step == wanted.step
    for name in wanted.tree:
        assert plain(last.tree[name]) == plain(wanted.tree[name]), name


def newest(folder: Path) -> Checkpoint:
    """The newest checkpoint of a run."""
    found = newest_checkpoint(folder / CHECKPOINTS)
    assert found is not None
    return found


def plain(tree: Any) -> Any:
    """A tree that == compares to the bit; without the seconds that episodes and logs took."""
    if isinstance(tree, dict):
        return {key: plain(each) for key, each in tree.items() if key not in ("t", "time/fps")}
    if isinstance(tree, (list, tuple)):
        return [plain(each) for each in tree]
    if isinstance(tree, torch.Tensor):
        return plain(tree.numpy())
    return (str(tree.dtype), tree.shape, tree.tobytes()) if isinstance(tree, (np.ndarray, np.generic)) else repr(tree)


def check_no_doubled_steps(folder: Path) -> None:
    """No tag has two points at one step."""
    for tag, points in scalars(folder).items():
        assert len(points) == len({step for step, _ in points}), tag


def go_on(folder: Path) -> None:
    """Resumes, after whatever else this process drew."""
    random.seed(99)
    np.random.seed(99)
    torch.manual_seed(99)
    assert train(Train(resume=folder, progress=False)) == folder


def small_settings(algo: str, patch: pytest.MonkeyPatch, logdir: Path, every: int = 100) -> Train:
    """192 steps of an MLP in two lanes, or what the last rollout makes of them, a checkpoint after each 100."""

    def smaller(name: str, task: str | None = None) -> dict[str, Any]:
        return {**hyperparameters_of(name, task), **SMALL[name]}

    patch.setattr(drrl_agents.run_folder, "hyperparameters_of", smaller)
    task = Task(context=512, basis="calibrated")
    counts = {"instances": 2, "validation_instances": 1, "n_envs": 2}
    return Train(task, algo, "mlp", steps=192, validate_every=every, logdir=logdir, progress=False, **counts)


def stopped_and_whole(settings: Train, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A run that died in a rollout at step 150, and the same one that did not."""
    whole = train(settings)
    with monkeypatch.context() as patch:
        stop_at(patch, 150)
        with pytest.raises(Killed):
            train(settings)
    (stopped,) = set(whole.parent.iterdir()) - {whole}
    return stopped, whole


@pytest.mark.parametrize(
    "algo", [pytest.param(algo, marks=[] if algo in QUICK else [pytest.mark.slow]) for algo in ALGORITHMS]
)
def test_every_algorithm_goes_on_bit_for_bit(algo, tmp_path, monkeypatch):
    """Died in a rollout at step 150, resumed at the checkpoint before: the same as never having stopped, in all."""
    stopped, whole = stopped_and_whole(small_settings(algo, monkeypatch, tmp_path), monkeypatch)
    assert newest(stopped).step == STOPPED_FROM[algo]
    go_on(stopped)
    check_same(stopped, whole)


@pytest.mark.slow
@pytest.mark.parametrize("env", sorted({*PLAYED} - {"DRRL-Attention-v0"}))
def test_every_task_goes_on_bit_for_bit(env, tmp_path, monkeypatch):
    """The same with PPO on every other task: parameters that are drawn, several ranks, numbers, a live model."""
    settings = small_settings("ppo", monkeypatch, tmp_path)
    settings = replace(settings, task=Task(env, context=512 if env == "DRRL-Budget-v0" else 256))
    stopped, whole = stopped_and_whole(settings, monkeypatch)
    go_on(stopped)
    check_same(stopped, whole)


def killed(settings: Train, awaited: Path, delay: float) -> bool:
    """Trains in a process of its own, which SIGKILL ends so many seconds after a file is there; False if too late."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["drrl_agents.training"])
    child = context.Process(target=train, args=(settings,))
    child.start()
    while child.is_alive() and not awaited.exists():
        time.sleep(0.005)
    time.sleep(delay)
    child.kill()
    child.join()
    assert child.exitcode in (0, -signal.SIGKILL)
    return child.exitcode != 0


@pytest.mark.parametrize("trial", [0, 1, *(pytest.param(n, marks=pytest.mark.slow) for n in range(2, 6))])
def test_a_run_killed_at_a_random_moment_goes_on_bit_for_bit(settings, finished_run, tmp_path, monkeypatch, trial):
    """MaskablePPO with the Transformer, SIGKILL; odd trials after the first checkpoint, even ones anywhere."""
    monkeypatch.setenv("DRRL_TRACES", "on")
    run = tmp_path / finished_run.relative_to(finished_run.parents[2])
    awaited = f"{CHECKPOINTS}/step-000000256.safetensors" if trial % 2 else "config.json"
    delay = random.Random(trial).uniform(0, 0.5 if trial % 2 else 2.5)
    while not killed(replace(settings, logdir=tmp_path), run / awaited, delay):
        shutil.rmtree(run)  # it had ended before: on a faster machine the same moment comes sooner
        delay /= 2
    go_on(run)
    check_same(run, finished_run)


def killed_copy(whole: Path, tmp_path: Path, keep: int) -> Path:
    """A copy of a finished run as SIGKILL after a checkpoint leaves it: without later ones and the results."""
    run = Path(shutil.copytree(whole, tmp_path / "copy" / "seed-0"))
    for path in (run / CHECKPOINTS).iterdir():
        if int(path.stem[5:]) > keep:
            path.unlink()
    for name in ("policy.safetensors", "model.zip"):
        (run / name).unlink()
    return run


def test_a_torn_event_file_shows_no_doubled_or_missing_points(finished_run, tmp_path):
    """All events up to the end are there, the last one cut in half, but the checkpoint is of step 256."""
    run = killed_copy(finished_run, tmp_path, 256)
    (torn,) = run.glob("events*")
    torn.write_bytes(torn.read_bytes()[:-7])
    go_on(run)
    check_same(run, finished_run)


def refuse(*_: object, **__: object) -> None:
    """What unpickling does in a resumed run."""
    pytest.fail("a checkpoint was unpickled")


def test_a_truncated_checkpoint_falls_back_and_still_gives_the_same_bits(finished_run, tmp_path, capsys, monkeypatch):
    """Half of the newest file: one line names it, the run goes on from the one before, and nothing is unpickled."""
    run = killed_copy(finished_run, tmp_path, 512)
    torn = run / CHECKPOINTS / "step-000000512.safetensors"
    torn.write_bytes(torn.read_bytes()[: torn.stat().st_size // 2])
    for owner, name in ((pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (torch, "load")):
        monkeypatch.setattr(owner, name, refuse)
    go_on(run)
    monkeypatch.undo()
    message = [line for line in capsys.readouterr().err.splitlines() if torn.name in line]
    assert len(message) == 1
    assert "going back to the one before" in message[0]
    check_same(run, finished_run)


def test_a_run_without_a_checkpoint_begins_anew(finished_run, tmp_path):
    """Killed before the first one: the same seed from the start, and what its events showed is taken back."""
    run = killed_copy(finished_run, tmp_path, -1)
    go_on(run)
    check_same(run, finished_run)


@pytest.fixture(scope="module")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Train, Path]:
    """A2C's settings with checkpoints at 72, 144 and 216, and the run that nothing stopped."""
    with pytest.MonkeyPatch.context() as patch:
        settings = small_settings("a2c", patch, tmp_path_factory.mktemp("small"), 64)
        return settings, train(settings)


def again(settings: Train, patch: pytest.MonkeyPatch, logdir: Path) -> Path:
    """The same run, with whatever is in its way."""
    return train(small_settings(settings.algo, patch, logdir, settings.validate_every))


def test_a_full_disk_keeps_the_checkpoint_before_and_training_goes_on(small_run, tmp_path, monkeypatch, capsys):
    """ENOSPC at step 144 and never again: a message, no half file, and the same weights at the end."""
    calls, inner = [], os.fsync

    def full(number: int) -> None:
        calls.append(number)
        if len(calls) == 3:  # the first checkpoint synchronises its file and its folder
            raise FULL
        inner(number)

    monkeypatch.setattr(os, "fsync", full)
    run = again(small_run[0], monkeypatch, tmp_path)
    message = capsys.readouterr().err
    assert "the checkpoint of step 144 cannot be written (No space left on device)" in message
    assert "training goes on" in message
    kept = sorted(path.name for path in (run / CHECKPOINTS).iterdir())
    assert kept == ["step-000000072.safetensors", "step-000000216.safetensors"]
    check_same(run, small_run[1])


def test_events_that_cannot_be_written_are_left_out_and_training_goes_on(small_run, tmp_path, monkeypatch, capsys):
    """ENOSPC in TensorBoard's writer, whose thread dies of it: one message, later points are there, the weights too."""
    written, inner, learn = [], RecordWriter.write, drrl_agents.training._learn

    def full(self: RecordWriter, content: bytes) -> None:
        written.append(content)
        if len(written) in (60, 61):
            raise FULL
        inner(self, content)

    def learning(*arguments: Any) -> None:
        """From here on: the lines of the rules and the oracle are written before."""
        monkeypatch.setattr(RecordWriter, "write", full)
        learn(*arguments)

    monkeypatch.setattr(drrl_agents.training, "_learn", learning)
    monkeypatch.setattr("threading.excepthook", lambda _: None)
    run = again(small_run[0], monkeypatch, tmp_path)
    assert capsys.readouterr().err.count("events cannot be written") == 1
    assert all(torch.equal(tensor, weights(small_run[1])[name]) for name, tensor in weights(run).items())
    points, wanted = scalars(run), scalars(small_run[1])
    assert points["validation/return"][-1] == wanted["validation/return"][-1]
    assert sum(map(len, points.values())) < sum(map(len, wanted.values()))
    check_no_doubled_steps(run)


@pytest.fixture
def _ctrl_c() -> Iterator[None]:
    """Python's own handlers: a test run begun with nohup, or in the background, has SIGINT ignored."""
    own = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in own.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("_ctrl_c")
def test_ctrl_c_writes_a_checkpoint_and_says_how_to_go_on(small_run, tmp_path, monkeypatch, capsys):
    """SIGINT in a rollout that ends at 36, where nothing was due: exit code 130, and the same bits afterwards."""
    inner = RunCallback._on_step

    def pressing(self: RunCallback) -> bool:
        if self.num_timesteps == 20:
            os.kill(os.getpid(), signal.SIGINT)
        return inner(self)

    with monkeypatch.context() as patch:
        patch.setattr(RunCallback, "_on_step", pressing)
        with pytest.raises(SystemExit) as stop:
            again(small_run[0], patch, tmp_path)
    (stopped,) = tmp_path.glob("*/a2c-mlp/*")
    assert stop.value.code == 130
    assert f"drrl train --resume {stopped}" in capsys.readouterr().err
    assert newest(stopped).step == 36
    go_on(stopped)
    check_same(stopped, small_run[1])


@pytest.mark.usefixtures("_ctrl_c")
def test_a_second_ctrl_c_stops_at_once(tmp_path, monkeypatch, capsys):
    """Twice in one step: no checkpoint is made, the way on is told all the same."""
    settings = small_settings("a2c", monkeypatch, tmp_path)
    signals = iter((signal.SIGINT, signal.SIGTERM))
    monkeypatch.setattr(RunCallback, "_on_step", lambda _: [os.kill(os.getpid(), each) for each in signals] == [])
    with pytest.raises(SystemExit) as stop:
        train(settings)
    assert stop.value.code == 130
    assert "drrl train --resume" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.safetensors"))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
