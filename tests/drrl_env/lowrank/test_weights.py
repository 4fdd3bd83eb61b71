"""Weight statistics against spectra made to measure."""

from __future__ import annotations

import math

import powerlaw
import pytest
import torch

from drrl_env.lowrank.weights import MATRICES, WEIGHT_STATISTICS, heavy_tail_exponent, weight_statistics
from drrl_env.models.language_model import load_language_model, projection_weights


def pareto_matrix(exponent, size=400, body=0):
    """A matrix whose WᵀW has eigenvalues at the quantiles of a Pareto law above 1, and `body` of them evenly below."""
    random = torch.Generator().manual_seed(0)
    uniform = (torch.arange(size - body, dtype=torch.float64) + 0.5) / (size - body)
    tail = (1 - uniform) ** (-1 / (exponent - 1))
    below = torch.linspace(0.05, 0.95, body, dtype=torch.float64)
    left, right = (torch.linalg.qr(torch.randn(size, size, generator=random).double()).Q for _ in range(2))
    return left @ torch.diag(torch.cat([below, tail]).sqrt()) @ right


@pytest.mark.parametrize("exponent", [1.8, 2.5, 4.0, 6.0])
def test_a_known_exponent_is_recovered(exponent):
    """Within 5 % from 400 eigenvalues; a line fitted to a log-log histogram is off by tens of per cent."""
    assert heavy_tail_exponent(pareto_matrix(exponent)) == pytest.approx(exponent, rel=0.05)


@pytest.mark.parametrize("exponent", [2.5, 4.0])
def test_the_body_of_the_spectrum_is_left_out(exponent):
    """Within 10 % with 200 eigenvalues of another law below the tail; fitted to all, the exponent falls under 1.8."""
    assert heavy_tail_exponent(pareto_matrix(exponent, body=200)) == pytest.approx(exponent, rel=0.1)


@pytest.mark.parametrize("factor", [1e-3, 1e3])
def test_the_exponent_does_not_depend_on_the_scale(factor):
    """A power law has no scale: the same to 1e-6."""
    weight = pareto_matrix(3.0, size=100)
    assert heavy_tail_exponent(factor * weight) == pytest.approx(heavy_tail_exponent(weight), rel=1e-6)


def test_statistics_of_an_initialised_matrix_are_of_unit_scale():
    """Three per matrix in the declared order: mean 0, spread 1 at 1/√fan_in, α beyond 2."""
    random = torch.Generator().manual_seed(0)
    weights = [torch.randn(64, 256, generator=random) / 16, torch.randn(64, 256, generator=random) / 16 + 0.1]
    found = weight_statistics(weights).reshape(2, len(WEIGHT_STATISTICS))
    assert found[:, 0].tolist() == pytest.approx([0, 1], abs=0.02)
    assert found[:, 1].tolist() == pytest.approx([1, 1], abs=0.05)
    assert bool((found[:, 2] > 0).all())
    assert float(found[0, 2]) == pytest.approx((heavy_tail_exponent(weights[0]) - 2) / 4)


def test_a_rank_deficient_matrix_has_an_exponent():
    """Zero singular values are not a tail: the same exponent as without them, to 1 %."""
    weight = pareto_matrix(3.0, size=100)
    padded = torch.zeros(150, 150, dtype=torch.float64)
    padded[:100, :100] = weight
    assert heavy_tail_exponent(padded) == pytest.approx(heavy_tail_exponent(weight), rel=0.01)


@pytest.mark.filterwarnings("ignore:Standard error:DeprecationWarning")
@pytest.mark.parametrize("layer", range(4))
def test_the_exponent_of_real_weights_is_that_of_powerlaw(layer):
    """The bundled model's W_Q, W_K, W_V, to 1e-9: same tail, same likelihood.

    The range is opened because `powerlaw` looks no further than α = 3 by itself.
    """
    matrices = projection_weights(load_language_model("bundled").network, layer)
    assert len(matrices) == len(MATRICES)
    for weight in matrices:
        spectrum = torch.linalg.svdvals(weight.detach().double()).square().numpy()
        fitted = powerlaw.Fit(spectrum, parameter_ranges={"alpha": [1, None]}, verbose=False)
        assert heavy_tail_exponent(weight.detach()) == pytest.approx(fitted.power_law.alpha, rel=1e-9)


@pytest.mark.parametrize("weight", [torch.zeros(6, 4), torch.ones(6, 4)])
def test_a_spectrum_of_less_than_two_numbers_has_no_tail(weight):
    """Infinite, not an error: a layer that was initialised with zeros can be calibrated."""
    assert heavy_tail_exponent(weight) == math.inf
