"""The FLOPs account against PyTorch's own counter and against numbers worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from drrl_env.lowrank.flops import (
    AttentionShape,
    RankCost,
    cache_bytes,
    decomposition_flops,
    decomposition_method,
    energy_flops,
    full_flops,
    segment_flops,
)
from drrl_env.lowrank.grams import empty_key_gram, update_grams

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


def test_full_attention_is_counted_as_it_runs():
    """2gTn(d + d_v), by PyTorch's counter, and nothing else: no update, no projection."""
    rows = SHAPE.groups * SHAPE.segment

    def run():
        products(rows, SHAPE.keys(5), SHAPE.dim)
        products(rows, SHAPE.value_dim, SHAPE.keys(5))

    assert counted(run) == full_flops(SHAPE, 5)
    for basis in ("refreshed", "calibrated"):
        assert segment_flops(SHAPE, 5, FULL, RankCost(8, 8), basis, 48) == full_flops(SHAPE, 5)


@pytest.mark.parametrize(("rank", "value_rank"), [(8, 8), (24, 12), (40, 32)])
def test_a_refreshed_segment_is_counted_as_it_runs(rank, value_rank):
    """Every cached key is projected anew, and values of new rows only; leaving out the n keys hides half the cost."""
    chosen = RankCost(rank, value_rank)
    run = counted(lambda: run_segment(5, rank, value_rank, SHAPE.keys(5), SHAPE.segment))
    update = decomposition_flops(SHAPE, 48)
    assert segment_flops(SHAPE, 5, chosen, chosen, "refreshed", 48) == run + update


@pytest.mark.parametrize("chosen", [RankCost(8, 8), RankCost(24, 12)])
def test_a_calibrated_segment_projects_new_rows_and_nothing_else(chosen):
    """With the same or more columns cached, T rows of k and of v."""
    run = counted(lambda: run_segment(5, chosen.rank, chosen.value_rank, SHAPE.segment, SHAPE.segment))
    assert segment_flops(SHAPE, 5, chosen, RankCost(24, 12), "calibrated", 48) == run


def test_columns_that_are_not_cached_are_projected_for_every_old_row():
    """From 8 to 24 columns of k and 4 to 12 of v, 16 and 8 more for (n − T) rows."""
    kept = segment_flops(SHAPE, 5, RankCost(24, 12), RankCost(24, 12), "calibrated", 48)
    grown = segment_flops(SHAPE, 5, RankCost(24, 12), RankCost(8, 4), "calibrated", 48)

    def run():
        products(SHAPE.keys(4), 16, SHAPE.dim)
        products(SHAPE.keys(4), 8, SHAPE.value_dim)

    assert grown - kept == counted(run)


@pytest.mark.parametrize("previous", [FULL, RankCost(24, 32)])
def test_nothing_projected_leaves_nothing_cached(previous):
    """After full attention no column is there; after full values no value column: old rows are paid for."""
    chosen, none = RankCost(24, 12), RankCost(previous.rank % 64, 0)
    assert segment_flops(SHAPE, 5, chosen, previous, "calibrated", 48) == segment_flops(
        SHAPE, 5, chosen, none, "calibrated", 48
    )


def test_gram_updates_are_counted_as_they_run():
    """2Td² + 2gTd² per key head, by PyTorch's counter over `update_grams`, whatever came before."""
    queries, keys = torch.zeros(2, 48, 64), torch.zeros(2, 16, 64)
    run = counted(lambda: update_grams(empty_key_gram(2, 64), queries, keys))
    wide = replace(SHAPE, segment=32)
    assert decomposition_flops(wide, 48) - decomposition_flops(SHAPE, 48) == run


