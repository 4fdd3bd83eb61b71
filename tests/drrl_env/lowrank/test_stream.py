"""The streaming engine against one-shot computation, its independence of what was asked, and its causality."""

from __future__ import annotations

import math

import pytest
import torch

from drrl_env.lowrank.attention import approximate_attention, causal_mask, full_attention
from drrl_env.lowrank.bases import ScoreBasis, warm
from drrl_env.lowrank.flops import AttentionShape, RankCost
from drrl_env.lowrank.grams import Grams, gram, group_queries
from drrl_env.lowrank.stream import LayerStream, StreamSettings, run_stream


def one_shot_basis(layer, queries, keys):
    """The basis a segment should have, from all its keys at once."""
    width, bases = layer.settings.width, layer.bases
    if layer.settings.basis == "calibrated":
        nothing = torch.zeros(len(keys), width, dtype=torch.float64)
        core = None if bases.core is None else bases.core[..., :width, :width]
        return ScoreBasis(bases.query[..., :width].double(), bases.key[..., :width].double(), nothing, core)
    return warm(Grams(gram(queries), gram(keys)), bases.key[..., :width])


def rows_of(layer, position):
    """Grouped queries of a segment, all keys and all values up to its end."""
    size, (queries, keys, values) = layer.settings.shape.segment, layer.tensors
    end = (position + 1) * size
    return group_queries(queries[:, end - size : end], len(keys)), keys[:, :end], values[:, :end]


def test_every_segment_and_rank_equals_the_one_shot_computation(toy_layer):
    """1e-5 of `approximate_attention` on all keys at once; value ranks below and above the rank among the choices."""
    for position, segment in enumerate(toy_layer.run()):
        queries, keys, values = rows_of(toy_layer, position)
        basis = one_shot_basis(toy_layer, queries, keys)
        for choice, cost in enumerate(toy_layer.settings.costs[:-1]):
            columns = toy_layer.bases.value[..., : cost.value_rank]
            expected = approximate_attention(queries, keys, values, basis.truncate(cost.rank), columns, 8)
            assert torch.allclose(segment.output(choice), expected, atol=1e-5)


def test_every_segment_and_rank_equals_the_dense_formula(toy_layer):
    """1e-5 of softmax((q P_q)(k P_k)ᵀ/√d + mask) v P_v P_vᵀ in float64, from the block itself."""
    for position, segment in enumerate(toy_layer.run()):
        queries, keys, values = (rows.double() for rows in rows_of(toy_layer, position))
        for choice, cost in enumerate(toy_layer.settings.costs[:-1]):
            basis, columns = segment.basis.truncate(cost.rank), toy_layer.bases.value[..., : cost.value_rank].double()
            scores = (queries @ basis.query) @ (keys @ basis.key).mT / math.sqrt(16)
            weights = torch.softmax(scores + causal_mask(8, keys.shape[-2], 2), dim=-1)
            expected = weights @ values @ columns @ columns.mT
            assert torch.allclose(segment.output(choice).double(), expected, atol=1e-5)


def test_rank_dim_is_plain_full_attention(toy_layer):
    """The same bits as `full_attention`, with nothing projected."""
    for position, segment in enumerate(toy_layer.run()):
        assert torch.equal(segment.output(3), full_attention(*rows_of(toy_layer, position), 8))


def test_results_do_not_depend_on_what_was_asked_before(toy_layer):
    """Bit for bit: ranks asked upwards, downwards, late or not at all. A basis grown from the chosen rank would."""
    upwards = [[segment.output(c) for c in range(4)] for segment in toy_layer.run()]
    downwards = [[segment.output(c) for c in reversed(range(4))][::-1] for segment in toy_layer.run()]
    stream, lonely = toy_layer.fresh(), []
    for position in range(toy_layer.segments):
        rows = slice(8 * position, 8 * (position + 1))
        segment = stream.advance(*(tensor[:, rows] for tensor in toy_layer.tensors))
        lonely.append(segment.output(position % 4))
    for position in range(toy_layer.segments):
        assert all(map(torch.equal, upwards[position], downwards[position]))
        assert torch.equal(lonely[position], upwards[position][position % 4])


