"""Bases of the scores against dense decompositions of the T x n block."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from drrl_env.lowrank.bases import BasisError, cold, product_svd, refresh, value_basis, warm
from drrl_env.lowrank.changes import score_products
from drrl_env.lowrank.grams import Grams, gram, group_queries

DEFAULT_RANKS = (8, 12, 16, 20, 24, 32, 40)
WIDTH = 48


def test_product_svd_finds_the_singular_values_of_the_block(hard_case):
    """1e-10 relative to ‖q‖₂‖k‖₂ from triangular factors; by way of Grams 1e-8 is the best there is."""
    assert hard_case.sigma_error(product_svd(hard_case.queries, hard_case.keys, hard_case.dim)) < 1e-10


def test_cold_finds_the_singular_values_from_grams_alone(hard_case):
    """1e-7 relative to ‖q‖₂‖k‖₂: a Gram squares the condition."""
    assert hard_case.sigma_error(cold(hard_case.grams, hard_case.dim)) < 1e-7


@pytest.mark.parametrize("path", ["triangular", "gram"])
def test_singular_values_survive_float32_inputs(hard_case, path):
    """1e-4 relative to ‖q‖₂‖k‖₂ when q and k come in float32; decomposing in float32 loses whole columns."""
    queries, keys = hard_case.queries.float(), hard_case.keys.float()
    grams = Grams(gram(queries), gram(keys))
    basis = product_svd(queries, keys, hard_case.dim) if path == "triangular" else cold(grams, hard_case.dim)
    assert hard_case.sigma_error(basis) < 1e-4


def test_product_svd_truncates_to_the_best_block_there_is(hard_case):
    """(error − optimum)/‖S‖_F ≤ 1e-8 at every rank; truncating q and k apart costs tenths."""
    assert hard_case.worst_excess(product_svd(hard_case.queries, hard_case.keys, hard_case.dim)) < 1e-8


def test_cold_truncates_to_the_best_block_there_is(hard_case):
    """(error − optimum)/‖S‖_F ≤ 1e-6 at every rank from Grams alone."""
    assert hard_case.worst_excess(cold(hard_case.grams, hard_case.dim)) < 1e-6


@st.composite
def score_shapes(draw):
    """Heads, rows, keys, dim, a seed and how steeply the spectrum falls."""
    heads, rows, dim = draw(st.integers(1, 3)), draw(st.integers(1, 40)), draw(st.integers(2, 24))
    keys = rows + draw(st.integers(0, 40))
    return heads, rows, keys, dim, draw(st.integers(0, 2**31)), draw(st.sampled_from([0.0, 0.5, 2.0, 4.0]))


@settings(max_examples=100)
@given(score_shapes())
def test_both_cold_paths_are_optimal_at_any_shape(make_scores, drawn):
    """The same four bars at random shapes and spectra, T and n below and above dim."""
    heads, rows, keys, dim, seed, power = drawn
    random = torch.Generator().manual_seed(seed)
    decay = torch.arange(1, dim + 1, dtype=torch.float64) ** -power
    q, k = (torch.randn(heads, size, dim, generator=random, dtype=torch.float64) * decay for size in (rows, keys))
    scores = make_scores(q, k)
    exact, squared = product_svd(q, k, dim), cold(scores.grams, dim)
    assert scores.sigma_error(exact) < 1e-10
    assert scores.sigma_error(squared) < 1e-7
    assert scores.worst_excess(exact) < 1e-8
    assert scores.worst_excess(squared) < 1e-6


def test_split_of_scale_between_queries_and_keys_does_not_matter(make_scores):
    """q·s, k/s have the scores of q, k: 1e-6 for s of 1e±6; Grams decomposed as they come lose four fifths of S."""
    scores = make_scores("dims_scaled_apart")
    found = scores.lost(cold(scores.grams, 32), 16) / torch.linalg.matrix_norm(scores.block)
    even = make_scores("plain")
    plain = even.lost(cold(even.grams, 32), 16) / torch.linalg.matrix_norm(even.block)
    assert float((found - plain).abs().max()) < 0.05


def tail_ratio(scores, basis, rank):
    """Worst head's error over the optimum."""
    return float((scores.lost(basis, rank) / scores.tail(rank)).max())


