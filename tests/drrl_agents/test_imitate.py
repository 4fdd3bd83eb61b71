"""Cloning is a run like any other: it says what it did, goes on where it stopped, and can be trained further."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import drrl_agents.training
from drrl_agents import imitation
from drrl_agents.agent import load_agent
from drrl_agents.algorithms import hyperparameters_of
from drrl_agents.callback import RunCallback
from drrl_agents.checkpoints import newest_checkpoint
from drrl_agents.imitate import Imitate, imitate
from drrl_agents.training import Train, train
from drrl_agents.warm_start import described, recipe_of

TASK = "DRRL-Attention-v0"


class Killed(Exception):  # noqa: N818  (not an error of the run's)
    """Stops a run as a signal would."""


def events(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()


def scalars(folder: Path) -> dict[str, str]:
    """Tag to what TensorBoard shows of it, in repr, where NaN equals itself; without the wall clock's."""
    read = events(folder)
    tags = [tag for tag in read.Tags()["scalars"] if tag != "time/fps"]
    return {tag: repr([(point.step, point.value) for point in read.Scalars(tag)]) for tag in tags}


def config_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return found


def check_same(run: Path, whole: Path) -> None:
    """Weights and scalars to the bit."""
    one, other = (load_file(folder / "policy.safetensors") for folder in (run, whole))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert scalars(run) == scalars(whole)


