"""The account as tables against the account itself."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drrl_env.lowrank.cost_tables import group_mixes, key_side_table, mixed_tables, query_side_table
from drrl_env.lowrank.flops import BASES, AttentionShape, RankCost, full_flops, mixed_flops, segment_flops

SEGMENTS = 5
CANDIDATES = (
    (RankCost(8, 18), RankCost(16, 36), RankCost(24, 64), RankCost(40, 64), RankCost(64, 64)),
    (RankCost(8, 8), RankCost(16, 16), RankCost(40, 40), RankCost(64, 64)),
    (RankCost(8, 64), RankCost(40, 64), RankCost(64, 64)),
    (RankCost(4, 20), RankCost(30, 10), RankCost(64, 64)),
)
"""Value ranks as balanced ones come (full from some rank on), all reduced, all full, and falling."""
widths = st.sampled_from((24, 48))
bases = st.sampled_from(BASES)


def shape_of(groups, kv_heads=2, segment=16):
    """A layer of dimension 64."""
    return AttentionShape(kv_heads, groups, 64, 64, segment)


@given(
    groups=st.integers(1, 3),
    kv_heads=st.integers(1, 4),
    costs=st.sampled_from(CANDIDATES),
    basis=bases,
    width=widths,
    seed=st.integers(0, 10**6),
)
def test_gathers_price_any_mix_as_the_account_does(groups, kv_heads, costs, basis, width, seed):
    """1e-14 of `mixed_flops` for random ranks per head (a warm step's d³/3 rounds, all else is exact)."""
    shape, random = shape_of(groups, kv_heads), np.random.default_rng(seed)
    tables = mixed_tables(shape, SEGMENTS, costs, basis, width)
    positions, (before, now) = random.integers(SEGMENTS, size=9), random.integers(len(costs), size=(2, 9, shape.heads))
    expected = [
        mixed_flops(shape, int(t), [costs[c] for c in chosen], [costs[c] for c in previous], basis, width)
        for t, chosen, previous in zip(positions, now, before, strict=True)
    ]
    np.testing.assert_allclose(tables.flops(positions, before, now), expected, rtol=1e-14 if width == 24 else 0)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("basis", BASES)
def test_a_candidates_number_is_that_of_its_mix(groups, basis):
    """Layers that run at one candidate, gathered by its number: `segment_flops`, bit for bit at a cold width."""
    shape, costs = shape_of(groups), CANDIDATES[0]
    queries, keys = query_side_table(shape, 3, costs), key_side_table(shape, 3, costs, basis, 48)
    for t in range(3):
        for p, previous in enumerate(costs):
            for c, chosen in enumerate(costs):
                found = shape.heads * queries[t, c] + shape.kv_heads * keys[t, p, c]
                assert found == segment_flops(shape, t, chosen, previous, basis, 48)


def test_without_groups_the_table_is_of_candidates():
    """(segments, ranks, ranks), the last candidate for nothing projected: no cost to it, nothing cached after it."""
    shape, costs = shape_of(1), CANDIDATES[0]
    keys = key_side_table(shape, SEGMENTS, costs, "refreshed", 48)
    assert keys.shape == (SEGMENTS, 5, 5)
    assert query_side_table(shape, SEGMENTS, costs).shape == (SEGMENTS, 5)
    assert float(np.abs(keys[:, :, -1]).max()) == 0
    assert bool((keys[1:, -1, :2] > keys[1:, 1, :2]).all())


def test_a_group_can_need_columns_of_two_candidates():
    """Rank 40 keeps full values, rank 8 beside it does not: 40 key and 18 value columns, a mix of its own."""
    mixes = group_mixes(shape_of(2), CANDIDATES[0])
    assert mixes[:5] == (RankCost(8, 18), RankCost(16, 36), RankCost(24, 0), RankCost(40, 0), RankCost(0, 0))
    assert set(mixes[5:]) == {RankCost(r, v) for r in (24, 40) for v in (18, 36)}
    assert len(group_mixes(shape_of(2), CANDIDATES[1])) == 4
    assert len(group_mixes(shape_of(1), CANDIDATES[0])) == 5


def test_one_lane_has_the_bits_of_many():
    """A warm width, whose d³/3 rounds: lanes are priced alike alone and together."""
    shape, costs, random = shape_of(2, 4), CANDIDATES[0], np.random.default_rng(0)
    tables = mixed_tables(shape, SEGMENTS, costs, "refreshed", 24)
    positions, (before, now) = random.integers(SEGMENTS, size=200), random.integers(5, size=(2, 200, 8))
    alone = [tables.flops(positions[i : i + 1], before[i : i + 1], now[i : i + 1])[0] for i in range(200)]
    assert tables.flops(positions, before, now).tolist() == alone


def test_all_full_is_full_attention():
    """In every segment, whatever is cached."""
    shape, costs = shape_of(2), CANDIDATES[0]
    tables, full = mixed_tables(shape, SEGMENTS, costs, "refreshed", 48), np.full((SEGMENTS, 4), 4)
    found = tables.flops(np.arange(SEGMENTS), np.zeros_like(full), full)
    assert found.tolist() == [full_flops(shape, t) for t in range(SEGMENTS)]


@pytest.mark.parametrize("ranks", [(8, 16), (8, 64, 64), ()])
def test_candidates_that_do_not_end_full_are_refused(ranks):
    """One line: the last candidate's number means that nothing is projected."""
    costs = tuple(RankCost(rank, rank) for rank in ranks)
    with pytest.raises(ValueError, match=r"^costs: ranks \(.*\); must be below 64 up to the last, and 64 there$"):
        mixed_tables(shape_of(1), SEGMENTS, costs, "calibrated", 48)
