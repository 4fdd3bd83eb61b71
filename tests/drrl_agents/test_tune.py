"""A study of hyperparameters goes on where it stopped, judges on the validation split, and says what it found."""

from __future__ import annotations

import inspect
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
import yaml
from optuna.trial import TrialState
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from drrl_agents import tune as module
from drrl_agents.algorithms import ALGORITHMS, PLAYABLE, accepts, fit_env, hyperparameters_of
from drrl_agents.hyperparameters import FOLDER, constructor_arguments
from drrl_agents.tasks import Task
from drrl_agents.training import Train
from drrl_agents.tune import AGAIN, SPACES, Tune, best_trials, open_study, run_tune, study_file, tune

TASK = Task("DRRL-Tolerance-v0", context=512, basis="calibrated", layer=1)
Script = Callable[[int], list[float]]
"""Number of a run to its scores at the validations, the first before training."""


def _settings(logdir: Path, trials: int = 3, **more: Any) -> Tune:
    return Tune(TASK, "maskable-ppo", "mlp", trials, 200, 2, logdir=logdir, progress=False, **more)


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Callable[[Script], list[dict[str, Any]]]:
    """Puts runs by script in the place of training; gives what each was told."""

    def put(script: Script) -> list[dict[str, Any]]:
        told: list[dict[str, Any]] = []

        def run(settings: Train, hyperparameters: dict[str, Any], on_validation: Any, advice: str) -> Path:
            assert advice == AGAIN
            told.append({"settings": settings, "hyperparameters": hyperparameters, "steps": []})
            assert settings.steps is not None
            scores = script(len(told) - 1)
            for count, score in enumerate(scores):
                step = count * settings.steps // (len(scores) - 1)
                told[-1]["steps"].append(step)
                on_validation(step, {"normalised_score": score, "return": -1.0})
            return settings.logdir

        monkeypatch.setattr(module, "train", run)
        return told

    return put


def _rising(number: int) -> list[float]:
    """Every run a little better than the one before."""
    return [0.0, 0.5 + 0.01 * number, 0.6 + 0.01 * number]


def test_a_trial_is_a_run_with_the_values_that_were_drawn(tmp_path):
    """Two real trials: the config holds them, and the value is the last validation score of the run."""
    settings = _settings(tmp_path, 2, instances=1, validation_instances=1, n_envs=2)
    study = tune(replace(settings, steps=512))
    for trial in study.get_trials():
        (folder,) = (tmp_path / "trials" / f"trial-{trial.number:03d}").glob("*/maskable-ppo-mlp/seed-0")
        config = json.loads((folder / "config.json").read_text())
        assert config["hyperparameters"].items() >= trial.user_attrs["hyperparameters"].items()
        shown = EventAccumulator(str(folder)).Reload().Scalars("validation/normalised_score")
        assert trial.value == pytest.approx(shown[-1].value, abs=1e-6)
        assert len(trial.intermediate_values) == len(shown) >= 3
        assert (config["steps"], config["seed"], config["instances"]) == (512, 0, 1)


def test_a_study_goes_on_from_its_journal_and_draws_what_it_would_have_drawn(tmp_path, scripted):
    """Two trials and then two more are the four that one call gives, to the bit; a third call has nothing to do."""
    scripted(_rising)
    whole = tune(_settings(tmp_path / "a", 4))
    scripted(_rising)
    tune(_settings(tmp_path / "b", 2))
    told = scripted(lambda number: _rising(number + 2))
    parted = tune(_settings(tmp_path / "b", 4))
    assert len(told) == 2
    assert [trial.params for trial in parted.get_trials()] == [trial.params for trial in whole.get_trials()]
    assert [trial.value for trial in parted.get_trials()] == [trial.value for trial in whole.get_trials()]
    assert len({json.dumps(trial.params) for trial in whole.get_trials()}) == 4
    told = scripted(lambda _: pytest.fail("there was nothing left to do"))
    tune(_settings(tmp_path / "b", 4))


