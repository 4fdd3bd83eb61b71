"""A comparison shows every policy on the same episodes, and what it writes is what it found."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

import drrl_agents.entrants as entrants
from drrl_agents import comparison
from drrl_agents.comparison import Compare, find_agents, run_compare
from drrl_agents.evaluation import Evaluate, run_evaluate
from drrl_agents.export import Export, run_export
from drrl_agents.figures import rank_heatmap
from drrl_agents.run_folder import new_folder
from drrl_agents.tables import COLUMNS, print_contrasts, print_table
from drrl_agents.tasks import Task
from drrl_agents.training import Train, train
from drrl_policies import constant, trained
from drrl_policies.fitting import full, rule_policies
from drrl_policies.rollout import rollout

RULES = ["random", "full", "energy-threshold", "layer-table", "layer-segment-table", "oracle"]
BASES = ["kq-svd", "keys-pca", "separate-svd"]
AGENT = "maskable-ppo-transformer"


@pytest.fixture(scope="module")
def compared(task, finished_run, tmp_path_factory):
    """Two test spans, rules fitted on two train spans; what was fitted on, the outcome and its folder."""
    fitted_on = []

    def spy(field):
        fitted_on.extend(field.episodes)
        return rule_policies(field)

    logdir = tmp_path_factory.mktemp("compared")
    settings = Compare(task, runs=(finished_run,), instances=2, train_instances=2, logdir=logdir, progress=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(entrants, "rule_policies", spy)
        found = run_compare(settings)
    return fitted_on, found, logdir / task.env / "compare-test"


def test_every_rule_the_agent_and_the_oracle_stand_side_by_side(compared):
    """One row each, the best fixed rank and the offline bases among them, on the same test episodes."""
    _, found, _ = compared
    names = [row.policy for row in found.rows]
    assert {*RULES, AGENT} < set(names)
    assert len(set(names)) == len(names)
    assert sum(name.startswith("fixed-") for name in names) == 1
    assert [row.policy.rpartition("-")[0] for row in found.rows if row.kind == "offline basis"] == BASES
    assert {each.episodes for each in found.rollouts} == {found.field.episodes}
    assert {episode.instance.split for episode in found.field.episodes} == {"test"}


def test_rules_are_fitted_on_the_train_split_only(compared):
    """No instance of the test split comes near the fitting."""
    fitted_on, found, _ = compared
    assert {episode.instance.split for episode in fitted_on} == {"train"}
    assert not {episode.instance.uri for episode in fitted_on} & set(found.field.instances)


def test_the_agent_is_contrasted_with_every_rule_and_basis(compared):
    """Paired on the same episodes: the mean differences are those of the rows."""
    _, found, _ = compared
    rows = {row.policy: row for row in found.rows}
    others = {row.policy for row in found.rows if row.policy not in (AGENT, "random", "oracle")}
    assert {each.second for each in found.contrasts} == others
    for each in found.contrasts:
        assert each.first == AGENT
        gap = rows[AGENT].mean_return - rows[each.second].mean_return
        assert each.mean_return.value == pytest.approx(gap, abs=1e-12)
        assert each.mean_return.low <= each.mean_return.value + 1e-12 <= each.mean_return.high + 2e-12


def test_the_oracle_scores_1_and_nobody_more(compared):
    """Regret 0 for it, and at least 0 for everyone in its basis; an offline basis may be better than the task's own."""
    _, found, _ = compared
    oracle = next(row for row in found.rows if row.kind == "oracle")
    own = [row for row in found.rows if row.kind != "offline basis"]
    assert oracle.normalised_score == pytest.approx(1)
    assert all(row.normalised_score <= 1 + 1e-9 for row in own)
    assert all(row.regret >= -1e-12 for row in own)


def test_an_agent_pays_for_what_it_reads_and_thinks(compared):
    """All FLOPs exceed attention's for it by more than for any rule, which decide for nothing."""
    _, found, _ = compared
    extra = {row.policy: row.total_flops_ratio - row.flops_ratio for row in found.rows}
    assert extra[AGENT] == max(extra.values())


def test_the_csv_holds_the_rows(compared):
    """Read back, every number is the one in the row."""
    _, found, folder = compared
    with (folder / "comparison.csv").open(newline="") as file:
        written = list(csv.DictReader(file))
    assert len(written) == len(found.rows)
    for line, row in zip(written, found.rows, strict=True):
        assert line == {name: str(value) for name, value in row.values().items()}


def test_a_picture_is_written(compared):
    """A PNG."""
    *_, folder = compared
    assert (folder / "comparison.png").read_bytes().startswith(b"\x89PNG")


