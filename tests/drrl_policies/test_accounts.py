"""The account of a policy leaves nothing out and counts nothing twice, on every task; worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from drrl_env.envs.basis import CALIBRATED, KEPT, REFRESHED
from drrl_policies import constant, open_field
from drrl_policies.accounts import step_layers, step_positions
from drrl_policies.fitting import full, oracle_policy
from drrl_policies.rollout import rollout

HALF_FULL = (7, 0, 7, 2)
"""Full at two of four segments."""
MIXED = [(7, 7, 7, 7), (7, 0, 7, 2), (0, 0, 0, 0), (3, 7, 1, 5)]
"""Ranks of four heads, each with keys of its own: 4, 2, 0 and 1 of them full."""
KINDS = [(0, CALIBRATED), (2, REFRESHED), (0, KEPT), (7, REFRESHED)]
"""Rank and basis of four segments."""


def by_hand(field) -> tuple[float, float, float]:
    """FLOPs of the energies, of the Gram updates, and of what brings energies, from the table of the design.

    That is the decomposition of a refreshed basis, cold at this width, or the products of a calibrated one.
    """
    shape, width = field.arena.world.shape, field.arena.world.streams[0].width
    assert (shape.dim, width, shape.kv_heads, shape.groups) == (64, 48, 4, 1)
    energies, grams = 2 * 64**2 + 48, 2 * 128 * 64**2 + 2 * 128 * 64**2
    basis = 13 * 64**3 + 64**2 * 48 if field.arena.world.measurement.basis == "refreshed" else products()
    return 4 * energies, 4 * grams, 4 * basis


def products() -> float:
    """FLOPs of energies in a basis that brings none, of one key head."""
    return 4 * 64**2 * 48 + 4 * 64 * 48**2


def opened(task, **arguments):
    """Four segments and the candidate ranks that are the default."""
    return open_field(task, {"context": 512, **arguments}, "train", 1, progress=False)


@pytest.fixture(scope="module")
def heads_field():
    """A rank per head, in a basis that is paid for where it is run."""
    return opened("DRRL-Heads-v0", basis="refreshed")


@pytest.fixture(scope="module")
def basis_field():
    """Rank and basis."""
    return opened("DRRL-Basis-v0")


@pytest.fixture(scope="module")
def live_field():
    """The closed loop, two segments of four layers."""
    return opened("DRRL-Layers-v0", context=256)


@pytest.fixture(scope="module")
def live_refreshed_field():
    """The same in the refreshed basis."""
    return opened("DRRL-Layers-v0", context=256, basis="refreshed")


def overhead(policy, field):
    """FLOPs of observing and deciding of every episode."""
    return rollout(policy, field).overhead


@pytest.mark.parametrize("reads", [(), ("layer", "position"), ("previous_rank", "window_ranks")])
def test_who_reads_nothing_that_costs_pays_nothing(free_field, refreshed_field, scripted, reads):
    """Without a guard a table pays for no statistic, at full segments neither."""
    for field in (free_field, refreshed_field):
        assert (overhead(scripted(field, HALF_FULL, reads), field) == 0).all()


def test_a_table_pays_nothing_for_what_the_task_drew(make_field, scripted):
    """A tolerance, a budget, the basis in hand, the ranks of the layers below: what is known costs nothing to read."""
    names = {"Tolerance": "tolerance", "Budget": "budget", "Basis": "basis", "Layers": "layers_ranks"}
    for task, entry in names.items():
        field = make_field(f"DRRL-{task}-v0", spans=1)
        policy = scripted(field, [0] * field.steps, ["layer", "position", entry])
        assert entry in {each.name for each in field.arena.play.entries}
        assert (overhead(policy, field) == 0).all()


def test_reading_energies_costs_them_everywhere_and_the_basis_where_attention_was_full(refreshed_field, scripted):
    """By hand, two full segments of four. The wrong ways: the basis never (full looks free), or always (paid twice)."""
    field, (energies, grams, cold) = refreshed_field, by_hand(refreshed_field)
    found = overhead(scripted(field, HALF_FULL, ["energy"]), field)
    np.testing.assert_allclose(found, 4 * energies + 2 * (grams + cold), rtol=1e-12)
    np.testing.assert_allclose(overhead(scripted(field, (0,) * 4, ["energy"]), field), 4 * energies, rtol=1e-12)


def test_reading_energies_of_a_calibrated_basis_costs_the_grams_everywhere(free_field, scripted):
    """Attention in a calibrated basis never updates a Gram, so whoever looks pays for it at every rank."""
    found = overhead(scripted(free_field, HALF_FULL, ["energy"]), free_field)
    np.testing.assert_allclose(found, 4 * sum(by_hand(free_field)), rtol=1e-12)


def test_an_offline_basis_costs_what_the_calibrated_one_does(free_field, scripted):
    """Other directions, fixed beforehand as well: the same account of looking, and of the cache."""
    field = opened("DRRL-Attention-v0", basis="keys-pca")
    policies = [scripted(each, HALF_FULL, ["energy"]) for each in (field, free_field)]
    found, calibrated = (rollout(policy, each) for policy, each in zip(policies, (field, free_field), strict=True))
    assert (found.overhead == calibrated.overhead[:4]).all()
    assert (found.cache_ratio == calibrated.cache_ratio[:4]).all()


def test_heads_pay_for_the_basis_of_the_key_heads_that_ran_full(heads_field, scripted):
    """Of MIXED's sixteen key heads seven ran full: theirs alone are paid for by who looks at the energies."""
    energies, grams, cold = by_hand(heads_field)
    found = overhead(scripted(heads_field, MIXED, ["energy"]), heads_field)
    np.testing.assert_allclose(found, 4 * energies + 7 / 4 * (grams + cold), rtol=1e-12)


