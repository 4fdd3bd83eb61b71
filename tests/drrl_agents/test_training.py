"""A run leaves everything it promised, repeats itself bit for bit, and goes on where it stopped."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from sb3_contrib import MaskablePPO
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import drrl_agents.training
from drrl_agents.algorithms import ALGORITHMS, hyperparameters_of
from drrl_agents.checkpoints import read_checkpoint
from drrl_agents.training import Train, train

TERMS = {f"reward_terms/{name}" for name in ("fidelity", "flops", "change")}
VALIDATION = TERMS | {"return", "normalised_score", "regret", "cosine", "relative_error", "flops_ratio"}
ROLLOUT = TERMS | {"return", "cosine", "relative_error", "flops_ratio", "score_change", "masked_action"}
NEWEST, BEFORE = "step-000000512.safetensors", "step-000000256.safetensors"


def events(folder: Path) -> EventAccumulator:
    """Everything TensorBoard would read of a run."""
    found = EventAccumulator(str(folder), size_guidance={"scalars": 0, "histograms": 0, "images": 0})
    return found.Reload()


def last(folder: Path, tag: str) -> float:
    """The last value of a scalar."""
    return float(events(folder).Scalars(tag)[-1].value)


def test_a_run_logs_every_promised_scalar(finished_run):
    """Validation before training, after each 256 steps and, once, at the end; the rollouts as they come."""
    scalars = set(events(finished_run).Tags()["scalars"])
    assert {f"validation/{name}" for name in VALIDATION | {"total_flops_ratio"}} <= scalars
    assert {f"rollout/{name}" for name in ROLLOUT} <= scalars
    steps = [event.step for event in events(finished_run).Scalars("validation/normalised_score")]
    assert steps == [0, 256, 512]


def test_a_run_logs_rank_histograms_and_a_heatmap(finished_run):
    """`validation/rank` and `rollout/rank` as histograms of ranks, rank by layer and segment as an image."""
    tags = events(finished_run).Tags()
    assert {"validation/rank", "rollout/rank"} <= set(tags["histograms"])
    assert "validation/rank_by_layer_and_segment" in tags["images"]
    histogram = events(finished_run).Histograms("validation/rank")[-1].histogram_value
    assert histogram.num == 2 * 4 * 4
    assert (histogram.min >= 8, histogram.max <= 64) == (True, True)


def test_a_run_fills_the_hparams_tab(finished_run):
    """The event file holds the plugin's session, with the algorithm among its values."""
    content = events(finished_run).PluginTagToContent("hparams")
    assert b"maskable-ppo" in content["_hparams_/session_start_info"]


def test_what_is_logged_agrees_with_itself(finished_run):
    """The terms sum to the return over four segments, and regret is what the oracle would have had more."""
    terms = sum(last(finished_run, f"validation/{name}") for name in TERMS)
    assert 4 * terms == pytest.approx(last(finished_run, "validation/return"), abs=1e-5)
    assert last(finished_run, "validation/regret") >= 0
    assert last(finished_run, "validation/normalised_score") <= 1
    assert last(finished_run, "validation/total_flops_ratio") > last(finished_run, "validation/flops_ratio")


def test_a_run_keeps_its_config_checkpoints_and_weights(finished_run, settings):
    """Config, two checkpoints, weights, SB3's own zip of them; nothing half-written is left behind."""
    config = json.loads((finished_run / "config.json").read_text())
    assert config["task"]["guard"] == "paper"
    assert (config["algo"], config["steps"], config["seed"]) == ("maskable-ppo", settings.steps, settings.seed)
    assert {"model_digest", "calibration_digest", "ranks", "hyperparameters", "versions", "command"} <= set(config)
    assert {path.name for path in (finished_run / "checkpoints").iterdir()} == {BEFORE, NEWEST}
    assert {"policy.safetensors", "model.zip"} <= {path.name for path in finished_run.iterdir()}
    assert not list(finished_run.rglob("*partial*"))


def test_the_zip_is_the_same_agent(finished_run):
    """SB3 loads it, and its networks are those of the last checkpoint."""
    policy = read_checkpoint(finished_run / "checkpoints" / NEWEST).tree["modules"]["policy"]
    loaded = MaskablePPO.load(finished_run / "model.zip", device="cpu").policy.state_dict()
    assert policy.keys() == loaded.keys()
    assert all(torch.equal(policy[name], loaded[name]) for name in policy)


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


def steps_of(folder: Path, tag: str) -> list[int]:
    """Steps of a scalar's points."""
    return [event.step for event in events(folder).Scalars(tag)]


def test_off_policy_lanes_that_end_together_show_one_point(settings, tmp_path):
    """Eight lanes, whose episodes of four steps all end at once: SB3 would log every fourth, twice in a step."""
    run = train(replace(settings, algo="dqn", policy="mlp", n_envs=8, steps=192, logdir=tmp_path))
    assert steps_of(run, "rollout/ep_rew_mean") == [32, 64, 96, 128, 160, 192]


def test_a_finished_run_says_that_nothing_is_left(run_copy, capsys):
    """It names the step and the way on, and leaves every file as it was."""
    before = {path: path.read_bytes() for path in run_copy.rglob("*") if path.is_file()}
    assert train(Train(resume=run_copy, progress=False)) == run_copy
    assert "512 steps are done; give more --steps" in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in run_copy.rglob("*") if path.is_file()}


