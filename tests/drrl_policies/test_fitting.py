"""Rules are fitted as well as their form allows, on the train split and nothing else; the oracle is above them all."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from drrl_env.envs.store import Store
from drrl_policies import EnergyThreshold, Field, Random, Table, ToleranceThreshold, constant
from drrl_policies.fitting import (
    BINS,
    best_fixed,
    best_heads_table,
    best_layer_segment_table,
    best_layer_table,
    best_of_family,
    best_parameter_segment_table,
    best_parameter_table,
    best_threshold,
    candidates,
    climb,
    named,
    oracle_policy,
    returns,
    rule_policies,
)
from drrl_policies.rollout import reference

COMMON = ["random", "full", "fixed-", "energy-threshold", "layer-table"]
RULES = {
    "DRRL-Tolerance-v0": [
        *COMMON[:3], "tolerance-threshold", "layer-table", "layer-tolerance-table", "layer-segment-tolerance-table",
        "layer-segment-table",
    ],
    "DRRL-Budget-v0": [*COMMON, "layer-budget-table", "layer-segment-table"],
    "DRRL-Heads-v0": [*COMMON, "layer-head-table", "layer-segment-table"],
    "DRRL-Basis-v0": [
        *COMMON[:2], "kept-", "refreshed-", "calibrated-", "energy-threshold", "layer-table", "layer-segment-table"
    ],
    "DRRL-Layers-v0": COMMON,
}  # fmt: skip
"""Names of the rules of a task, as they begin; those of the others are these and a table per layer and segment."""


def mean(policy, field) -> float:
    """Mean return of a policy on a field."""
    return float(returns(policy, field).mean())


def by_layer(values, field) -> dict[int, float]:
    """Mean over the episodes of each layer."""
    return {int(layer): float(values[field.layers == layer].mean()) for layer in np.unique(field.layers)}


def gap(field) -> float:
    """From random to the oracle."""
    known = reference(field)
    return float(known.oracle.mean() - known.random.mean())


def some(field, wanted) -> Field:
    """The same field with some of its episodes, each in a lane of its own."""
    episodes = tuple(episode for episode, kept in zip(field.episodes, wanted, strict=True) if kept)
    arena = type(field.arena)(**{**vars(field.arena), "play": field.arena.task.play(field.arena.rules, len(episodes))})
    return Field(arena, episodes, field.single, False)


def test_best_fixed_is_the_best_of_all_constant_rules(solved):
    """No rank, and no use of a basis, has a higher mean return; of equal ones the highest rank, and it says which."""
    found = best_fixed(solved)
    gained = [mean(rule.table, solved) for rule in candidates(solved)]
    assert mean(found, solved) == max(gained)
    assert (
        found.name
        == [r.table.name for r, value in zip(candidates(solved), gained, strict=True) if value == max(gained)][-1]
    )
    assert found.name.rpartition("-")[2] == str(solved.arena.world.ranks[found.choices[0, 0, 0, 0]])


def test_candidates_hold_every_rank_and_every_way_to_use_a_basis(make_field):
    """One rank for everything; with a basis always calibrated, always refreshed, refreshed once and then kept."""
    heads, basis = make_field("DRRL-Heads-v0", spans=1), make_field("DRRL-Basis-v0", spans=1)
    assert [rule.table.choices[0, 0, 0].tolist() for rule in candidates(heads)] == [[0] * 4, [1] * 4, [2] * 4]
    found = {rule.table.name: rule.table.choices[0, :, 0].tolist() for rule in candidates(basis)}
    assert len(found) == 9
    assert found["calibrated-24"] == [[1, 0]]
    assert found["refreshed-24"] == [[1, 2]]
    assert found["kept-24"] == [[1, 2], [1, 1]]


def test_of_every_family_the_best_is_kept(make_field):
    """Calibrated, refreshed and kept each have a best rank of their own."""
    field = make_field("DRRL-Basis-v0")
    for family, table in best_of_family(field).items():
        mine = [rule.table for rule in candidates(field) if rule.family == family]
        assert mean(table, field) == max(mean(rule, field) for rule in mine)
        assert table.name in [rule.name for rule in mine]
        assert len(mine) == 3


def test_best_threshold_is_not_beaten_by_thresholds_off_its_grid(field):
    """Shares between those tried gain under 1 % of the way from random to the oracle."""
    best = mean(best_threshold(field), field)
    shares = (0.5, 0.8, 0.9, 0.95, 0.97, 0.99, 0.995, 0.999, 1.0)
    others = [mean(EnergyThreshold(field.sizes, share), field) for share in shares]
    assert max(others) <= best + 0.01 * gap(field)


def test_under_a_tolerance_the_threshold_knows_it(drawn_field):
    """No κ between those tried gains 2 % of the way to the oracle, and no plain energy threshold beats it."""
    field = drawn_field
    found = best_threshold(field)
    best = mean(found, field)
    others = [mean(ToleranceThreshold(field.sizes, float(scale)), field) for scale in np.geomspace(2e-3, 2e2, 23)]
    plain = [mean(EnergyThreshold(field.sizes, share), field) for share in (0.5, 0.8, 0.9, 0.95, 0.99, 1.0)]
    assert found.name == "tolerance-threshold"
    assert max(*others, *plain) <= best + 0.02 * gap(field)


@pytest.mark.parametrize("name", [name.split("-")[1] for name in (*RULES, "DRRL-Latency-v0") if "Layers" not in name])
def test_the_layer_table_holds_the_best_constant_rule_of_each_layer(make_field, name):
    """Layer by layer the best of all candidates."""
    field = make_field(f"DRRL-{name}-v0")
    gained = [by_layer(returns(rule.table, field), field) for rule in candidates(field)]
    best = {layer: max(values[layer] for values in gained) for layer in gained[0]}
    assert by_layer(returns(best_layer_table(field), field), field) == pytest.approx(best, abs=1e-12)


def test_the_layer_table_of_the_closed_loop_is_climbed_to(make_field):
    """Of all sixteen tables of rank 8 or full it is at least as good as one rank for all, and as its neighbours."""
    field = make_field("DRRL-Layers-v0", spans=1, ranks=(8, 64))
    tables = [Table("all", field.sizes, np.array(row)[:, None, None, None]) for row in product(range(2), repeat=4)]
    gained = {tuple(table.choices.ravel()): mean(table, field) for table in tables}
    found = tuple(best_layer_table(field).choices.ravel())
    neighbours = [row for row in gained if sum(a != b for a, b in zip(row, found, strict=True)) == 1]
    assert len(neighbours) == 4
    assert gained[found] >= max(gained[row] for row in [*neighbours, (0,) * 4, (1,) * 4]) - 1e-9
    assert len(set(gained.values())) == 16


def test_a_finer_table_is_at_least_as_good_on_what_it_was_fitted_to(field):
    """layer-segment ≥ layer ≥ fixed on the train episodes, under a guard too.

    The wrong way: planning as if every rank asked for were carried out left the finer table *below* the coarser one
    under the paper's guard.
    """
    fixed, layer, cell = (mean(fit(field), field) for fit in (best_fixed, best_layer_table, best_layer_segment_table))
    assert fixed - 1e-9 <= layer <= cell + 1e-9


@pytest.mark.parametrize("name", ["Tolerance", "Budget", "Heads", "Basis", "Latency", "Attention-Continuous"])
def test_a_finer_table_of_every_task_is_at_least_as_good(make_field, name):
    """layer-segment, layer-head and layer-parameter tables ≥ layer ≥ fixed on the train episodes."""
    field = make_field(f"DRRL-{name}-v0", spans=1)
    fixed, layer = mean(best_fixed(field), field), mean(best_layer_table(field), field)
    finer = [mean(rule, field) for rule in rule_policies(field) if rule.name.startswith("layer-")]
    assert fixed <= layer + 1e-9
    assert min(finer) >= layer - 1e-9
    assert len(finer) >= 2


def test_no_single_entry_of_the_table_can_be_improved(field):
    """Changing any one (layer, segment) to any rank lowers the mean return or leaves it."""
    found = best_layer_segment_table(field)
    best = mean(found, field)
    for layer, position, choice in np.ndindex(*found.choices.shape[:2], len(field.arena.world.ranks)):
        changed = found.choices.copy()
        changed[layer, position] = choice
        assert mean(Table("changed", field.sizes, changed), field) <= best + 1e-9


def every_sequence(field) -> list[np.ndarray]:
    """All there are, (steps, components) each."""
    actions = list(product(*(range(size) for size in field.sizes)))
    return [np.array(rows) for rows in product(actions, repeat=field.steps)]


def best_by_layer(field) -> dict[int, float]:
    """The highest mean return that one sequence of choices has on a layer, by trying them all."""
    tables = [Table("all", field.sizes, rows[None, :, None]) for rows in every_sequence(field)]
    gained = [by_layer(returns(table, field), field) for table in tables]
    return {layer: max(values[layer] for values in gained) for layer in gained[0]}


@pytest.mark.parametrize(("name", "sequences"), [("Attention", 27), ("Tolerance", 27), ("Latency", 27), ("Basis", 81)])
def test_without_a_guard_the_table_is_the_best_of_all_sequences(make_field, name, sequences):
    """Every sequence of choices over the segments, layer by layer: none has a higher mean return."""
    field = make_field(f"DRRL-{name}-v0")
    found = by_layer(returns(best_layer_segment_table(field), field), field)
    assert found == pytest.approx(best_by_layer(field), abs=1e-12)
    assert len(every_sequence(field)) == sequences


def test_the_table_of_heads_is_the_best_of_all_sequences(make_field):
    """Two segments, four heads, full or rank 24: all 256 sequences of a layer, none has a higher mean return."""
    field = make_field("DRRL-Heads-v0", context=256, ranks=(24, 64))
    found = by_layer(returns(best_layer_segment_table(field), field), field)
    assert found == pytest.approx(best_by_layer(field), abs=1e-12)
    assert len(every_sequence(field)) == 256


def test_the_heads_table_is_the_best_of_all_constant_ones(make_field):
    """A rank per head, the same in every segment: of all 81 of a layer none has a higher mean return."""
    field = make_field("DRRL-Heads-v0")
    rows = [np.array(row) for row in product(range(3), repeat=4)]
    gained = [by_layer(returns(constant("all", field.sizes, row), field), field) for row in rows]
    best = {layer: max(values[layer] for values in gained) for layer in gained[0]}
    found = best_heads_table(field)
    assert by_layer(returns(found, field), field) == pytest.approx(best, abs=1e-12)
    assert found.choices.shape == (4, 1, 1, 4)


def test_no_single_entry_of_a_budgets_table_can_be_improved(make_field):
    """Where masks depend on what was spent the table is climbed to: no one entry is worth changing."""
    field = make_field("DRRL-Budget-v0")
    found = best_layer_segment_table(field)
    for step, choice in product(range(field.steps), range(3)):
        changed = found.choices.copy()
        changed[:, step] = choice
        other = by_layer(returns(Table("changed", field.sizes, changed), field), field)
        best = by_layer(returns(found, field), field)
        assert all(other[layer] <= best[layer] + 1e-9 for layer in best)


@pytest.fixture(scope="module")
def drawn_field(make_field):
    """Eight tolerances on every (instance, layer): about two episodes on each in every bin."""
    return make_field("DRRL-Tolerance-v0", repeats=8)


def bin_of(table, field):
    """The bin of every episode, from what was drawn for it and not from the observation."""
    return np.searchsorted(table.bins.edges, 1 + np.log10(field.parameters) / 4)


def test_bins_hold_equally_many_episodes(drawn_field):
    """Eight of them, 64 episodes: eight each, by the tolerance that was drawn."""
    table = best_parameter_table(drawn_field)
    assert table.bins.entry == "tolerance"
    assert np.bincount(bin_of(table, drawn_field), minlength=BINS).tolist() == [8] * BINS


@pytest.mark.parametrize("segments", [False, True])
def test_a_table_by_what_was_drawn_is_the_best_in_every_layer_and_bin(drawn_field, segments):
    """Among constants, and among all 27 sequences: none has a higher mean return on the episodes of any cell."""
    fit = best_parameter_segment_table if segments else best_parameter_table
    table = fit(drawn_field)
    tried = [rows for rows in every_sequence(drawn_field) if segments or (rows == rows[0]).all()]
    gained = np.stack([returns(Table("all", drawn_field.sizes, rows[None, :, None]), drawn_field) for rows in tried])
    found, bins = returns(table, drawn_field), bin_of(table, drawn_field)
    for layer, number in product(range(4), range(BINS)):
        here = (drawn_field.layers == layer) & (bins == number)
        if here.any():
            assert found[here].mean() == pytest.approx(gained[:, here].mean(1).max(), abs=1e-12)
    assert len(tried) == (27 if segments else 3)


def test_a_bin_without_an_episode_leaves_full_attention(make_field):
    """One tolerance for all puts every episode into one bin: the table still has eight, and they can be looked up.

    The wrong way: a table that ended with the last bin that was filled had no row for a larger tolerance.
    """
    field = make_field("DRRL-Tolerance-v0", spans=1, tolerance=0.5)
    for fit in (best_parameter_table, best_parameter_segment_table):
        table = fit(field)
        assert table.choices.shape[2] == BINS
        assert (table.choices[:, :, 1:] == 2).all()
        seen = {"tolerance": np.full((1, 1), 2.0), "layer": np.eye(1, 9), "position": np.zeros((1, 1))}
        assert table.predict(seen)[0].tolist() == [2]


def test_tables_of_one_layer_leave_the_others_full(free_field, recwarn):
    """Fitted on layer 2 alone they say full elsewhere, without NaN and without a warning of an empty mean."""
    field = some(free_field, free_field.layers == 2)
    for fit in (best_layer_table, best_layer_segment_table):
        assert (np.delete(fit(field).choices, 2, axis=0) == len(field.arena.world.ranks) - 1).all()
    assert not recwarn


def test_climbing_ends_where_it_began_if_nothing_is_better(free_field):
    """The best table stays the very object that it was."""
    table = best_layer_segment_table(free_field)
    assert climb(table, free_field) is table


def test_climbing_improves_each_layer_on_its_own(free_field):
    """From rank 40 everywhere every layer gains, though their best changes differ."""
    start = Table("start", free_field.sizes, np.full((4, 4, 1, 1), 6))
    before, after = (by_layer(returns(table, free_field), free_field) for table in (start, climb(start, free_field)))
    assert all(after[layer] > before[layer] for layer in before)


def test_fitting_touches_no_episode_but_those_it_was_given(free_field, monkeypatch):
    """Every (instance, layer) asked of the store while the rules are fitted is of the train split."""
    seen = []
    block = Store.block
    monkeypatch.setattr(Store, "block", lambda self, found, layer: seen.append(found.uri) or block(self, found, layer))
    rule_policies(free_field)
    assert set(seen) == set(free_field.instances)
    assert all("/train/" in uri for uri in seen)


@pytest.fixture(scope="module")
def rules(solved):
    """The rules of each task; of the closed loop on one layer."""
    return rule_policies(solved)


def test_every_task_has_the_rules_that_its_form_allows(solved, rules):
    """By name and in order; where there is no table per layer and segment, the task is live."""
    expected = RULES.get(solved.arena.task.id, [*COMMON, "layer-segment-table"])
    assert [rule.name for rule in rules] == [named(rules, start).name for start in expected]
    assert len({rule.name for rule in rules}) == len(expected)
    assert all(rule.sizes == solved.sizes and not rule.privileged for rule in rules)


def test_a_threshold_is_fitted_only_where_energies_are_observed(free_field, blind_field):
    """Of an agent that is shown one statistic of another sort, every other rule is left, playable without energies."""
    assert "energy" not in blind_field.arena.world.layout.slices
    names, blind_names = ([type(rule).__name__ for rule in rule_policies(each)] for each in (free_field, blind_field))
    assert "EnergyThreshold" in names
    assert blind_names == [name for name in names if name != "EnergyThreshold"]
    assert np.isfinite([mean(rule, blind_field) for rule in rule_policies(blind_field)]).all()


def check_nobody_above_the_oracle(field, rules):
    """On every episode: a rule that is above it anywhere would show a wrong plan or a wrong replay."""
    best = returns(oracle_policy(field), field)
    ceiling = np.array([optimum.bound for optimum in field.optima])
    assert (best <= ceiling + 1e-12).all()
    for policy in [*rules, *(Random(field.sizes, seed) for seed in range(5))]:
        assert (returns(policy, field) <= ceiling + 1e-9).all(), policy.name


def test_the_oracle_is_above_every_rule_on_every_episode(field):
    """Not only in the mean, and it reaches its bound."""
    check_nobody_above_the_oracle(field, rule_policies(field))
    assert all(optimum.kind == "exact" for optimum in field.optima)


def test_no_rule_of_any_task_is_above_the_bound(solved, rules):
    """Not only in the mean; a search in the closed loop knows no bound, and none is broken."""
    check_nobody_above_the_oracle(solved, rules)
