"""Statistics a policy may see against dense decompositions of the scores."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import spearmanr

from drrl_env.lowrank import statistics
from drrl_env.lowrank.bases import cold
from drrl_env.lowrank.flops import RankCost
from drrl_env.lowrank.statistics import STATISTICS
from drrl_env.lowrank.stream import run_stream

CASES = [(kind, position) for kind in ("refreshed", "calibrated") for position in (0, 3, 5)]


@pytest.fixture(scope="module")
def full_width(make_toy_layer):
    """Segments of a layer whose refreshed basis has every column, 40 of them: power iteration has time."""
    return make_toy_layer("refreshed", tokens=320, costs=[RankCost(r, r) for r in (2, 4, 8, 16)]).run()


@pytest.fixture(scope="module")
def repeated_text(make_toy_layer):
    """40 segments of the same 8 tokens: as stationary as a stream can be."""
    layer = make_toy_layer("refreshed", tokens=320, costs=[RankCost(r, r) for r in (2, 4, 8, 16)])
    return run_stream(layer.fresh(), [tensor[:, :8].repeat(1, 40, 1) for tensor in layer.tensors], 40)


def sigmas(segment):
    """Singular values of the block, (kv_heads, dim)."""
    return torch.linalg.svdvals(segment.queries.double() @ segment.keys.double().mT)[:, : segment.settings.shape.dim]


@pytest.mark.parametrize(("kind", "position"), CASES)
def test_energy_ratio_is_what_the_truncations_keep(make_toy_layer, kind, position):
    """1 − ‖S − S_r‖²/‖S‖² of the blocks themselves to 1e-9, in the basis that runs, and 1 at full rank."""
    segment = make_toy_layer(kind).run()[position]
    queries, keys = segment.queries.double(), segment.keys.double()
    block, lost = queries @ keys.mT, []
    for rank in segment.settings.ranks[:-1]:
        cut = segment.basis.truncate(rank)
        lost.append((block - (queries @ cut.query) @ (keys @ cut.key).mT).square().sum())
    expected = 1 - torch.stack([*lost, torch.zeros((), dtype=torch.float64)]) / block.square().sum()
    assert torch.allclose(statistics.energy_ratio(segment), expected, atol=1e-9)


def test_energy_ratio_of_a_refreshed_basis_is_the_papers(full_width):
    """Σ_{i≤r} σ_i² / Σ σ_i² over heads (Eq. 15) to 1e-6 when no column is spared."""
    for segment in full_width[::10]:
        energies = sigmas(segment).square().sum(0)
        expected = torch.stack([energies[:rank].sum() for rank in segment.settings.ranks]) / energies.sum()
        assert torch.allclose(statistics.energy_ratio(segment), expected, atol=1e-6)


def test_residual_levels_read_the_lost_norm(full_width):
    """1 + log10(‖S − S_r‖/‖S‖)/4: 0 at full rank, falling with the rank, the worst head no better than all."""
    for segment in full_width[::10]:
        level, worst = statistics.residual_level(segment), statistics.worst_residual_level(segment)
        relative = (1 - statistics.energy_ratio(segment)[:-1]).sqrt().clamp_min(1e-4)
        assert torch.allclose(level[:-1], 1 + relative.log10() / 4, atol=1e-6)
        assert float(level[-1]) == 0
        assert bool((level.diff() <= 0).all())
        assert bool((worst >= level - 1e-12).all())


def test_effective_rank_is_exact_within_the_basis(full_width):
    """exp(entropy of σ²/Σσ²)/d, mean over heads, to 1e-6."""
    for segment in full_width[::10]:
        shares = sigmas(segment).square()
        shares = shares / shares.sum(-1, keepdim=True)
        expected = torch.special.entr(shares).sum(-1).exp().mean() / 16
        assert float(statistics.effective_rank(segment)) == pytest.approx(float(expected), abs=1e-6)


def test_effective_rank_of_a_truncated_basis_stays_near(make_toy_layer):
    """Within 2 % from 13 of 16 columns, what is outside spread evenly; leaving it out biases downwards."""
    wide, narrow = (
        make_toy_layer("refreshed", costs=[RankCost(r, r) for r in ranks]).run()[-1] for ranks in ((16,), (5, 16))
    )
    shares = sigmas(narrow).square()
    expected = torch.special.entr(shares / shares.sum(-1, keepdim=True)).sum(-1).exp().mean() / 16
    assert narrow.settings.width == 13
    assert float(statistics.effective_rank(narrow)) == pytest.approx(float(expected), rel=0.02)
    assert wide.settings.width == 8


def test_spectral_share_and_stable_rank_converge_on_a_stationary_stream(repeated_text):
    """Within 1e-6 of σ₁²/‖S‖² and of its inverse after 40 segments of one power step each; 5 % off at the first."""
    errors = []
    for segment in repeated_text:
        shares = sigmas(segment)[:, 0].square() / segment.grams.total
        spectral = float(statistics.spectral_share(segment) / shares.mean()) - 1
        errors.append((spectral, float(statistics.stable_rank(segment) * 16 / (1 / shares).mean()) - 1))
    assert errors[-1] == pytest.approx((0, 0), abs=1e-6)
    assert errors[0][0] < -0.01


def test_spectral_share_never_exceeds_the_truth(full_width):
    """A Rayleigh quotient is below σ₁²/‖S‖², and within 20 % of it when every segment is new text."""
    for segment in full_width[5:]:
        exact = float((sigmas(segment)[:, 0].square() / segment.grams.total).mean())
        assert 0.8 * exact < float(statistics.spectral_share(segment)) <= exact * (1 + 1e-12)


def test_spectral_share_is_a_rayleigh_quotient(full_width, with_power):
    """Along the leading right singular vector it is σ₁²/‖S‖² to 1e-9; along another direction less."""
    segment = full_width[5]
    exact = cold(segment.grams, 16)
    shares = exact.energies[:, 0] / segment.grams.total
    leading, fourth = (with_power(segment, exact.key[..., column]) for column in (0, 3))
    assert float(statistics.spectral_share(leading)) == pytest.approx(float(shares.mean()), abs=1e-9)
    assert float(statistics.spectral_share(fourth)) < float(shares.mean())


def test_nuclear_share_orders_segments_as_the_nuclear_norm_does(make_rows, make_toy_layer):
    """Rank correlation over 0.9 with Σσ/(√d‖S‖) across layers of different decay; its value is above the truth."""
    found, exact = [], []
    for power in (0.0, 0.3, 0.6, 1.0, 1.5, 2.0):
        layer = make_toy_layer("refreshed")
        stream = layer.fresh()
        rows = [make_rows((heads, 8, 16), seed, power) for seed, heads in enumerate((4, 2, 2))]
        segment = stream.advance(*rows)
        values = sigmas(segment)
        exact.append(float((values.sum(-1) / (4 * torch.linalg.vector_norm(values, dim=-1))).mean()))
        found.append(float(statistics.nuclear_share(segment)))
    assert spearmanr(found, exact).statistic > 0.9
    assert all(high >= low - 1e-9 for high, low in zip(found, exact, strict=True))


def test_nuclear_share_is_the_sum_of_column_norms(full_width):
    """Rows of R_k qᵀ from a triangular factor of the keys themselves, to 1e-6, though only Grams are read."""
    segment = full_width[7]
    factor = torch.linalg.qr(segment.keys.double()).R
    norms = torch.linalg.vector_norm(factor @ segment.queries.double().mT, dim=-1).sum(-1)
    expected = (norms / (4 * segment.grams.total.sqrt())).mean()
    assert float(statistics.nuclear_share(segment)) == pytest.approx(float(expected), abs=1e-6)


def test_drift_tells_a_turned_subspace_from_a_steady_one(make_toy_layer, repeated_text):
    """0 at first and in a calibrated basis, under .06 on repeated text; over .3 when the text turns away."""
    steady = [float(statistics.subspace_drift(segment)) for segment in repeated_text]
    assert steady[0] == 0
    assert max(steady) < 0.06
    calibrated = make_toy_layer("calibrated").run()[-1]
    assert float(statistics.subspace_drift(calibrated)) == pytest.approx(0, abs=1e-9)
    layer = make_toy_layer("refreshed")
    turn = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(0))).Q
    tensors = [torch.cat([tensor[:, :40], 30 * tensor[:, 40:] @ turn], dim=1) for tensor in layer.tensors]
    turned = run_stream(layer.fresh(), tensors, layer.segments)[-1]
    assert float(statistics.subspace_drift(turned)) > 0.3


def test_every_statistic_is_finite_about_unit_scale_and_priced(toy_layer):
    """Shape as declared, within [-0.1, 1.1], a positive cost and a source: what the observation relies on."""
    for segment in toy_layer.run():
        for name, statistic in STATISTICS.items():
            found = statistic.function(segment)
            assert found.shape == ((4,) if statistic.per_rank else ()), name
            assert bool(((found > -0.1) & (found < 1.1)).all()), name
            assert statistic.flops(segment.settings.shape, segment.settings.width) > 0
            assert statistic.source


def test_statistics_of_no_scores_are_finite(make_toy_layer):
    """All-zero queries: no NaN reaches an observation."""
    layer = make_toy_layer("refreshed")
    queries, keys, values = (tensor[:, :8] for tensor in layer.tensors)
    segment = layer.fresh().advance(0 * queries, keys, values)
    for name, statistic in STATISTICS.items():
        assert bool(torch.isfinite(statistic.function(segment)).all()), name
