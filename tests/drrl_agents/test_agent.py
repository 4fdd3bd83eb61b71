"""A trained agent is loaded without a pickle and acts as it did."""

from __future__ import annotations

import json
import pickle
import zipfile

import cloudpickle
import numpy as np
import pytest
import torch

from drrl_agents.agent import as_policy, decision_flops, load_agent, save_agent
from drrl_agents.algorithms import ALGORITHMS, make_algorithm
from drrl_agents.tasks import Task
from drrl_agents.training import ZIP
from drrl_env.envs.settings import Guard
from drrl_env.sb3 import make_vec_env
from drrl_policies import load
from drrl_policies.field import open_field
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
    monkeypatch.setattr(zipfile, "ZipFile", refuse)


@pytest.mark.usefixtures("_no_pickle", "_no_measuring")
def test_loading_an_agent_unpickles_nothing(finished_run):
    """JSON and safetensors only: a run of somebody else's cannot run code, and nothing is measured for it."""
    assert load_agent(finished_run).name == "maskable-ppo-transformer-seed0"


def test_a_loaded_agent_acts_as_the_trained_one_did(finished_run, task):
    """The same ranks and rewards as SB3's own zip, in every step of the test episodes, under the guard."""
    trained = load(finished_run / ZIP, trust=True, algo="maskable-ppo")
    field = task.field("test", 2, progress=False)
    live = as_policy(trained, "trained", ALGORITHMS["maskable-ppo"].masks, field)
    first, second = (rollout(policy, field) for policy in (live, load_agent(finished_run)))
    assert (first.wanted == second.wanted).all()
    assert (first.rewards == second.rewards).all()
    assert all((first.columns[name] == second.columns[name]).all() for name in first.columns)
    assert (second.wanted == second.executed).all()


def test_masks_are_honoured_in_evaluation(finished_run):
    """Under a guard that leaves full rank alone nothing else is asked for; by the same agent without masks it is."""
    tight = {"context": 512, "basis": "calibrated", "guard": Guard("paper", 1e-9, 0.0)}
    guarded = open_field("DRRL-Attention-v0", tight, "test", 1, progress=False)
    trained = load(finished_run / ZIP, trust=True, algo="maskable-ppo")
    seeing, blind = (as_policy(trained, "agent", masks, guarded) for masks in (True, False))
    assert (rollout(seeing, guarded).executed == 7).all()
    assert (rollout(seeing, guarded).wanted == 7).all()
    found = rollout(blind, guarded)
    assert (found.wanted != 7).any()
    assert (found.executed == 7).all()


def test_an_agent_is_charged_for_all_it_sees_and_for_its_own_thinking(finished_run):
    """Every entry, and FLOPs that PyTorch counts; the encoder's by hand are within them."""
    agent = load_agent(finished_run)
    assert agent.reads == set(agent.entries.spaces)
    assert not agent.privileged
    per_token = 2 * (4 * 64 * 64 + 2 * 64 * 128)
    attention = 2 * 2 * 8 * 8 * 64
    encoder = 2 * (8 * per_token + attention)
    assert encoder < agent.deciding_flops < 1.2 * encoder


@pytest.mark.parametrize("algo", ["maskable-ppo", "crossq"])
def test_counting_flops_leaves_the_agent_as_it_was(algo):
    """Its mode, torch's generator and every weight; counted in training mode, where CrossQ's running means move."""
    box = "box" if algo == "crossq" else None
    model = make_algorithm(algo, "transformer", make_vec_env("DRRL-Attention-v0", 2, context=512, actions=box), 0)
    model.policy.eval()
    before = {name: tensor.clone() for name, tensor in model.policy.state_dict().items()}
    torch.manual_seed(3)
    generator = torch.get_rng_state()
    assert decision_flops(model) > 0
    assert not model.policy.training
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.policy.state_dict().items())


