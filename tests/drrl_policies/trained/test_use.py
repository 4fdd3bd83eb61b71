"""A loaded policy answers as SB3's does, honours masks, and refuses what it was not trained on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import spaces

from drrl_policies.base import Situation
from drrl_policies.trained import TrainedPolicy, load


def one_line(error: pytest.ExceptionInfo[ValueError], *parts: str) -> None:
    """One line that holds these parts."""
    text = str(error.value)
    assert len(text.splitlines()) == 1, text
    for part in parts:
        assert part in text


def test_masks_are_honoured(saved, observations):
    """`predict` and `choose`: with one choice allowed it is taken, whatever the policy would do."""
    policy, batch = load(saved), observations(64)
    allowed = np.random.default_rng(3).integers(4, size=64)
    masks = np.eye(4, dtype=bool)[allowed]
    unknown = np.full(64, -1)
    assert (policy.predict(batch, action_masks=masks)[0] == allowed).all()
    assert (policy.choose(Situation(batch, masks, unknown, unknown))[:, 0] == allowed).all()
    assert (policy.predict(batch)[0] != allowed).any()
    first = {name: rows[0] for name, rows in batch.items()}
    assert policy.predict(first, action_masks=masks[0])[0] == allowed[0]


@pytest.mark.parametrize("kind", ["Discrete", "MultiDiscrete", "Box"])
def test_choices_are_those_of_the_environments_codec(make_agent, kind, tmp_path, observations):
    """(lanes, components) of whole numbers within their components, also where the action is one number."""
    agent = make_agent("ppo", kind, "mlp")
    agent.save(tmp_path)
    policy, unknown, width = load(tmp_path), np.full(6, -1), sum(agent.card.sizes)
    actions, _ = policy.predict(observations())
    choices = policy.choose(Situation(observations(), np.ones((6, width), bool), unknown, unknown))
    assert choices.shape == (6, len(agent.card.sizes))
    expected = np.floor((actions.astype(float) + 1) * 2).clip(max=3) if kind == "Box" else actions.reshape(6, -1)
    np.testing.assert_array_equal(choices, expected)


def test_a_recurrent_policy_remembers_until_an_episode_begins(make_agent, tmp_path, observations):
    """`choose` carries its memory from step to step as SB3's model does, and drops it at step 0, lane by lane."""
    agent = make_agent("recurrent-ppo", "Box", "mlp", lstm_hidden_size=8)
    agent.save(tmp_path)
    policy, memory, remembered = load(tmp_path), None, []
    for steps in ([0] * 6, [1] * 6, [2, 2, 0, 2, 2, 2], [0] * 6, [1] * 6):
        batch, lanes = observations(seed=steps[0]), np.array(steps)
        expected, memory = agent.model.predict(batch, memory, lanes == 0, deterministic=True)
        remembered.append((expected, agent.predict(batch)))
        policy.choose(Situation(batch, np.ones((6, 4), bool), lanes, lanes))
        np.testing.assert_array_equal(policy._state[0], memory[0])
    assert not np.array_equal(*remembered[2])
    policy.choose(Situation(observations(3), np.ones((3, 4), bool), np.full(3, -1), np.full(3, -1)))
    assert policy._state[0].shape[1] == 3


def test_a_policy_is_for_use_only(saved):
    """Evaluation mode and no gradients; loading leaves torch's generator alone, so that it disturbs no training."""
    torch.manual_seed(5)
    before = torch.get_rng_state()
    policy = load(saved)
    assert torch.equal(torch.get_rng_state(), before)
    assert not policy.network.training
    assert not any(tensor.requires_grad for tensor in policy.network.parameters())
    assert all(tensor.device.type == "cpu" for tensor in policy.network.state_dict().values())
    assert isinstance(policy, TrainedPolicy)
    assert policy.reads == set(policy.entries.spaces)
    assert (policy.name, policy.deciding_flops, policy.privileged) == ("maskable-ppo-seed0", 123.0, False)


def test_the_environment_must_be_the_one_it_was_trained_in(saved):
    """Another size, another bound, an entry more or less, other actions: one line that names what differs."""
    policy = load(saved)
    own = policy.card.observation_space
    policy.check(own, policy.card.action_space)
    wrong = {
        "'layer'": {**own.spaces, "layer": spaces.Box(-8.1, 8.1, (5,), np.float32)},
        "'energy'": {**own.spaces, "energy": spaces.Box(-8.1, 9.0, (4,), np.float32)},
        "'budget'": {**own.spaces, "budget": spaces.Box(0, 1, (1,), np.float32)},
        "'window'": {name: box for name, box in own.spaces.items() if name != "window"},
    }
    for named, given in wrong.items():
        with pytest.raises(ValueError, match=named) as error:
            policy.check(spaces.Dict(given), policy.card.action_space)
        one_line(error, "DRRL-Attention-v0")
    for action_space in (spaces.Discrete(5), spaces.Box(-1, 1, (1,), np.float32)):
        with pytest.raises(ValueError, match="actions are") as error:
            policy.check(own, action_space)
        one_line(error)
    with pytest.raises(ValueError, match="were a Dict") as error:
        policy.check(spaces.Box(0, 1, (3,)), policy.card.action_space)
    one_line(error)


def test_a_wrong_observation_or_mask_is_refused(saved, observations):
    """An entry missing, one too many, of another size, or masks of another width."""
    policy, batch = load(saved), observations()
    lacking = {name: rows for name, rows in batch.items() if name != "energy"}
    for observation, named in (
        (lacking, "energy"),
        ({**batch, "budget": batch["position"]}, "budget"),
        ({**batch, "layer": np.zeros((6, 5), np.float32)}, r"observation\['layer'\]: shape \(6, 5\)"),
    ):
        with pytest.raises(ValueError, match=named) as error:
            policy.predict(observation)
        one_line(error)
    with pytest.raises(ValueError, match="action_masks") as error:
        policy.predict(batch, action_masks=np.ones((6, 5), bool))
    one_line(error)


def test_numbers_of_another_type_are_taken_as_the_same(saved, observations):
    """Lists and float64 are what a serving process has at hand."""
    policy, batch = load(saved), observations()
    wide = {name: rows.astype(np.float64) for name, rows in batch.items()}
    listed = {name: rows[0].tolist() for name, rows in batch.items()}
    assert (policy.predict(wide)[0] == policy.predict(batch)[0]).all()
    assert policy.predict(listed)[0] == policy.predict(batch)[0][0]
