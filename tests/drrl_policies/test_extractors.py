"""Flattened observations hold what a Dict does, in Gymnasium's order, and lose nothing on the way back."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.wrappers import FlattenObservation
from stable_baselines3.common.vec_env import VecNormalize

from drrl_env.sb3 import RankVecEnv, make_vec_env
from drrl_policies.extractors import (
    FlatTransformerExtractor,
    FlatVecEnv,
    flat_rows,
    flat_transformer_policy_kwargs,
)
from drrl_policies.transformer import TransformerExtractor, entry_sizes

TASK = "DRRL-Tolerance-v0"
SHORT: dict[str, Any] = {"context": 512, "instances": 1, "basis": "calibrated"}


@pytest.fixture
def lanes() -> RankVecEnv:
    """Three lanes of four segments under a guard."""
    return make_vec_env(TASK, 3, seed=0, guard="paper", **SHORT)


def entries_of(lanes: RankVecEnv) -> spaces.Dict:
    """The observation of the lanes."""
    assert isinstance(lanes.observation_space, spaces.Dict)
    return lanes.observation_space


def test_the_order_is_gymnasiums(lanes):
    """Number for number what FlattenObservation gives, over an episode and the next reset."""
    flat, single = FlatVecEnv(lanes), FlattenObservation(gymnasium.make(TASK, guard="paper", **SHORT))
    assert flat.observation_space == single.observation_space
    rows, (row, _) = flat.reset(), single.reset(seed=0)
    for action in (0, 3, 7, 5):
        assert rows.dtype == np.float32
        np.testing.assert_array_equal(rows[0], row)
        rows, _, dones, infos = flat.step(np.full(3, action))
        row, _, terminated, _, _ = single.step(action)
    assert dones.all()
    assert terminated
    np.testing.assert_array_equal(infos[0]["terminal_observation"], row)
    assert flat.observation_space.contains(infos[0]["terminal_observation"])


def test_rows_are_what_gymnasium_flattens(lanes):
    """One observation or a batch of them, whatever order its entries come in."""
    observation, entries = lanes.reset(), entries_of(lanes)
    rows = flat_rows(dict(reversed(observation.items())), entries)
    for lane, row in enumerate(rows):
        one = {name: values[lane] for name, values in observation.items()}
        np.testing.assert_array_equal(row, spaces.flatten(entries, one))
        np.testing.assert_array_equal(row, flat_rows(one, entries))


def test_masks_states_and_seeds_go_through(lanes):
    """A flattened copy of the lanes goes on as they do, and masks are theirs at every step."""
    flat, plain = FlatVecEnv(lanes.fork()), lanes
    flat.seed(5)
    plain.seed(5)
    rows, observation = flat.reset(), plain.reset()
    np.testing.assert_array_equal(rows, flat_rows(observation, entries_of(plain)))
    assert [info["instance"] for info in flat.reset_infos] == [info["instance"] for info in plain.reset_infos]
    assert flat.has_attr("action_masks")
    np.testing.assert_array_equal(np.stack(flat.env_method("action_masks")), plain.action_masks())
    np.testing.assert_array_equal(flat.action_masks(), plain.action_masks())
    flat.step(np.array([0, 1, 2]))
    state = flat.get_state()
    after = [flat.step(np.array([2, 1, 0]))[:2] for _ in range(2)]
    flat.set_state(state)
    for rows, rewards in after:
        again = flat.step(np.array([2, 1, 0]))
        np.testing.assert_array_equal(rows, again[0])
        np.testing.assert_array_equal(rewards, again[1])


def test_copies_go_on_alone(lanes):
    """Forked, pickled or deep-copied, they are where it was, and moving one moves no other."""
    flat = FlatVecEnv(lanes)
    flat.reset()
    flat.step(np.array([0, 1, 2]))
    copies = [flat.fork(), pickle.loads(pickle.dumps(flat)), copy.deepcopy(flat)]
    wanted = flat.step(np.array([3, 4, 5]))[0]
    for other in copies:
        assert isinstance(other, FlatVecEnv)
        np.testing.assert_array_equal(other.step(np.array([3, 4, 5]))[0], wanted)


def test_only_dicts_are_flattened(lanes):
    """One line that says what was given."""
    with pytest.raises(ValueError, match=r"venv: observes a Box; give lanes that observe a Dict"):
        FlatVecEnv(FlatVecEnv(lanes))


def test_it_can_be_wrapped_further(lanes):
    """SB3's normaliser takes it, and its states are still reached."""
    normalised = VecNormalize(FlatVecEnv(lanes), norm_reward=False)
    assert normalised.reset().shape == (3, sum(entry_sizes(entries_of(lanes)).values()))
    assert len(normalised.get_state()) == 3


def test_the_flat_transformer_is_the_transformer(lanes):
    """The same seed gives the same output, to the bit, for the Dict and for its numbers in a row."""
    entries, observation = entries_of(lanes), lanes.reset()
    kwargs = flat_transformer_policy_kwargs(entries, 32)
    torch.manual_seed(0)
    flat = kwargs["features_extractor_class"](spaces.flatten_space(entries), **kwargs["features_extractor_kwargs"])
    torch.manual_seed(0)
    plain = TransformerExtractor(entries, 32)
    given = {name: torch.from_numpy(rows.copy()) for name, rows in observation.items()}
    found = flat(torch.from_numpy(flat_rows(observation, entries)))
    assert flat.features_dim == 32
    assert found.shape == (3, 32)
    assert torch.equal(found, plain(given))


def test_sizes_that_do_not_add_up_are_refused():
    """One line with both numbers."""
    with pytest.raises(ValueError, match=r"sizes=\{'layer': 4\}: 4 numbers where observations have shape \(5,\); give"):
        FlatTransformerExtractor(spaces.Box(-1, 1, (5,), np.float32), {"layer": 4})