def test_the_table_by_hand():
    """One key head, g = 2, d = d_v = 4, T = 3, s = 1 (n = 6, n̄ = 5), r = 2, r_v = 1, w = 2."""
    shape = AttentionShape(kv_heads=1, groups=2, dim=4, value_dim=4, segment=3)
    assert full_flops(shape, 1) == 2 * 2 * 3 * 5 * 8
    chosen, width = RankCost(2, 1), 2
    attention = 2 * 2 * 3 * 5 * 3 + 2 * 2 * 3 * 4 * 2 + 2 * 3 * 4 * 1 + 2 * 2 * 3 * 1 * 4
    update = 2 * 3 * 16 + 2 * 2 * 3 * 16 + 13 * 16 * 2 + 8 * 4 * 4 + 9 * 8 + 64 / 3
    refreshed, calibrated = (segment_flops(shape, 1, chosen, chosen, b, width) for b in ("refreshed", "calibrated"))
    assert refreshed == pytest.approx(attention + 2 * 6 * 4 * 2 + update)
    assert calibrated == attention + 2 * 3 * 4 * 2
    assert decomposition_flops(shape, 4) == 2 * 3 * 16 * 3 + 13 * 64 + 16 * 4
    assert energy_flops(shape, width) == 2 * 16 + 2


def test_a_query_sees_the_causal_average_of_keys():
    """n̄ = sT + (T + 1)/2: counting n would charge the first segment nearly double."""
    shape = AttentionShape(1, 1, 64, 64, 128)
    seen = [sum(range(128 * s + 1, 128 * (s + 1) + 1)) / 128 for s in range(3)]
    assert [shape.visible(s) for s in range(3)] == seen


@pytest.mark.parametrize(("rank", "tokens"), [(32, 64), (40, 107), (48, 192)])
def test_re_projecting_pays_only_with_enough_tokens(rank, tokens):
    """On the key side a refreshed rank pays only if T > dr/(g(d − r)): 64, 107 and 192 tokens at g = 1, d = 64."""
    pays = [pays_on_the_key_side(rank, tokens + off, groups=1) for off in (-1, 1)]
    assert pays == [False, True]


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_queries_of_a_group_share_the_re_projection(groups):
    """At rank 32, 64/g tokens."""
    assert [pays_on_the_key_side(32, 64 // groups + off, groups) for off in (-1, 1)] == [False, True]


def pays_on_the_key_side(rank, tokens, groups):
    """Whether scores at `rank` with full values cost less than full attention, so far out that the update is lost."""
    shape = Unmasked(kv_heads=1, groups=groups, dim=64, value_dim=64, segment=tokens)
    chosen, far = RankCost(rank, 64), 10**6
    return segment_flops(shape, far, chosen, chosen, "refreshed", 48) < full_flops(shape, far)


def test_cost_grows_with_every_column():
    """More rank or value rank never costs less, in either basis and at any cache."""
    for basis in ("refreshed", "calibrated"):
        for previous in (FULL, RankCost(8, 8), RankCost(40, 16)):
            ranks = [segment_flops(SHAPE, 5, RankCost(r, 8), previous, basis, 48) for r in range(1, 48)]
            values = [segment_flops(SHAPE, 5, RankCost(8, r), previous, basis, 48) for r in range(1, 32)]
            assert ranks == sorted(ranks)
            assert values == sorted(values)


def test_method_is_warm_up_to_a_share_of_the_dimension():
    """Whichever has fewer FLOPs: warm up to 39 of 64, cold at the default 48; the account charges that method."""
    assert [decomposition_method(64, width) for width in (24, 39, 40, 48)] == ["warm", "warm", "cold", "cold"]


def test_a_refreshed_cache_keeps_the_raw_keys_as_well():
    """Bytes: full d + d_v columns, calibrated r + r_v, refreshed d more."""
    shape = AttentionShape(kv_heads=2, groups=3, dim=64, value_dim=32, segment=16)
    per_column = 2 * 96 * 2
    chosen = RankCost(24, 12)
    assert cache_bytes(shape, 5, RankCost(64, 32), "calibrated") == per_column * 96
    assert cache_bytes(shape, 5, chosen, "calibrated") == per_column * 36
    assert cache_bytes(shape, 5, chosen, "refreshed") == per_column * 100
