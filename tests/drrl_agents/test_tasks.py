"""Every task that the commands play trains, is evaluated and is compared; so does every guard, cost and statistic."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
from stable_baselines3.common.vec_env import DummyVecEnv
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import drrl_agents.comparison as comparison
from drrl_agents.agent import load_agent, read_config, task_of
from drrl_agents.comparison import Compare, run_compare
from drrl_agents.evaluation import Evaluate, run_evaluate
from drrl_agents.tables import COLUMNS, print_table
from drrl_agents.tasks import FIELD_SEEDS, PLAYED, REPEATS, VECTOR, Task, open_fields
from drrl_agents.training import train
from drrl_env.envs.optima import oracle
from drrl_policies import Policy, Random
from drrl_policies.fitting import full
from drrl_policies.rollout import reference, rollout

VARIANTS = {
    "milliseconds": {"env": "DRRL-Latency-v0"},
    "conformal guard": {"guard": "conformal", "basis": "refreshed"},
    "one statistic": {"statistics": ("stable_rank",)},
}


@pytest.fixture(scope="module", params=VARIANTS.values(), ids=VARIANTS)
def variant(request, settings, tmp_path_factory):
    """A short run of an MLP: its settings and its folder."""
    task = replace(settings.task, guard="off")
    task = replace(task, **request.param)
    logdir = tmp_path_factory.mktemp("variants")
    wanted = replace(settings, task=task, policy="mlp", algo="maskable-ppo", logdir=logdir)
    return wanted, train(wanted)


@pytest.fixture(scope="module")
def evaluated(variant):
    """It on two test spans, the rows as `drrl evaluate` gives them; JSON lies in the run's folder."""
    return run_evaluate(Evaluate(variant[1], instances=2, progress=False))


@pytest.fixture(scope="module")
def compared(variant):
    """It beside the rules and the oracle on the same spans."""
    settings, run = variant
    asked = Compare(settings.task, runs=(run,), instances=2, train_instances=2, logdir=settings.logdir, progress=False)
    with pytest.MonkeyPatch.context() as patch:
        if settings.task.env != "DRRL-Latency-v0":  # the offline bases stand beside one of the variants
            patch.setattr(comparison, "basis_entrants", lambda task, flops: [])
        return run_compare(asked)


def test_a_variant_trains_is_evaluated_and_compared(variant, evaluated, compared):
    """The agent stands beside the oracle, which nobody beats; the config brings the same task back."""
    settings, run = variant
    assert task_of(read_config(run)) == settings.task
    scores = [{row.policy: row.normalised_score for row in found.rows} for found in (evaluated, compared)]
    assert scores[0][load_agent(run).name] == scores[1]["maskable-ppo-mlp"] <= 1
    assert max(scores[1].values()) == pytest.approx(1)
    rules = {"random", "full", "energy-threshold", "layer-table", "layer-segment-table", "oracle"}
    assert rules - set(scores[1]) == ({"energy-threshold"} if settings.task.statistics else set())


@pytest.mark.usefixtures("evaluated")
def test_milliseconds_are_shown_where_they_are_the_cost_and_only_there(variant):
    """In events, table and JSON; FLOPs stand beside them in any case."""
    settings, run = variant
    timed = settings.task.env == "DRRL-Latency-v0"
    scalars = set(EventAccumulator(str(run)).Reload().Tags()["scalars"])
    assert {"rollout/flops_ratio", "validation/flops_ratio"} <= scalars
    assert ({"rollout/latency_ratio", "validation/latency_ratio"} <= scalars) == timed
    rows = json.loads((run / "evaluation-test.json").read_text())
    assert all(("latency_ratio" in row) == timed for row in rows)
    full = next(row for row in rows if row["policy"] == "full")
    assert full.get("latency_ratio", 1.0) == pytest.approx(1)


def test_no_agent_breaks_the_conformal_guard(variant):
    """MaskablePPO never asks for what is masked, and what is masked is something."""
    settings, run = variant
    events = EventAccumulator(str(run)).Reload().Scalars("rollout/masked_action")
    assert {event.value for event in events} == {0.0}
    field = settings.task.field("test", 2, progress=False)
    asked = np.random.default_rng(0).integers(8, size=(len(field.episodes), field.steps))
    forced = rollout(_Asking(asked), field)
    assert (forced.executed != forced.wanted).any() == (settings.task.guard != "off")


class _Asking(Policy):
    """Asks for what it is told, whatever the masks."""

    name = "asking"

    def __init__(self, choices) -> None:
        self.sizes, self._choices = (8,), choices

    def choose(self, situation):
        """The column of the step."""
        return self._choices[situation.episodes, situation.steps][:, None]


def test_a_comparison_of_milliseconds_prints_them(variant, compared, capsys):
    """A column of its own in the table, with no other cut off for it, and in the CSV; full attention costs itself."""
    settings, _ = variant
    timed = settings.task.env == "DRRL-Latency-v0"
    print_table(compared.rows, "title")
    heads = capsys.readouterr().out.splitlines()[2]
    assert all((f" {head} " in heads) == (timed or name != "latency_ratio") for name, head in COLUMNS.items())
    with (settings.logdir / settings.task.env / "compare-test" / "comparison.csv").open(newline="") as file:
        rows = {row["policy"]: row.get("latency_ratio") for row in csv.DictReader(file)}
    if not timed:
        assert set(rows.values()) <= {None, ""}
        return
    found = {name: float(value) for name, value in rows.items()}
    assert found["full"] == pytest.approx(1)
    assert len({round(value, 6) for value in found.values()}) > 2