@pytest.mark.parametrize("rank", DEFAULT_RANKS)
def test_one_warm_step_from_a_calibrated_start_is_near_optimal(make_rows, make_scores, rank):
    """Within 3 % of the optimal tail; the calibrated start itself is over 5 % off, a random start is worse."""
    shapes = (3, 128, 64), (3, 1024, 64)
    scores = make_scores(*(make_rows(shape, i) for i, shape in enumerate(shapes)))
    other = make_scores(*(make_rows((3, 1024, 64), 5 + i) for i in range(2)))
    calibrated = cold(other.grams, 64)
    blind = torch.randn(3, 64, WIDTH, generator=torch.Generator().manual_seed(0))
    found = warm(scores.grams, calibrated.key[..., :WIDTH])
    assert tail_ratio(scores, found, rank) < 1.03
    assert tail_ratio(scores, calibrated, rank) > 1.05
    assert tail_ratio(scores, warm(scores.grams, blind), 40) > tail_ratio(scores, found, 40)


@pytest.fixture(scope="module")
def bundled_tail_ratios(bundled_layers, make_scores):
    """Worst head's error over the optimum by (span, layer, keys, rank), of the warm step at the default width."""
    ratios = {}
    for case, (queries, keys, _) in real_layers(bundled_layers):
        start = bundled_layers.bases[case[1]].key[..., :WIDTH]
        for end in range(256, keys.shape[-2] + 1, 256):
            grouped = group_queries(queries[:, end - 128 : end], bundled_layers.shape.kv_heads)
            scores = make_scores(grouped, keys[:, :end])
            found = warm(scores.grams, start)
            lost = score_products(found, scores.grams).residuals.sqrt()
            ratios |= {(*case, end, r): float((lost[:, r] / scores.tail(r)).max()) for r in DEFAULT_RANKS}
    return ratios


def real_layers(layers):
    """((span, layer), (queries, keys, values)) of every layer of every span."""
    return [((s, i), tensors) for s, span in enumerate(layers.spans) for i, tensors in enumerate(span)]


@pytest.mark.parametrize("rank", DEFAULT_RANKS)
def test_one_warm_step_is_near_optimal_on_the_bundled_model(bundled_tail_ratios, rank):
    """Within 3 % of the optimal tail in every layer, head and second segment; one application of G_qG_k: 13 % off."""
    found = {case: ratio for case, ratio in bundled_tail_ratios.items() if case[-1] == rank}
    worst = max(found, key=found.__getitem__)
    assert found[worst] < 1.03, f"(span, layer, keys, rank) = {worst}: {found[worst]:.4f} of the optimal tail"


def test_warm_depends_on_the_span_of_its_start_only(make_scores):
    """Columns mixed and scaled by 1e6 give the same block to 1e-8: a start needs no normalisation."""
    scores = make_scores("plain")
    random = torch.Generator().manual_seed(3)
    start = torch.randn(3, 32, 12, generator=random, dtype=torch.float64)
    mixed = start @ torch.randn(3, 12, 12, generator=random, dtype=torch.float64) * 1e6
    one, two = (warm(scores.grams, columns) for columns in (start, mixed))
    blocks = [basis.query @ basis.key.mT for basis in (one, two)]
    assert torch.allclose(*blocks, atol=1e-8)


def test_warm_at_full_width_reproduces_the_block(hard_case, make_scores):
    """1e-6 of ‖S‖_F even of singular keys: the query side carries the ridge that the key side divides by."""
    alive = hard_case.keys.abs().amax((-2, -1)) > 0
    scores = make_scores(hard_case.queries[alive], hard_case.keys[alive])
    basis = warm(scores.grams, torch.eye(32).expand(len(scores.keys), 32, 32))
    relative = scores.lost(basis, 32) / torch.linalg.matrix_norm(scores.block).clamp_min(1e-300)
    assert float(relative.max()) < 1e-6


def test_columns_are_ordered_by_energy_so_that_ranks_nest(make_scores):
    """Ritz values descend and each more column brings the block nearer, warm as cold."""
    scores = make_scores("decaying")
    start = torch.randn(3, 32, 16, generator=torch.Generator().manual_seed(1))
    for basis in (cold(scores.grams, 16), warm(scores.grams, start)):
        assert bool((basis.energies.diff() <= 0).all())
        errors = torch.stack([scores.lost(basis, rank) for rank in range(1, 17)])
        assert bool((errors.diff(dim=0) <= 1e-12 * errors[0]).all())


