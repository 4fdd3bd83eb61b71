"""‖ΔS‖ of rank changes: the paper's Eq. 8, and the trace formula against the blocks themselves."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from drrl_env.lowrank.bases import BasisError, ScoreBasis, cold, product_svd, refresh
from drrl_env.lowrank.changes import (
    cross_changes,
    image_changes,
    images,
    ritz_products,
    score_products,
    squared_changes,
)
from drrl_env.lowrank.grams import empty_key_gram, group_queries, update_grams

RANKS = (2, 5, 9, 20, 32)


def blocks(scores, basis, ranks=RANKS):
    """S_r of every rank from the rows, S itself at full rank, each (kv_heads, rows, keys), scaled."""
    cuts = [basis.truncate(rank) if rank < scores.dim else None for rank in ranks]
    dense = [scores.block if c is None else (scores.queries @ c.query) @ (scores.keys @ c.key).mT for c in cuts]
    return [block / math.sqrt(scores.dim) for block in dense]


def dense_changes(scores, basis, ranks=RANKS):
    """‖S_r − S_r'‖_F² of every pair, (kv_heads, ranks, ranks)."""
    found = torch.stack(blocks(scores, basis, ranks), dim=1)
    return (found[:, :, None] - found[:, None]).square().sum((-2, -1))


def random_basis(seed, heads=3, dim=32, width=24):
    """A pair that no decomposition gave: neither orthogonal nor ordered, its energies meaningless."""
    random = torch.Generator().manual_seed(seed)
    query, key = (torch.randn(heads, dim, width, generator=random, dtype=torch.float64) / 8 for _ in range(2))
    return ScoreBasis(query, key, torch.full((heads, width), torch.nan, dtype=torch.float64))


@pytest.mark.parametrize("case", ["plain", "decaying", "fewer_keys_than_dims", "low_rank_keys"])
def test_a_rank_change_of_the_cold_basis_is_the_papers_equation_8(make_scores, case):
    """sqrt(Σ_{k=r+1}^{r'} σ_k²)/√d for every pair of ranks, to 1e-8 of ‖S‖."""
    scores = make_scores(case)
    basis = product_svd(scores.queries, scores.keys, 32)
    found = squared_changes(score_products(basis, scores.grams), RANKS).sqrt()
    tails = torch.stack([scores.tail(rank).square() for rank in RANKS], dim=-1)
    expected = ((tails[:, :, None] - tails[:, None, :]).abs() / scores.dim).sqrt()
    bar = float(torch.linalg.matrix_norm(scores.block).max())
    assert torch.allclose(found, expected, rtol=0, atol=1e-8 * bar)


@pytest.mark.parametrize("seed", range(5))
def test_the_trace_formula_is_exact_in_any_basis(make_scores, seed):
    """d x d work equals the dense blocks to 1e-10 of ‖S‖² for random non-orthogonal pairs, full rank included."""
    scores, basis = make_scores("plain"), random_basis(seed)
    found = squared_changes(score_products(basis, scores.grams), RANKS)
    expected = dense_changes(scores, basis)
    assert torch.allclose(found, expected, rtol=0, atol=1e-10 * float(expected.max()))


def test_the_trace_formula_is_exact_with_grouped_queries(make_rows, make_scores):
    """Three query heads to a key head: the same, their queries stacked."""
    queries = group_queries(make_rows((6, 16, 32), 0), 2)
    scores, basis = make_scores(queries, make_rows((2, 64, 32), 1)), random_basis(9, heads=2)
    found = squared_changes(score_products(basis, scores.grams), RANKS)
    assert torch.allclose(found, dense_changes(scores, basis), rtol=1e-9, atol=1e-12)


def test_changes_are_symmetric_with_a_zero_diagonal(make_scores):
    """Adding columns moves the scores exactly as far as dropping them."""
    scores = make_scores("decaying")
    found = squared_changes(score_products(random_basis(1), scores.grams), RANKS)
    assert torch.equal(found, found.mT)
    assert float(found.diagonal(dim1=-2, dim2=-1).abs().max()) == 0


def test_a_rank_change_adds_or_drops_columns(make_scores):
    """S_20 = S_5 + Σ_{k=6}^{20} σ_k u_k v_kᵀ: what is in the smaller block stays as it is."""
    scores = make_scores("plain")
    basis = cold(scores.grams, 32)
    small, large = (blocks(scores, basis, (rank,))[0] for rank in (5, 20))
    added = (scores.queries @ basis.query[..., 5:20]) @ (scores.keys @ basis.key[..., 5:20]).mT
    assert torch.allclose(large, small + added / math.sqrt(32), atol=1e-10)


