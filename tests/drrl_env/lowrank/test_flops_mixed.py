"""The FLOPs account where ranks differ by head and where a basis is kept, against PyTorch's own counter."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from drrl_env.lowrank.flops import (
    BASES,
    KINDS,
    AttentionShape,
    RankCost,
    decomposition_flops,
    full_flops,
    kind_flops,
    mixed_flops,
    segment_flops,
    update_flops,
)

FULL = RankCost(64, 64)


class Unmasked(AttentionShape):
    """A shape whose queries see every key, as a matrix product without a mask computes."""

    def visible(self, position: int) -> float:
        """n instead of n̄."""
        return self.keys(position)


SHAPE = Unmasked(kv_heads=2, groups=3, dim=64, value_dim=32, segment=16)


def counted(run):
    """FLOPs of the matrix products that `run` executes."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def products(rows, columns, inner):
    """One batched product per key head, counted; values do not matter."""
    torch.zeros(SHAPE.kv_heads, rows, inner) @ torch.zeros(SHAPE.kv_heads, inner, columns)


def run_segment(position, rank, value_rank, key_rows, value_rows):
    """The matrix products of one low-rank segment, with the rows of k and v that must be projected."""
    queries, keys = SHAPE.groups * SHAPE.segment, SHAPE.keys(position)
    products(queries, rank, SHAPE.dim)
    products(key_rows, rank, SHAPE.dim)
    products(queries, keys, rank)
    if value_rank < SHAPE.value_dim:
        products(value_rows, value_rank, SHAPE.value_dim)
        products(queries, SHAPE.value_dim, value_rank)
    products(queries, value_rank, keys)


shapes = st.builds(
    AttentionShape,
    kv_heads=st.integers(1, 4),
    groups=st.integers(1, 3),
    dim=st.just(16),
    value_dim=st.sampled_from((8, 16)),
    segment=st.integers(1, 40),
)
positions = st.integers(0, 20)
rank_costs = st.builds(RankCost, st.integers(1, 16), st.integers(1, 8))
reduced_costs = st.builds(RankCost, st.integers(1, 15), st.integers(1, 8))
kinds = st.sampled_from(KINDS)


@given(
    shape=shapes,
    position=positions,
    chosen=rank_costs,
    previous=rank_costs,
    basis=st.sampled_from(BASES),
    width=st.integers(1, 16),
)
def test_heads_that_are_all_alike_cost_what_the_layer_costs(shape, position, chosen, previous, basis, width):
    """`mixed_flops` of one rank for all has the bits of `segment_flops`, full ranks and value ranks included."""
    uniform = segment_flops(shape, position, chosen, previous, basis, width)
    mixed = mixed_flops(shape, position, [chosen] * shape.heads, [previous] * shape.heads, basis, width)
    assert mixed == uniform


def test_the_key_side_pays_for_the_largest_as_it_runs():
    """By PyTorch's counter: a group at ranks 8, 24 and full, another all full, after one that had cached 8 and 40."""
    low, high, full = RankCost(8, 4), RankCost(24, 12), FULL
    chosen, previous = [low, high, full, full, full, full], [low, low, full, RankCost(40, 16), low, full]
    rows, keys, old = SHAPE.segment, SHAPE.keys(5), SHAPE.keys(4)

    def head(rank, value_rank):
        torch.zeros(rows, 64) @ torch.zeros(64, rank)
        torch.zeros(rows, rank) @ torch.zeros(rank, keys)
        torch.zeros(rows, keys) @ torch.zeros(keys, value_rank) @ torch.zeros(value_rank, 32)

    def run():
        head(8, 4)
        head(24, 12)
        for _ in range(4):
            torch.zeros(rows, 64) @ torch.zeros(64, keys)
            torch.zeros(rows, keys) @ torch.zeros(keys, 32)
        torch.zeros(rows, 64) @ torch.zeros(64, 24)
        torch.zeros(rows, 32) @ torch.zeros(32, 12)
        torch.zeros(old, 64) @ torch.zeros(64, 24 - 8)
        torch.zeros(old, 32) @ torch.zeros(32, 12 - 4)

    assert mixed_flops(SHAPE, 5, chosen, previous, "calibrated", 48) == counted(run)