def test_the_latency_task_is_the_attention_task_at_another_cost(settings):
    """Same spans, same choices: the rewards are those of `--cost latency`, and not those of FLOPs."""
    task = replace(settings.task, guard="off")
    tasks = (replace(task, env="DRRL-Latency-v0"), replace(task, cost="latency"), task)
    latency, asked, flops = (each.field("test", 2, progress=False) for each in tasks)
    found = [rollout(Random(each.sizes, 3), each) for each in (latency, asked, flops)]
    assert (found[0].rewards == found[1].rewards).all()
    assert not np.isclose(found[0].rewards, found[2].rewards).any()
    assert (found[0].columns["flops"] == found[2].columns["flops"]).all()


@pytest.mark.parametrize("env", [env for env in PLAYED if env != "DRRL-Layers-v0"])  # whose search is slow
def test_the_reference_agrees_with_the_oracle_of_the_environment(env, settings):
    """Random and optimum of every episode, what it drew included, are those of `drrl_env.oracle`."""
    guarded = {"basis": None if env == "DRRL-Basis-v0" else "calibrated", "guard": "paper"}
    field = replace(settings.task, env=env, **guarded).field("test", 1, repeats=1, progress=False)
    known, drawn = reference(field), field.arena.task.parameter
    for number, (instance, layer, parameter) in enumerate(field.episodes):
        given = {drawn: parameter} if drawn else {}
        best = oracle(env, f"{instance.uri}?layer={layer}", context=512, **guarded, **given)
        assert known.oracle[number] == pytest.approx(best.value, abs=1e-12)
        assert known.random[number] == pytest.approx(best.random, abs=1e-12)


@pytest.mark.parametrize("env", ["DRRL-Tolerance-v0", "DRRL-Budget-v0"])
def test_every_command_sees_the_same_episodes(env):
    """What is drawn has the split's own seed: a field opened twice, or among several, is the same, to the last bit."""
    task = Task(env, context=256, basis="calibrated")
    several = open_fields(task, [("train", 2), ("validation", 2), ("test", 2)], progress=False)
    for split, found in zip(FIELD_SEEDS, several, strict=True):
        assert found.episodes == task.field(split, 2, progress=False).episodes
        assert len(found.episodes) == 2 * 4 * REPEATS
    drawn = [found.parameters for found in several]
    assert not np.isclose(drawn[0], drawn[1]).any()
    assert not np.isclose(drawn[1], drawn[2]).any()
    assert len(task.field("test", 2, repeats=1, progress=False).episodes) == 2 * 4


def test_evaluate_and_compare_play_the_same_draws(tmp_path, settings):
    """A short agent of DRRL-Tolerance-v0: the same episodes, choices and score in both commands."""
    task = Task("DRRL-Tolerance-v0", context=256, layer=1)
    run = train(replace(settings, task=task, policy="mlp", steps=256, logdir=tmp_path))
    evaluated = run_evaluate(Evaluate(run, instances=2, progress=False))
    compared = run_compare(Compare(task, runs=(run,), instances=2, train_instances=2, logdir=tmp_path, progress=False))
    assert evaluated.field.episodes == compared.field.episodes
    agents = [next(row for row in found.rows if row.kind == "agent") for found in (evaluated, compared)]
    assert agents[0].normalised_score == agents[1].normalised_score
    assert (evaluated.rollouts[0].executed == compared.rollouts[0].executed).all()


REFUSED = {
    "make": lambda task: task.make("test", 1),
    "make_lanes": lambda task: task.make_lanes("test", 1, 2),
    "field": lambda task: task.field("test", 1),
    "open_fields": lambda task: open_fields(task, [("test", 1)]),
}


@pytest.mark.usefixtures("_no_measuring")
@pytest.mark.parametrize("use", REFUSED.values(), ids=REFUSED)
def test_a_vector_reward_is_refused_in_one_line(use):
    """No command plays DRRL-Attention-MO-v0, and it says who does."""
    with pytest.raises(ValueError, match=rf"^env='{VECTOR}': [^\n]*mo_gymnasium\.make$"):
        use(Task(VECTOR))


def test_lanes_for_sb3_play_what_one_environment_plays(task):
    """Seeded alike, the lanes that training collects on and SB3's own lanes give the same bits for two episodes."""
    lanes, dummy = task.make_lanes("train", 2, 3), DummyVecEnv([lambda: task.make("train", 2)] * 3)
    for env in (lanes, dummy):
        env.seed(5)
    seen = [env.reset() for env in (lanes, dummy)]
    for row in np.random.default_rng(0).integers(8, size=(9, 3)):
        assert all((seen[0][name] == seen[1][name]).all() for name in seen[0])
        (first, one, ended, _), (second, other, stopped, _) = (env.step(row) for env in (lanes, dummy))
        assert (one == other).all()
        assert (ended == stopped).all()
        seen = [first, second]


def test_full_attention_is_charged_for_the_conformal_guards_evidence(settings):
    """More than under the paper's guard, by three FLOPs per value of every segment."""
    found = []
    for guard in ("off", "paper", "conformal"):
        field = replace(settings.task, guard=guard).field("test", 1, progress=False)
        found.append(rollout(full(field), field).overhead)
    off, paper, conformal = found
    assert (off == 0).all()
    np.testing.assert_allclose(conformal - paper, 4 * 4 * 3 * 128 * 64, rtol=1e-6)


def test_a_task_from_before_there_were_statistics_is_read(finished_run):
    """A config without `statistics` and `cost` is a task that observes the default and pays the default."""
    config = read_config(finished_run)
    del config["task"]["statistics"], config["task"]["cost"]
    assert task_of(config) == Task(context=512, basis="calibrated", guard="paper")