@pytest.mark.parametrize("algo", ["maskable-ppo", "recurrent-ppo", "qr-dqn", "tqc", "crossq", "ars"])
def test_an_agent_survives_the_round_trip(algo, finished_run, tmp_path):
    """Masks, memory, quantiles, one number, flattened rows: saved with its card, it comes back in every weight, and
    decides on its own lanes as the live one does; another seed has other weights."""
    config = json.loads((finished_run / "config.json").read_text())
    actions = "box" if algo in ("tqc", "crossq") else None
    lanes = make_vec_env("DRRL-Attention-v0", 2, context=512, instances=2, actions=actions)
    network = "mlp" if algo == "ars" else "transformer"
    model, other = (make_algorithm(algo, network, lanes, seed) for seed in (1, 0))
    values = {**config, "algo": algo, "task": {**config["task"], "actions": actions}}
    (tmp_path / "config.json").write_text(json.dumps(values))
    save_agent(model, tmp_path)
    loaded, batch = load_agent(tmp_path), lanes.reset()
    weights, after = model.policy.state_dict(), loaded.network.state_dict()
    assert all(torch.equal(weights[name], after[name]) for name in weights)
    assert not all(torch.equal(weights[name], tensor) for name, tensor in other.policy.state_dict().items())
    seen = batch if ALGORITHMS[algo].dicts else np.concatenate([batch[name] for name in loaded.entries.spaces], -1)
    np.testing.assert_array_equal(loaded.predict(batch)[0], model.predict(seen, deterministic=True)[0])
    assert loaded.deciding_flops == decision_flops(model) > 0


def test_a_config_and_a_card_of_two_runs_are_refused(run_copy):
    """Files that were copied together by hand."""
    config = json.loads((run_copy / "config.json").read_text())
    (run_copy / "config.json").write_text(json.dumps({**config, "seed": 7}))
    with pytest.raises(ValueError, match="seed7") as error:
        load_agent(run_copy)
    assert len(str(error.value).splitlines()) == 1


ACTIONS = {
    "Discrete": ("DRRL-Tolerance-v0", "maskable-ppo"),
    "MultiDiscrete of heads": ("DRRL-Heads-v0", "maskable-ppo"),
    "MultiDiscrete of rank and basis": ("DRRL-Basis-v0", "a2c"),
    "Box": ("DRRL-Attention-Continuous-v0", "sac"),
    "Box, observations flattened": ("DRRL-Attention-Continuous-v0", "crossq"),
    "Discrete, with a memory": ("DRRL-Attention-v0", "recurrent-ppo"),
}
"""Kinds of actions and observations, by a task and an algorithm that has them."""


@pytest.mark.parametrize(("env", "algo"), ACTIONS.values(), ids=ACTIONS)
def test_an_agent_of_every_action_space_is_played_as_sb3_plays_it(env, algo):
    """Rolled out in lanes, every choice and reward is that of `gym.make` stepped with the model's own `predict`.

    What was drawn is the episode's, a memory begins with it, and masks reach the algorithm that knows them.
    """
    task = Task(env, context=256)
    model = make_algorithm(algo, "mlp", task.make_lanes("train", 1, 2), seed=3)
    field, masks = task.field("test", 1, repeats=2, progress=False), ALGORITHMS[algo].masks
    found, single = rollout(as_policy(model, "agent", masks, field), field), task.make("test", 1)
    flat, drawn = not ALGORITHMS[algo].dicts, field.arena.play.parameter
    for number, (instance, layer, parameter) in enumerate(field.episodes):
        options = {"instance": instance.uri, "layer": layer, **({drawn: parameter} if drawn else {})}
        (seen, _), state = single.reset(options=options), None
        for step in range(field.steps):
            rows = np.concatenate([seen[name] for name in single.observation_space.spaces]) if flat else seen
            known = {"action_masks": single.get_wrapper_attr("action_masks")()} if masks else {}
            action, state = model.predict(rows, state, np.array([step == 0]), deterministic=True, **known)
            seen, reward, _, _, info = single.step(action)
            assert np.array_equal(np.ravel(info["choice"]), found.executed[number, step])
            assert reward == found.rewards[number, step]


def test_a_memory_begins_anew_with_every_rollout():
    """Played twice the same agent does the same, on other episodes in between: nothing is left of those before."""
    task = Task(context=512, basis="calibrated")
    model = make_algorithm("recurrent-ppo", "mlp", task.make_lanes("train", 1, 2), seed=3)
    field, fewer = (task.field("test", spans, progress=False) for spans in (2, 1))
    agent = as_policy(model, "agent", False, field)
    first, other, again = (rollout(agent, each) for each in (field, fewer, field))
    assert (first.wanted == again.wanted).all()
    assert (other.wanted == first.wanted[: len(other.wanted)]).all()
