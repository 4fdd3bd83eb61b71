"""`drrl bench tasks` plays what it says it plays, and its scores are those of the one function; here on short spans."""

from __future__ import annotations

import json

import gymnasium
import numpy as np
import pytest

from drrl_agents.bench import tasks as bench
from drrl_agents.bench.command import Bench, run_bench
from drrl_agents.bench.static_rules import rules_of
from drrl_agents.bench.tasks import TaskRow, open_field, play, task_rows
from drrl_env.envs.basis import KINDS
from drrl_env.envs.tasks import TASKS

EXACT = ("DRRL-Attention-v0", "DRRL-Tolerance-v0", "DRRL-Heads-v0", "DRRL-Basis-v0", "DRRL-Latency-v0")


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
def test_no_static_rule_beats_an_exact_oracle(task: str, rows: dict[str, dict[str, TaskRow]]) -> None:
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
    assert found["full attention"].flops_ratio == pytest.approx(1, abs=1e-12)
    assert found["full attention"].relative_error == pytest.approx(0, abs=1e-6)


def test_the_best_table_is_at_least_as_good_on_train_as_the_best_rule_per_layer() -> None:
    """A plan of the mean reward per layer holds every constant rule as a special case; per layer beats one for all."""
    train = open_field("DRRL-Attention-v0", "train", 0)
    rules = rules_of(train.arena)
    gained = np.stack([play(train, rule.choose).returns for rule in rules])
    table = play(train, bench._table_choose(train, train)).returns.mean()
    layered = play(train, bench._per_layer(rules, gained, train, train)).returns.mean()
    assert table >= layered - 1e-9
    assert layered >= gained.mean(-1).max() - 1e-9


def test_a_rule_is_played_as_an_agent_would_play_it() -> None:
    """The mean return of a fixed rank is that of `gym.make` on the same spans and layers, bit for bit."""
    field = open_field("DRRL-Attention-v0", "test", 1)
    rule = rules_of(field.arena)[3]
    env = gymnasium.make("DRRL-Attention-v0", split="test", instances=1, context=512)
    for episode, value in zip(field.episodes, play(field, rule.choose).returns, strict=True):
        env.reset(options={"instance": episode.instance.uri, "layer": episode.layer})
        assert sum(float(env.step(3)[1]) for _ in range(4)) == value


def test_every_way_to_use_a_basis_is_a_family() -> None:
    """Rank times always calibrated, always refreshed, refreshed once and then kept: what info reports is that."""
    field = open_field("DRRL-Basis-v0", "test", 1)
    ranks = len(field.arena.world.ranks)
    families = {rule.family for rule in rules_of(field.arena)}
    assert len(rules_of(field.arena)) == 3 * ranks
    assert len(families) == 3
    once = next(rule for rule in rules_of(field.arena) if "once" in rule.family)
    assert [KINDS[once.choices(step)[1]] for step in range(3)] == ["refreshed", "kept", "kept"]
    assert "best fixed rank, refreshed once and then kept" in {row.baseline for row in task_rows("DRRL-Basis-v0")}


def test_a_budget_is_drawn_for_an_episode_and_kept_to() -> None:
    """Where full rank is asked for throughout, what is executed still keeps within the drawn budget."""
    field = open_field("DRRL-Budget-v0", "test", 1)
    full = rules_of(field.arena)[-1]
    spent, budgets = play(field, full.choose).flops, [episode.parameter for episode in field.episodes]
    assert len(set(budgets)) == len(budgets)
    assert (spent <= np.array(budgets) + 1e-9).all()


def test_a_vector_reward_has_terms_and_no_score() -> None:
    """DRRL-Attention-MO-v0: every fixed rank with its terms, and how many best trade-offs an episode has."""
    found = task_rows("DRRL-Attention-MO-v0")
    assert all(row.mean_return is None and row.normalised_score is None for row in found)
    assert all(set(row.terms) == {"fidelity", "flops", "change"} for row in found[:-1])
    assert "returns in the exact Pareto front" in found[-1].note


def test_it_prints_one_json_object(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """`machine` and `rows` and nothing else; every row names its task, in the order of the table of tasks."""
    few = {name: TASKS[name] for name in ("DRRL-Attention-v0", "DRRL-Tolerance-v0")}
    monkeypatch.setattr(bench, "TASKS", few)
    run_bench(Bench("tasks", json=True))
    report = json.loads(capsys.readouterr().out)
    assert set(report) == {"machine", "rows"}
    assert list(dict.fromkeys(row["task"] for row in report["rows"])) == list(few)
    run_bench(Bench("tasks"))
    assert "best fixed rank" in capsys.readouterr().out
