"""A rollout is what stepping the environment gives, and its account leaves nothing out."""

from __future__ import annotations

import numpy as np
import pytest

from drrl_policies import EnergyThreshold, Fixed, Full, LayerSegmentTable, LayerTable, Oracle, Policy, Random
from drrl_policies.fitting import oracle_policy, rule_policies
from drrl_policies.rollout import rollout


class Scripted(Policy):
    """Plays a sequence of choices, claiming to read and to compute what the test wants."""

    name = "scripted"

    def __init__(self, choices, reads=(), deciding_flops=0.0, privileged=False) -> None:
        self.choices, self.reads = np.array(choices), frozenset(reads)
        self.deciding_flops, self.privileged = deciding_flops, privileged

    def choose(self, situation):
        """The choice of this segment."""
        return self.choices[situation.positions]


HALF_FULL = (7, 0, 7, 2)
"""Full at two of four segments."""


def by_hand(field) -> tuple[float, float, float]:
    """FLOPs of the energies, of the Gram updates, and of what brings energies, from the table of the design.

    That is the decomposition of a refreshed basis, cold at this width, or the products of a calibrated one.
    """
    shape, width = field.game.world.shape, field.game.world.streams[0].width
    assert (shape.dim, width) == (64, 48)
    energies = 2 * 64**2 + 48
    grams = 2 * 128 * 64**2 + shape.groups * 2 * 128 * 64**2
    cold, products = 13 * 64**3 + 64**2 * 48, 4 * 64**2 * 48 + 4 * 64 * 48**2
    basis = cold if field.game.world.measurement.basis == "refreshed" else products
    return shape.kv_heads * energies, shape.kv_heads * grams, shape.kv_heads * basis


def overhead(policy, field):
    """FLOPs of observing and deciding of every episode."""
    return rollout(policy, field.game, field.pairs).overhead


@pytest.mark.parametrize("reads", [(), ("layer", "position"), ("previous_rank", "window_ranks")])
def test_who_reads_nothing_that_costs_pays_nothing(free_field, refreshed_field, reads):
    """Without a guard a table pays for no statistic, at full segments neither."""
    for field in (free_field, refreshed_field):
        assert (overhead(Scripted(HALF_FULL, reads), field) == 0).all()


def test_reading_energies_costs_them_everywhere_and_the_basis_where_attention_was_full(refreshed_field):
    """By hand, two full segments of four. The wrong ways: the basis never (full looks free), or always (paid twice)."""
    energies, grams, cold = by_hand(refreshed_field)
    expected = 4 * energies + 2 * (grams + cold)
    np.testing.assert_allclose(overhead(Scripted(HALF_FULL, ["energy"]), refreshed_field), expected, rtol=1e-12)
    np.testing.assert_allclose(overhead(Scripted((0, 0, 0, 0), ["energy"]), refreshed_field), 4 * energies, rtol=1e-12)


def test_reading_energies_of_a_calibrated_basis_costs_the_grams_everywhere(free_field):
    """Attention in a calibrated basis never updates a Gram, so whoever looks pays for it at every rank."""
    expected = 4 * sum(by_hand(free_field))
    np.testing.assert_allclose(overhead(Scripted(HALF_FULL, ["energy"]), free_field), expected, rtol=1e-12)


def test_the_window_is_not_paid_a_second_time(refreshed_field):
    """It repeats the statistics of past segments; energies are part of them."""
    statistics = overhead(Scripted(HALF_FULL, ["segment"]), refreshed_field)
    together = overhead(Scripted(HALF_FULL, ["segment", "window", "energy"]), refreshed_field)
    assert (statistics > 0).all()
    assert (statistics == together).all()


def test_deciding_is_paid_at_every_segment(free_field):
    """A million FLOPs per decision are four million per episode of four segments, the tokens read on top."""
    assert (overhead(Scripted(HALF_FULL, deciding_flops=1e6), free_field) == 4e6).all()
    tokens = overhead(Scripted(HALF_FULL, ["tokens"]), free_field)
    both = overhead(Scripted(HALF_FULL, ["tokens"], deciding_flops=1e6), free_field)
    np.testing.assert_allclose(both - tokens, 4e6)
    assert (tokens >= 4 * 8 * 2 * 256 * 16).all()


