"""The fitted artefact: the same each time, whole or refused, nested, and better than decomposing q and k apart."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from drrl_env.data.instances import instances, token_ids
from drrl_env.lowrank.attention import project
from drrl_env.lowrank.grams import gram, group_queries
from drrl_env.lowrank.weights import weight_statistics
from drrl_env.models.calibration import (
    EMBEDDING_COMPONENTS,
    Calibration,
    calibrate,
    load_calibration,
    save_calibration,
)
from drrl_env.models.capture import capture
from drrl_env.models.language_model import LanguageModel, bundled_folder, projection_weights

SEGMENT, SPAN, SPANS = 32, 192, 6


@pytest.fixture(scope="session")
def texts(bundled: LanguageModel) -> list[Tensor]:
    """Spans of the train split, (192,) each."""
    spans = instances("train")[:SPANS]
    return [torch.as_tensor(token_ids(span, bundled.tokenizer, SPAN)) for span in spans]


@pytest.fixture(scope="session")
def fitted(request: pytest.FixtureRequest, texts: list[Tensor]) -> dict[str, Calibration]:
    """A calibration of each model."""
    models = {name: request.getfixturevalue(name) for name in ("bundled", "gpt2", "llama")}
    return {model.name: calibrate(model, texts, SEGMENT, progress=False) for model in models.values()}


def test_calibrating_twice_gives_the_same_bits(llama: LanguageModel, texts: list[Tensor]) -> None:
    """The digest is the same; another text gives another."""
    first, second = (calibrate(llama, texts, SEGMENT, progress=False) for _ in range(2))
    assert first.digest() == second.digest()
    assert calibrate(llama, texts[:-1], SEGMENT, progress=False).digest() != first.digest()


def test_a_saved_calibration_comes_back_bit_for_bit(
    model: LanguageModel, fitted: dict[str, Calibration], tmp_path: Path
) -> None:
    """Its digest and that of the model survive, and no partial file stays behind."""
    path = tmp_path / "calibration.safetensors"
    save_calibration(fitted[model.name], path)
    found = load_calibration(path)
    assert found.digest() == fitted[model.name].digest()
    assert found.model_digest == fitted[model.name].model_digest == model.digest
    assert list(tmp_path.iterdir()) == [path]


def flip_a_bit(path: Path) -> None:
    """What a failing disk does: safetensors itself does not notice."""
    raw = bytearray(path.read_bytes())
    raw[-10] ^= 1
    path.write_bytes(bytes(raw))


def drop_a_tensor(path: Path) -> None:
    """A file of another version."""
    with safe_open(path, "pt") as file:
        kept = {name: file.get_tensor(name) for name in file.keys() if name != "weights"}  # noqa: SIM118
        facts = file.metadata()
    save_file(kept, path, metadata=facts)


def drop_the_model(path: Path) -> None:
    """A file that does not say whose weights it was fitted to."""
    with safe_open(path, "pt") as file:
        kept = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        digest = file.metadata()["digest"]
    save_file(kept, path, metadata={"digest": digest})


@pytest.mark.parametrize(
    "damage",
    [
        flip_a_bit,
        drop_a_tensor,
        drop_the_model,
        lambda path: path.write_bytes(path.read_bytes()[:-100]),
        lambda path: path.unlink(),
    ],
)
def test_a_damaged_calibration_is_refused_in_one_line(
    llama: LanguageModel, fitted: dict[str, Calibration], tmp_path: Path, damage: object
) -> None:
    """A flipped bit, no tensor, no model, a short file, no file: each names the file and says to delete it."""
    path = tmp_path / "calibration.safetensors"
    save_calibration(fitted[llama.name], path)
    damage(path)  # type: ignore[operator]
    with pytest.raises(ValueError, match="delete it to fit anew") as error:
        load_calibration(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_value_ranks_rise_with_the_rank_and_end_full(model: LanguageModel, fitted: dict[str, Calibration]) -> None:
    """One per rank 0..dim, between 1 and dim, never falling."""
    dim = model.shape(SEGMENT).dim
    for table in fitted[model.name].value_ranks.values():
        assert table.shape == (model.layers, dim + 1)
        assert bool((table.diff(dim=-1) >= 0).all())
        assert bool((table[:, 0] >= 1).all())
        assert bool((table[:, -1] == dim).all())


def score_errors(model: LanguageModel, calibration: Calibration, ids: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Relative error of q kᵀ per layer at a rank: by the calibrated basis, and by q and k decomposed apart."""
    kv_heads, found = model.shape(SEGMENT).kv_heads, []
    for bases, (queries, keys, _) in zip(calibration.layers, capture(model.network, ids).layers, strict=True):
        grouped = group_queries(queries, kv_heads)
        wanted = grouped @ keys.mT
        ours = project(grouped, bases.query[..., :rank]) @ project(keys, bases.key[..., :rank]).mT
        apart = _truncated(grouped, rank) @ _truncated(keys, rank).mT
        found.append([float((scores - wanted).norm() / wanted.norm()) for scores in (ours, apart)])
    errors = torch.tensor(found)
    return errors[:, 0], errors[:, 1]


def _truncated(rows: Tensor, rank: int) -> Tensor:
    """The best rank-r approximation of these very rows, which no run-time method can have."""
    vectors = torch.linalg.eigh(gram(rows)).eigenvectors[..., -rank:].to(rows.dtype)
    return rows @ vectors @ vectors.mT


def test_bases_nest(model: LanguageModel, fitted: dict[str, Calibration], texts: list[Tensor]) -> None:
    """On the calibration text the error never rises from a rank to the next and is 1e-3 at full rank."""
    dim = model.shape(SEGMENT).dim
    ranks = [dim // 8, dim // 4, dim // 2, dim]
    errors = torch.stack([score_errors(model, fitted[model.name], texts[0], rank)[0] for rank in ranks])
    assert bool((errors.diff(dim=0) < 0).all())
    assert bool((errors[-1] < 1e-3).all())


def test_bases_beat_decomposing_q_and_k_apart_on_held_text(
    bundled: LanguageModel, fitted: dict[str, Calibration], ids: Tensor
) -> None:
    """At a quarter of the rank, mean over layers, although separate truncation is fitted to the held text itself."""
    ours, apart = score_errors(bundled, fitted["bundled"], ids, 16)
    assert ours.mean() < apart.mean()


def test_embeddings_are_whitened_on_the_calibration_text(
    model: LanguageModel, fitted: dict[str, Calibration], texts: list[Tensor]
) -> None:
    """Mean 0 and covariance I in all 16 components, to 1e-3."""
    found = fitted[model.name]
    tokens = torch.cat([capture(model.network, text).embeddings for text in texts]).double()
    coordinates = (tokens - found.embedding_mean) @ found.embedding_components.double()
    covariance = coordinates.mT @ coordinates / len(coordinates)
    assert found.embedding_components.shape == (tokens.shape[-1], EMBEDDING_COMPONENTS)
    assert float(coordinates.mean(0).abs().max()) < 1e-3
    assert float((covariance - torch.eye(EMBEDDING_COMPONENTS)).abs().max()) < 1e-3


def test_the_shipped_calibration_is_of_the_shipped_weights(bundled: LanguageModel) -> None:
    """It carries their digest, and its weight statistics agree to 1e-4; weights trained on without refitting do not."""
    shipped = load_calibration(bundled_folder() / "calibration.safetensors")
    assert shipped.model_digest == bundled.digest
    for layer in range(bundled.layers):
        fresh = weight_statistics(projection_weights(bundled.network, layer)).float()
        torch.testing.assert_close(shipped.weights[layer], fresh, rtol=1e-4, atol=1e-5)
