"""Every wrong argument ends in one line on stderr, with exit code 2, before anything is measured."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from drrl_agents.tasks import PLAYED, VECTOR
from drrl_agents.training import check_writable

SMALL = ("--context", "512", "--no-progress")
TRAIN = ("train", "DRRL-Attention-v0", *SMALL)
COMPARE = ("compare", "DRRL-Attention-v0", *SMALL)

WRONG = {
    "unknown environment": (("train", "DRRL-Attention-v9", *SMALL), "env='DRRL-Attention-v9'", "DRRL-Attention-v0"),
    "unknown algorithm": ((*TRAIN, "--algo", "sarsa"), "algo='sarsa'", "maskable-ppo"),
    "algorithm of other actions": (
        ("train", "DRRL-Heads-v0", *SMALL, "--algo", "sac"),
        "algo='sac'",
        "DRRL-Attention-Continuous-v0",
    ),
    "unknown environment to compare on": (("compare", "DRRL-Heads-v9", *SMALL), "env='DRRL-Heads-v9'", "DRRL-Heads-v0"),
    "tolerance of another task": (("compare", "DRRL-Budget-v0", *SMALL, "--tolerance", "1", "2"), "tolerance=", "DRRL"),
    "unknown policy": ((*TRAIN, "--policy", "lstm"), "policy='lstm'", "transformer"),
    "unknown split": ((*COMPARE, "--split", "dev"), "split='dev'", "validation"),
    "unknown guard": ((*TRAIN, "--guard", "strict"), "guard='strict'", "paper"),
    "unknown reward": ((*TRAIN, "--reward", "mine"), "reward='mine'", "default"),
    "unknown basis": ((*TRAIN, "--basis", "svd"), "basis='svd'", "calibrated"),
    "unknown statistic": ((*TRAIN, "--statistics", "entropy"), "statistics='entropy'", "stable_rank"),
    "unknown cost": ((*TRAIN, "--cost", "joules"), "cost='joules'", "drrl calibrate latency"),
    "unknown value rank": ((*TRAIN, "--value-rank", "half"), "value_rank='half'", "balanced"),
    "rank above the head dimension": ((*TRAIN, "--ranks", "8", "96"), "ranks=(8, 96)", "up to 64"),
    "layer that is not there": ((*TRAIN, "--layer", "9"), "layer=9", "0 to 3"),
    "context of no whole segments": (("train", "--context", "500"), "context=500", "384"),
    "unknown model folder": ((*TRAIN, "--model", "/nowhere/model"), "model='/nowhere/model'", "config.json"),
    "text that is not there": ((*TRAIN, "--text", "/nowhere/a.txt"), "text=/nowhere/a.txt", "text file"),
    "no steps": ((*TRAIN, "--steps", "0"), "steps=0", "at least 1"),
    "no environments": ((*TRAIN, "--n-envs", "0"), "n_envs=0", "at least 1"),
    "no threads": ((*COMPARE, "--threads", "0"), "threads=0", "at least 1"),
    "more spans than there are": ((*TRAIN, "--instances", "100000"), "instances=100000", "at most"),
    "more validation spans than there are": (
        (*TRAIN, "--instances", "2", "--validation-instances", "100000"),
        "instances=100000",
        "at most",
    ),
    "more test spans than there are": ((*COMPARE, "--instances", "100000"), "instances=100000", "at most"),
    "unknown benchmark": (("bench", "nonsense"), "name='nonsense'", "update"),
}


def refused(found: tuple[int, str], *parts: str) -> None:
    """Exit code 2 and one line that holds these parts."""
    code, said = found
    assert code == 2, said
    assert len(said.strip().splitlines()) == 1, said
    assert said.startswith("drrl: ")
    for part in parts:
        assert part in said


@pytest.mark.usefixtures("_no_measuring")
@pytest.mark.parametrize(("arguments", "named", "remedy"), WRONG.values(), ids=WRONG)
def test_a_wrong_argument_is_named_with_its_remedy(drrl, arguments, named, remedy, tmp_path):
    """Its name, its value and what to do; a test fails where measuring begins first."""
    place = () if arguments[0] == "bench" else ("--logdir", tmp_path)
    refused(drrl(*arguments, *place), named, remedy)


@pytest.mark.usefixtures("_no_measuring")
@pytest.mark.parametrize("command", ["train", "compare"])
def test_a_vector_reward_says_how_to_train_on_it(drrl, command, tmp_path):
    """One line: the id, and the face for rewards that are vectors."""
    refused(drrl(command, VECTOR, *SMALL, "--logdir", tmp_path), f"='{VECTOR}'", "vector", "mo_gymnasium.make")
    assert VECTOR not in PLAYED


@pytest.mark.usefixtures("_no_measuring")
def test_a_run_on_an_environment_that_is_not_played_is_refused(drrl, run_copy):
    """A config written by hand: evaluate says so, and no traceback."""
    config = json.loads((run_copy / "config.json").read_text())
    config["task"]["env"] = VECTOR
    (run_copy / "config.json").write_text(json.dumps(config))
    refused(drrl("evaluate", run_copy), f"env='{VECTOR}'", "mo_gymnasium.make")
    config["task"]["env"] = "DRRL-Attention-v9"
    (run_copy / "config.json").write_text(json.dumps(config))
    refused(drrl("evaluate", run_copy), "env='DRRL-Attention-v9'", *PLAYED)


@pytest.mark.usefixtures("_no_measuring")
@pytest.mark.parametrize("command", [("train",), ("compare",), ("demo", "--quick")], ids=lambda words: words[0])
def test_a_log_folder_that_cannot_be_made_is_refused(drrl, command, tmp_path):
    """Below a regular file, where not even root can write."""
    (tmp_path / "file").write_text("")
    refused(drrl(*command, "--logdir", tmp_path / "file" / "x"), "logdir=", "cannot be written to", "give")


@pytest.mark.usefixtures("_no_measuring")
def test_a_log_folder_without_permission_is_refused(drrl, monkeypatch, tmp_path):
    """The folder is there and says no: permission bits do not bind root, so the system call is made to fail."""

    def denied(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "NamedTemporaryFile", denied)
    refused(drrl("train", "--logdir", tmp_path), f"logdir='{tmp_path}'", "Permission denied")


def test_a_log_folder_that_can_be_written_to_is_left_empty(tmp_path):
    """The proof leaves nothing behind."""
    check_writable(tmp_path / "new" / "runs")
    assert list((tmp_path / "new" / "runs").iterdir()) == []


NOT_A_RUN = {
    "evaluate": ("run", lambda folder: ("evaluate", folder)),
    "compare": ("runs", lambda folder: (*COMPARE, "--runs", folder, "--logdir", folder)),
    "resume": ("resume", lambda folder: ("train", "--resume", folder)),
}


@pytest.mark.usefixtures("_no_measuring")
@pytest.mark.parametrize(("argument", "command"), NOT_A_RUN.values(), ids=NOT_A_RUN)
def test_a_folder_that_is_not_a_run_is_refused(drrl, argument, command, tmp_path):
    """Under the name the user gave it."""
    refused(drrl(*command(tmp_path)), f"{argument}='{tmp_path}'", "no config.json", "drrl train")


@pytest.mark.usefixtures("_no_measuring")
@pytest.mark.parametrize("damage", ["{", "[]", '{"task": {}}', '{"task": {"env": 1, "text": null, "ranks": null}}'])
def test_a_damaged_config_is_refused(drrl, run_copy, damage):
    """Cut short, of another shape, or of another version: one line, no traceback."""
    (run_copy / "config.json").write_text(damage)
    refused(drrl("evaluate", run_copy), "config.json is damaged")


@pytest.mark.usefixtures("_no_measuring")
def test_damaged_weights_are_refused(drrl, run_copy):
    """Cut in half, with NaN in them, of another network, or missing: evaluate and compare say so first."""
    weights = run_copy / "policy.safetensors"
    # Loaded tensors lie in the mapped file, which is cut below.
    good = {name: tensor.clone() for name, tensor in load_file(weights).items()}
    weights.write_bytes(weights.read_bytes()[:1000])
    refused(drrl("evaluate", run_copy), "run=", "policy.safetensors cannot be used")
    refused(drrl(*COMPARE, "--runs", run_copy, "--logdir", run_copy), "runs=", "policy.safetensors cannot be used")
    save_file({name: torch.full_like(tensor, torch.nan) for name, tensor in good.items()}, weights)
    refused(drrl("evaluate", run_copy), "NaN")
    save_file({name: tensor for name, tensor in good.items() if "slots" not in name}, weights)
    refused(drrl("evaluate", run_copy), "policy.safetensors cannot be used")
    weights.unlink()
    refused(drrl("evaluate", run_copy), "no policy.safetensors", "--resume")


@pytest.mark.usefixtures("_no_measuring")
def test_an_unknown_split_of_evaluate_is_refused(drrl, finished_run):
    """Before anything is measured."""
    refused(drrl("evaluate", finished_run, "--split", "dev"), "split='dev'", "validation")


@pytest.mark.usefixtures("_no_measuring")
def test_an_agent_of_another_task_is_refused(drrl, finished_run, tmp_path):
    """Other candidate ranks make another observation: said before the episodes are measured."""
    arguments = (*COMPARE, "--ranks", "8", "16", "64", "--runs", finished_run, "--logdir", tmp_path)
    refused(drrl(*arguments), "runs=", "another task")


@pytest.mark.usefixtures("_no_measuring")
def test_a_text_shorter_than_an_episode_is_refused(drrl, tmp_path):
    """With how many tokens it has."""
    (tmp_path / "short.txt").write_text("A few words only.")
    refused(drrl(*TRAIN, "--text", tmp_path / "short.txt", "--logdir", tmp_path), "text=", "tokens", "longer text")


@pytest.mark.usefixtures("_no_measuring")
def test_a_run_of_an_algorithm_that_is_gone_is_refused(drrl, run_copy):
    """A config written by hand or by another version."""
    config = json.loads((run_copy / "config.json").read_text())
    (run_copy / "config.json").write_text(json.dumps({**config, "algo": "sarsa"}))
    refused(drrl("evaluate", run_copy), "algo='sarsa'", "maskable-ppo")


def test_the_installed_command_answers_the_same_way(tmp_path):
    """The console script itself, from another directory: exit code 2, one line, no traceback."""
    script = Path(sys.executable).with_name("drrl")
    command = [script, "train", "nonsense", "--logdir", tmp_path]
    found = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=os.environ)
    refused((found.returncode, found.stderr), "env='nonsense'")
