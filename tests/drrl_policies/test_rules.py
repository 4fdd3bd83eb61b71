"""Every rule chooses what its definition says."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from drrl_env.envs.play import Episode
from drrl_env.envs.simulator import Simulator
from drrl_policies import EnergyThreshold, Fixed, Full, LayerSegmentTable, LayerTable, Oracle, Random, Situation
from drrl_policies.fitting import oracle_policy
from drrl_policies.rollout import look, rollout

RANKS, LAYERS, SEGMENTS = 4, 3, 8
ENERGY = [[0.2, 0.5, 0.9, 1.0], [0.95, 0.96, 0.97, 1.0], [0.1, 0.2, 0.3, 1.0]]


def situation(energy=None, masks=None, layers=(0, 1, 2), positions=(0, 3, 7)) -> Situation:
    """Three lanes, made by hand."""
    observation = {
        "energy": np.array(ENERGY if energy is None else energy, np.float32),
        "layer": np.eye(LAYERS + 9, dtype=np.float32)[list(layers)],
        "position": np.array(positions, np.float32)[:, None] / SEGMENTS,
        "previous_rank": np.eye(RANKS, dtype=np.float32)[[3, 3, 3]],
    }
    allowed = np.ones((3, RANKS), bool) if masks is None else np.array(masks)
    numbers = np.arange(3)
    return Situation(observation, allowed, numbers, np.array(positions), np.full(3, RANKS - 1))


def lanes_of(field) -> Simulator:
    """Every episode of a field at its first segment."""
    simulator = Simulator(field.game, len(field.pairs))
    simulator.begin(range(len(field.pairs)), [Episode(*pair) for pair in field.pairs])
    return simulator


def test_fixed_and_full_look_at_nothing():
    """The same choice in every lane, and nothing to be charged for."""
    assert Fixed(2, 24).choose(situation()).tolist() == [2, 2, 2]
    assert Full(RANKS).choose(situation()).tolist() == [3, 3, 3]
    assert not Fixed(2, 24).reads
    assert (Fixed(2, 24).name, Full(RANKS).name) == ("fixed-24", "full")


def test_random_draws_only_allowed_ranks_and_each_of_them_alike():
    """Of 6,000 draws among two allowed ranks each takes half within 3 %; never a masked one; a seed repeats them."""
    masks = [[True, False, False, True]] * 3
    draws = np.stack([Random(seed).choose(situation(masks=masks)) for seed in range(2_000)])
    assert set(draws.ravel()) == {0, 3}
    assert abs((draws == 0).mean() - 0.5) < 0.03
    assert (Random(5).choose(situation()) == Random(5).choose(situation())).all()


def test_energy_threshold_picks_the_smallest_rank_that_keeps_enough():
    """By hand: .5 is first reached at rank 1, at rank 0, and at full only."""
    assert EnergyThreshold(0.5).choose(situation()).tolist() == [1, 0, 3]
    assert EnergyThreshold(0.961).choose(situation()).tolist() == [3, 2, 3]


def test_energy_threshold_falls_back_to_full_where_no_rank_is_enough():
    """Full is chosen even where rounding left its own energy a little below the share."""
    assert EnergyThreshold(1.0).choose(situation(energy=[[0.1, 0.2, 0.3, 0.999]] * 3)).tolist() == [3, 3, 3]


def test_energy_threshold_leaves_the_observation_as_it_was():
    """A rule that writes into what it reads would change what the next one sees."""
    seen = situation()
    before = seen.observation["energy"].copy()
    EnergyThreshold(0.99).choose(seen)
    assert (seen.observation["energy"] == before).all()


def direct_shares(field, instance, layer, position) -> np.ndarray:
    """Energy kept by each rank from T × n score blocks in float64, no Gram anywhere."""
    world = field.game.world
    queries, keys, _ = (part.double() for part in field.game.store.captured(instance).layers[layer])
    size = world.measurement.segment
    queries, keys = queries[:, position * size : (position + 1) * size], keys[:, : (position + 1) * size]
    bases, scores = world.calibration.layers[layer], queries @ keys.mT
    shares = []
    for rank in world.ranks:
        key, query = bases.key[..., :rank].double(), bases.query[..., :rank].double()
        kept = scores if rank == world.shape.dim else (queries @ query) @ (keys @ key).mT
        shares.append(1 - float((scores - kept).square().sum() / scores.square().sum()))
    return np.array(shares)


@pytest.mark.parametrize("share", [0.9, 0.98, 0.999])
def test_energy_threshold_agrees_with_energies_of_the_score_blocks_themselves(free_field, share):
    """On real layers the choice is the one that the T × n blocks decide, unless the share lies within 1e-6 of one."""
    simulator = lanes_of(free_field)
    chosen = EnergyThreshold(share).choose(look(simulator))
    for (instance, layer), choice in zip(free_field.pairs, chosen, strict=True):
        kept = direct_shares(free_field, instance, layer, 0)
        enough = np.flatnonzero(kept >= share)
        assert np.abs(kept[:-1] - share).min() < 1e-6 or choice == enough[0]


def test_layer_table_looks_its_rank_up_by_layer():
    """Lanes on layers 2, 0 and 1 get the ranks of those layers."""
    assert LayerTable(np.array([1, 2, 3])).choose(situation(layers=(2, 0, 1))).tolist() == [3, 1, 2]


def test_layer_segment_table_looks_its_rank_up_by_layer_and_segment():
    """Every cell of a table of distinct numbers is found from the observation alone."""
    table = LayerSegmentTable(np.arange(LAYERS * SEGMENTS).reshape(LAYERS, SEGMENTS))
    for position in range(SEGMENTS):
        found = table.choose(situation(positions=(position,) * 3))
        assert found.tolist() == [position, SEGMENTS + position, 2 * SEGMENTS + position]


def test_tables_find_layer_and_segment_in_real_observations(field):
    """Played on the simulator, each episode executes its row of the table; under a guard it asks for it."""
    world = field.game.world
    choices = np.arange(world.layers * world.segments).reshape(world.layers, world.segments) % len(world.ranks)
    found = rollout(LayerSegmentTable(choices), field.game, field.pairs)
    assert (found.wanted == choices[[layer for _, layer in field.pairs]]).all()
    assert not field.free or (found.executed == found.wanted).all()


@pytest.mark.parametrize(
    "rule",
    [Fixed(1, 12), Full(8), EnergyThreshold(0.97), LayerTable(np.array([0, 1, 2, 3])), Random(0)],
    ids=lambda rule: rule.name,
)
def test_predict_takes_one_observation_or_a_batch_as_sb3_does(free_field, rule):
    """A batch gives one choice per lane, a single observation a scalar; what each says agrees (random aside)."""
    batch = lanes_of(free_field).observe()
    together, state = rule.predict(batch)
    assert together.shape == (len(free_field.pairs),)
    assert state is None
    for lane in range(len(free_field.pairs)):
        alone, _ = rule.predict({name: rows[lane] for name, rows in batch.items()})
        assert np.ndim(alone) == 0
        assert rule.name == "random" or alone == together[lane]


def test_random_predicts_within_the_masks_it_is_given(free_field):
    """One allowed rank leaves no choice, for one observation as for a batch."""
    batch = lanes_of(free_field).observe()
    only = np.zeros((len(free_field.pairs), 8), bool)
    only[:, 6] = True
    assert (Random(1).predict(batch, action_masks=only)[0] == 6).all()
    single = {name: rows[0] for name, rows in batch.items()}
    assert Random(1).predict(single, action_masks=only[0])[0] == 6


def test_the_oracle_refuses_to_predict_from_an_observation(free_field):
    """It plans from what was measured, so an observation alone ends in one line that says where to go."""
    policy = oracle_policy(free_field.game, free_field.pairs)
    with pytest.raises(ValueError, match=r"policy='oracle'.*rollout"):
        policy.predict(lanes_of(free_field).observe())


def test_the_oracle_follows_its_plan_by_block_segment_and_previous_rank():
    """A plan of distinct numbers is looked up cell by cell."""
    plans = {block: block * 100 + np.arange(SEGMENTS * RANKS).reshape(SEGMENTS, RANKS) for block in range(3)}
    assert Oracle(plans).choose(situation()).tolist() == [3, 100 + 3 * RANKS + 3, 200 + 7 * RANKS + 3]


def test_rules_do_not_disturb_torch_or_numpy_randomness(free_field):
    """A random rule draws from its own generator: training beside it keeps its bits."""
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    rollout(Random(3), free_field.game, free_field.pairs)
    assert (torch.get_rng_state() == before[0]).all()
    assert (np.random.get_state()[1] == before[1]).all()