def test_more_steps_go_on_from_the_end_and_say_what_that_means(finished_run, run_copy, capsys):
    """512 steps become 1,024: one line says that the schedules change, the config tells it, and no point is doubled."""
    command = json.loads((run_copy / "config.json").read_text())["command"]
    train(Train(steps=1_024, resume=run_copy, progress=False))
    assert "the schedules run to 1024 steps instead of 512" in capsys.readouterr().err
    config = json.loads((run_copy / "config.json").read_text())
    assert (config["steps"], config["command"]) == (1_024, command)
    assert [(each["from"], each["steps"]) for each in config["resumed"]] == [(512, 1_024)]
    assert steps_of(run_copy, "validation/return") == [0, 256, 512, 768, 1_024]
    rollout = config["n_envs"] * config["hyperparameters"]["n_steps"]
    assert steps_of(run_copy, "rollout/cosine") == list(range(rollout, 1_025, rollout))
    before, after = (load_file(folder / "policy.safetensors") for folder in (finished_run, run_copy))
    assert not all(torch.equal(before[name], after[name]) for name in before)


def test_hyperparameters_that_are_given_win_over_the_file_and_stay_with_the_run(settings, tmp_path):
    """Those named, and no others; the config holds them, so a resumed run has them too."""
    short = replace(settings, algo="a2c", policy="mlp", steps=64, logdir=tmp_path)
    values = json.loads((train(short, {"gamma": 0.5, "n_steps": 7}) / "config.json").read_text())["hyperparameters"]
    assert values == {**hyperparameters_of("a2c", settings.task.env), "gamma": 0.5, "n_steps": 7}
    plain, other = train(short), tmp_path / settings.task.env / "a2c-mlp" / "seed-0"
    assert steps_of(other, "rollout/cosine")[0] == 14
    assert steps_of(plain, "rollout/cosine")[0] != 14


def test_what_the_file_of_hyperparameters_says_by_now_does_not_matter(settings, tmp_path, monkeypatch):
    """Tuned while the run stood still, with a value it never had: the run goes on with its own, to the same bits."""
    run = train(replace(settings, algo="a2c", policy="mlp", steps=64, logdir=tmp_path))
    other = Path(shutil.copytree(run, tmp_path / "copy" / "seed-0"))
    train(Train(steps=128, resume=run, progress=False))
    for module in ("algorithms", "run_folder"):
        monkeypatch.setattr(f"drrl_agents.{module}.hyperparameters_of", lambda *_: {"max_grad_norm": 1e-3})
    train(Train(steps=128, resume=other, progress=False))
    kept, found = (load_file(folder / "policy.safetensors") for folder in (run, other))
    assert all(torch.equal(kept[name], found[name]) for name in kept)


def test_a_run_killed_before_its_first_checkpoint_gets_its_baselines(settings, finished_run, tmp_path, monkeypatch):
    """Their lines are there in the end, as beside a run that nothing stopped."""
    short = replace(settings, algo="a2c", policy="mlp", steps=16, logdir=tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(drrl_agents.training, "write_baselines", lambda *_: (_ for _ in ()).throw(InterruptedError))
        with pytest.raises(InterruptedError):
            train(short)
    (stopped,) = tmp_path.glob("*/a2c-mlp/*")
    train(Train(resume=stopped, progress=False))
    shown, wanted = ({path.name for path in run.parents[1].glob("baselines/*")} for run in (stopped, finished_run))
    assert shown == wanted >= {"full", "oracle"}


def test_a_hyperparameter_that_nobody_knows_is_refused(settings, tmp_path):
    """One line with those there are."""
    with pytest.raises(ValueError, match=r"^hyperparameter='gama': unknown; use one of [^\n]*'gamma'[^\n]*$"):
        train(replace(settings, policy="mlp", logdir=tmp_path), {"gama": 0.5})


def test_every_validation_is_told_as_it_is_logged(settings, tmp_path):
    """Step and values, those of the events, from step 0 to the end."""
    told: list[tuple[int, dict[str, float]]] = []
    short = replace(settings, algo="a2c", policy="mlp", steps=128, validate_every=64, logdir=tmp_path)
    run = train(short, on_validation=lambda step, values: told.append((step, values)))
    assert [step for step, _ in told] == steps_of(run, "validation/return")
    assert len(told) == 3
    shown = events(run)
    for name in VALIDATION:
        points = [event.value for event in shown.Scalars(f"validation/{name}")]
        assert [values[name] for _, values in told] == pytest.approx(points, abs=1e-6)


def test_who_is_told_can_end_the_training(settings, tmp_path):
    """What is raised there comes out, and no finished agent is left behind."""

    def stop(step: int, _: dict[str, float]) -> None:
        if step:
            raise InterruptedError

    short = replace(settings, algo="a2c", policy="mlp", steps=128, validate_every=64, logdir=tmp_path)
    with pytest.raises(InterruptedError):
        train(short, on_validation=stop)
    assert not list(tmp_path.rglob("policy.safetensors"))


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_every_algorithm_trains_and_leaves_a_run(settings, algo, tmp_path):
    """A few steps of an MLP: config, weights and a final validation are there."""
    folder = train(replace(settings, algo=algo, policy="mlp", steps=64, logdir=tmp_path))
    assert (folder / "policy.safetensors").is_file()
    assert last(folder, "validation/normalised_score") <= 1
    assert folder == tmp_path / "DRRL-Attention-v0" / f"{algo}-mlp" / "seed-0"
