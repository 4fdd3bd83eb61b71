"""Offline bases of the literature: the products their papers write, and never better than the product SVD they fit."""

from __future__ import annotations

import pytest
import torch

from drrl_env.lowrank.bases import cold
from drrl_env.lowrank.changes import cross_changes, score_products
from drrl_env.lowrank.grams import Grams, gram
from drrl_env.lowrank.offline import EVERY_BASIS, OFFLINE, priced_as, subspaces
from drrl_env.lowrank.segment import calibrated_basis

DIM = 16


@pytest.fixture
def rows(make_rows):
    """Queries (3, 60, 16) and keys (3, 90, 16) of decaying, unlike covariances, float64."""
    queries, keys = make_rows((3, 60, DIM), 1).double(), make_rows((3, 90, DIM), 2).double()
    return queries.flip(-1), keys


def truncated(rows, rank):
    """The best rank-r approximation of the rows themselves, from their own SVD."""
    left, values, right = torch.linalg.svd(rows, full_matrices=False)
    return left[..., :rank] * values[..., None, :rank] @ right[..., :rank, :]


def bases_of(queries, keys):
    """The product SVD and both offline bases, as score bases of whole width."""
    grams = Grams(gram(queries), gram(keys))
    value = torch.eye(DIM, dtype=torch.float64).expand(3, -1, -1)
    offline = {name: calibrated_basis(make(subspaces(grams), value), DIM) for name, make in OFFLINE.items()}
    return grams, cold(grams, DIM), offline


@pytest.mark.parametrize("rank", range(1, DIM + 1))
def test_separate_svds_are_those_of_q_and_of_k(rows, rank):
    """1e-9 of Q_r K_rᵀ from the two truncated SVDs, at every rank."""
    queries, keys = rows
    cut = bases_of(queries, keys)[2]["separate-svd"].truncate(rank)
    expected = truncated(queries, rank) @ truncated(keys, rank).mT
    found = (queries @ cut.query) @ (keys @ cut.key).mT
    assert cut.core is None
    assert float((found - expected).norm()) < 1e-9 * float((queries @ keys.mT).norm())


@pytest.mark.parametrize("rank", range(1, DIM + 1))
def test_keys_pca_keeps_the_queries_whole(rows, rank):
    """1e-9 of Q K_rᵀ, where only the keys are truncated."""
    queries, keys = rows
    cut = bases_of(queries, keys)[2]["keys-pca"].truncate(rank)
    expected = queries @ truncated(keys, rank).mT
    found = (queries @ cut.query) @ (keys @ cut.key).mT
    assert float((found - expected).norm()) < 1e-9 * float((queries @ keys.mT).norm())


def test_separate_svds_do_not_nest_on_the_query_side(rows):
    """The keys' columns do, so a cache grows by columns; the first columns of a larger P_q are off by over a tenth."""
    basis = bases_of(*rows)[2]["separate-svd"]
    small, large = basis.truncate(4), basis.truncate(12)
    assert torch.equal(small.key, large.key[..., :4])
    assert float((large.query[..., :4] - small.query).norm() / small.query.norm()) > 0.1


@pytest.mark.parametrize("name", OFFLINE)
def test_the_product_svd_loses_no_more_at_any_rank(rows, name):
    """‖S − S_r‖ on the rows all are fitted on: Eckart–Young; somewhere in the middle it loses less by over a tenth."""
    grams, best, offline = bases_of(*rows)
    ours, theirs = (score_products(basis, grams).residuals for basis in (best, offline[name]))
    assert bool((ours <= theirs + 1e-9 * grams.total[:, None]).all())
    assert float((1 - ours[:, 8] / theirs[:, 8]).min()) > 0.1


@pytest.mark.parametrize("first", OFFLINE)
@pytest.mark.parametrize("second", [*OFFLINE, "product"])
def test_changes_between_bases_are_those_of_the_dense_blocks(rows, first, second):
    """1e-9 of ‖S_a − S_b‖² worked out densely, every rank against every rank, with a core on either side or both."""
    queries, keys = rows
    grams, best, offline = bases_of(queries, keys)
    one, two, ranks = offline[first], {**offline, "product": best}[second], (1, 5, 11, DIM)
    blocks = [[(queries @ b.truncate(r).query) @ (keys @ b.truncate(r).key).mT for r in ranks[:-1]] for b in (one, two)]
    left, right = (torch.stack([*found, queries @ keys.mT], 1) for found in blocks)
    expected = (left[:, :, None] - right[:, None]).square().sum((-2, -1)) / DIM
    found = cross_changes(one, two, grams, ranks, ranks)
    assert torch.allclose(found, expected, rtol=0, atol=1e-9 * float(expected.max()))


def test_an_offline_basis_has_the_account_of_the_calibrated_one():
    """The others have their own."""
    assert [priced_as(name) for name in EVERY_BASIS] == ["refreshed", "calibrated", "calibrated", "calibrated"]
