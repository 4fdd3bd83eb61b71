"""The offline bases' artefact: whole or refused, of the very text and weights, and no better than the product SVD."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from drrl_env.data.instances import instances, token_ids
from drrl_env.envs.settings import Measurement
from drrl_env.envs.world import calibration_texts, directions_path
from drrl_env.lowrank.changes import score_products
from drrl_env.lowrank.offline import OFFLINE
from drrl_env.lowrank.segment import LayerBases, calibrated_basis
from drrl_env.models.calibration import Moments
from drrl_env.models.capture import capture
from drrl_env.models.language_model import LanguageModel
from drrl_env.models.offline import Directions, fit_directions, load_directions, save_directions

SPAN, SPANS = 192, 3


@pytest.fixture(scope="session")
def spans(bundled: LanguageModel) -> list[Tensor]:
    """Spans of the train split, (192,) each, read by the tokenizer that all three models share."""
    return [torch.as_tensor(token_ids(span, bundled.tokenizer, SPAN)) for span in instances("train")[:SPANS]]


@pytest.fixture
def directions(model: LanguageModel, spans: list[Tensor]) -> Directions:
    """Those of each model in turn."""
    return fit_directions(model, spans, progress=False)


def test_a_saved_artefact_comes_back_bit_for_bit(directions: Directions, tmp_path: Path) -> None:
    """Every tensor and the model's digest; no partial file stays behind."""
    path = tmp_path / "directions.safetensors"
    save_directions(directions, path)
    found = load_directions(path)
    assert found.model_digest == directions.model_digest
    for one, two in zip(found.layers, directions.layers, strict=True):
        assert torch.equal(one.query, two.query)
        assert torch.equal(one.key, two.key)
    assert list(tmp_path.iterdir()) == [path]


def test_a_damaged_artefact_is_refused_in_one_line(directions: Directions, tmp_path: Path) -> None:
    """A flipped bit, a short file, no file."""
    path = tmp_path / "directions.safetensors"
    save_directions(directions, path)
    raw = path.read_bytes()
    for damaged in (raw[:-10] + bytes([raw[-10] ^ 1]) + raw[-9:], raw[:-100], None):
        path.unlink() if damaged is None else path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"^offline bases='.*delete it to fit anew$"):
            load_directions(path)


def test_the_product_svd_loses_no_more_on_the_calibration_text(
    model: LanguageModel, directions: Directions, spans: list[Tensor]
) -> None:
    """Mean ‖S − S_r‖ over heads in the metric of the summed Grams, every layer and rank; a tenth less at dim/4.

    Heads of the randomly initialised models have no structure to find: there it is only never more.
    """
    moments = Moments()
    for ids in spans:
        moments.add(capture(model.network, ids), model.shape(1))
    dim = model.shape(1).dim
    layers = zip(moments.grams(), moments.bases(), directions.layers, strict=True)
    for grams, ours, found in layers:
        theirs = {name: make(found, ours.value) for name, make in OFFLINE.items()}
        lost = {name: residuals(bases, grams, dim) for name, bases in {"ours": ours, **theirs}.items()}
        for name in theirs:
            assert bool((lost["ours"] <= lost[name] + 1e-6 * grams.total[:, None]).all())
            gained = 1 - lost["ours"][:, dim // 4].sum() / lost[name][:, dim // 4].sum()
            assert float(gained) > (0.1 if model.name == "bundled" else 0)


def residuals(bases: LayerBases, grams: object, dim: int) -> Tensor:
    """‖S − S_r‖² of every rank from 0, (kv_heads, dim + 1)."""
    return score_products(calibrated_basis(bases, dim), grams).residuals  # type: ignore[arg-type]


def test_the_shipped_artefact_is_of_the_shipped_weights(bundled: LanguageModel) -> None:
    """It carries their digest, and its directions are orthonormal to 1e-5."""
    shipped = load_directions(directions_path(Measurement(), bundled))
    assert shipped.model_digest == bundled.digest
    assert len(shipped.layers) == bundled.layers
    for layer in shipped.layers:
        for side in (layer.query.double(), layer.key.double()):
            assert torch.allclose(side.mT @ side, torch.eye(64, dtype=torch.float64).expand_as(side), atol=1e-5)


@pytest.mark.slow
def test_the_shipped_artefact_is_what_the_calibration_text_gives(bundled: LanguageModel) -> None:
    """Fitted anew on the 32 spans: every leading subspace with a gap is the same to 1e-3."""
    shipped = load_directions(directions_path(Measurement(), bundled))
    anew = fit_directions(bundled, calibration_texts(bundled, Measurement().context), progress=False)
    for one, two in zip(shipped.layers, anew.layers, strict=True):
        for rank in (8, 24, 40):
            for first, second in ((one.query, two.query), (one.key, two.key)):
                kept = (first[..., :rank].mT @ second[..., :rank]).square().sum((-2, -1)) / rank
                assert float(kept.min()) > 1 - 1e-3
