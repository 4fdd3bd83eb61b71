"""Rules are fitted as well as their form allows, on the train split and nothing else; the oracle is above them all."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from drrl_env.envs.processes import process, random_return
from drrl_env.envs.solvers.decision import plan
from drrl_env.envs.store import Store
from drrl_policies import EnergyThreshold, Fixed, LayerSegmentTable, Random
from drrl_policies.fitting import (
    best_fixed,
    best_layer_segment_table,
    best_layer_table,
    best_threshold,
    mean_return,
    oracle_policy,
    reference,
    rule_policies,
)
from drrl_policies.rollout import rollout


def mean(policy, field) -> float:
    """Mean return of a policy on a field."""
    return mean_return(policy, field.game, field.pairs)


def test_best_fixed_is_the_best_of_all_fixed_ranks(field):
    """No fixed rank has a higher mean return, and its name says which it is."""
    ranks = field.game.world.ranks
    found = best_fixed(field.game, field.pairs)
    assert mean(found, field) == max(mean(Fixed(choice, rank), field) for choice, rank in enumerate(ranks))
    assert found.name == f"fixed-{ranks[found.choice]}"


def test_best_threshold_is_not_beaten_by_thresholds_off_its_grid(field):
    """Shares between the 48 tried gain under 1 % of the way from random to the oracle."""
    known = reference(field.game, field.pairs)
    scale = float(known.oracle.mean() - known.random.mean())
    best = mean(best_threshold(field.game, field.pairs), field)
    others = [mean(EnergyThreshold(share), field) for share in (0.5, 0.8, 0.9, 0.95, 0.97, 0.99, 0.995, 0.999, 1.0)]
    assert max(others) <= best + 0.01 * scale


def test_a_finer_table_is_at_least_as_good_on_what_it_was_fitted_to(field):
    """layer-segment ≥ layer ≥ fixed on the train episodes, under a guard too.

    The wrong way: planning as if every rank asked for were carried out left the finer table *below* the coarser one
    under the paper's guard.
    """
    fixed, layer, cell = (
        mean(fit(field.game, field.pairs), field) for fit in (best_fixed, best_layer_table, best_layer_segment_table)
    )
    assert fixed - 1e-9 <= layer <= cell + 1e-9


def test_no_single_entry_of_the_table_can_be_improved(field):
    """Changing any one (layer, segment) to any rank lowers the mean return or leaves it."""
    found = best_layer_segment_table(field.game, field.pairs)
    best = mean(found, field)
    for layer, position, choice in np.ndindex(*found.choices.shape, len(field.game.world.ranks)):
        changed = found.choices.copy()
        changed[layer, position] = choice
        assert mean(LayerSegmentTable(changed), field) <= best + 1e-9


def test_without_a_guard_the_table_is_the_best_of_all_sequences(tiny_field):
    """All 27 sequences of three ranks over three segments, layer by layer: none has a higher mean return."""
    world = tiny_field.game.world
    numbers = np.array([layer for _, layer in tiny_field.pairs])
    sequences = [np.tile(row, (world.layers, 1)) for row in product(range(3), repeat=3)]
    returns = [rollout(LayerSegmentTable(s), tiny_field.game, tiny_field.pairs).returns for s in sequences]
    fitted = best_layer_segment_table(tiny_field.game, tiny_field.pairs)
    found = rollout(fitted, tiny_field.game, tiny_field.pairs).returns
    for layer in range(world.layers):
        best = max(float(each[numbers == layer].mean()) for each in returns)
        assert found[numbers == layer].mean() == pytest.approx(best, abs=1e-12)


def test_tables_of_one_layer_leave_the_others_full(free_field, recwarn):
    """Fitted on layer 2 alone they say full elsewhere, without NaN and without a warning of an empty mean."""
    pairs = [pair for pair in free_field.pairs if pair[1] == 2]
    full = len(free_field.game.world.ranks) - 1
    layer = best_layer_table(free_field.game, pairs).choices
    cell = best_layer_segment_table(free_field.game, pairs).choices
    assert (np.delete(layer, 2) == full).all()
    assert (np.delete(cell, 2, axis=0) == full).all()
    assert not recwarn


def test_fitting_touches_no_episode_but_those_it_was_given(free_field, monkeypatch):
    """Every (instance, layer) asked of the store while the rules are fitted is of the train split."""
    seen = []
    block = Store.block
    monkeypatch.setattr(Store, "block", lambda self, found, layer: seen.append(found.uri) or block(self, found, layer))
    rule_policies(free_field.game, free_field.pairs)
    assert set(seen) == {instance.uri for instance, _ in free_field.pairs}
    assert all("/train/" in uri for uri in seen)


def test_a_threshold_is_fitted_only_where_energies_are_observed(free_field, blind_field):
    """Of an agent that is shown one statistic of another sort, every other rule is left, playable without energies."""
    assert "energy" not in blind_field.game.world.layout.slices
    names, blind_names = (
        [type(rule).__name__ for rule in rule_policies(each.game, each.pairs)] for each in (free_field, blind_field)
    )
    assert "EnergyThreshold" in names
    assert blind_names == [name for name in names if name != "EnergyThreshold"]
    assert np.isfinite([mean(rule, blind_field) for rule in rule_policies(blind_field.game, blind_field.pairs)]).all()


def test_the_oracle_is_above_every_rule_on_every_episode(field):
    """Not only in the mean: a rule that is above it anywhere would show a wrong plan or a wrong replay."""
    best = rollout(oracle_policy(field.game, field.pairs), field.game, field.pairs).returns
    for policy in [*rule_policies(field.game, field.pairs), *(Random(seed) for seed in range(5))]:
        assert (rollout(policy, field.game, field.pairs).returns <= best + 1e-9).all(), policy.name


def test_what_the_oracle_plans_is_what_it_gets(field):
    """Its rollout returns the value of its plan, and nothing it asks for is masked."""
    plans = [plan(process(field.game, field.game.store.block(*pair)).decision) for pair in field.pairs]
    found = rollout(oracle_policy(field.game, field.pairs), field.game, field.pairs)
    np.testing.assert_allclose(found.returns, [each.value for each in plans], rtol=0, atol=1e-12)
    assert (found.wanted == [each.choices for each in plans]).all()
    assert (found.executed == found.wanted).all()


def test_exact_random_is_the_mean_of_many_random_episodes(field):
    """Within five standard errors of 400 episodes each; uniform over *all* ranks would miss it under the guard."""
    repeats = 400
    exact = reference(field.game, field.pairs).random
    played = rollout(Random(0), field.game, list(field.pairs) * repeats).returns.reshape(repeats, -1)
    errors = played.std(0, ddof=1) / repeats**0.5
    assert (np.abs(played.mean(0) - exact) < 5 * errors + 1e-9).all()


def test_reference_scores_random_0_and_oracle_1(field):
    """By definition, with regret 0 for the oracle."""
    known = reference(field.game, field.pairs)
    assert known.score(known.oracle) == 1
    assert known.score(known.random) == 0
    assert known.regret(known.oracle, field.game.world.segments) == 0
    assert random_return(process(field.game, field.game.store.block(*field.pairs[0]))) == known.random[0]