@pytest.mark.parametrize(
    ("algo", "task"), [("maskable-ppo", "DRRL-Budget-v0"), ("qr-dqn", "DRRL-Budget-v0"), ("tqc", "DRRL-Budget-v0")]
)
def test_the_first_trial_has_the_present_values(algo, task, tmp_path, scripted):
    """Those of the file, and where it is silent stable-baselines3's own: what is found must be better than they are."""
    told = scripted(_rising)
    tune(replace(_settings(tmp_path, 2), task=Task(task, context=512), algo=algo))
    own, usual = hyperparameters_of(algo, task), inspect.signature(ALGORITHMS[algo].make).parameters
    first = told[0]["hyperparameters"]
    assert first == {name: own.get(name, usual[name].default) for name in first}
    assert told[1]["hyperparameters"] != first


def test_present_values_whose_trial_was_killed_are_tried_again(tmp_path, scripted):
    """Or the study would end without them."""
    settings = _settings(tmp_path, 2, study=tmp_path / "own.journal")
    assert open_study(settings).ask().number == 0
    told = scripted(_rising)
    tune(settings)
    own = hyperparameters_of("maskable-ppo", TASK.env)
    assert told[0]["hyperparameters"] == {name: own[name] for name in told[0]["hyperparameters"]}


def test_a_killed_trial_is_given_up_and_another_takes_its_place(tmp_path, scripted):
    """SIGKILL leaves it running in the journal for ever: it is marked failed, and the study still gets its trials."""
    settings = _settings(tmp_path)
    scripted(_rising)
    tune(replace(settings, trials=1))
    left = open_study(settings).ask()
    assert left.number == 1
    study = tune(settings)
    states = [trial.state for trial in study.get_trials()]
    assert states == [TrialState.COMPLETE, TrialState.FAIL, TrialState.COMPLETE, TrialState.COMPLETE]


@pytest.mark.parametrize("change", [{"algo": "qr-dqn"}, {"steps": 400}, {"policy": "transformer"}])
def test_the_file_of_another_study_is_refused(change, tmp_path, scripted):
    """Other values mean something else there: one line names both, and the journal stays as it was."""
    scripted(_rising)
    settings = _settings(tmp_path, 1, study=tmp_path / "own.journal")
    tune(settings)
    before = (tmp_path / "own.journal").read_text()
    with pytest.raises(ValueError, match=r"^study='[^\n]*own.journal': holds '[^\n]*200 steps', not [^\n]*; name") as e:
        tune(replace(settings, **change))
    assert str(next(iter(change.values()))) in str(e.value)
    assert (tmp_path / "own.journal").read_text() == before


def test_a_trial_below_the_median_ends_early(tmp_path, scripted):
    """After five that went to the end, a bad one is stopped at its first validation in training; it counts as one."""
    told = scripted(lambda number: [0.0, 0.1, 0.1] if number == 5 else [0.0, 0.8, 0.9])
    study = tune(_settings(tmp_path, 7))
    assert [len(each["steps"]) for each in told] == [3, 3, 3, 3, 3, 2, 3]
    assert [trial.state for trial in study.get_trials()] == [
        TrialState.PRUNED if number == 5 else TrialState.COMPLETE for number in range(7)
    ]
    assert all(trial.number != 5 for trial in best_trials(study))


def test_no_trial_is_pruned_when_it_has_ended(tmp_path, scripted):
    """Good until the last validation and bad there: nothing is left to save, and its value counts."""
    scripted(lambda number: [0.0, 0.9, 0.1] if number == 5 else [0.0, 0.8, 0.9])
    study = tune(_settings(tmp_path, 6))
    assert study.get_trials()[5].state == TrialState.COMPLETE
    assert study.get_trials()[5].value == 0.1


def test_the_best_trial_is_printed_first_and_written_into_its_own_entry(tmp_path, scripted, capsys):
    """`--write` changes the task's entry of the file and no other; the line above it says where the values are from."""
    path = Path(shutil.copy(FOLDER / "ppo_mask.yml", tmp_path))
    before = yaml.safe_load(path.read_text())
    told = scripted(lambda number: [0.0, 0.5, (0.6, 0.9, 0.7)[number]])
    study = run_tune(_settings(tmp_path, write=path))
    shown = capsys.readouterr().out
    assert shown.index("0.9000") < shown.index("0.7000") < shown.index("0.6000")
    assert [trial.number for trial in best_trials(study)] == [1, 2, 0]
    found = yaml.safe_load(path.read_text())
    assert found[TASK.env] == {**found["default"], **told[1]["hyperparameters"]}
    assert {name: each for name, each in found.items() if name != TASK.env} == {
        name: each for name, each in before.items() if name != TASK.env
    }
    assert "validation 0.900" in path.read_text().partition(f"{TASK.env}:")[0].splitlines()[-1]


