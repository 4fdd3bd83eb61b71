"""A segment in other bases and with a rank per head, against the dense formulas and on real layers."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from drrl_env.lowrank.attention import approximate_attention, causal_mask
from drrl_env.lowrank.bases import BasisError, ScoreBasis
from drrl_env.lowrank.changes import ritz_products
from drrl_env.lowrank.flops import AttentionShape, RankCost
from drrl_env.lowrank.stream import LayerStream, StreamSettings, run_stream

RANKS = (3, 5, 8, 16)


def own_scores(segment, basis=None):
    """Scaled scores per query head at every candidate, (heads, ranks, segment, keys), float64; S itself at the last."""
    shape, found = segment.settings.shape, basis or segment.basis
    queries, keys = segment.queries.double(), segment.keys.double()
    cuts = [found.truncate(rank) for rank in segment.settings.ranks[:-1]]
    blocks = [(queries @ cut.query) @ (keys @ cut.key).mT for cut in cuts] + [queries @ keys.mT]
    return torch.stack([b.reshape(shape.heads, shape.segment, -1) for b in blocks], dim=1) / math.sqrt(shape.dim)


def distances(blocks):
    """‖S_a − S_b‖_F² of every pair of candidates, (heads, ranks, ranks)."""
    return (blocks[:, :, None] - blocks[:, None]).square().sum((-2, -1))


def dense_output(segment, basis, cost):
    """softmax((q P_q)(k P_k)ᵀ/√d + mask) v P_v P_vᵀ in float64."""
    cut, columns = basis.truncate(cost.rank), segment.bases.value[..., : cost.value_rank].double()
    queries, keys, values = (rows.double() for rows in (segment.queries, segment.keys, segment.values))
    shape = segment.settings.shape
    scores = (queries @ cut.query) @ (keys @ cut.key).mT / math.sqrt(shape.dim)
    weights = torch.softmax(scores + causal_mask(shape.segment, keys.shape[-2], shape.groups), dim=-1)
    return weights @ values @ columns @ columns.mT


def ungrouped(layer):
    """The layer with a key head for each of its first two query heads."""
    queries, keys, values = layer.tensors
    shape = replace(layer.settings.shape, groups=1)
    return replace(layer, settings=replace(layer.settings, shape=shape), tensors=(queries[:2], keys, values))


# A rank per head


def test_changes_of_a_group_add_up_to_those_of_its_key_head(toy_layer):
    """1e-10 of ‖S‖² in a calibrated basis, by one formula; 1e-9 in a refreshed one, whose groups go by energies."""
    for segment in toy_layer.run():
        grouped = segment.head_changes.reshape(2, 2, 4, 4).sum(1)
        bar = {"calibrated": 1e-10, "refreshed": 1e-9}[toy_layer.settings.basis]
        assert torch.allclose(grouped, segment.changes, rtol=0, atol=bar * float(segment.changes.max()))


def test_head_changes_are_those_of_each_heads_own_scores(toy_layer):
    """1e-9 of the dense blocks of every query head; halving the group's instead is off by over a tenth somewhere."""
    segment = toy_layer.run()[-1]
    expected = distances(own_scores(segment))
    bar = 1e-9 * float(expected.max())
    assert torch.allclose(segment.head_changes, expected, rtol=0, atol=bar)
    halves = segment.changes.repeat_interleave(2, 0) / 2
    assert float(((halves - expected).abs() / expected.clamp_min(bar)).max()) > 0.1


def test_without_groups_a_heads_changes_are_its_key_heads(toy_layer):
    """The same bits, whatever the basis."""
    for segment in ungrouped(toy_layer).run():
        assert torch.equal(segment.head_changes, segment.changes)


@settings(max_examples=40)
@given(choices=st.lists(st.integers(0, 3), min_size=4, max_size=4), kind=st.sampled_from(("refreshed", "calibrated")))
def test_every_head_runs_as_if_the_whole_layer_ran_at_its_rank(make_toy_layer, choices, kind):
    """Outputs and moments per head have the bits of the uniform ones; a full head those of full attention."""
    segment = make_toy_layer(kind, tokens=24).run()[-1]
    found, moments = segment.head_output(choices).reshape(4, 8, 16), segment.head_moments(choices)
    for head, choice in enumerate(choices):
        assert torch.equal(found[head], segment.output(choice).reshape(4, 8, 16)[head])
        assert torch.equal(moments[head], segment.moments(choice)[head])
    full = [head for head, choice in enumerate(choices) if choice == 3]
    assert torch.equal(found[full], segment.full_output.reshape(4, 8, 16)[full])