def test_the_table_shows_every_policy_best_first(compared, capsys):
    """No name and no column is cut off."""
    _, found, _ = compared
    print_table(found.rows, "title")
    shown = capsys.readouterr().out
    places = [shown.index(row.policy) for row in sorted(found.rows, key=lambda row: -row.mean_return)]
    assert places[0] == min(places)
    timed = found.rows[0].latency_ratio is not None
    assert all(head in shown for name, head in COLUMNS.items() if name != "latency_ratio" or timed)


def test_the_contrasts_are_printed(compared, capsys):
    """Every pair, with its interval."""
    _, found, _ = compared
    print_contrasts(found)
    shown = capsys.readouterr().out
    for each in found.contrasts:
        assert each.second in shown
        assert f"{each.mean_return.value:.3f} [" in shown


def test_a_seed_that_is_there_twice_is_refused(task, finished_run):
    """The same run twice would pass for two seeds."""
    with pytest.raises(ValueError, match=r"^runs=[^\n]*seed 0 is there already[^\n]*$"):
        find_agents(Compare(task, runs=(finished_run, finished_run)))


def test_runs_are_found_by_name_and_seed(task, finished_run):
    """`--policies maskable-ppo-transformer --seeds 1` finds the run in the logdir; so does its folder's own name."""
    logdir = finished_run.parents[2]
    for name in (AGENT, str(finished_run)):
        (found,) = find_agents(Compare(task, policies=(name,), seeds=1, logdir=logdir))
        assert (found.name, found.seeds, found.folders) == (AGENT, (0,), (finished_run,))


def test_a_missing_run_is_refused_with_the_way_to_train_it(task, finished_run):
    """Of two seeds the second is not there: one line names it and `--steps`, before anything is measured."""
    asked = Compare(task, policies=(AGENT,), seeds=2, logdir=finished_run.parents[2])
    with pytest.raises(
        ValueError, match=rf"^policies='{AGENT}': [^\n]* no finished run of seed 1; [^\n]*--steps[^\n]*$"
    ):
        find_agents(asked)


def test_missing_runs_are_trained_when_steps_are_given(task, tmp_path):
    """Seed 0 is there, seed 1 is trained where it is looked for; a second call trains nothing."""
    common = {"instances": 1, "logdir": tmp_path, "progress": False}
    train(Train(task, "a2c", "mlp", steps=8, validation_instances=1, **common))
    before = {path: path.read_bytes() for path in (tmp_path / task.env / "a2c-mlp" / "seed-0").rglob("*.safetensors")}
    asked = Compare(task, ("a2c-mlp",), 2, steps=8, train_instances=1, logdir=tmp_path, progress=False)
    (found,) = find_agents(asked)
    assert (found.name, found.seeds) == ("a2c-mlp", (0, 1))
    assert json.loads((found.folders[1] / "config.json").read_text())["steps"] == 8
    assert before == {path: path.read_bytes() for path in before}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comparison, "train", lambda _: pytest.fail("trained again"))
        assert find_agents(asked)[0].seeds == (0, 1)


def test_a_run_that_was_stopped_is_finished_where_it_lies(task, tmp_path):
    """No second folder for its seed, which nobody would look for."""
    common = {"instances": 1, "validation_instances": 1, "logdir": tmp_path, "progress": False}
    (folder := tmp_path / task.env / "a2c-mlp" / "seed-0").mkdir(parents=True)
    whole = train(Train(task, "a2c", "mlp", steps=8, **common))
    (folder / "config.json").write_bytes((whole / "config.json").read_bytes())
    asked = Compare(task, ("a2c-mlp",), 1, steps=8, train_instances=1, logdir=tmp_path, progress=False)
    (found,) = find_agents(asked)
    assert found.folders == (folder,)
    assert (folder / "policy.safetensors").read_bytes() == (whole / "policy.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("name", "value"), [("steps", 256), ("instances", 1), ("hyperparameters", {}), ("imitate", True)]
)
def test_runs_of_two_experiments_are_no_seeds_of_one(task, finished_run, tmp_path, name, value):
    """Pooled, their mean would be of no agent: one line names what differs and the folders."""
    other = Path(shutil.copytree(finished_run, tmp_path / "seed-1"))
    own = json.loads((other / "config.json").read_text())
    card = json.loads((other / "card.json").read_text())
    (other / "config.json").write_text(json.dumps(own | {"seed": 1, name: value}))
    (other / "card.json").write_text(json.dumps(card | {"name": f"{AGENT}-seed1"}))
    with pytest.raises(ValueError, match=rf"^runs='{other}': its {name} differs from that of {finished_run}[^\n]*$"):
        find_agents(Compare(task, runs=(finished_run, other)))
    (other / "config.json").write_text(json.dumps(own | {"seed": 1}))
    assert find_agents(Compare(task, runs=(finished_run, other)))[0].seeds == (0, 1)