def test_masked_changes_are_no_larger(make_scores):
    """What the account charges without a mask bounds what the visible keys see."""
    scores = make_scores("plain")
    small, large = blocks(scores, cold(scores.grams, 32), (5, 20))
    visible = (large - small).tril(scores.keys.shape[-2] - scores.queries.shape[-2])
    bound = squared_changes(score_products(cold(scores.grams, 32), scores.grams), (5, 20))[:, 0, 1].sqrt()
    assert bool((torch.linalg.matrix_norm(visible) <= bound).all())


def test_singular_values_do_not_tell_the_change_in_a_calibrated_basis(make_rows, make_scores):
    """Eq. 8 with σ is under .9 of the truth in a basis fitted elsewhere; the trace formula is exact."""
    scores = make_scores(make_rows((2, 16, 32), 0), make_rows((2, 64, 32), 1))
    other = make_scores(make_rows((2, 16, 32), 2), make_rows((2, 64, 32), 3))
    basis = cold(other.grams, 32)
    exact = dense_changes(scores, basis, (9, 20))[:, 0, 1].sqrt()
    found = squared_changes(score_products(basis, scores.grams), (9, 20))[:, 0, 1].sqrt()
    sigma = (scores.tail(9).square() - scores.tail(20).square()).sqrt() / math.sqrt(32)
    assert torch.allclose(found, exact, rtol=1e-9)
    assert float((sigma / exact).min()) < 0.9


def test_residuals_are_the_errors_of_the_truncations(hard_case):
    """‖S − S_r‖ for r from 0 to width to 1e-6 of ‖S‖, ‖S‖ itself at 0."""
    basis = product_svd(hard_case.queries, hard_case.keys, 32)
    found = score_products(basis, hard_case.grams).residuals.sqrt()
    dense = [torch.linalg.matrix_norm(hard_case.block), *(hard_case.lost(basis, rank) for rank in range(1, 33))]
    bar = 1e-6 * dense[0][:, None].clamp_min(1e-300)
    assert bool(((found - torch.stack(dense, dim=-1)).abs() <= bar).all())


@pytest.mark.parametrize("rank", [0, 25, 33])
def test_a_rank_outside_the_basis_is_refused(make_scores, rank):
    """One line: between the width and dim there are no columns, and only dim means full."""
    products = score_products(random_basis(0), make_scores("plain").grams)
    with pytest.raises(BasisError, match=f"^rank={rank}: the basis has 24 columns; use ranks up to 24, or 32 for full"):
        squared_changes(products, (2, rank))


@pytest.mark.parametrize("method", ["cold", "warm"])
def test_the_energies_of_a_basis_give_the_trace_formula(method):
    """Σθ equals the products of matrices to 1e-9 of ‖S‖², even for a warm basis that has not converged."""
    random = torch.Generator().manual_seed(0)
    queries, keys, start = (torch.randn(2, rows, 16, generator=random) for rows in (40, 90, 16))
    grams = update_grams(empty_key_gram(2, 16), queries, keys)
    basis = refresh(grams, start[..., :10], method)
    short, long = ritz_products(basis, grams), score_products(basis, grams)
    bar = 1e-9 * float(grams.total.max())
    assert float((short.inner - long.inner).abs().max()) <= bar
    assert float((short.crossed - long.crossed).abs().max()) <= bar


def dense_cross(scores, first, second, ranks_first, ranks_second):
    """‖S_a − S_b‖_F² of every pair of ranks of two bases from the blocks themselves, (kv_heads, a, b)."""
    one, two = (torch.stack(blocks(scores, *side), 1) for side in ((first, ranks_first), (second, ranks_second)))
    return (one[:, :, None] - two[:, None]).square().sum((-2, -1))