def test_later_tokens_do_not_change_earlier_segments(toy_layer):
    """Bit for bit, even when an early segment is answered after the later ones have come."""
    ahead = toy_layer.run()
    changed = tuple(torch.cat([tensor[:, :24], 50 - tensor[:, 24:]], dim=1) for tensor in toy_layer.tensors)
    other = run_stream(toy_layer.fresh(), changed, toy_layer.segments)
    for position in range(3):
        pairs = [(ahead[position].output(c), other[position].output(c)) for c in range(4)]
        assert all(torch.equal(one, two) for one, two in pairs)
    assert not torch.equal(ahead[3].output(1), other[3].output(1))


def test_a_refreshed_basis_beats_a_calibrated_one_at_equal_rank(make_toy_layer):
    """Smaller ‖S − S_r‖ in every later segment and rank, on text unlike the calibration text."""
    refreshed, calibrated = (make_toy_layer(kind).run() for kind in ("refreshed", "calibrated"))
    for fresh, fixed in zip(refreshed[1:], calibrated[1:], strict=True):
        assert bool((fresh.changes[:, :3, 3] < fixed.changes[:, :3, 3]).all())


def test_changes_are_those_of_the_scores_the_segment_runs(toy_layer):
    """‖ΔS‖² between candidates equals the dense blocks of the segment's own basis, to 1e-9 of ‖S‖²."""
    segment = toy_layer.run()[-1]
    queries, keys, _ = (rows.double() for rows in rows_of(toy_layer, toy_layer.segments - 1))
    cuts = [segment.basis.truncate(cost.rank) for cost in toy_layer.settings.costs[:-1]]
    dense = [(queries @ cut.query) @ (keys @ cut.key).mT / 4 for cut in cuts] + [queries @ keys.mT / 4]
    blocks = torch.stack(dense, dim=1)
    expected = (blocks[:, :, None] - blocks[:, None]).square().sum((-2, -1))
    assert torch.allclose(segment.changes, expected, atol=1e-9 * float(expected.max()))


def test_moments_compare_with_full_attention(toy_layer):
    """Per query head, zero error at full rank and falling error as the rank grows."""
    segment = toy_layer.run()[-1]
    errors = [float(segment.moments(choice)[:, 3].sum()) for choice in range(4)]
    assert segment.moments(0).shape == (4, 4)
    assert errors[3] == 0
    assert errors[0] > errors[2] > 0


@pytest.mark.parametrize("costs", [((3, 16),), ((12, 1),), ((3, 16), (12, 1), (16, 16))])
def test_any_pair_of_rank_and_value_rank_is_served(make_toy_layer, costs):
    """Full values beside a small rank, one value column beside a large one, alone or together: the formula to 1e-5."""
    layer = make_toy_layer("refreshed", costs=[RankCost(*cost) for cost in costs])
    segment, last = layer.run()[-1], layer.segments - 1
    for choice, cost in enumerate(layer.settings.costs):
        queries, keys, values = rows_of(layer, last)
        columns = layer.bases.value[..., : cost.value_rank]
        expected = full_attention(queries, keys, values, 8)
        if cost.rank < 16:
            expected = approximate_attention(queries, keys, values, segment.basis.truncate(cost.rank), columns, 8)
        assert torch.allclose(segment.output(choice), expected, atol=1e-5)


def test_width_is_configuration_and_never_the_choice():
    """Largest reduced rank and 8 to spare, at most dim; value columns enough for every value rank and the kernel."""
    shape = AttentionShape(4, 1, 64, 64, 128)
    costs = (RankCost(8, 4), RankCost(40, 20), RankCost(64, 64))
    settings = StreamSettings(shape, costs, "refreshed")
    assert (settings.width, settings.value_width) == (48, 40)
    assert StreamSettings(shape, (RankCost(60, 64),), "refreshed").width == 64


def test_a_segment_of_another_size_is_refused(toy_layer):
    """One line; stored as it is, the next segment would leave a hole in the keys."""
    short = [tensor[:, :5] for tensor in toy_layer.tensors]
    with pytest.raises(ValueError, match=r"^keys: 5 tokens; this stream takes segments of 8$"):
        toy_layer.fresh().advance(*short)


def test_a_full_stream_is_refused(toy_layer):
    """One line with the capacity; PyTorch's own message speaks of expanded sizes."""
    stream = LayerStream(toy_layer.settings, toy_layer.bases, capacity=16)
    with pytest.raises(ValueError, match=r"^segment 2: capacity=16 is used up; give a larger one$"):
        run_stream(stream, toy_layer.tensors, 3)