def test_an_agent_of_other_ranks_is_refused(task, finished_run):
    """Eight as well, and observed alike: its indices would mean other ranks."""
    other = replace(task, ranks=(4, 8, 12, 16, 24, 32, 48, 64))
    with pytest.raises(ValueError, match=r"^runs=[^\n]*: trained on another task; give the task's arguments[^\n]*$"):
        find_agents(Compare(other, runs=(finished_run,)))


def test_an_agent_of_another_guard_takes_part_with_a_note(task, finished_run, capsys):
    """What it was trained with, where that is not what it is compared with."""
    assert len(find_agents(Compare(replace(task, guard="off"), runs=(finished_run,)))) == 1
    assert "was trained with guard='paper', other than here" in capsys.readouterr().err
    find_agents(Compare(task, runs=(finished_run,)))
    assert "note" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("suffix", "steps", "imitates"), [("", 8, False), ("-cloned", 0, True), ("-cloned-rl", 8, True)]
)
def test_a_missing_run_is_trained_as_its_name_says(task, tmp_path, monkeypatch, suffix, steps, imitates):
    """Cloned without reinforcement learning, cloned and then trained, or trained; the folder is the one looked for."""
    told = []

    def note(settings):
        told.append(settings)
        raise InterruptedError

    monkeypatch.setattr(comparison, "train", note)
    name = f"maskable-ppo-mlp{suffix}"
    with pytest.raises(InterruptedError):
        find_agents(Compare(task, (name,), 1, steps=8, logdir=tmp_path, train_instances=3))
    (settings,) = told
    assert (settings.algo, settings.policy, settings.steps, settings.imitate) == (
        "maskable-ppo",
        "mlp",
        steps,
        imitates,
    )
    assert (settings.task, settings.seed, settings.instances) == (task, 0, 3)
    assert new_folder(settings) == tmp_path / task.env / name / "seed-0"


def test_the_policy_that_ships_takes_part_under_its_name(task, finished_run, tmp_path, monkeypatch):
    """`--policies shipped` loads the task's own from the package, weights and all."""
    run_export(Export(finished_run, tmp_path / task.env, instances=2, progress=False))
    monkeypatch.setattr(trained, "SHIPPED", tmp_path)
    (found,) = find_agents(Compare(task, policies=("shipped",)))
    assert (found.kind, found.name) == ("agent", trained.load(finished_run).name)
    field = task.field("test", 1, progress=False)
    (played,) = entrants.play(found, field)
    assert (played.wanted == rollout(trained.load(finished_run), field).wanted).all()


def test_evaluate_writes_what_it_found(run_copy):
    """Agent, full and oracle on the validation split, as JSON beside the weights."""
    found = run_evaluate(Evaluate(run_copy, split="validation", instances=2, progress=False))
    written = json.loads((run_copy / "evaluation-validation.json").read_text())
    assert [row["policy"] for row in written] == [f"{AGENT}-seed0", "full", "oracle"]
    assert [row["normalised_score"] for row in written] == [row.normalised_score for row in found.rows]


def test_evaluate_of_one_span_writes_json_without_nan(run_copy):
    """No interval over one instance: `null`, because NaN is not JSON."""

    def refuse(constant: str) -> None:
        pytest.fail(f"{constant} in JSON")

    run_evaluate(Evaluate(run_copy, instances=1, progress=False))
    written = json.loads((run_copy / "evaluation-test.json").read_text(), parse_constant=refuse)
    assert written[0]["low"] is None


def test_a_heatmap_shows_the_layers_there_are(task):
    """Of an environment of layer 3 alone one row, labelled so; of all layers four."""
    for layer, labels in ((3, ["3"]), (None, ["0", "1", "2", "3"])):
        field = replace(task, layer=layer).field("test", 1, progress=False)
        axes = rank_heatmap(rollout(full(field), field), field, "title").axes[0]
        assert axes.get_images()[0].get_array().shape == (len(labels), 4)
        assert [label.get_text() for label in axes.get_yticklabels()] == labels


def test_a_heatmap_of_the_closed_loop_has_every_layer():
    """An episode runs through all of them: mean rank by (layer, segment), each from the steps at that layer."""
    field = Task("DRRL-Layers-v0", context=256).field("test", 1, progress=False)
    image = rank_heatmap(rollout(constant("fixed", (8,), (2,)), field), field, "title").axes[0].get_images()[0]
    assert image.get_array().tolist() == [[16.0, 16.0]] * 4
