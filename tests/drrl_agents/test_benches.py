"""The benchmarks measure the real thing; here on small settings, and never with a bar on a time."""

from __future__ import annotations

import itertools
import json
import math

import gymnasium
import numpy as np
import pytest
from stable_baselines3.common.vec_env import DummyVecEnv

from drrl_agents.bench import env as bench_env
from drrl_agents.bench import faces as bench_faces
from drrl_agents.bench import policy as bench_policy
from drrl_agents.bench.command import Bench, run_bench
from drrl_agents.tasks import Task
from drrl_env.sb3 import make_vec_env


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
    """A fresh environment streams every segment, though all of them lie on disk; or a table would be measured."""
    monkeypatch.setattr(bench_env, "SPANS", 1)
    env, store = bench_env._fresh_env(traces="on")
    store.fill(env.unwrapped.pool, layers=(0,), progress=False)
    again, fresh = bench_env._fresh_env()
    assert not fresh.is_filled(env.unwrapped.pool[0], (0,))
    assert fresh is not store
    assert not fresh.ready.any()
    _, kept = bench_env._fresh_env(traces="on")
    assert kept.is_filled(env.unwrapped.pool[0], (0,))
    assert again.unwrapped.game is not env.unwrapped.game


def test_bench_env_does_not_time_a_load_that_found_nothing(monkeypatch, tmp_path):
    """With nothing on disk it fails: seconds of an empty look-up would pass for a fast one."""
    monkeypatch.setattr(bench_env, "SPANS", 1)
    monkeypatch.setenv("DRRL_CACHE", str(tmp_path))
    env, store = bench_env._fresh_env(traces="on")
    with pytest.raises(RuntimeError, match="not kept"):
        bench_env._load(store, env.unwrapped.pool, (0,))


SHORT = {"context": 512, "instances": 2, "basis": "calibrated"}
"""Four segments."""


def test_a_vector_face_counts_no_reset_as_a_step(monkeypatch):
    """Eleven calls of three lanes at four segments an episode: resets at the fifth and the tenth, 27 steps."""
    env = gymnasium.make_vec("DRRL-Attention-v0", 3, vectorization_mode="vector_entry_point", **SHORT)
    clock = iter([0.0, 1.0])
    monkeypatch.setattr(bench_faces.time, "process_time", lambda: next(clock))
    assert bench_faces.vector_rate(env, np.zeros((11, 3), np.int64)) == 27


def test_every_face_is_timed_over_the_steps_that_it_makes(monkeypatch):
    """With a clock that stands a second apart at each look, the rate is the number of steps, or steps per call."""
    env = make_vec_env("DRRL-Attention-v0", 3, **SHORT)
    one = gymnasium.make("DRRL-Attention-v0", **SHORT)
    dummy = DummyVecEnv([lambda: gymnasium.make("DRRL-Attention-v0", **SHORT)] * 2)
    clock = itertools.count(0.0)
    monkeypatch.setattr(bench_faces.time, "process_time", lambda: next(clock))
    assert bench_faces.one_rate(one, np.zeros((6, 1), np.int64)) == 6
    assert bench_faces.wait_rate(env, np.zeros((5, 3), np.int64)) == 3
    assert bench_faces.dummy_rate(dummy, np.zeros((5, 2), np.int64)) == 10


@pytest.fixture
def small(monkeypatch):
    """One seed of a few hundred steps on two short spans."""
    monkeypatch.setattr(bench_policy, "SEEDS", (0,))
    monkeypatch.setattr(bench_policy, "TRAIN_SPANS", 2)
    monkeypatch.setattr(bench_policy, "TEST_SPANS", 2)
    monkeypatch.setattr(bench_policy, "STEPS", 1024)


def test_bench_policy_compares_seeds_and_rules_on_the_test_split(small):
    """Every rule, the agent and the oracle on episodes of the test split; the agent's lead over both kinds of table."""
    found = bench_policy.seeds_on_test(Task(guard="paper", context=512), threads=1)
    names = {row.policy for row in found.rows}
    assert {"energy-threshold", "layer-table", "layer-segment-table", "oracle", "full", "random"} < names
    assert "maskable-ppo-transformer" in names
    assert {episode.instance.split for episode in found.field.episodes} == {"test"}
    agent, fixed = found.rows[0], next(row for row in found.rows if row.policy.startswith("fixed-"))
    required = bench_policy._difference(found, "fixed-", True)
    assert required.target == "> 0"
    assert required.meets == (required.value > 0)
    assert f": {agent.mean_return - fixed.mean_return:.4f} [" in required.name
    shown = bench_policy._difference(found, "layer-segment-table", False)
    assert (shown.target, shown.meets) == (None, None)
