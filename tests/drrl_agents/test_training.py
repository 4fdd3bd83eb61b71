"""A run leaves everything it promised, repeats itself bit for bit, and goes on where it stopped."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from drrl_agents.algorithms import ALGORITHMS
from drrl_agents.training import Train, train

TERMS = {f"reward_terms/{name}" for name in ("fidelity", "flops", "change")}
VALIDATION = TERMS | {"return", "normalised_score", "regret", "cosine", "relative_error", "flops_ratio"}
ROLLOUT = TERMS | {"return", "cosine", "relative_error", "flops_ratio", "score_change", "masked_action"}
NEWEST, BEFORE = "step-000000512.zip", "step-000000256.zip"


def events(folder: Path) -> EventAccumulator:
    """Everything TensorBoard would read of a run."""
    found = EventAccumulator(str(folder), size_guidance={"scalars": 0, "histograms": 0, "images": 0})
    return found.Reload()


def last(folder: Path, tag: str) -> float:
    """The last value of a scalar."""
    return float(events(folder).Scalars(tag)[-1].value)


def test_a_run_logs_every_promised_scalar(finished_run):
    """Validation before training, after each 256 steps and at the end; the rollouts as they come."""
    scalars = set(events(finished_run).Tags()["scalars"])
    assert {f"validation/{name}" for name in VALIDATION | {"total_flops_ratio"}} <= scalars
    assert {f"rollout/{name}" for name in ROLLOUT} <= scalars
    steps = {event.step for event in events(finished_run).Scalars("validation/normalised_score")}
    assert steps == {0, 256, 512}


def test_a_run_logs_rank_histograms_and_a_heatmap(finished_run):
    """`validation/rank` and `rollout/rank` as histograms of ranks, rank by layer and segment as an image."""
    tags = events(finished_run).Tags()
    assert {"validation/rank", "rollout/rank"} <= set(tags["histograms"])
    assert "validation/rank_by_layer_and_segment" in tags["images"]
    histogram = events(finished_run).Histograms("validation/rank")[-1].histogram_value
    assert histogram.num == 2 * 4 * 4
    assert (histogram.min >= 8, histogram.max <= 64) == (True, True)


def test_a_run_fills_the_hparams_tab(finished_run):
    """The event file holds the plugin's session with the algorithm, the guard, and a metric that exists."""
    content = events(finished_run).PluginTagToContent("hparams")
    assert {"_hparams_/experiment", "_hparams_/session_start_info"} <= set(content)
    assert b"maskable-ppo" in content["_hparams_/session_start_info"]
    assert b"validation/normalised_score" in content["_hparams_/experiment"]


def test_what_is_logged_agrees_with_itself(finished_run):
    """The terms sum to the return over four segments, and regret is what the oracle would have had more."""
    terms = sum(last(finished_run, f"validation/{name}") for name in TERMS)
    assert 4 * terms == pytest.approx(last(finished_run, "validation/return"), abs=1e-5)
    assert last(finished_run, "validation/regret") >= 0
    assert last(finished_run, "validation/normalised_score") <= 1
    assert last(finished_run, "validation/total_flops_ratio") > last(finished_run, "validation/flops_ratio")


def test_a_run_keeps_its_config_checkpoints_and_weights(finished_run, settings):
    """Config, two checkpoints, weights; nothing half-written is left behind."""
    config = json.loads((finished_run / "config.json").read_text())
    assert config["task"]["guard"] == "paper"
    assert (config["algo"], config["steps"], config["seed"]) == ("maskable-ppo", settings.steps, settings.seed)
    assert {"model_digest", "calibration_digest", "ranks", "hyperparameters", "versions", "command"} <= set(config)
    assert {path.name for path in (finished_run / "checkpoints").iterdir()} == {BEFORE, NEWEST}
    assert (finished_run / "policy.safetensors").is_file()
    assert not list(finished_run.rglob("*partial*"))


def test_a_masked_action_is_never_sampled_by_maskable_ppo(finished_run, settings, tmp_path):
    """Under the same guard PPO, which knows no masks, asks for forbidden ranks again and again."""
    assert {event.value for event in events(finished_run).Scalars("rollout/masked_action")} == {0.0}
    unmasked = train(replace(settings, algo="ppo", policy="mlp", steps=256, logdir=tmp_path))
    assert max(event.value for event in events(unmasked).Scalars("rollout/masked_action")) > 0.02


def test_the_same_seed_gives_the_same_weights_bit_for_bit(finished_run, settings, tmp_path):
    """And another seed gives others."""
    folders = finished_run, train_again(settings, tmp_path), train_again(replace(settings, seed=1), tmp_path)
    first, second, other = (load_file(folder / "policy.safetensors") for folder in folders)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def train_again(settings: Train, logdir: Path) -> Path:
    """The same run in another folder."""
    return train(replace(settings, logdir=logdir))


def test_a_taken_folder_is_not_written_over(settings, tmp_path):
    """A second run of the same seed gets a number behind it."""
    short = replace(settings, steps=1, policy="mlp", logdir=tmp_path)
    assert [train(short).name for _ in range(2)] == ["seed-0", "seed-0-2"]


def first_new_step(folder: Path, old: set[str]) -> int:
    """Step of the first validation in the event files that a resumed run added."""
    (added,) = {path.name for path in folder.glob("events*")} - old
    return min(event.step for event in events(folder / added).Scalars("validation/return"))


def test_resume_goes_on_from_the_newest_checkpoint(run_copy):
    """To 1,024 steps: first at 512, with checkpoints on the way and the settings of the run, not of the command."""
    old = {path.name for path in run_copy.glob("events*")}
    assert train(Train(steps=1_024, resume=run_copy, progress=False)) == run_copy
    assert first_new_step(run_copy, old) == 512
    names = sorted(path.name for path in (run_copy / "checkpoints").iterdir())
    assert names[-1] == "step-000001024.zip"
    config = json.loads((run_copy / "config.json").read_text())
    assert (config["steps"], config["n_envs"], config["task"]["context"]) == (1_024, 2, 512)


def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(run_copy, capsys):
    """Half a file: a message names it, and the run goes on at 256 instead of losing everything."""
    newest, old = run_copy / "checkpoints" / NEWEST, {path.name for path in run_copy.glob("events*")}
    newest.write_bytes(newest.read_bytes()[: newest.stat().st_size // 2])
    train(Train(steps=512, resume=run_copy, progress=False))
    message = [line for line in capsys.readouterr().err.splitlines() if NEWEST in line]
    assert len(message) == 1
    assert "cannot be read" in message[0]
    assert first_new_step(run_copy, old) == 256


def test_resume_of_a_finished_run_leaves_its_weights(run_copy):
    """Nothing to do: the weights are those of the newest checkpoint."""
    before = load_file(run_copy / "policy.safetensors")
    train(Train(steps=512, resume=run_copy, progress=False))
    after = load_file(run_copy / "policy.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_every_algorithm_trains_and_leaves_a_run(settings, algo, tmp_path):
    """A few steps of an MLP: config, weights and a final validation are there."""
    folder = train(replace(settings, algo=algo, policy="mlp", steps=64, logdir=tmp_path))
    assert (folder / "policy.safetensors").is_file()
    assert last(folder, "validation/normalised_score") <= 1
    assert folder == tmp_path / "DRRL-Attention-v0" / f"{algo}-mlp" / "seed-0"