def test_a_basis_is_paid_for_where_attention_did_not_refresh_it(basis_field, scripted):
    """Calibrated, kept and full segments of KINDS, three of four, are paid for by who looks at refreshed energies."""
    energies, grams, cold = by_hand(basis_field)
    found = overhead(scripted(basis_field, KINDS, ["energy"]), basis_field)
    np.testing.assert_allclose(found, 4 * energies + 3 * (grams + cold), rtol=1e-12)


@pytest.mark.parametrize("reads", [["energy_kept"], ["energy_calibrated"], ["energy_kept", "energy_calibrated"]])
def test_energies_of_the_other_bases_are_paid_for_too(basis_field, scripted, reads):
    """Their products at every segment, each, and what brings the Grams.

    The wrong way: an account of the entries that every task has charged nothing for these two.
    """
    _, grams, cold = by_hand(basis_field)
    found = overhead(scripted(basis_field, KINDS, reads), basis_field)
    np.testing.assert_allclose(found, 4 * len(reads) * 4 * products() + 3 * (grams + cold), rtol=1e-12)


def test_the_closed_loop_pays_at_every_layer_of_every_segment(live_field, live_refreshed_field, scripted):
    """Eight steps, two of them full: calibrated all eight bring their Grams, refreshed those two."""
    choices = (7, 0, 0, 1, 2, 7, 3, 0)
    energies, grams, basis = by_hand(live_field)
    found = overhead(scripted(live_field, choices, ["energy"]), live_field)
    np.testing.assert_allclose(found, 8 * (energies + grams + basis), rtol=1e-12)
    energies, grams, cold = by_hand(live_refreshed_field)
    found = overhead(scripted(live_refreshed_field, choices, ["energy"]), live_refreshed_field)
    np.testing.assert_allclose(found, 8 * energies + 2 * (grams + cold), rtol=1e-12)


def test_the_window_is_not_paid_a_second_time(refreshed_field, scripted):
    """It repeats the statistics of past segments; energies are part of them."""
    statistics = overhead(scripted(refreshed_field, HALF_FULL, ["segment"]), refreshed_field)
    together = overhead(scripted(refreshed_field, HALF_FULL, ["segment", "window", "energy"]), refreshed_field)
    assert (statistics > 0).all()
    assert (statistics == together).all()


def test_deciding_is_paid_at_every_step(free_field, live_field, scripted):
    """A million FLOPs a decision: four million for four segments, eight for a closed loop of eight steps."""
    assert (overhead(scripted(free_field, HALF_FULL, deciding_flops=1e6), free_field) == 4e6).all()
    assert (overhead(scripted(live_field, [0] * 8, deciding_flops=1e6), live_field) == 8e6).all()
    tokens = overhead(scripted(free_field, HALF_FULL, ["tokens"]), free_field)
    both = overhead(scripted(free_field, HALF_FULL, ["tokens"], deciding_flops=1e6), free_field)
    np.testing.assert_allclose(both - tokens, 4e6)
    assert (tokens >= 4 * 8 * 2 * 256 * 16).all()


def test_under_a_guard_everyone_pays_for_what_it_looks_at(field):
    """Fixed, full and the oracle too: a guard decides from energies, which are not free; without it they pay nothing.

    The conformal one sums the segment's values and their squares as well, 3 · 128 · 64 FLOPs a key head.
    """
    guard = field.arena.rules.guard.kind
    values = 4 * 3 * 128 * 64 if guard == "conformal" else 0
    expected = 0 if guard == "off" else 4 * (sum(by_hand(field)) + values)
    np.testing.assert_allclose(overhead(full(field), field), expected, rtol=1e-12)
    assert ((overhead(oracle_policy(field), field) == 0) == (guard == "off")).all()
    assert ((overhead(constant("fixed", field.sizes, (0,)), field) == 0) == (guard == "off")).all()


