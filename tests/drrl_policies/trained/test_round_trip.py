"""A trained policy comes back bit for bit from its card and weights, whatever algorithm it is from."""

from __future__ import annotations

import dataclasses
import os
import re

import numpy as np
import pytest
import torch
from gymnasium import spaces
from safetensors.torch import load_file

from drrl_policies.card import entries_of, read_card
from drrl_policies.networks import ACTIVATIONS, DEFAULT, FAMILIES, build, describe, distinct_weights
from drrl_policies.trained import CARD, WEIGHTS, load

DISCRETE = ("Discrete", "MultiDiscrete")
EVERY = (*DISCRETE, "Box")
KINDS = {
    "maskable-ppo": DISCRETE, "ppo": EVERY, "a2c": EVERY, "trpo": DISCRETE, "recurrent-ppo": ("Discrete", "Box"),
    "dqn": ("Discrete",), "qr-dqn": ("Discrete",), "sac": ("Box",), "tqc": ("Box",), "td3": ("Box",), "ddpg": ("Box",),
    "crossq": ("Box",), "ars": ("Discrete", "Box"),
}  # fmt: skip
"""Actions that each algorithm is tried with."""
CASES = [
    (algo, kind, network)
    for algo, kinds in KINDS.items()
    for kind in kinds
    for network in (("mlp",) if algo == "ars" else ("mlp", "transformer"))
]


@pytest.mark.usefixtures("_nothing_runs")
@pytest.mark.parametrize(("algo", "kind", "network"), CASES, ids=["-".join(case) for case in CASES])
def test_every_family_comes_back_bit_for_bit(make_agent, algo, kind, network, tmp_path, observations):
    """Every tensor, and the decisions on one observation and a batch, with masks and without, as SB3's model gives."""
    agent = make_agent(algo, kind, network)
    signed = agent.save(tmp_path)
    loaded = load(tmp_path)
    before, after = agent.model.policy.state_dict(), loaded.network.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert loaded.card == signed == dataclasses.replace(agent.card, weights=signed.weights)
    batch, sizes = observations(), agent.card.sizes
    some = np.random.default_rng(2).random((len(batch["layer"]), sum(sizes))) < 0.5
    some[:, np.cumsum([0, *sizes[:-1]])] = True
    for masks in (None, some):
        known = {} if masks is None or algo != "maskable-ppo" else {"action_masks": masks}
        expected = agent.predict(batch, **known)
        found, _ = loaded.predict(batch, action_masks=masks)
        np.testing.assert_array_equal(found, expected)
        assert found.dtype == expected.dtype
        assert found.shape == (len(batch["layer"]), *agent.card.action_space.shape)
    single, _ = loaded.predict({name: rows[0] for name, rows in batch.items()})
    assert single.shape == agent.card.action_space.shape
    assert agent.card.action_space.contains(single)


@pytest.mark.parametrize("algo", FAMILIES)
def test_the_weights_of_these_tests_decide_differently_in_different_states(make_agent, algo, observations):
    """Else equal decisions would show nothing."""
    kind = "Box" if "Box" in KINDS[algo] else "Discrete"
    agent = make_agent(algo, kind, "mlp" if algo == "ars" else "transformer")
    assert len(np.unique(agent.predict(observations(64)), axis=0)) > 1


def test_the_families_are_those_of_the_trainer():
    """What `drrl train` can train can be loaded, under the same names, masks and flattening; ARS counts on its own."""
    from drrl_agents.algorithms import ALGORITHMS

    assert {name: (a.policy, a.masks, not a.dicts) for name, a in ALGORITHMS.items()} == {
        name: (f.alias, f.masks, f.flat) for name, f in FAMILIES.items()
    }
    for name, found in ALGORITHMS.items():
        assert issubclass(found.make, FAMILIES[name].algorithm)
        assert found.make.policy_aliases == FAMILIES[name].algorithm.policy_aliases


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_an_activation_survives(make_agent, activation, tmp_path):
    """By its name; a policy with another one would decide otherwise."""
    agent = make_agent("ppo", "Discrete", "mlp", activation_fn=ACTIVATIONS[activation])
    agent.save(tmp_path)
    found, expected = (each.mlp_extractor.policy_net[1] for each in (load(tmp_path).network, agent.model.policy))
    assert type(found) is type(expected) is ACTIVATIONS[activation]


def test_state_dependent_noise_survives(make_agent, tmp_path, observations):
    """gSDE has other shapes."""
    agent = make_agent("ppo", "Box", "mlp", settings={"use_sde": True})
    agent.save(tmp_path)
    np.testing.assert_array_equal(load(tmp_path).predict(observations())[0], agent.predict(observations()))


def test_a_shared_extractor_is_written_once(make_agent, saved):
    """SB3 names its tensors three times over; the file holds each of them once, so that a policy stays small."""
    agent = make_agent("maskable-ppo", "Discrete", "transformer")
    assert (saved / WEIGHTS).stat().st_size < 1.1 * 4 * sum(p.numel() for p in agent.model.policy.parameters()) + 10_000
    assert len(load_file(saved / WEIGHTS)) < len(agent.model.policy.state_dict())


def test_a_card_survives_json_and_cannot_be_changed(make_agent, saved):
    """Tuples stay tuples, bounds stay float32 bits."""
    card, own = load(saved).card, make_agent("maskable-ppo", "Discrete", "transformer").model.observation_space
    assert read_card(card.text()) == card
    assert card.observation_space == own
    assert list(card.observation_space.spaces) == list(own.spaces) != sorted(own.spaces)
    assert card.arguments["ranks"] == (8, 16, 32, 64)
    with pytest.raises(dataclasses.FrozenInstanceError):
        card.task = "another"


def test_saving_over_a_policy_is_whole_or_nothing(make_agent, copy, monkeypatch):
    """A full disk leaves what was there; nothing partial is left behind."""
    before = {path.name: path.read_bytes() for path in copy.iterdir()}
    agent = make_agent("maskable-ppo", "Discrete", "mlp")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            agent.save(copy)
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == before
    agent.save(copy)
    assert sorted(path.name for path in copy.iterdir()) == sorted(before)
    assert load(copy).card.extractor == DEFAULT


def test_a_part_without_a_name_cannot_be_saved(make_agent):
    """An extractor of the user's own: the line says where to put it."""

    class Mine(torch.nn.Tanh):
        pass

    with pytest.raises(ValueError, match=re.compile(r"\Aactivation_fn=Mine.*drrl_policies\.networks.*\Z")):
        make_agent("ppo", "Discrete", "mlp", activation_fn=Mine)
    with pytest.raises(ValueError, match="no a2c"):
        describe(make_agent("dqn", "Discrete", "mlp").model, "a2c")
    assert describe(make_agent("ppo", "Discrete", "mlp").model, "ppo")[0] == DEFAULT


def test_bounds_that_differ_within_an_entry_have_no_place_on_a_card():
    """And neither has a picture."""
    for box in (
        spaces.Box(np.zeros(2, np.float32), np.arange(2, dtype=np.float32)),
        spaces.Box(0, 1, (2, 2)),
        spaces.Discrete(3),
    ):
        with pytest.raises(ValueError, match="one-dimensional box"):
            entries_of(spaces.Dict({"entry": box}))


def test_building_needs_no_weights_and_no_world(saved):
    """From the card alone, in the shapes of the weights; the model it names is nowhere."""
    card = read_card((saved / CARD).read_text())
    network = build(card)
    assert set(distinct_weights(network)) == set(load_file(saved / WEIGHTS))
