"""The benchmarks measure the real thing; here on small settings, and never with a bar on a time."""

from __future__ import annotations

import json
import math

import pytest

from drrl_agents.bench import env as bench_env
from drrl_agents.bench import policy as bench_policy
from drrl_agents.bench.command import Bench, run_bench
from drrl_agents.tasks import Task


def test_bench_env_prints_one_json_object(monkeypatch, capsys):
    """Standard output holds `machine` and `rows` and nothing else: progress goes to the error stream."""
    monkeypatch.setattr(bench_env, "SPANS", 1)
    monkeypatch.setattr(bench_env, "ROUNDS", 1)
    monkeypatch.setattr(bench_env, "REPLAYED_STEPS", 200)
    run_bench(Bench("env", json=True))
    report = json.loads(capsys.readouterr().out)
    assert set(report) == {"machine", "rows"}
    assert all(set(row) == {"name", "value", "unit", "target", "meets"} for row in report["rows"])
    assert all(math.isfinite(row["value"]) and row["value"] > 0 for row in report["rows"])


def test_bench_env_remembers_nothing_in_its_live_rounds(monkeypatch):
    """A fresh environment's first episode streams every segment; a remembered one would measure a table."""
    monkeypatch.setattr(bench_env, "SPANS", 1)
    env, store = bench_env._fresh_env()
    bench_env._episode(env, env.unwrapped.pool[0].uri, 0)
    again, fresh = bench_env._fresh_env()
    assert fresh is not store
    assert not fresh.ready.any()
    assert again.unwrapped.transitions is not env.unwrapped.transitions


@pytest.fixture
def small(monkeypatch):
    """One seed of a few hundred steps on two short spans."""
    monkeypatch.setattr(bench_policy, "SEEDS", (0,))
    monkeypatch.setattr(bench_policy, "TRAIN_SPANS", 2)
    monkeypatch.setattr(bench_policy, "TEST_SPANS", 2)
    monkeypatch.setattr(bench_policy, "STEPS", 1024)


def test_bench_policy_compares_seeds_and_rules_on_the_test_split(small):
    """Every rule, the agent and the oracle on episodes of the test split; both tables beside them."""
    found = bench_policy.seeds_on_test(Task(guard="paper", context=512), threads=1)
    names = {row.policy for row in found.rows}
    assert {"energy-threshold", "layer-table", "layer-segment-table", "oracle", "full", "random"} < names
    assert "maskable-ppo-transformer-seed0" in names
    assert {instance.split for instance, _ in found.field.pairs} == {"test"}
    rows = [bench_policy._difference(found, found.rollouts[-1].returns, name, True) for name in ("fixed-", "layer-")]
    assert all(row.target == "> 0" for row in rows)
