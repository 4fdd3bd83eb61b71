"""A comparison shows every policy on the same episodes, and what it writes is what it found."""

from __future__ import annotations

import csv
import json

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import drrl_agents.comparison as comparison
from drrl_agents.comparison import Compare, load_agents, run_compare
from drrl_agents.evaluation import Evaluate, run_evaluate
from drrl_agents.figures import rank_heatmap
from drrl_policies import Full
from drrl_policies.fitting import rule_policies
from drrl_policies.rollout import rollout

RULES = ["random", "full", "energy-threshold", "layer-table", "layer-segment-table", "oracle"]
AGENT = "maskable-ppo-transformer-seed0"


@pytest.fixture(scope="module")
def compared(task, finished_run, tmp_path_factory):
    """Two test spans, rules fitted on two train spans; what was fitted on, the outcome and its folder."""
    fitted_on = []

    def spy(game, pairs):
        fitted_on.extend(pairs)
        return rule_policies(game, pairs)

    logdir = tmp_path_factory.mktemp("compared")
    settings = Compare(task, (finished_run,), instances=2, train_instances=2, logdir=logdir, progress=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comparison, "rule_policies", spy)
        found = run_compare(settings)
    return fitted_on, found, logdir / task.env / "compare-test"


def test_every_rule_the_agent_and_the_oracle_stand_side_by_side(compared):
    """One row each, the best fixed rank among them, on the same test episodes."""
    _, found, _ = compared
    names = [row.policy for row in found.rows]
    assert {*RULES, AGENT} < set(names)
    assert sum(name.startswith("fixed-") for name in names) == 1
    assert {each.pairs for each in found.rollouts} == {found.reference.pairs}
    assert {instance.split for instance, _ in found.reference.pairs} == {"test"}


def test_rules_are_fitted_on_the_train_split_only(compared):
    """No instance of the test split comes near the fitting."""
    fitted_on, found, _ = compared
    assert {instance.split for instance, _ in fitted_on} == {"train"}
    assert not {instance.uri for instance, _ in fitted_on} & {instance.uri for instance, _ in found.reference.pairs}


def test_the_oracle_scores_1_and_nobody_more(compared):
    """Regret 0 for it, and at least 0 for everyone."""
    _, found, _ = compared
    oracle = next(row for row in found.rows if row.policy == "oracle")
    assert oracle.normalised_score == pytest.approx(1)
    assert all(row.normalised_score <= 1 + 1e-9 for row in found.rows)
    assert all(row.regret >= -1e-12 for row in found.rows)


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


def test_picture_and_events_are_written_for_every_policy(compared):
    """A PNG, and one TensorBoard run per policy with its scalars, reward terms, histogram and heatmap."""
    _, found, folder = compared
    assert (folder / "comparison.png").read_bytes().startswith(b"\x89PNG")
    for row in found.rows:
        events = EventAccumulator(str(folder / row.policy)).Reload()
        assert events.Scalars("test/normalised_score")[0].value == pytest.approx(row.normalised_score, rel=1e-5)
        scalars = {"test/return", "test/regret", "test/total_flops_ratio", "test/reward_terms/flops"}
        assert scalars <= set(events.Tags()["scalars"])
        assert events.Tags()["histograms"] == ["test/rank"]
        assert events.Tags()["images"] == ["test/rank_by_layer_and_segment"]


def test_the_table_shows_every_policy_best_first(compared, capsys):
    """No name and no column is cut off."""
    _, found, _ = compared
    comparison.print_table(found, "title")
    shown = capsys.readouterr().out
    places = [shown.index(row.policy) for row in sorted(found.rows, key=lambda row: -row.mean_return)]
    assert places[0] == min(places)
    assert all(head in shown for head in comparison.COLUMNS.values())


def test_runs_of_one_seed_keep_their_names_apart(task, finished_run):
    """The same run twice: two names, so neither overwrites the other's events."""
    names = [agent.name for agent in load_agents(Compare(task, runs=(finished_run, finished_run)))]
    assert names == [AGENT, f"{AGENT}-2"]


def test_evaluate_writes_what_it_found(run_copy):
    """Agent, full and oracle on the validation split, as JSON beside the weights."""
    found = run_evaluate(Evaluate(run_copy, split="validation", instances=2, progress=False))
    written = json.loads((run_copy / "evaluation-validation.json").read_text())
    assert [row["policy"] for row in written] == [AGENT, "full", "oracle"]
    assert [row["normalised_score"] for row in written] == [row.normalised_score for row in found.rows]


def test_evaluate_of_one_span_writes_json_without_nan(run_copy):
    """No interval over one instance: `null`, because NaN is not JSON."""

    def refuse(constant: str) -> None:
        pytest.fail(f"{constant} in JSON")

    run_evaluate(Evaluate(run_copy, instances=1, progress=False))
    written = json.loads((run_copy / "evaluation-test.json").read_text(), parse_constant=refuse)
    assert written[0]["low"] is None


def test_a_heatmap_shows_the_layers_there_are(compared):
    """Episodes of layers 1 and 3 only make two rows, labelled so."""
    _, found, _ = compared
    pairs = [pair for pair in found.field.pairs if pair[1] in (1, 3)]
    played = rollout(Full(8), found.field.game, pairs)
    axes = rank_heatmap(played, found.field.game.world.ranks, 4, "title").axes[0]
    assert axes.get_images()[0].get_array().shape == (2, 4)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["1", "3"]


def test_a_second_comparison_replaces_the_first(compared, tmp_path):
    """One event file a policy, tags named by the split; two would draw two points a step."""
    _, found, _ = compared
    for _ in range(2):
        comparison.write(found, tmp_path, "DRRL-Attention-v0", "validation")
    files = list((tmp_path / "oracle").glob("events.out.tfevents.*"))
    assert len(files) == 1
    tags = EventAccumulator(str(files[0])).Reload().Tags()["scalars"]
    assert {"validation/return", "validation/normalised_score", "validation/regret"} <= set(tags)
    assert not [tag for tag in tags if not tag.startswith("validation/")]