def test_full_attention_costs_exactly_itself(each, make_field):
    """On every task, a budget that pays it included: FLOPs, total and cache ratio 1, cosine 1, error 0."""
    field = make_field("DRRL-Budget-v0", budget=1.0) if each.arena.play.parameter == "budget" else each
    found = rollout(full(field), field)
    looked = found.overhead / (field.mean_full * field.steps)
    np.testing.assert_allclose(found.columns["flops_ratio"].mean(-1), 1)
    np.testing.assert_allclose(found.total_ratio(field.mean_full), 1 + looked)
    assert (looked > 0).all() == (field.arena.rules.guard.kind != "off")
    np.testing.assert_allclose(found.cache_ratio, 1)
    np.testing.assert_allclose(found.columns["cosine"], 1)
    assert (found.columns["relative_error"] < 1e-6).all()


def test_cache_bytes_are_counted_by_hand(free_field, refreshed_field):
    """A fixed rank 8 reads r + r_v columns of d + d_v; a refreshed basis keeps the raw keys as well."""
    for field, raw in ((free_field, 0), (refreshed_field, 64)):
        found = rollout(constant("fixed", field.sizes, (0,)), field).cache_ratio
        for layer, ratio in zip(field.layers, found, strict=True):
            cost = field.arena.world.streams[layer].costs[0]
            assert ratio == pytest.approx((cost.rank + cost.value_rank + raw) / 128)


def columns_of(field, basis: str, layer: int, choice: int) -> int:
    """Columns of a key head's cache that a choice reads, of 128; a refreshed basis reads the raw keys too."""
    cost = field.arena.world.streams_of(basis)[layer].costs[choice]
    return 128 if choice == 7 else cost.rank + cost.value_rank + 64 * (basis == "refreshed")


KEYS = np.array([1, 2, 3, 4])
"""Segments of keys that are held at each of four segments."""


def test_every_head_reads_the_columns_of_its_own_rank(heads_field, scripted):
    """MIXED by hand: full heads all of their 128, the others what their rank takes, weighted by the keys held."""
    found = rollout(scripted(heads_field, MIXED), heads_field).cache_ratio
    for layer, ratio in zip(heads_field.layers, found, strict=True):
        read = [sum(columns_of(heads_field, "refreshed", layer, choice) for choice in row) for row in MIXED]
        assert ratio == pytest.approx((read * KEYS).sum() / (4 * 128 * KEYS).sum())


def test_every_kind_of_basis_reads_what_it_needs(basis_field, scripted):
    """KINDS by hand: a calibrated basis no raw keys, a refreshed or kept one those too, full all 128."""
    found = rollout(scripted(basis_field, KINDS), basis_field)
    assert (found.executed == KINDS).all()
    for layer, ratio in zip(basis_field.layers, found.cache_ratio, strict=True):
        names = ["calibrated", "refreshed", "refreshed", "refreshed"]
        read = [columns_of(basis_field, name, layer, choice) for name, (choice, _) in zip(names, KINDS, strict=True)]
        assert ratio == pytest.approx((read * KEYS).sum() / (128 * KEYS).sum())


def test_the_closed_loop_reads_the_cache_of_the_layer_of_each_step(live_field, scripted):
    """Two segments of four layers, other value ranks in each: every step by the columns of its own layer."""
    choices = (7, 0, 0, 1, 2, 7, 3, 0)
    read = [columns_of(live_field, "calibrated", step % 4, choice) for step, choice in enumerate(choices)]
    keys = np.array([1] * 4 + [2] * 4)
    found = rollout(scripted(live_field, choices), live_field).cache_ratio
    np.testing.assert_allclose(found, (read * keys).sum() / (128 * keys).sum())


def test_every_step_is_at_its_layer_and_segment(each):
    """As the lanes themselves show them: the layer's one-hot, and the clock over the layers of a segment."""
    each.arena.play.begin(range(len(each.episodes)), each.episodes)
    layers, positions = step_layers(each), step_positions(each)
    of_segment = each.steps // each.arena.world.segments
    for step in range(each.steps):
        seen = each.arena.play.observe()
        assert (seen["layer"][:, :4].argmax(-1) == layers[:, step]).all()
        assert (np.rint(seen["position"][:, 0] * each.steps) // of_segment == positions[step]).all()
        each.arena.play.step(np.tile(np.array(each.sizes) - 1, (len(each.episodes), 1)) * 0)


def test_one_layer_of_the_closed_loop_is_a_step_a_segment(make_field):
    """With layer=2 every step is there."""
    field = make_field("DRRL-Layers-v0", spans=1, layer=2)
    assert step_layers(field).tolist() == [[2, 2]]
    assert step_positions(field).tolist() == [0, 1]
