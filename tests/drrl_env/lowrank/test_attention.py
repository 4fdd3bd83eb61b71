"""Low-rank causal attention against PyTorch's own, and how close two outputs are."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from drrl_env.lowrank.attention import (
    approximate_attention,
    causal_mask,
    cosine,
    full_attention,
    low_rank_attention,
    output_moments,
    relative_error,
)
from drrl_env.lowrank.bases import cold, product_svd, value_basis, warm
from drrl_env.lowrank.grams import Grams, gram, group_queries


@pytest.fixture(params=[(4, 4), (4, 2), (6, 1)], ids=["plain", "grouped", "one_key_head"])
def sequence(request, make_rows):
    """(queries, keys, values) of a whole sequence of 40 tokens, in float32, scores of order one."""
    heads, kv_heads = request.param
    rows = make_rows((heads, 40, 16), 0), make_rows((kv_heads, 40, 16), 1), make_rows((kv_heads, 40, 16), 2)
    return rows[0] * 4, rows[1] * 4, rows[2]


def last_segment_by_sdpa(queries, keys, values, segment):
    """PyTorch's causal attention over the whole sequence with repeated key heads, its last rows, grouped."""
    groups = queries.shape[0] // keys.shape[0]
    repeated = [rows.repeat_interleave(groups, dim=0)[None] for rows in (keys, values)]
    out = scaled_dot_product_attention(queries[None], *repeated, is_causal=True)[0]
    return group_queries(out[:, -segment:], keys.shape[0])


def segment_of(sequence, segment):
    """Grouped queries of the last segment, all keys, all values."""
    queries, keys, values = sequence
    return group_queries(queries[:, -segment:], keys.shape[0]), keys, values


@pytest.mark.parametrize("segment", [1, 8, 40])
def test_full_attention_is_that_of_pytorch(sequence, segment):
    """1e-5 of is_causal SDPA over repeated key heads; is_causal on a lone segment masks the wrong keys."""
    found = full_attention(*segment_of(sequence, segment), segment)
    assert torch.allclose(found, last_segment_by_sdpa(*sequence, segment), atol=1e-5)


@pytest.mark.parametrize("path", ["triangular", "cold", "warm"])
def test_rank_dim_reproduces_full_attention(sequence, path):
    """r = d through the low-rank path is SDPA to 1e-5, whatever gave the basis; r = d/4 is off by over 1e-3."""
    queries, keys, values = segment_of(sequence, 8)
    grams = Grams(gram(queries), gram(keys))
    start = torch.eye(16).expand(len(keys), 16, 16)
    basis = {
        "triangular": lambda: product_svd(queries, keys, 16),
        "cold": lambda: cold(grams, 16),
        "warm": lambda: warm(grams, start),
    }[path]()
    columns, expected = value_basis(gram(values)).float(), last_segment_by_sdpa(*sequence, 8)
    found = approximate_attention(queries, keys, values, basis, columns, 8)
    quarter = approximate_attention(queries, keys, values, basis.truncate(4), columns, 8)
    assert torch.allclose(found, expected, atol=1e-5)
    assert not torch.allclose(quarter, expected, atol=1e-3)


@pytest.mark.parametrize(("rank", "value_rank"), [(3, 9), (9, 3), (5, 5)])
def test_low_rank_attention_is_the_formula(sequence, rank, value_rank):
    """softmax((q P_q)(k P_k)ᵀ/√d + mask)(v P_v)P_vᵀ in float64 to 1e-5: padding for the kernel changes nothing."""
    queries, keys, values = segment_of(sequence, 8)
    basis = cold(Grams(gram(queries), gram(keys)), rank)
    columns = value_basis(gram(values))[..., :value_rank]
    scores = (queries.double() @ basis.query) @ (keys.double() @ basis.key).mT / math.sqrt(16)
    weights = torch.softmax(scores + causal_mask(8, 40, queries.shape[1] // 8), dim=-1)
    expected = (weights @ (values.double() @ columns) @ columns.mT).float()
    found = approximate_attention(queries, keys, values, basis, columns, 8)
    assert torch.allclose(found, expected, atol=1e-5)


def test_value_columns_beyond_the_value_rank_are_not_used(sequence):
    """Real columns instead of zeros as filling give the same bits: the kernel's columns do not mix."""
    queries, keys, values = segment_of(sequence, 8)
    back = value_basis(gram(values)).float()
    reduced = queries[..., :6], keys[..., :6]
    filled = low_rank_attention(*reduced, (values @ back)[..., :6], back[..., :2], 8, 16)
    padded = torch.nn.functional.pad((values @ back)[..., :2], (0, 4))
    assert torch.equal(filled, low_rank_attention(*reduced, padded, back[..., :2], 8, 16))


def test_mask_shows_each_token_itself_and_what_came_before():
    """Row i of a segment of 3 after 2 keys sees i + 3 of 5 keys; each head of a group has the same rows."""
    mask = causal_mask(3, 5, 2)
    assert (mask == 0).sum(-1).tolist() == [3, 4, 5, 3, 4, 5]
    assert set(mask.unique().tolist()) == {0.0, -math.inf}


def test_moments_give_cosine_and_error_of_the_concatenated_heads():
    """1e-6 of the dense formulas, per head and for any set of heads, because moments add."""
    random = torch.Generator().manual_seed(0)
    exact = torch.randn(2, 16, 6, generator=random)
    near = exact + 0.3 * torch.randn(2, 16, 6, generator=random)
    moments = output_moments(exact, near, segment=8)
    assert moments.shape == (4, 4)
    flat = exact.flatten().double(), near.flatten().double()
    assert cosine(moments) == pytest.approx(float(torch.cosine_similarity(*flat, dim=0)), abs=1e-6)
    assert relative_error(moments) == pytest.approx(float((flat[0] - flat[1]).norm() / flat[0].norm()), abs=1e-6)
    head = exact[1, 8:].flatten().double(), near[1, 8:].flatten().double()
    assert cosine(moments[3:]) == pytest.approx(float(torch.cosine_similarity(*head, dim=0)), abs=1e-6)


def test_cosine_hides_the_shrinkage_that_the_error_shows():
    """Half the output has cosine 1 and relative error 1/2, which is why both are reported."""
    exact = torch.randn(1, 4, 4, generator=torch.Generator().manual_seed(0))
    moments = output_moments(exact, exact / 2, segment=4)
    assert cosine(moments) == pytest.approx(1, abs=1e-6)
    assert relative_error(moments) == pytest.approx(0.5, abs=1e-6)


def test_outputs_of_nothing_compare_as_numbers():
    """Zero against zero is perfect, zero against something is not; a division would give NaN."""
    zero, one = torch.zeros(1, 2, 2), torch.ones(1, 2, 2)
    assert (cosine(output_moments(zero, zero, 2)), relative_error(output_moments(zero, zero, 2))) == (1.0, 0.0)
    assert (cosine(output_moments(zero, one, 2)), relative_error(output_moments(zero, one, 2))) == (0.0, 1.0)
    assert (cosine(output_moments(one, zero, 2)), relative_error(output_moments(one, zero, 2))) == (0.0, 1.0)