def test_a_trial_that_diverges_counts_and_the_study_goes_on(tmp_path, scripted):
    """PyTorch's own complaint about NaN: pruned, and the next trial is another; any other error is the user's."""

    def script(number: int) -> list[float]:
        if number == 1:
            torch.distributions.Categorical(logits=torch.full((2, 3), torch.nan))
        if number == 3:
            raise ValueError("instances=0: must be at least 1")
        return _rising(number)

    told = scripted(script)
    study = tune(_settings(tmp_path, 3))
    assert [trial.state.name for trial in study.get_trials()] == ["COMPLETE", "PRUNED", "COMPLETE"]
    assert told[1]["hyperparameters"] != told[2]["hyperparameters"]
    with pytest.raises(ValueError, match="instances=0"):
        tune(_settings(tmp_path, 4))


def test_without_write_nothing_is_written(tmp_path, scripted):
    """Only the study, in the logdir, under the names of task, algorithm and network."""
    scripted(_rising)
    settings = _settings(tmp_path, 1)
    run_tune(settings)
    assert study_file(settings) == tmp_path / "studies" / "DRRL-Tolerance-v0-maskable-ppo-mlp.journal"
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {study_file(settings).name}


@pytest.mark.parametrize("algo", SPACES)
def test_everything_that_is_drawn_is_known_to_the_algorithm(algo):
    """Twenty draws: names of its constructor, values that it takes, and plain ones, as a file of them holds."""
    task = next(each for each in PLAYABLE if accepts(algo, each))
    actions = {"actions": "box"} if algo == "tqc" and task == "DRRL-Attention-v0" else {}
    space = fit_env(algo, Task(task, context=512, **actions).make_lanes("train", 1, 1)).action_space
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    drawn = [SPACES[algo](study.ask()) for _ in range(20)]
    for values in drawn:
        assert yaml.safe_load(yaml.safe_dump(values)) == values
        assert constructor_arguments(values, ALGORITHMS[algo].make, space).keys() == values.keys()
    assert all(len({json.dumps(values[name]) for values in drawn}) > 1 for name in drawn[0])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ppo_mask.yml", "no such file; copy one of drrl_agents/hyperparameters there"),
        ("ppo.yml", "is not the algorithm's; give a file that is called ppo_mask.yml"),
    ],
)
def test_a_file_that_cannot_be_written_into_is_refused_before_the_trials(name, message, tmp_path, scripted):
    """What is not there, and what is another algorithm's."""
    scripted(lambda _: pytest.fail("a trial was run"))
    if name == "ppo.yml":
        shutil.copy(FOLDER / name, tmp_path)
    with pytest.raises(ValueError, match=rf"^write='[^\n]*{name}': {message}$"):
        run_tune(_settings(tmp_path, write=tmp_path / name))


WRONG = [
    ({"algo": "ppo"}, r"algo='ppo': unknown; use one of 'maskable-ppo', 'qr-dqn', 'tqc'"),
    ({"trials": 0}, r"trials=0: "),
    ({"validations": 0}, r"validations=0: "),
    ({"task": Task("DRRL-Attention-MO-v0")}, r"env='DRRL-Attention-MO-v0': its reward is a vector"),
    ({"task": Task("DRRL-Heads-v0"), "algo": "qr-dqn"}, r"algo='qr-dqn': chooses Discrete"),
]


@pytest.mark.parametrize(("change", "message"), WRONG)
def test_a_wrong_argument_is_refused_before_a_study_is_made(change, message, tmp_path):
    """One line, and no file."""
    with pytest.raises(ValueError, match=rf"^{message}[^\n]*$"):
        tune(replace(_settings(tmp_path / "runs"), **change))
    assert not list(tmp_path.rglob("*.journal"))
