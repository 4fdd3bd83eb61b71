"""Gram matrices against the rows they stand for."""

from __future__ import annotations

import torch

from drrl_env.lowrank.grams import Grams, empty_key_gram, gram, group_queries, update_grams


def test_key_gram_grown_by_segments_is_that_of_all_keys(make_rows):
    """1e-12 of the one-shot Gram after 6 segments; a Gram kept in float32 is off by 1e-7."""
    queries, keys = make_rows((2, 8, 16), 0), make_rows((2, 48, 16), 1)
    grown = empty_key_gram(2, 16)
    for segment in keys.split(8, dim=-2):
        grown = update_grams(grown, queries, segment).key
    assert torch.allclose(grown, gram(keys), rtol=0, atol=1e-12 * float(gram(keys).max()))


def test_query_gram_is_of_this_segment_only(make_rows):
    """The queries of earlier segments leave no trace; summing them up would weigh the past."""
    queries, keys = make_rows((2, 8, 16), 0), make_rows((2, 8, 16), 1)
    later = update_grams(update_grams(empty_key_gram(2, 16), 5 * queries, keys).key, queries, keys)
    assert torch.equal(later.query, gram(queries))


def test_total_is_the_energy_of_the_block(make_scores):
    """tr(G_q G_k) = ‖q kᵀ‖_F² to 1e-12 without the block."""
    scores = make_scores("plain")
    dense = torch.linalg.matrix_norm(scores.block).square()
    assert torch.allclose(scores.grams.total, dense, rtol=1e-12)


def test_grouping_stacks_neighbouring_query_heads():
    """Heads 0 and 1 serve key head 0, as transformers' repeat_kv has it; interleaving would mix the groups."""
    queries = torch.arange(4.0)[:, None, None].expand(4, 3, 2)
    grouped = group_queries(queries, 2)
    assert grouped.shape == (2, 6, 2)
    assert grouped[:, :, 0].tolist() == [[0, 0, 0, 1, 1, 1], [2, 2, 2, 3, 3, 3]]


def test_gram_of_a_group_is_the_sum_over_its_heads(make_rows):
    """One key head sees its queries stacked, so their Grams add."""
    queries = make_rows((4, 8, 16), 0)
    stacked = Grams(gram(group_queries(queries, 2)), empty_key_gram(2, 16)).query
    assert torch.allclose(stacked, gram(queries).reshape(2, 2, 16, 16).sum(1), atol=1e-12)
