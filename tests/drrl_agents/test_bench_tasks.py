"""`drrl bench tasks` plays what it says it plays, and its scores are those of the one function; here on short spans."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import gymnasium
import numpy as np
import pytest

from drrl_agents.bench import tasks as bench
from drrl_agents.bench.command import Bench, run_bench
from drrl_agents.bench.tasks import TaskRow, open_episodes, task_rows
from drrl_agents.tasks import Task
from drrl_env.envs.tasks import TASKS
from drrl_policies.fitting import rule_policies
from drrl_policies.rollout import rollout

EXACT = ("DRRL-Attention-v0", "DRRL-Tolerance-v0", "DRRL-Heads-v0", "DRRL-Basis-v0", "DRRL-Latency-v0")
README = Path(__file__).parents[2] / "benchmarks" / "readme.py"


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    """One span of each split, four segments long."""
    monkeypatch.setattr(bench, "SPANS", 1)
    monkeypatch.setattr(bench, "CONTEXT", 512)


@pytest.fixture(scope="module")
def rows() -> dict[str, dict[str, TaskRow]]:
    """Rows of every task that plans exactly, by baseline."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench, "SPANS", 1)
        patch.setattr(bench, "CONTEXT", 512)
        return {task: {row.baseline: row for row in task_rows(task)} for task in EXACT}


@pytest.mark.parametrize("task", EXACT)
def test_no_rule_beats_an_exact_oracle(task: str, rows: dict[str, dict[str, TaskRow]]) -> None:
    """Random scores 0, the oracle 1, and every rule at most that: nothing is better on the episodes it plans."""
    found = rows[task]
    assert found["random"].normalised_score == pytest.approx(0, abs=1e-12)
    assert found["oracle"].normalised_score == pytest.approx(1, abs=1e-12)
    assert "exact" in found["oracle"].note
    assert all(row.normalised_score is not None and row.normalised_score <= 1 + 1e-9 for row in found.values())


@pytest.mark.parametrize("task", EXACT)
def test_terms_add_up_and_full_attention_costs_what_it_costs(task: str, rows: dict[str, dict[str, TaskRow]]) -> None:
    """Of what was played the terms sum to the mean return; full attention has FLOPs ratio 1 and no error."""
    found = rows[task]
    for row in found.values():
        if row.baseline != "random":  # whose return is the exact expectation, not what was sampled
            assert sum(row.terms.values()) == pytest.approx(row.mean_return, abs=1e-9)
    assert found["full"].flops_ratio == pytest.approx(1, abs=1e-12)
    assert found["full"].relative_error == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("task", ["DRRL-Tolerance-v0", "DRRL-Basis-v0"])
def test_rules_are_named_and_fitted_as_drrl_compare_does(task: str, rows: dict[str, dict[str, TaskRow]]) -> None:
    """On the same train episodes the same names; on the same test episodes the same return, to the last bit."""
    command = Task(task, context=512)
    rules, test = rule_policies(command.field("train", 1, progress=False)), command.field("test", 1, progress=False)
    assert list(rows[task]) == [*(rule.name for rule in rules), "oracle"]
    for rule in rules[1:]:
        assert rows[task][rule.name].mean_return == rollout(rule, test).returns.mean()


def test_what_a_rule_reads_is_in_its_flops(rows: dict[str, dict[str, TaskRow]]) -> None:
    """A threshold that never leaves full attention costs more than full attention; a table costs what it runs."""
    found = rows["DRRL-Attention-v0"]
    assert found["energy-threshold"].relative_error == pytest.approx(0, abs=1e-6)
    assert found["energy-threshold"].flops_ratio > 1.5
    assert found["layer-table"].flops_ratio <= 1.5


def test_a_rule_is_played_as_an_agent_would_play_it(rows: dict[str, dict[str, TaskRow]]) -> None:
    """The mean return of full attention is that of `gym.make` on the same spans and layers, bit for bit."""
    env, found = gymnasium.make("DRRL-Latency-v0", split="test", instances=1, context=512), []
    for episode in open_episodes("DRRL-Latency-v0", "test").episodes:
        env.reset(options={"instance": episode.instance.uri, "layer": episode.layer})
        found.append(sum(float(env.step(7)[1]) for _ in range(4)))
    assert np.mean(found) == rows["DRRL-Latency-v0"]["full"].mean_return


def test_the_oracle_says_which_bases_it_runs(rows: dict[str, dict[str, TaskRow]]) -> None:
    """Shares of the kinds and of full attention, which add up to all of its segments; elsewhere nothing."""
    note = rows["DRRL-Basis-v0"]["oracle"].note
    shares = [int(part.rpartition(" ")[2].rstrip("%")) for part in note.partition("segments ")[2].split(", ")]
    assert len(shares) == 4
    assert sum(shares) == pytest.approx(100, abs=2)
    assert rows["DRRL-Heads-v0"]["oracle"].note == "exact"


def test_a_vector_reward_has_terms_and_no_score() -> None:
    """DRRL-Attention-MO-v0: every fixed rank with its terms, and how many best trade-offs an episode has."""
    found = task_rows("DRRL-Attention-MO-v0")
    assert all(row.mean_return is None and row.normalised_score is None for row in found)
    assert all(set(row.terms) == {"fidelity", "flops", "change"} for row in found[:-1])
    assert [row.baseline for row in found[1:-1]] == [f"fixed-{rank}" for rank in (8, 12, 16, 20, 24, 32, 40, 64)]
    assert found[-2].terms["flops"] == pytest.approx(-4)
    assert "returns in the exact Pareto front" in found[-1].note


def test_the_readme_shows_what_the_benchmark_prints(rows: dict[str, dict[str, TaskRow]]) -> None:
    """One line a task: random, full attention and the oracle, and the best rule by the name it has there."""
    report = {"machine": {}, "rows": [vars(row) for found in rows.values() for row in found.values()]}
    lines = runpy.run_path(str(README))["suite_table"](report).splitlines()[2:]
    assert len(lines) == len(EXACT)
    for task, line in zip(EXACT, lines, strict=True):
        rules = [row for row in rows[task].values() if row.baseline not in ("random", "oracle")]
        best = max(rules, key=lambda row: row.mean_return or 0.0)
        assert f"[{task}]" in line
        assert f"{best.mean_return:.3f}, {best.baseline}" in line


def test_it_prints_one_json_object(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """`machine` and `rows` and nothing else; every row names its task, in the order of the table of tasks."""
    few = {name: TASKS[name] for name in ("DRRL-Attention-v0", "DRRL-Tolerance-v0")}
    monkeypatch.setattr(bench, "TASKS", few)
    run_bench(Bench("tasks", json=True))
    report = json.loads(capsys.readouterr().out)
    assert set(report) == {"machine", "rows"}
    assert list(dict.fromkeys(row["task"] for row in report["rows"])) == list(few)
    run_bench(Bench("tasks"))
    assert "layer-segment-table" in capsys.readouterr().out