def test_under_a_guard_everyone_pays_for_what_it_looks_at(field):
    """Fixed, full and the oracle too: a guard decides from energies, which are not free; without it they pay nothing.

    The conformal one sums the segment's values and their squares as well, 3 · 128 · 64 FLOPs a key head.
    """
    values = 4 * 3 * 128 * 64 if field.game.rules.guard.kind == "conformal" else 0
    expected = 0 if field.free else 4 * (sum(by_hand(field)) + values)
    np.testing.assert_allclose(overhead(Full(8), field), expected, rtol=1e-12)
    assert ((overhead(oracle_policy(field.game, field.pairs), field) == 0) == field.free).all()
    assert ((overhead(Fixed(0, 8), field) == 0) == field.free).all()


def test_everything_counted_is_at_least_attention(field):
    """total ratio ≥ FLOPs ratio for every rule, and the rest is observing and deciding over full attention."""
    full = field.game.mean_full * field.game.world.segments
    for policy in rule_policies(field.game, field.pairs):
        found = rollout(policy, field.game, field.pairs)
        total, attention = found.total_ratio(field.game.mean_full), found.columns["flops_ratio"].mean(-1)
        np.testing.assert_allclose(total - attention, found.overhead / full, atol=1e-12)
        assert (found.overhead >= 0).all()


def test_full_attention_costs_exactly_itself(free_field):
    """FLOPs ratio, total ratio and cache ratio are 1, cosine 1, error 0."""
    found = rollout(Full(8), free_field.game, free_field.pairs)
    np.testing.assert_allclose(found.columns["flops_ratio"].mean(-1), 1)
    np.testing.assert_allclose(found.total_ratio(free_field.game.mean_full), 1)
    np.testing.assert_allclose(found.cache_ratio, 1)
    assert (found.columns["cosine"] == 1).all()
    assert (found.columns["relative_error"] == 0).all()


def test_cache_bytes_are_counted_by_hand(free_field, refreshed_field):
    """A fixed rank 8 reads r + r_v columns of d + d_v; a refreshed basis keeps the raw keys as well."""
    for field, raw in ((free_field, 0), (refreshed_field, 64)):
        world = field.game.world
        found = rollout(Fixed(0, 8), field.game, field.pairs).cache_ratio
        for (_, layer), ratio in zip(field.pairs, found, strict=True):
            cost = world.streams[layer].costs[0]
            assert ratio == pytest.approx((cost.rank + cost.value_rank + raw) / 128)


def test_the_reward_is_the_sum_of_its_terms(field):
    """In every step of a random rollout, to the last bit."""
    found = rollout(Random(0), field.game, field.pairs)
    assert list(found.terms) == ["fidelity", "flops", "change"]
    assert (found.rewards == found.terms["fidelity"] + found.terms["flops"] + found.terms["change"]).all()


POLICIES = [
    Fixed(1, 12),
    Full(8),
    EnergyThreshold(0.98),
    LayerTable(np.array([0, 5, 7, 2])),
    LayerSegmentTable(np.arange(16).reshape(4, 4) % 8),
]


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.name)
def test_a_rollout_is_what_stepping_the_environment_by_hand_gives(field, policy):
    """Rewards, executed ranks and every number of info bit for bit, through gym.make and `predict`."""
    found, env = rollout(policy, field.game, field.pairs), field.env()
    for number, (instance, layer) in enumerate(field.pairs):
        observation, _ = env.reset(options={"instance": instance.uri, "layer": layer})
        for position in range(field.game.world.segments):
            masks = env.get_wrapper_attr("action_masks")()
            choice, _ = policy.predict(observation, action_masks=masks)
            observation, reward, ended, _, info = env.step(choice)
            assert reward == found.rewards[number, position]
            assert info["choice"] == found.executed[number, position]
            for name, steps in found.columns.items():
                assert info[name] == steps[number, position]
            for name, steps in found.terms.items():
                assert info["reward_terms"][name] == steps[number, position]
        assert ended


def test_an_oracle_of_other_episodes_says_so(free_field):
    """A plan that is missing is an error, not a guess."""
    with pytest.raises(KeyError):
        rollout(Oracle({}), free_field.game, free_field.pairs)