def test_a_group_that_is_all_full_pays_no_update():
    """One of two key heads runs full: one update less, and no key of it projected."""
    reduced = [RankCost(8, 32)] * 3
    both, one, none = (
        mixed_flops(SHAPE, 5, chosen, [FULL] * 6, "refreshed", 48)
        for chosen in (reduced * 2, reduced + [FULL] * 3, [FULL] * 6)
    )
    assert none == full_flops(SHAPE, 5)
    assert both - one == one - none
    run = counted(lambda: run_segment(5, 8, 32, SHAPE.keys(5), 0)) / 2
    assert one == run + update_flops(SHAPE, 48) + full_flops(SHAPE, 5) / 2


@given(shape=shapes, position=positions, data=st.data(), basis=st.sampled_from(BASES))
def test_a_column_more_in_one_head_costs_its_own_work_at_least(shape, position, data, basis):
    """One head's rank raised by one below full: its query and score column; and caching never costs anything."""
    heads = st.lists(rank_costs, min_size=shape.heads, max_size=shape.heads)
    chosen, previous = data.draw(heads), data.draw(heads)
    chosen[0] = RankCost(data.draw(st.integers(1, 14)), chosen[0].value_rank)
    low = mixed_flops(shape, position, chosen, previous, basis, 16)
    chosen[0] = replace(chosen[0], rank=chosen[0].rank + 1)
    own = 2 * shape.segment * (shape.visible(position) + shape.dim)
    assert mixed_flops(shape, position, chosen, previous, basis, 16) >= low + own
    chosen[0] = replace(chosen[0], rank=chosen[0].rank - 1)
    assert mixed_flops(shape, position, chosen, [RankCost(16, 8)] * shape.heads, basis, 16) >= low


@pytest.mark.parametrize("name", ["chosen", "previous"])
def test_one_cost_per_query_head_is_asked_for(name):
    """One line; a group of fewer heads would be priced as if it were whole."""
    costs = {"chosen": [FULL] * 6, "previous": [FULL] * 6, name: [FULL] * 5}
    with pytest.raises(ValueError, match=f"^{name}: 5 costs; the layer has 6 query heads, give one for each$"):
        mixed_flops(SHAPE, 5, **costs, basis="calibrated", width=48)


@given(shape=shapes, position=positions, chosen=rank_costs, previous=rank_costs, same=st.booleans(), before=kinds)
def test_kinds_agree_with_the_bases_where_they_overlap(shape, position, chosen, previous, same, before):
    """Refreshed at every segment, and calibrated after calibrated, have the bits of `segment_flops`."""
    refreshed = kind_flops(shape, position, chosen, "refreshed", previous, before, same, 9, missed=1)
    assert refreshed == segment_flops(shape, position, chosen, previous, "refreshed", 9)
    calibrated = kind_flops(shape, position, chosen, "calibrated", previous, "calibrated", same, 9)
    assert calibrated == segment_flops(shape, position, chosen, previous, "calibrated", 9)


@given(
    shape=shapes,
    position=positions,
    chosen=reduced_costs,
    previous=rank_costs,
    before=kinds,
    same=st.booleans(),
    missed=st.integers(1, 16),
)
def test_refreshing_costs_the_decomposition_more_than_keeping(shape, position, chosen, previous, before, same, missed):
    """At any cache, by the update at least, and by exactly that where nothing of the kept basis is cached."""
    kept, refreshed = (
        kind_flops(shape, position, chosen, kind, previous, before, same, 9, missed) for kind in ("kept", "refreshed")
    )
    update = shape.kv_heads * update_flops(shape, 9, missed)
    cached = same and before != "calibrated" and previous.rank < 16 and position > 0
    assert refreshed >= kept + update
    assert (refreshed > kept + update) == cached
    assert update - decomposition_flops(shape, 9) == pytest.approx(
        shape.kv_heads * 2 * shape.segment * 16**2 * (missed - 1)
    )


