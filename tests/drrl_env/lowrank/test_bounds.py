"""Bounds on the output: never violated with their value term, and violated without it."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from drrl_env.lowrank.attention import causal_mask
from drrl_env.lowrank.bases import cold, value_basis
from drrl_env.lowrank.bounds import diameters, output_bound, row_bound, value_term
from drrl_env.lowrank.grams import Grams, gram

ROUNDING = 1 + 1e-9


@st.composite
def cases(draw):
    """Sizes, ranks, a scale of the scores and a seed; groups of queries among them."""
    kv_heads, groups, segment = draw(st.integers(1, 2)), draw(st.integers(1, 3)), draw(st.integers(1, 5))
    keys, dim = segment + draw(st.integers(0, 8)), draw(st.integers(2, 6))
    ranks = draw(st.integers(1, dim)), draw(st.integers(1, dim))
    scale = draw(st.sampled_from([0.01, 0.3, 1.0, 3.0, 30.0]))
    return kv_heads, groups, segment, keys, dim, *ranks, scale, draw(st.integers(0, 2**31))


class Outputs:
    """Full and low-rank attention of a random case, in float64 and without the engine's kernels."""

    def __init__(self, case):
        kv_heads, groups, segment, keys, dim, rank, value_rank, scale, seed = case
        random = torch.Generator().manual_seed(seed)
        sizes = [(kv_heads, groups * segment, dim), (kv_heads, keys, dim), (kv_heads, keys, dim)]
        q, k, self.values = (torch.randn(size, generator=random, dtype=torch.float64) * scale for size in sizes)
        basis = cold(Grams(gram(q), gram(k)), rank)
        self.columns = value_basis(gram(self.values))[..., :value_rank]
        self.mask = causal_mask(segment, keys, groups).double()
        exact = q @ k.mT / math.sqrt(dim)
        low = (q @ basis.query) @ (k @ basis.key).mT / math.sqrt(dim)
        self.differences, self.rows, self.size = low - exact, groups * segment, 1e-12 * float(self.values.abs().max())
        full = torch.softmax(exact + self.mask, -1) @ self.values
        self.change = torch.softmax(low + self.mask, -1) @ self.values @ self.columns @ self.columns.mT - full


@settings(max_examples=600)
@given(cases())
def test_output_bound_is_never_violated(case):
    """(b): ‖ΔO‖_F ≤ ½‖ΔS‖‖V − 1cᵀ‖₂ + value term over visible keys; 600 random cases, grouped queries among them."""
    out = Outputs(case)
    visible = torch.linalg.matrix_norm(out.differences.masked_fill(out.mask < 0, 0.0))
    bound = output_bound(visible, out.values, out.columns, out.rows)
    assert bool((torch.linalg.matrix_norm(out.change) <= bound * ROUNDING + out.size).all())


@settings(max_examples=600)
@given(cases())
def test_row_bound_is_never_violated(case):
    """(c): ‖Δo_i‖ ≤ tanh(osc_i/4)·diam + value term in every row; 600 random cases."""
    out = Outputs(case)
    bound = row_bound(out.differences, out.mask == 0, out.values, out.columns)
    assert bool((torch.linalg.vector_norm(out.change, dim=-1) <= bound * ROUNDING + out.size).all())


def test_without_the_value_term_both_bounds_are_violated():
    """Exact scores and reduced values: the error is positive and a bound from scores alone is zero."""
    out = Outputs((2, 2, 4, 9, 6, 6, 2, 1.0, 0))
    exact, full = torch.zeros_like(out.differences), torch.eye(6, dtype=torch.float64).expand(2, 6, 6)
    error = torch.linalg.matrix_norm(out.change)
    assert bool((error > 0.1).all())
    blind = output_bound(torch.zeros(2, dtype=torch.float64), out.values, full, out.rows)
    blind_rows = row_bound(exact, out.mask == 0, out.values, full)
    assert bool((error > blind).all())
    assert bool((torch.linalg.vector_norm(out.change, dim=-1) > blind_rows + 1e-9).any())
    assert bool((error <= output_bound(torch.zeros(2).double(), out.values, out.columns, out.rows)).all())


@pytest.mark.parametrize("spread", [0.1, 1.0, 5.0, 20.0])
def test_row_bound_is_reached(spread):
    """Two keys whose scores swap by `spread`: the error is tanh(osc/4)·diam to 1e-12, so no constant can shrink."""
    values = torch.tensor([[[0.0, 0.0], [3.0, 4.0]]], dtype=torch.float64)
    scores = torch.tensor([[[-spread / 4, spread / 4]]], dtype=torch.float64)
    error = torch.linalg.vector_norm((torch.softmax(scores, -1) - torch.softmax(-scores, -1)) @ values, dim=-1)
    full = torch.eye(2, dtype=torch.float64)[None]
    bound = row_bound(2 * scores, torch.ones(1, 2, dtype=torch.bool), values, full)
    assert torch.allclose(error, bound, rtol=1e-12)


def test_hidden_keys_do_not_enter_a_row(make_rows):
    """Absurd values and scores behind the mask leave the bound of the rows before them as it is."""
    values, columns = make_rows((1, 6, 4), 0).double(), torch.eye(4, dtype=torch.float64)[None]
    differences, visible = make_rows((1, 3, 6), 1).double(), causal_mask(3, 6, 1) == 0
    wild_values, wild = values.clone(), differences.clone()
    wild_values[:, -1], wild[:, :2, -1] = 1e6, 1e6
    tame = row_bound(differences, visible, values, columns)[:, :2]
    assert torch.allclose(row_bound(wild, visible, wild_values, columns)[:, :2], tame, atol=1e-8)


def test_diameter_is_not_underestimated_in_float32():
    """Values 1e-3 apart at distance 100: 1e-5 from the truth; by matrix products float32 is off by a third and more."""
    values = 100 + 1e-3 * torch.arange(40.0)[None, :, None].expand(1, 40, 8)
    exact = torch.cdist(values.double(), values.double()).max()
    found = diameters(torch.ones(1, 40, dtype=torch.bool), values)
    assert float(found) == pytest.approx(float(exact), rel=1e-5)


def test_value_term_vanishes_with_full_values(make_rows):
    """1e-12 with every column, and never grows with a column."""
    values = make_rows((2, 20, 8), 0).double()
    columns = value_basis(gram(values))
    terms = torch.stack([value_term(values, columns[..., :rank]) for rank in range(1, 9)])
    assert float(terms[-1].max()) < 1e-12
    assert bool((terms.diff(dim=0) <= 1e-12).all())