@pytest.fixture(scope="module")
def cloned(settings: Train, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The oracle cloned on two spans, as the file says."""
    given = Imitate(settings.task, instances=2, validation_instances=2, progress=False)
    return imitate(replace(given, logdir=tmp_path_factory.mktemp("cloned")))


@pytest.fixture(scope="module")
def imitated(settings: Train, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cloned, then 512 steps of reinforcement learning."""
    return train(replace(settings, imitate=True, logdir=tmp_path_factory.mktemp("imitated")))


def test_the_folder_says_what_was_done(cloned, imitated, finished_run):
    """Beside the runs without cloning, not among their seeds."""
    names = [folder.parent.name for folder in (cloned, imitated, finished_run)]
    plain = "maskable-ppo-transformer"
    assert names == [f"{plain}-cloned", f"{plain}-cloned-rl", plain]
    assert {folder.name for folder in (cloned, imitated)} == {"seed-0"}


def test_the_config_keeps_the_recipe_and_what_then_differs(cloned, imitated, finished_run):
    """All of the file's entry; hyperparameters after cloning are the algorithm's but for `then`, which win."""
    recipe = recipe_of(TASK)
    for folder in (cloned, imitated):
        config = config_of(folder)
        assert config["imitation"] == described(recipe)
        assert config["hyperparameters"] == {**hyperparameters_of("maskable-ppo", TASK), **recipe.then}
    assert config_of(finished_run)["imitation"] is None
    assert (config_of(cloned)["steps"], config_of(imitated)["steps"]) == (0, 512)


def test_the_loss_of_every_epoch_is_shown(cloned, imitated):
    """Under imitation/loss by epoch, falling; the same in both, since cloning is the same."""
    points = events(cloned).Scalars("imitation/loss")
    assert [point.step for point in points] == list(range(recipe_of(TASK).cloning.epochs))
    assert points[-1].value < points[0].value
    assert scalars(cloned)["imitation/loss"] == scalars(imitated)["imitation/loss"]


def test_a_clone_is_validated_once_and_plays_better_than_a_fresh_agent(cloned, imitated, finished_run):
    """At step 0 and no other, half of the way from a fresh agent to the oracle or more; `drrl train` begins there."""
    fresh = events(finished_run).Scalars("validation/normalised_score")[0].value
    (point,) = events(cloned).Scalars("validation/normalised_score")
    assert point.step == 0
    assert point.value > (1 + fresh) / 2
    assert events(imitated).Scalars("validation/normalised_score")[0].value == point.value
    assert load_agent(cloned).card.task == TASK


def test_the_same_seed_clones_the_same_agent(cloned, settings, tmp_path):
    """Bit for bit, through the command's own function."""
    again = imitate(Imitate(settings.task, instances=2, validation_instances=2, logdir=tmp_path, progress=False))
    check_same(again, cloned)


@pytest.mark.parametrize("moment", ["cloning", "before the first checkpoint"])
def test_a_run_killed_before_its_first_checkpoint_begins_anew(moment, imitated, settings, tmp_path, monkeypatch):
    """In the middle of cloning, or at step 100: the same bits as the run that nothing stopped, no point doubled."""
    counts, update, step = [], imitation._update, RunCallback._on_step

    def dying_update(*given: Any) -> float:
        counts.append(1)
        if len(counts) == 3:
            raise Killed
        return update(*given)

    def dying_step(self: RunCallback) -> bool:
        if self.num_timesteps >= 100:
            raise Killed
        return step(self)

    with monkeypatch.context() as patch:
        if moment == "cloning":
            patch.setattr(imitation, "_update", dying_update)
        else:
            patch.setattr(RunCallback, "_on_step", dying_step)
        with pytest.raises(Killed):
            train(replace(settings, imitate=True, logdir=tmp_path))
    (stopped,) = tmp_path.glob("*/maskable-ppo-transformer-cloned-rl/*")
    assert newest_checkpoint(stopped / "checkpoints") is None
    assert train(Train(resume=stopped, progress=False)) == stopped
    check_same(stopped, imitated)


def test_a_resumed_run_does_not_clone_again(imitated, tmp_path, monkeypatch):
    """From the checkpoint of step 256: the same bits at the end, and the oracle is not asked."""
    run = Path(shutil.copytree(imitated, tmp_path / f"{TASK}/maskable-ppo-transformer-cloned-rl/seed-0"))
    for name in ("policy.safetensors", "model.zip", "checkpoints/step-000000512.safetensors"):
        (run / name).unlink()
    monkeypatch.setattr(drrl_agents.training, "warm_start", lambda *_: pytest.fail("cloned again"))
    train(Train(resume=run, progress=False))
    check_same(run, imitated)


def test_a_clone_can_be_trained_on(cloned, tmp_path, monkeypatch):
    """`--resume` with steps, two rollouts here: from step 0 and the clone's weights, without cloning again."""
    run = Path(shutil.copytree(cloned, tmp_path / f"{TASK}/maskable-ppo-transformer-cloned/seed-0"))
    monkeypatch.setattr(drrl_agents.training, "warm_start", lambda *_: pytest.fail("cloned again"))
    train(Train(resume=run, steps=2 * 8 * 128, progress=False))
    assert [(each["from"], each["steps"]) for each in config_of(run)["resumed"]] == [(0, 2_048)]
    assert events(run).Scalars("validation/normalised_score")[0].step == 0
    before, after = (load_file(folder / "policy.safetensors") for folder in (cloned, run))
    assert not all(torch.equal(before[name], after[name]) for name in before)


def test_the_command_clones_and_says_where_the_run_lies(drrl, tmp_path, monkeypatch):
    """`drrl imitate` through the command line; without `--steps`, which it does not have."""
    printed: list[str] = []
    monkeypatch.setattr("builtins.print", lambda *words, **_: printed.append(" ".join(map(str, words))))
    sizes = ("--context", 256, "--instances", 1, "--validation-instances", 1, "--policy", "mlp", "--no-progress")
    code, said = drrl("imitate", "DRRL-Heads-v0", *sizes, "--logdir", tmp_path)
    assert code == 0, said
    folder = tmp_path / "DRRL-Heads-v0" / "maskable-ppo-mlp-cloned" / "seed-0"
    assert printed[-1] == f"run: {folder}\ntensorboard --logdir {tmp_path}"
    assert (folder / "policy.safetensors").is_file()
