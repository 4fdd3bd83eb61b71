"""The conformal guard: its promise holds where documents are exchangeable, and is caught where it is voided."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from scipy import stats

from drrl_env.envs import conformal
from drrl_env.envs.conformal import (
    ConformalGuard,
    Fitted,
    conformal_quantile,
    exceedances,
    fit_guard,
    load_fitted,
    open_guard,
    order_statistic,
    save_fitted,
)
from drrl_env.envs.predictor import Predictor, Record, fit_predictor
from drrl_env.envs.settings import Guard

PROMISE = (
    "over calibration and a new exchangeable document, the probability that any rank passed as safe anywhere in it "
    "exceeds ε is at most δ; it does not hold conditionally on passing, nor in closed loop"
)
LAYERS, SEGMENTS, REDUCED = 2, 3, 2
MakeRecords = Callable[..., list[Record]]


def synthetic(random: np.random.Generator, count: int, heads: int = 1, segments: int = SEGMENTS) -> list[Record]:
    """Exchangeable documents of one to `segments` segments: the error follows the evidence, a mood of the document's
    and noise with heavy tails."""
    found = []
    for _ in range(count):
        held = int(random.integers(1, segments + 1))
        evidence = random.normal(size=(LAYERS, held, heads * (REDUCED + 2)))
        noise = 0.3 * random.standard_t(3, size=(LAYERS, held, REDUCED)) + 0.3 * random.normal()
        errors = np.exp(evidence[..., :REDUCED] * 0.5 - 2 + noise)
        name = f"made-up/{random.integers(2**62)}"
        found.append(Record(name, "prose", {"errors": errors, "evidence": evidence}))
    return found


def violates(guard: ConformalGuard, record: Record) -> bool:
    """Whether any rank passed as safe anywhere exceeds ε."""
    passed = guard.record_bounds(record)[..., :-1] <= guard.guard.tolerance
    return bool((passed & (record.numbers["errors"] > guard.guard.tolerance)).any())


@pytest.fixture(scope="module")
def fitted() -> Fitted:
    random = np.random.default_rng(1)
    return fit_guard(synthetic(random, 12), synthetic(random, 99), SEGMENTS)


def guard_of(
    fitted: Fitted, tolerance: float = 0.2, confidence: float = 0.9, decay: float | None = None
) -> ConformalGuard:
    settings = Guard("conformal", tolerance=tolerance, confidence=confidence, decay=decay)
    return ConformalGuard(fitted, settings, fitted.quantile(confidence, SEGMENTS))


@pytest.mark.parametrize(
    ("documents", "confidence", "place"),
    [
        (9, 0.9, 9),
        (10, 0.9, 10),
        (10, 0.8, 9),
        (19, 0.95, 19),
        (99, 0.9, 90),
        (200, 0.95, 191),
        (200, 0.9, 181),
        (4, 0.8, 4),
    ],
)
def test_the_quantile_is_the_finite_sample_one(documents: int, confidence: float, place: int) -> None:
    """⌈(m + 1)(1 − δ)⌉ by hand; in floating point 100 · .55 is above 55, and an order statistic would be lost."""
    scores = np.random.default_rng(0).permutation(documents) + 1.0
    assert order_statistic(documents, confidence) == place
    assert conformal_quantile(scores, confidence) == place
    assert order_statistic(99, 0.55) == 55


@pytest.mark.parametrize(("documents", "confidence", "needed"), [(8, 0.9, 9), (18, 0.95, 19), (200, 0.999, 999)])
def test_too_few_documents_for_a_confidence_are_refused(documents: int, confidence: float, needed: int) -> None:
    """δ needs 1/δ − 1 documents: the error names the confidence, how many are needed, how many there are."""
    with pytest.raises(
        ValueError, match=rf"^guard\.confidence={confidence}: .* {needed} .* {documents}; use"
    ) as caught:
        conformal_quantile(np.arange(documents, dtype=float), confidence)
    assert "\n" not in str(caught.value)
    assert order_statistic(needed, confidence) == needed


@pytest.mark.parametrize("confidence", [0.95, 0.9, 0.8])
def test_new_documents_exceed_the_quantile_as_the_beta_binomial_says(confidence: float) -> None:
    """Over 400 draws of calibration and new documents: mean within 4 standard errors, spread within a fifth.

    A quantile one order statistic lower misses the mean at .95; a plain binomial has a third of the variance.
    """
    random = np.random.default_rng(3)
    predictor = fit_predictor(synthetic(random, 12))
    pool = np.array([predictor.scores(record).max() for record in synthetic(random, 20_000)])
    calibration, new, draws = 40, 80, 400
    counts = []
    for _ in range(draws):
        drawn = random.permutation(pool)[: calibration + new]
        counts.append((drawn[calibration:] > conformal_quantile(drawn[:calibration], confidence)).sum())
    law = exceedances(new, confidence, calibration)
    assert abs(np.mean(counts) - law.mean()) < 4 * law.std() / draws**0.5
    assert np.std(counts) == pytest.approx(law.std(), rel=0.2)
    assert law.mean() / new <= 1 - confidence + 1e-12
    assert law.var() > 2.5 * stats.binom(new, 1 - confidence).var() or confidence == 0.95


@pytest.mark.parametrize("tolerance", [0.1, 0.2, 0.4])
def test_violations_are_at_most_delta(tolerance: float) -> None:
    """Calibration drawn anew each time, predictor fitted on other documents: over 150 draws the rate is at most δ = .2.

    Trusting the prediction itself (a quantile of 0) violates in more than a quarter of the documents.
    """
    random = np.random.default_rng(int(100 * tolerance))
    learnt, found, trusting = synthetic(random, 12), [], []
    for _ in range(150):
        guard = guard_of(fit_guard(learnt, synthetic(random, 19), SEGMENTS), tolerance, 0.8)
        new = synthetic(random, 8)
        found += [violates(guard, record) for record in new]
        trusting += [violates(replace(guard, quantile=0.0), record) for record in new]
    assert 0 < np.mean(found) <= 0.2
    assert np.mean(trusting) > 0.25


def test_a_leaky_predictor_is_caught() -> None:
    """Fitted on the calibration documents it knows their noise: the beta-binomial gives so many violations < 1e-4.

    The same documents apart are consistent with δ; and one document in both parts is refused by its name.
    """
    random = np.random.default_rng(5)
    learnt, calibration, new = (synthetic(random, count, heads=12, segments=1) for count in (30, 30, 300))
    disguised = [replace(record, name=f"disguised {record.name}") for record in learnt]
    chances = []
    for scored in (disguised, calibration):
        fitted = fit_guard(learnt, scored, 1)
        above = sum(fitted.predictor.scores(record).max() > fitted.quantile(0.8, 1) for record in new)
        chances.append(exceedances(len(new), 0.8, 30).sf(above - 1))
    assert chances[0] < 1e-4 < 0.05 < chances[1]
    with pytest.raises(ValueError, match=re.escape(learnt[3].name)):
        fit_guard(learnt, [*calibration, learnt[3]], 1)


Evidence = st.lists(st.floats(-12, 12), min_size=REDUCED + 2, max_size=REDUCED + 2).map(np.array)


@given(evidence=Evidence, layer=st.integers(0, LAYERS - 1), position=st.integers(0, 40))
def test_a_mask_shrinks_with_confidence_and_grows_with_tolerance(
    fitted: Fitted, evidence: np.ndarray, layer: int, position: int
) -> None:
    """Never empty: full rank is allowed at any evidence and tolerance, since its bound is 0."""
    masks = [guard_of(fitted, 0.2, level).mask(layer, position, evidence) for level in (0.5, 0.8, 0.9, 0.99)]
    assert all((low >= high).all() for low, high in itertools.pairwise(masks))
    masks = [guard_of(fitted, tolerance).mask(layer, position, evidence) for tolerance in (1e-9, 0.1, 0.2, 0.4, 9)]
    assert all((low <= high).all() for low, high in itertools.pairwise(masks))
    assert all(mask[-1] and len(mask) == REDUCED + 1 for mask in masks)


def test_a_schedule_tightens_the_limit_and_not_the_bound(fitted: Fitted) -> None:
    """ε_t = ε exp(−λ t): at segment 2 the mask is that of a constant guard at ε_2, and the bound is the same."""
    falling, constant = guard_of(fitted, 0.4, decay=0.5), guard_of(fitted, 0.4 * np.exp(-1.0))
    evidence = np.random.default_rng(7).normal(size=(200, REDUCED + 2))
    for row in evidence:
        assert np.array_equal(falling.mask(1, 2, row), constant.mask(1, 2, row))
        assert np.array_equal(falling.bounds(1, 2, row), constant.bounds(1, 2, row))
    assert any(not np.array_equal(falling.mask(1, 0, row), falling.mask(1, 2, row)) for row in evidence)


def test_one_segment_is_bounded_as_the_whole_document_is(fitted: Fitted) -> None:
    """What the promise was calibrated on is what a simulator asks for, bit for bit."""
    guard = guard_of(fitted)
    for record in synthetic(np.random.default_rng(8), 10):
        whole, evidence = guard.record_bounds(record), record.numbers["evidence"]
        for layer, position in np.ndindex(*whole.shape[:2]):
            assert np.array_equal(guard.bounds(layer, position, evidence[layer, position]), whole[layer, position])


def test_scores_of_a_shorter_context_are_those_of_the_first_segments(fitted: Fitted) -> None:
    """A running maximum: never falls, and a document that ends keeps its last score."""
    record = synthetic(np.random.default_rng(9), 1)[0]
    scores = fitted.predictor.scores(record)
    running = conformal.running_scores(fitted.predictor, record, 5)
    assert (np.diff(running) >= 0).all()
    assert running[0] == scores[:, 0].max()
    assert running[-1] == scores.max()
    assert fitted.quantile(0.9, 1) <= fitted.quantile(0.9, SEGMENTS)


def test_the_predictor_finds_a_law_it_can_express() -> None:
    """Errors that are exactly log-linear in the evidence are predicted within 3 %, the ridge's share; a constant
    column (every document one segment) breaks nothing."""
    random = np.random.default_rng(10)
    records = synthetic(random, 40, segments=1)
    exact = [np.exp(0.5 * record.numbers["evidence"][..., :REDUCED] - 2) for record in records]
    clean = [replace(r, numbers={**r.numbers, "errors": errors}) for r, errors in zip(records, exact, strict=True)]
    fitted = fit_predictor(clean[:30])
    for record in clean[30:]:
        assert np.log(fitted.record(record)) == pytest.approx(np.log(record.numbers["errors"]), abs=0.06)
    assert np.isfinite(fitted.coefficients).all()
    with pytest.raises(ValueError, match=r"^documents=1: too few"):
        fit_predictor(clean[:1])


def test_an_artefact_comes_back_as_it_was(fitted: Fitted, tmp_path: Path) -> None:
    """Every number, bit for bit, and the count of documents left out."""
    save_fitted(replace(fitted, left_out=3), tmp_path / "deep" / "guard.safetensors", "key")
    back = load_fitted(tmp_path / "deep" / "guard.safetensors")
    assert np.array_equal(back.predictor.coefficients, fitted.predictor.coefficients)
    assert np.array_equal(back.predictor.spread, fitted.predictor.spread)
    assert np.array_equal(back.scores, fitted.scores)
    assert back.left_out == 3


@pytest.mark.parametrize("damage", ["cut", "flipped", "edited", "incomplete", "not there"])
def test_a_damaged_artefact_is_one_line(fitted: Fitted, tmp_path: Path, damage: str) -> None:
    """Cut short, one byte flipped, written by other hands or gone: the file is named, and the way out."""
    path = tmp_path / "guard.safetensors"
    save_fitted(fitted, path, "key")
    content = path.read_bytes()
    if damage in ("edited", "incomplete"):
        tensors = load_file(path)
        tensors = {name: t for name, t in tensors.items() if damage == "edited" or name != "spread"}
        save_file({**tensors, "scores": tensors["scores"] + 1e-9}, path)
    elif damage == "flipped":
        path.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
    else:
        path.unlink() if damage == "not there" else path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"^guard='.*guard\.safetensors': .*delete it to fit anew$") as caught:
        load_fitted(path)
    assert "\n" not in str(caught.value)


def test_the_promise_is_in_the_words_of_the_design() -> None:
    """In the module, in the guard's own docstring and in the docs; a softer wording would promise more."""
    page = (Path(__file__).parents[3] / "docs" / "guard.md").read_text("utf-8")
    for text in (conformal.__doc__, ConformalGuard.__doc__, page):
        assert PROMISE in " ".join((text or "").split())


def test_the_opened_guard_is_the_fitted_one(fitted: Fitted, monkeypatch: pytest.MonkeyPatch) -> None:
    """`open_guard` adds nothing but the quantile of its confidence over the world's segments."""

    class Short:
        measurement, segments = None, 2

    monkeypatch.setattr(conformal, "_open_fitted", lambda measurement: fitted)
    found = open_guard(Short(), Guard("conformal", confidence=0.8))  # type: ignore[arg-type]
    assert found.quantile == np.sort(fitted.scores[:, 1])[80 - 1]
    assert isinstance(found.fitted.predictor, Predictor)
