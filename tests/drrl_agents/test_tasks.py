"""Every task that the commands play trains, is evaluated and is compared; so does every guard, cost and statistic."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
from stable_baselines3.common.vec_env import DummyVecEnv
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from drrl_agents.agent import load_agent, read_config, task_of
from drrl_agents.comparison import COLUMNS, Compare, run_compare
from drrl_agents.evaluation import Evaluate, run_evaluate
from drrl_agents.tasks import PLAYED, Task, open_field
from drrl_agents.training import train
from drrl_env.envs.optima import oracle
from drrl_policies import Full, Random
from drrl_policies.fitting import reference
from drrl_policies.rollout import rollout

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


def test_a_variant_trains_is_evaluated_and_compared(variant):
    """The agent stands beside the oracle, which nobody beats; the config brings the same task back."""
    settings, run = variant
    assert task_of(read_config(run)) == settings.task
    evaluated = run_evaluate(Evaluate(run, instances=2, progress=False))
    compared = run_compare(
        Compare(settings.task, (run,), instances=2, train_instances=2, logdir=settings.logdir, progress=False)
    )
    name = load_agent(run).name
    scores = [{row.policy: row.normalised_score for row in found.rows} for found in (evaluated, compared)]
    assert scores[0][name] == scores[1][name] <= 1
    assert max(scores[1].values()) == pytest.approx(1)
    rules = {"random", "full", "energy-threshold", "layer-table", "layer-segment-table", "oracle"}
    assert rules - set(scores[1]) == ({"energy-threshold"} if settings.task.statistics else set())


def test_milliseconds_are_shown_where_they_are_the_cost_and_only_there(variant):
    """In events, table and JSON; FLOPs stand beside them in any case."""
    settings, run = variant
    timed = settings.task.env == "DRRL-Latency-v0"
    scalars = set(EventAccumulator(str(run)).Reload().Tags()["scalars"])
    assert {"rollout/flops_ratio", "validation/flops_ratio"} <= scalars
    assert ({"rollout/latency_ratio", "validation/latency_ratio"} <= scalars) == timed
    run_evaluate(Evaluate(run, instances=2, progress=False))
    rows = json.loads((run / "evaluation-test.json").read_text())
    assert all(("latency_ratio" in row) == timed for row in rows)
    full = next(row for row in rows if row["policy"] == "full")
    assert full.get("latency_ratio", 1.0) == pytest.approx(1)


def test_no_agent_breaks_the_conformal_guard(variant):
    """MaskablePPO never asks for what is masked, and what is masked is something."""
    settings, run = variant
    events = EventAccumulator(str(run)).Reload().Scalars("rollout/masked_action")
    assert {event.value for event in events} == {0.0}
    field = open_field(settings.task, "test", 2, progress=False)
    asked = np.random.default_rng(0).integers(8, size=(len(field.pairs), field.game.world.segments))
    forced = rollout(_Asking(asked), field.game, field.pairs)
    assert (forced.executed != forced.wanted).any() == (settings.task.guard != "off")


class _Asking(Random):
    """Asks for what it is told, whatever the masks."""

    def __init__(self, choices) -> None:
        super().__init__()
        self._choices, self._lane = choices, 0

    def choose(self, situation):
        """The next column."""
        self._lane += 1
        return self._choices[:, self._lane - 1]


def test_the_comparison_of_milliseconds_prints_them(settings, tmp_path, capsys):
    """A column of its own in the table, with no other cut off for it, and in the CSV; full attention costs itself."""
    task = replace(settings.task, env="DRRL-Latency-v0", guard="off")
    run_compare(Compare(task, instances=2, train_instances=2, logdir=tmp_path, progress=False))
    heads = capsys.readouterr().out.splitlines()[2]
    assert all(f" {head} " in heads for head in COLUMNS.values())
    with (tmp_path / "DRRL-Latency-v0" / "compare-test" / "comparison.csv").open(newline="") as file:
        rows = {row["policy"]: float(row["latency_ratio"]) for row in csv.DictReader(file)}
    assert rows["full"] == pytest.approx(1)
    assert len({round(value, 6) for value in rows.values()}) > 2


def test_the_latency_task_is_the_attention_task_at_another_cost(settings):
    """Same spans, same choices: the rewards are those of `--cost latency`, and not those of FLOPs."""
    task = replace(settings.task, guard="off")
    tasks = (replace(task, env="DRRL-Latency-v0"), replace(task, cost="latency"), task)
    latency, asked, flops = (open_field(each, "test", 2, progress=False) for each in tasks)
    found = [rollout(Random(3), each.game, each.pairs) for each in (latency, asked, flops)]
    assert (found[0].rewards == found[1].rewards).all()
    assert not np.isclose(found[0].rewards, found[2].rewards).any()
    assert (found[0].columns["flops"] == found[2].columns["flops"]).all()


@pytest.mark.parametrize("env", PLAYED)
def test_the_reference_agrees_with_the_oracle_of_the_environment(env, settings):
    """Random and optimum of every episode are those of `drrl_env.oracle`."""
    task = replace(settings.task, env=env)
    field = open_field(task, "test", 1, progress=False)
    known = reference(field.game, field.pairs)
    arguments = {"context": 512, "basis": "calibrated", "guard": "paper"}
    for number, (instance, layer) in enumerate(field.pairs):
        best = oracle(env, f"{instance.uri}?layer={layer}", **arguments)
        assert known.oracle[number] == pytest.approx(best.value, abs=1e-12)
        assert known.random[number] == pytest.approx(best.random, abs=1e-12)


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
        field = open_field(replace(settings.task, guard=guard), "test", 1, progress=False)
        found.append(rollout(Full(8), field.game, field.pairs).overhead)
    off, paper, conformal = found
    assert (off == 0).all()
    np.testing.assert_allclose(conformal - paper, 4 * 4 * 3 * 128 * 64, rtol=1e-6)


def test_a_task_from_before_there_were_statistics_is_read(finished_run):
    """A config without `statistics` and `cost` is a task that observes the default and pays the default."""
    config = read_config(finished_run)
    del config["task"]["statistics"], config["task"]["cost"]
    assert task_of(config) == Task(context=512, basis="calibrated", guard="paper")