@settings(max_examples=30)
@given(
    seeds=st.tuples(st.integers(0, 99), st.integers(100, 199)),
    widths=st.tuples(st.integers(1, 31), st.integers(1, 31)),
    case=st.sampled_from(("plain", "decaying", "fewer_keys_than_dims", "zero_head", "low_rank_keys")),
    with_full=st.tuples(st.booleans(), st.booleans()),
)
def test_a_change_of_basis_is_exact(make_scores, seeds, widths, case, with_full):
    """1e-10 of the largest block for any two pairs of factors, any ranks, full on either side, dead heads included."""
    scores = make_scores(case)
    first, second = (random_basis(seed, width=width) for seed, width in zip(seeds, widths, strict=True))
    ranks = [
        tuple(sorted({1, (width + 1) // 2, width})) + (32,) * full
        for width, full in zip(widths, with_full, strict=True)
    ]
    found, expected = cross_changes(first, second, scores.grams, *ranks), dense_cross(scores, first, second, *ranks)
    assert found.shape == (3, len(ranks[0]), len(ranks[1]))
    assert torch.allclose(found, expected, rtol=0, atol=1e-10 * float(expected.max()))


def test_a_change_of_basis_is_exact_with_grouped_queries(make_rows, make_scores):
    """Three query heads to a key head: the same, their queries stacked."""
    scores = make_scores(group_queries(make_rows((6, 16, 32), 0), 2), make_rows((2, 64, 32), 1))
    first, second = random_basis(3, heads=2), random_basis(4, heads=2, width=9)
    found = cross_changes(first, second, scores.grams, RANKS, (2, 9, 32))
    assert torch.allclose(found, dense_cross(scores, first, second, RANKS, (2, 9, 32)), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("basis", ["cold", "random"])
def test_a_basis_changed_for_itself_is_a_rank_change(make_scores, basis):
    """`squared_changes` to 1e-12 of ‖S‖², with a diagonal of exact zeros."""
    scores = make_scores("decaying")
    found = cold(scores.grams, 32) if basis == "cold" else random_basis(5)
    expected = squared_changes(score_products(found, scores.grams), RANKS)
    crossed = cross_changes(found, found, scores.grams, RANKS, RANKS)
    assert torch.allclose(crossed, expected, rtol=0, atol=1e-12 * float(expected.max()))
    assert float(crossed.diagonal(dim1=-2, dim2=-1).abs().max()) == 0


def test_going_back_moves_the_scores_as_far(make_scores):
    """Swapping the bases transposes the table, to 1e-12 of the largest."""
    scores, first, second = make_scores("plain"), random_basis(6), random_basis(7, width=20)
    there = cross_changes(first, second, scores.grams, RANKS, (5, 20, 32))
    back = cross_changes(second, first, scores.grams, (5, 20, 32), RANKS)
    assert torch.allclose(there, back.mT, rtol=0, atol=1e-12 * float(there.max()))


def test_full_rank_is_the_same_scores_in_any_basis(make_scores):
    """Zero between two full ranks, and the same distance to either from a truncation."""
    scores, first, second = make_scores("plain"), random_basis(8), random_basis(9)
    found = cross_changes(first, second, scores.grams, (5, 32), (5, 32))
    residual = score_products(first, scores.grams).residuals[:, 5] / 32
    assert float(found[:, 1, 1].abs().max()) == 0
    assert torch.allclose(found[:, 0, 1], residual, rtol=1e-12)


def test_two_bases_of_one_span_do_not_move_the_scores(make_scores):
    """Factors turned by any invertible matrix give the same block: 0 to 1e-12 of ‖S‖², where columns alone differ."""
    scores, basis = make_scores("plain"), random_basis(10, width=6)
    turn = torch.randn(6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    turned = ScoreBasis(basis.query @ turn, basis.key @ torch.linalg.inv(turn).mT, basis.energies)
    found = cross_changes(basis, turned, scores.grams, (3, 6), (3, 6))
    assert float(found[:, 1, 1].max()) <= 1e-12 * float(found.max())
    assert float(found[:, 0, 0].min()) > 1e-3 * float(found.max())


def test_images_worked_out_once_serve_every_pair(make_scores):
    """The bits of `cross_changes`, in whatever order pairs are asked for."""
    scores, bases = make_scores("plain"), [random_basis(seed, width=12 + seed) for seed in range(3)]
    seen = [images(basis, scores.grams) for basis in bases]
    for one in (2, 0, 1):
        for two in (1, 2, 0):
            expected = cross_changes(bases[one], bases[two], scores.grams, (5, 12, 32), (9, 32))
            assert torch.equal(image_changes(seen[one], seen[two], (5, 12, 32), (9, 32)), expected)


@pytest.mark.parametrize(("ranks", "name"), [(((25,), (3,)), 24), (((24,), (7,)), 6)])
def test_a_rank_outside_either_basis_is_refused(make_scores, ranks, name):
    """One line with the columns of the basis that lacks them."""
    bases = random_basis(0), random_basis(1, width=6)
    with pytest.raises(BasisError, match=f"the basis has {name} columns"):
        cross_changes(*bases, make_scores("plain").grams, *ranks)