def test_later_tokens_do_not_change_what_heads_of_different_ranks_saw(toy_layer):
    """Bit for bit over segments, and within a segment: its second half does not reach its first in a fixed basis."""
    choices = [0, 2, 3, 1]
    changed = tuple(torch.cat([rows[:, :20], 50 - rows[:, 20:]], dim=1) for rows in toy_layer.tensors)
    ahead, other = toy_layer.run(), run_stream(toy_layer.fresh(), changed, toy_layer.segments)
    for position in range(2):
        assert torch.equal(ahead[position].head_output(choices), other[position].head_output(choices))
    one, two = (run[2].with_basis(None).head_output(choices).reshape(4, 8, 16) for run in (ahead, other))
    assert torch.equal(one[:, :4], two[:, :4])
    assert not torch.allclose(one[:, 4:], two[:, 4:])


@pytest.mark.parametrize("choices", [[0, 1, 2], [0, 1, 2, 4], [0, 1, 2, -1]])
def test_choices_that_are_not_one_candidate_a_head_are_refused(toy_layer, choices):
    """One line; -1 would be served as the last candidate."""
    with pytest.raises(ValueError, match=r"^choices=\[0, 1, 2.*\]: must be 4 numbers, one a query head, from 0 to 3$"):
        toy_layer.run()[0].head_output(choices)


# Another basis


def kept_segments(layer):
    """Every segment but the first, answered in the basis of the one before."""
    run = layer.run()
    return [(now.with_basis(before.basis), before.basis) for before, now in pairwise(run)]


def test_a_kept_basis_is_the_one_it_was(make_toy_layer):
    """1e-5 of the dense float64 formula and of `approximate_attention` in the last segment's basis, at every rank."""
    for segment, basis in kept_segments(make_toy_layer("refreshed")):
        for choice, cost in enumerate(segment.settings.costs[:-1]):
            columns = segment.bases.value[..., : cost.value_rank]
            parts = segment.queries, segment.keys, segment.values, basis.truncate(cost.rank), columns, 8
            found = segment.output(choice)
            assert torch.allclose(found, approximate_attention(*parts), atol=1e-5)
            assert torch.allclose(found.double(), dense_output(segment, basis, cost), atol=1e-5)
        assert torch.equal(segment.output(3), segment.full_output)


def test_a_kept_basis_is_measured_in_the_scores_it_meets(make_toy_layer):
    """1e-9 of the dense blocks, head by head and key head by key head; its old energies are off by over a tenth."""
    for segment, basis in kept_segments(make_toy_layer("refreshed")):
        expected = distances(own_scores(segment))
        grouped = distances(torch.cat(own_scores(segment).reshape(2, 2, 4, 8, -1).unbind(1), dim=-2))
        bar = 1e-9 * float(grouped.max())
        assert torch.allclose(segment.head_changes, expected, rtol=0, atol=bar)
        assert torch.allclose(segment.changes, grouped, rtol=0, atol=bar)
        assert bool(segment.basis.energies.isnan().all())
        believed = ritz_products(basis, segment.grams).residuals[:, RANKS[:3]]
        assert float((believed / segment.lost[:, :3] - 1).abs().max()) > 0.1


def test_the_calibrated_basis_of_a_refreshed_stream_is_that_of_a_calibrated_stream(make_toy_layer):
    """Changes bit for bit, outputs to 1e-6 (keys are projected at once instead of segment by segment)."""
    calibrated = make_toy_layer("calibrated").run()
    for one, two in zip(make_toy_layer("refreshed").run(), calibrated, strict=True):
        variant = one.with_basis(None)
        assert torch.equal(variant.changes, two.changes)
        assert all(torch.allclose(variant.output(c), two.output(c), atol=1e-6) for c in range(4))


def test_a_calibrated_segment_answers_in_a_refreshed_basis_too(make_toy_layer):
    """1e-5 of the refreshed stream's outputs: keys cached in the calibrated basis are not taken for its own."""
    fresh = make_toy_layer("refreshed").run()
    for one, two in zip(make_toy_layer("calibrated").run(), fresh, strict=True):
        variant = one.with_basis(two.basis)
        assert all(torch.allclose(variant.output(c), two.output(c), atol=1e-5) for c in range(4))