def test_a_head_does_not_feel_its_neighbours(make_scores):
    """A head beside one of 1e9 times its size has the columns it has alone, to 1e-9; a common floor moved them."""
    scores = make_scores("plain")
    loud = Grams(scores.grams.query * torch.tensor([1.0, 1e18, 1.0])[:, None, None], scores.grams.key)
    together, alone = cold(loud, 32), cold(Grams(loud.query[:1], loud.key[:1]), 32)
    assert torch.allclose(together.key[:1].abs(), alone.key.abs(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("decompose", ["triangular", "cold", "warm"])
def test_zero_queries_give_zero_scores_in_float32(decompose):
    """Finite columns and a zero block; a column divided by a vanishing singular value is infinite in float32."""
    q, k = torch.zeros(2, 8, 16), torch.randn(2, 20, 16, generator=torch.Generator().manual_seed(0))
    grams = Grams(gram(q), gram(k))
    start = torch.eye(16).expand(2, 16, 16)
    basis = {
        "triangular": lambda: product_svd(q, k, 16),
        "cold": lambda: cold(grams, 16),
        "warm": lambda: warm(grams, start),
    }[decompose]()
    block = (q @ basis.query.float()) @ (k @ basis.key.float()).mT
    assert torch.equal(block, torch.zeros_like(block))


def test_refresh_is_the_method_that_the_account_names(make_scores):
    """`warm` and `cold` by name, so that what is charged is what is run."""
    grams, start = make_scores("plain").grams, torch.eye(32)[:, :12].expand(3, 32, 12)
    assert torch.equal(refresh(grams, start, "warm").key, warm(grams, start).key)
    assert torch.equal(refresh(grams, start, "cold").key, cold(grams, 12).key)
    with pytest.raises(BasisError, match="method='hot': unknown"):
        refresh(grams, start, "hot")


def test_value_basis_keeps_the_most_of_the_values(make_rows):
    """‖v − v P Pᵀ‖_F is the tail of v's singular values at every rank, to 1e-6."""
    values = make_rows((2, 40, 16), 4).double()
    columns, sigma = value_basis(gram(values)), torch.linalg.svdvals(values)
    for rank in range(1, 17):
        kept = columns[..., :rank]
        lost = torch.linalg.matrix_norm(values - values @ kept @ kept.mT)
        assert torch.allclose(lost, torch.linalg.vector_norm(sigma[:, rank:], dim=-1), atol=1e-6)


@pytest.mark.parametrize("broken", ["queries", "keys"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_broken_rows_are_named_in_one_line(make_scores, broken, value):
    """A BasisError that says which side is broken; LAPACK's own error says neither."""
    scores = make_scores("plain")
    rows = {"queries": scores.queries.clone(), "keys": scores.keys.clone()}
    rows[broken][0, 0, 0] = value
    grams = Grams(gram(rows["queries"]), gram(rows["keys"]))
    start = torch.eye(32).expand(3, 32, 32)
    for call in (lambda: product_svd(*rows.values(), 8), lambda: cold(grams, 8), lambda: warm(grams, start)):
        with pytest.raises(BasisError, match=f"^{broken}: NaN or infinite[^\n]*$"):
            call()


def test_zero_keys_are_refused_warm_and_served_cold():
    """Warm has no key inner product to be orthonormal in and says so in one line; cold answers with zero scores."""
    grams = Grams(gram(torch.randn(2, 8, 16)), torch.zeros(2, 16, 16, dtype=torch.float64))
    with pytest.raises(BasisError, match=r"^key Gram: no Cholesky factor[^\n]*use `cold`$"):
        warm(grams, torch.eye(16).expand(2, 16, 16))
    assert float(cold(grams, 16).energies.abs().max()) == 0


@pytest.mark.parametrize("rank", [0, -1, 13])
def test_a_rank_beyond_the_width_is_refused(make_scores, rank):
    """One line with the rank, the width and the way out; a slice would silently give fewer columns."""
    with pytest.raises(BasisError, match=f"^rank={rank}: the basis has 12 columns; use ranks from 1 to 12$"):
        cold(make_scores("plain").grams, 12).truncate(rank)


def test_a_width_beyond_the_dimension_is_refused(make_scores):
    """One line from both cold paths; padding with zero columns would pass as a wider basis."""
    scores = make_scores("plain")
    for call in (lambda: cold(scores.grams, 33), lambda: product_svd(scores.queries, scores.keys, 33)):
        with pytest.raises(BasisError, match=r"^width=33: the head dimension is 32"):
            call()
