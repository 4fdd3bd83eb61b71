"""A trained agent is loaded without a pickle and acts as it did."""

from __future__ import annotations

import json
import pickle

import cloudpickle
import pytest
import torch
from sb3_contrib import MaskablePPO

from drrl_agents.agent import AgentPolicy, decision_flops, load_agent, save_agent
from drrl_agents.algorithms import make_algorithm
from drrl_agents.tasks import open_field
from drrl_policies.rollout import rollout


@pytest.fixture
def _no_pickle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unpickling anything fails the test."""

    def refuse(*_: object, **__: object) -> None:
        pytest.fail("something was unpickled")

    for module in (pickle, cloudpickle):
        monkeypatch.setattr(module, "load", refuse)
        monkeypatch.setattr(module, "loads", refuse)
    monkeypatch.setattr(pickle, "Unpickler", refuse)
    monkeypatch.setattr(torch, "load", refuse)


@pytest.mark.usefixtures("_no_pickle")
def test_loading_an_agent_unpickles_nothing(finished_run):
    """JSON and safetensors only: a run of somebody else's cannot run code."""
    assert load_agent(finished_run).name == "maskable-ppo-transformer-seed0"


def test_a_loaded_agent_acts_as_the_trained_one_did(finished_run, task):
    """The same ranks and rewards as the newest checkpoint, in every step of the test episodes, under the guard."""
    trained = MaskablePPO.load(finished_run / "checkpoints" / "step-000000512.zip", device="cpu")
    field = open_field(task, "test", 2, progress=False)
    first, second = (
        rollout(policy, field.game, field.pairs)
        for policy in (AgentPolicy(trained, "trained", masks=True), load_agent(finished_run))
    )
    assert (first.wanted == second.wanted).all()
    assert (first.rewards == second.rewards).all()
    assert all((first.columns[name] == second.columns[name]).all() for name in first.columns)
    assert (second.wanted == second.executed).all()


def test_an_agent_is_charged_for_all_it_sees_and_for_its_own_thinking(finished_run):
    """Every entry, and FLOPs that PyTorch counts; attention's two products by hand are within them."""
    agent = load_agent(finished_run)
    assert agent.reads == set(agent.space.spaces)
    assert not agent.privileged
    per_token = 2 * (4 * 64 * 64 + 2 * 64 * 128)
    attention = 2 * 2 * 8 * 8 * 64
    encoder = 2 * (8 * per_token + attention)
    assert encoder < agent.deciding_flops < 1.2 * encoder


def test_counting_flops_leaves_the_mode_of_the_policy(finished_run):
    """Counted in training mode, evaluated in the mode it was in."""
    agent = load_agent(finished_run)
    agent._model.policy.eval()
    assert decision_flops(agent._model) == agent.deciding_flops
    assert not agent._model.policy.training


@pytest.mark.parametrize("algo", ["maskable-ppo", "ppo", "a2c", "trpo", "dqn", "qr-dqn"])
def test_weights_of_every_algorithm_survive_the_round_trip(algo, task, tmp_path, finished_run):
    """Saved, and loaded into a fresh agent that started from other weights: the same weights."""
    env = task.make_lanes("train", 1, 2)
    before, other = (make_algorithm(algo, "transformer", env, seed) for seed in (1, 0))
    config = json.loads((finished_run / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "algo": algo, "seed": 0}))
    save_agent(before, tmp_path)
    after = load_agent(tmp_path)._model.policy.state_dict()
    weights = before.policy.state_dict()
    assert all(torch.equal(weights[name], after[name]) for name in weights)
    assert not all(torch.equal(weights[name], tensor) for name, tensor in other.policy.state_dict().items())