def test_full_attention_is_worked_out_once_for_all_bases(make_toy_layer):
    """The very tensor, where it was there; a variant made before works out the same bits."""
    segment = make_toy_layer("refreshed").run()[-1]
    early, full = segment.with_basis(None), segment.full_output
    assert segment.with_basis(None).full_output is full
    assert segment.with_basis(segment.basis).full_output is full
    assert torch.equal(early.full_output, full)


@pytest.mark.parametrize("value_ranks", [(1, 2, 3), (12, 14, 16), (16, 16, 16)])
def test_another_basis_may_bring_other_value_ranks(make_toy_layer, value_ranks):
    """Fewer or more value columns than the stream keeps: the dense formula to 1e-5, not zeros in their place."""
    segment = make_toy_layer("refreshed", costs=[RankCost(3, 2), RankCost(5, 4), RankCost(8, 8), RankCost(16, 16)])
    costs = tuple(map(RankCost, RANKS, (*value_ranks, 16)))
    last = segment.run()[-1]
    variant = last.with_basis(None, replace(last.settings, costs=costs))
    for choice, cost in enumerate(costs[:-1]):
        expected = dense_output(variant, variant.basis, cost)
        assert torch.allclose(variant.output(choice).double(), expected, atol=1e-5)


def test_a_basis_too_narrow_for_the_ranks_is_refused(make_toy_layer):
    """One line; a slice past its last column would run at a smaller rank and say nothing."""
    segment = make_toy_layer("refreshed").run()[-1]
    with pytest.raises(BasisError, match=r"^basis: 5 columns; rank 8 is a candidate, give one at least that wide$"):
        segment.with_basis(segment.basis.truncate(5))


def test_settings_of_another_shape_are_refused(make_toy_layer):
    """One line."""
    segment = make_toy_layer("refreshed").run()[-1]
    other = replace(segment.settings, shape=AttentionShape(4, 1, 16, 16, 8))
    with pytest.raises(ValueError, match=r"^settings.shape=AttentionShape.*give settings of that shape$"):
        segment.with_basis(None, other)


def real_streams(layers, span):
    """Every layer of a span in the bundled model, its first eight segments at ranks 24 and full."""
    config = StreamSettings(layers.shape, (RankCost(24, 64), RankCost(64, 64)), "refreshed")
    for bases, tensors in zip(layers.bases, layers.spans[span], strict=True):
        yield run_stream(LayerStream(config, bases, 1024), tensors, 8)


def squared_error(segment):
    """‖ΔO‖² at rank 24, over all heads."""
    return float(segment.moments(0)[:, 3].sum())


def test_on_real_layers_a_stale_basis_is_worse_than_a_fresh_one(bundled_layers):
    """One segment stale, rank 24, every layer and kind of text: twice the output error, thrice ‖S − S_r‖².

    The scores it misses are more than those of the calibrated basis, too: keeping is not simply the cheaper refresh.
    """
    for span in range(len(bundled_layers.spans)):
        for run in real_streams(bundled_layers, span):
            stale = [now.with_basis(before.basis) for before, now in pairwise(run)]
            blunt = [now.with_basis(None) for now in run[1:]]
            fresh_error, stale_error = (sum(map(squared_error, found)) for found in (run[1:], stale))
            fresh, old, fixed = (sum(float(s.lost[:, 0].sum()) for s in found) for found in (run[1:], stale, blunt))
            assert stale_error > 4 * fresh_error
            assert old > 2.9 * fresh
            assert old > fixed


def test_a_basis_grows_staler_with_age(bundled_layers):
    """Kept from the second segment on, the share of ‖S‖² it misses rises from age 0 to 1 to 3 in every layer."""
    for run in real_streams(bundled_layers, 0):
        aged = [run[age].with_basis(run[1].basis) for age in (1, 2, 4)]
        share = [float((s.lost[:, 0] / s.products.total).sum()) for s in aged]
        assert share == sorted(share)
        assert share[2] > 1.4 * share[1] > 4 * share[0]


def test_with_basis_takes_no_energies_at_their_word(make_toy_layer):
    """A basis that claims energies of another segment is measured anew; equal to the segment's own where it is its."""
    segment = make_toy_layer("refreshed").run()[-1]
    boast = ScoreBasis(segment.basis.query, segment.basis.key, 100 * segment.basis.energies)
    found = segment.with_basis(boast)
    assert torch.allclose(found.changes, segment.changes, rtol=0, atol=1e-9 * float(segment.changes.max()))