@given(shape=shapes, position=positions, chosen=rank_costs, previous=rank_costs, kind=kinds, before=kinds)
def test_what_is_cached_in_the_same_basis_never_costs(shape, position, chosen, previous, kind, before):
    """Keeping is never dearer than projecting anew; from another kind of basis only values carry over."""
    same, other = (kind_flops(shape, position, chosen, kind, previous, before, flag, 9) for flag in (True, False))
    assert same <= other
    if kind != "refreshed" and (kind == "calibrated") != (before == "calibrated"):
        assert same == kind_flops(shape, position, chosen, "kept", previous, "refreshed", False, 9)


def test_a_kept_basis_is_counted_as_it_runs():
    """By PyTorch's counter: T rows where it is cached; 16 and 8 columns more for old rows where it grows; all n keys
    where the calibrated one or nothing was cached, but value columns stay."""
    chosen, low = RankCost(24, 12), RankCost(8, 4)
    new = counted(lambda: run_segment(5, 24, 12, SHAPE.segment, SHAPE.segment))

    def grown():
        products(SHAPE.keys(4), 16, SHAPE.dim)
        products(SHAPE.keys(4), 8, SHAPE.value_dim)

    anew = counted(lambda: run_segment(5, 24, 12, SHAPE.keys(5), SHAPE.segment))
    after = {
        (chosen, "refreshed", True): new,
        (chosen, "kept", True): new,
        (low, "kept", True): new + counted(grown),
        (chosen, "calibrated", True): anew,
        (chosen, "refreshed", False): anew,
        (FULL, "kept", True): counted(lambda: run_segment(5, 24, 12, SHAPE.keys(5), SHAPE.keys(5))),
    }
    for (previous, kind, same), expected in after.items():
        assert kind_flops(SHAPE, 5, chosen, "kept", previous, kind, same, 48) == expected
    back = kind_flops(SHAPE, 5, chosen, "calibrated", chosen, "kept", True, 48)
    assert back == anew


@given(shape=shapes, position=positions, previous=rank_costs, kind=kinds, before=kinds, missed=st.integers(1, 9))
def test_full_rank_is_full_attention_in_any_kind(shape, position, previous, kind, before, missed):
    """No update, no projection, whatever was missed."""
    full = RankCost(16, shape.value_dim)
    assert kind_flops(shape, position, full, kind, previous, before, True, 9, missed) == full_flops(shape, position)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"kind": "stale"}, "^kind='stale': must be one of 'calibrated', 'kept', 'refreshed'$"),
        ({"previous_kind": None}, "^previous_kind=None: must be one of 'calibrated', 'kept', 'refreshed'$"),
        ({"missed": 0}, "^missed=0: a refresh takes in this segment's own keys at least; use 1 or more$"),
    ],
)
def test_an_unknown_kind_or_no_segment_at_all_is_refused(wrong, message):
    """One line."""
    usual = {"kind": "kept", "previous_kind": "kept", "same_basis": True, "width": 48, "missed": 1}
    with pytest.raises(ValueError, match=message):
        kind_flops(SHAPE, 5, RankCost(8, 8), previous=FULL, **(usual | wrong))


def test_an_unknown_basis_is_refused():
    """One line; a misspelt basis was once priced as the calibrated one."""
    for price in (segment_flops, mixed_flops):
        costs = RankCost(8, 8) if price is segment_flops else [FULL] * 6
        with pytest.raises(ValueError, match=r"^basis='kept': must be one of 'refreshed', 'calibrated'$"):
            price(SHAPE, 5, costs, costs, "kept", 48)
