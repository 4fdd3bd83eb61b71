"""Every rule chooses what its definition says, on every task."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from drrl_policies import EnergyThreshold, Oracle, Random, Situation, Table, ToleranceThreshold, constant
from drrl_policies.fitting import oracle_policy
from drrl_policies.rollout import look, rollout
from drrl_policies.rules import Bins

RANKS, LAYERS, SEGMENTS = 4, 3, 8
SIZES = (RANKS,)
ENERGY = [[0.2, 0.5, 0.9, 1.0], [0.95, 0.96, 0.97, 1.0], [0.1, 0.2, 0.3, 1.0]]


def situation(energy=None, masks=None, layers=(0, 1, 2), positions=(0, 3, 7), tolerances=(0.1, 0.2, 0.4)) -> Situation:
    """Three lanes, made by hand."""
    observation = {
        "energy": np.array(ENERGY if energy is None else energy, np.float32),
        "layer": np.eye(LAYERS + 9, dtype=np.float32)[list(layers)],
        "position": np.array(positions, np.float32)[:, None] / SEGMENTS,
        "tolerance": (1 + np.log10(np.array(tolerances, np.float32)) / 4)[:, None],
    }
    allowed = np.ones((3, RANKS), bool) if masks is None else np.array(masks)
    return Situation(observation, allowed, np.arange(3), np.array(positions))


def started(field) -> Situation:
    """Every episode of a field at its first step."""
    field.arena.play.begin(range(len(field.episodes)), field.episodes)
    return look(field, 0)


def chosen(rule, seen) -> list[int]:
    """The choices of a rule of one component."""
    return rule.choose(seen)[:, 0].tolist()


def test_a_constant_looks_at_nothing():
    """The same choices in every lane, component by component, and nothing to be charged for."""
    rule = constant("fixed", (8, 3), (5, 2))
    assert rule.choose(situation()).tolist() == [[5, 2]] * 3
    assert not rule.reads
    assert (rule.name, rule.sizes, rule.deciding_flops, rule.privileged) == ("fixed", (8, 3), 0.0, False)


def test_random_draws_only_allowed_ranks_and_each_of_them_alike():
    """Of 6,000 draws among two allowed ranks each takes half within 3 %; never a masked one; a seed repeats them."""
    masks = [[True, False, False, True]] * 3
    draws = np.stack([Random(SIZES, seed).choose(situation(masks=masks)) for seed in range(2_000)])
    assert set(draws.ravel()) == {0, 3}
    assert abs((draws == 0).mean() - 0.5) < 0.03
    assert (Random(SIZES, 5).choose(situation()) == Random(SIZES, 5).choose(situation())).all()


def test_random_draws_every_component_on_its_own():
    """Of two components with two choices left each, all four pairs come up about equally often."""
    masks = [[True, False, True, False, True, True, False]] * 3
    rule = Random((3, 4), 0)
    draws = np.concatenate([rule.choose(situation(masks=masks)) for _ in range(1_000)])
    pairs, counts = np.unique(draws, axis=0, return_counts=True)
    assert pairs.tolist() == [[0, 1], [0, 2], [2, 1], [2, 2]]
    assert (np.abs(counts / 3_000 - 0.25) < 0.03).all()


def test_energy_threshold_picks_the_smallest_rank_that_keeps_enough():
    """By hand: .5 is first reached at rank 1, at rank 0, and at full only."""
    assert chosen(EnergyThreshold(SIZES, 0.5), situation()) == [1, 0, 3]
    assert chosen(EnergyThreshold(SIZES, 0.961), situation()) == [3, 2, 3]


def test_energy_threshold_falls_back_to_full_where_no_rank_is_enough():
    """Full is chosen even where rounding left its own energy a little below the share."""
    assert chosen(EnergyThreshold(SIZES, 1.0), situation(energy=[[0.1, 0.2, 0.3, 0.999]] * 3)) == [3, 3, 3]


def test_a_threshold_gives_every_head_its_rank_and_leaves_the_basis_calibrated():
    """Four heads: the rank four times over. Rank and kind: the kind is the first, calibrated."""
    assert EnergyThreshold((RANKS,) * 4, 0.5, ranks=4).choose(situation()).tolist() == [[1] * 4, [0] * 4, [3] * 4]
    assert EnergyThreshold((RANKS, 3), 0.5).choose(situation()).tolist() == [[1, 0], [0, 0], [3, 0]]


def test_tolerance_threshold_allows_a_loss_that_grows_with_the_square_of_the_tolerance():
    """By hand, κ = 11 and ε = .1, .2, .4: losses of .11, .44 and 1.76 allow rank 2, rank 0 and rank 0."""
    assert chosen(ToleranceThreshold(SIZES, 11.0), situation()) == [2, 0, 0]
    assert chosen(ToleranceThreshold(SIZES, 11.0), situation(tolerances=(0.06, 0.06, 0.06))) == [3, 2, 3]


@pytest.mark.parametrize("rule", [EnergyThreshold(SIZES, 0.99), ToleranceThreshold(SIZES, 1.0)])
def test_a_threshold_leaves_the_observation_as_it_was(rule):
    """A rule that writes into what it reads would change what the next one sees."""
    seen = situation()
    before = seen.observation["energy"].copy()
    rule.choose(seen)
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
    found = chosen(EnergyThreshold(free_field.sizes, share), started(free_field))
    for (instance, layer, _), choice in zip(free_field.episodes, found, strict=True):
        kept = direct_shares(free_field, instance, layer, 0)
        assert np.abs(kept[:-1] - share).min() < 1e-6 or choice == np.flatnonzero(kept >= share)[0]


@pytest.mark.parametrize("scale", [0.5, 2.0, 5.0])
def test_tolerance_threshold_agrees_with_the_score_blocks_and_the_tolerance_itself(make_field, scale):
    """The first rank whose loss, from T × n blocks, is within κ · ε², both in float64; each rank comes up somewhere.

    The observation holds both in float32 and ε as a logarithm: only a loss within 1e-5 of the limit may go either way.
    """
    field = make_field("DRRL-Tolerance-v0")
    found = chosen(ToleranceThreshold(field.sizes, scale), started(field))
    for (instance, layer, tolerance), choice in zip(field.episodes, found, strict=True):
        lost, limit = 1 - direct_shares(field, instance, layer, 0), scale * tolerance**2
        assert np.abs(lost[:-1] - limit).min() < 1e-5 or choice == np.flatnonzero(lost <= limit)[0]
    assert len(set(found)) > 1


def test_a_table_is_looked_up_by_layer():
    """Lanes on layers 2, 0 and 1 get the choices of those layers."""
    table = Table("by layer", (4, 3), np.array([[1, 0], [2, 1], [3, 2]])[:, None, None])
    assert table.choose(situation(layers=(2, 0, 1))).tolist() == [[3, 2], [1, 0], [2, 1]]
    assert table.reads == {"layer"}


def test_a_table_is_looked_up_by_layer_and_step():
    """Every cell of a table of distinct numbers is found from the observation alone; the last one after the end."""
    cells = np.arange(LAYERS * SEGMENTS).reshape(LAYERS, SEGMENTS)
    table = Table("by both", (LAYERS * SEGMENTS,), cells[:, :, None, None])
    for position in range(SEGMENTS):
        seen = situation(positions=(position,) * 3)
        assert chosen(table, seen) == [position, SEGMENTS + position, 2 * SEGMENTS + position]
    assert chosen(table, situation(positions=(SEGMENTS,) * 3)) == [7, 15, 23]
    assert table.reads == {"layer", "position"}


def test_a_table_is_looked_up_by_what_the_task_drew():
    """Edges between the tolerances; one at an edge belongs to the bin below it."""
    edges = tuple(float(1 + np.log10(np.float32(value)) / 4) for value in (0.15, 0.4))
    table = Table("by tolerance", SIZES, np.array([1, 2, 3])[None, None, :, None], Bins("tolerance", edges))
    assert chosen(table, situation()) == [1, 2, 2]
    assert chosen(table, situation(tolerances=(0.41, 0.001, 0.8))) == [3, 1, 3]
    assert table.reads == {"tolerance"}


def test_tables_find_layer_and_step_in_the_observations_of_every_task(each):
    """Each episode asks for its row of the table, step by step; closed loop, every layer for its own row."""
    layers = each.arena.world.layers
    shape = (layers, each.steps, 1, len(each.sizes))
    choices = np.arange(np.prod(shape)).reshape(shape) % np.array(each.sizes)
    found = rollout(Table("table", each.sizes, choices), each)
    of_step = (
        np.tile(np.arange(layers), (len(each.episodes), each.steps // layers)) if each.live else each.layers[:, None]
    )
    assert (found.wanted == choices[of_step, np.arange(each.steps), 0]).all()


def test_tables_find_the_bin_in_the_observations_of_a_task(make_field):
    """Tolerances below and above .3, told apart at every step of every episode."""
    field = make_field("DRRL-Tolerance-v0")
    bins = Bins("tolerance", (1 + float(np.log10(0.3)) / 4,))
    found = rollout(Table("bins", field.sizes, np.array([0, 2])[None, None, :, None], bins), field)
    assert (found.wanted[..., 0] == np.where(field.parameters > 0.3, 2, 0)[:, None]).all()
    assert 0 < (field.parameters > 0.3).mean() < 1


def rules_of(field):
    """One rule of each kind that a task can play."""
    sizes, ranks = field.sizes, field.rank_components
    by_layer = np.arange(field.arena.world.layers)[:, None, None, None] % np.array(sizes)
    found = [constant("fixed", sizes, (1,) * len(sizes)), EnergyThreshold(sizes, 0.97, ranks), Random(sizes)]
    found += [ToleranceThreshold(sizes, 1.0)] if field.arena.play.parameter == "tolerance" else []
    return [*found, Table("layer-table", sizes, by_layer)]


def test_predict_takes_one_observation_or_a_batch_as_sb3_does(each):
    """A batch gives a choice per lane, one observation the one alone; with several components a row; they agree."""
    batch, several = started(each).observation, len(each.sizes) > 1
    for rule in rules_of(each):
        together, state = rule.predict(batch)
        assert together.shape == ((len(each.episodes), len(each.sizes)) if several else (len(each.episodes),))
        assert state is None
        for lane in range(len(each.episodes)):
            alone, _ = rule.predict({name: rows[lane] for name, rows in batch.items()})
            assert np.shape(alone) == ((len(each.sizes),) if several else ())
            assert rule.name == "random" or np.array_equal(alone, together[lane])


def test_random_predicts_within_the_masks_it_is_given(each):
    """One allowed choice a component leaves no choice, for one observation as for a batch."""
    batch = started(each).observation
    only = np.concatenate([np.arange(size) == size - 2 for size in each.sizes])
    wanted = np.array(each.sizes) - 2
    masks = np.tile(only, (len(each.episodes), 1))
    rule = Random(each.sizes, 1)
    assert (rule.predict(batch, action_masks=masks)[0].reshape(-1, len(wanted)) == wanted).all()
    single = {name: rows[0] for name, rows in batch.items()}
    assert np.array_equal(np.ravel(rule.predict(single, action_masks=only)[0]), wanted)


def test_the_oracle_refuses_to_predict_from_an_observation(free_field):
    """It plans from what was measured, so an observation alone ends in one line that says where to go."""
    with pytest.raises(ValueError, match=r"^policy='oracle'[^\n]*rollout$"):
        oracle_policy(free_field).predict(started(free_field).observation)


def test_the_oracle_follows_its_plan_by_episode_and_step():
    """Plans of distinct numbers are looked up cell by cell, all components."""
    plans = np.arange(3 * SEGMENTS * 2).reshape(3, SEGMENTS, 2)
    found = Oracle((48, 48), plans).choose(situation())
    assert found.tolist() == [plans[0, 0].tolist(), plans[1, 3].tolist(), plans[2, 7].tolist()]


def test_rules_do_not_disturb_torch_or_numpy_randomness(free_field):
    """A random rule draws from its own generator: training beside it keeps its bits."""
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    rollout(Random(free_field.sizes, 3), free_field)
    assert (torch.get_rng_state() == before[0]).all()
    assert (np.random.get_state()[1] == before[1]).all()
