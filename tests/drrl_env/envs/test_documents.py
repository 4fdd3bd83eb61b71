"""Documents as units: who sees which, how they are read, and that what ships was measured on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from drrl_env.data.corpus import Document
from drrl_env.data.instances import documents, instances, manifest
from drrl_env.envs import conformal
from drrl_env.envs import documents as module
from drrl_env.envs.conformal import SHIPPED, load_fitted, open_guard, running_scores
from drrl_env.envs.documents import (
    GUARD_PROBE,
    Parts,
    Probe,
    document_ids,
    measure_document,
    measure_documents,
    parts,
    world_key,
)
from drrl_env.envs.predictor import evidence_size, segment_evidence
from drrl_env.envs.settings import Guard, Measurement
from drrl_env.envs.world import CALIBRATION_SPANS, World, open_world
from drrl_env.lowrank.flops import BASES
from drrl_env.lowrank.stream import LayerStream

ON_CONTEXT = 512


@pytest.fixture(scope="module")
def world() -> World:
    return open_world(Measurement(context=ON_CONTEXT))


def short(world: World, name: str, tokens: int) -> Document:
    """A document of exactly that many tokens, the one for its beginning included."""
    ids = world.model.tokenizer(documents("test")[0].text, verbose=False)["input_ids"][: tokens - 1]
    return Document(name, "prose", world.model.tokenizer.decode(ids))


def test_nothing_that_calibrates_the_guard_was_seen_before(world: World) -> None:
    """Two hundred documents, none of them read by the bases, fitted on by the predictor, or in the test split."""
    found = parts(world)
    fitted, scored = ({document.name for document in part} for part in (found.predictor, found.calibration))
    assert len(scored) == len(found.calibration) >= 200
    assert not fitted & scored
    assert not scored & {document.name for document in documents("test")}
    texts = {document.text for document in found.calibration}
    for span in instances("train")[:CALIBRATION_SPANS]:
        for piece in span.pieces:
            held = manifest()["streams"][piece.stream]["documents"]
            inside = [name for name, start, _ in held if piece.start <= start < piece.start + piece.length]
            assert not scored & set(inside)
    assert not texts & {document.text for document in found.predictor}


def test_a_longer_context_takes_its_documents_from_calibration(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Spans that read on past their pieces touch what lies behind them: the guard must not be calibrated on it."""
    piece = instances("train")[0].pieces[0]
    names = set(module._documents_read(instances("train")[0], piece.length))
    further = set(module._documents_read(instances("train")[0], 20 * piece.length))
    assert names < further
    monkeypatch.setattr(module, "_characters_read", lambda world, span, tokens: 20 * piece.length)
    assert len(parts(world).calibration) < 200


def test_a_document_is_read_in_whole_segments_up_to_the_context(world: World) -> None:
    """127 tokens are none, 128 one segment, 300 two, and a chapter no more than the context."""
    lengths = [len(document_ids(world, short(world, "made-up/0", tokens))) for tokens in (127, 128, 300)]
    assert lengths == [0, 128, 256]
    chapter = document_ids(world, documents("test")[0])
    assert len(chapter) == ON_CONTEXT
    assert chapter[0] == world.model.tokenizer.bos_token_id


def test_what_was_measured_is_kept_and_read_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second call measures nothing; a damaged file is measured again to the same bits; a short one is left out."""
    found = [short(world, f"made-up/{tokens}", tokens) for tokens in (100, 140)]
    first = measure_documents(world, found, progress=False)
    assert [record.name for record in first] == ["made-up/140"]
    file = module._file(module._folder(world, GUARD_PROBE), found[1])
    file.write_bytes(file.read_bytes()[:50])
    again = measure_documents(world, found, progress=False)
    monkeypatch.setattr(module, "measure_document", lambda *_: pytest.fail("measured a second time"))
    kept = measure_documents(world, found, progress=False)
    for record in (*again, *kept):
        assert {name: array.tobytes() for name, array in record.numbers.items()} == {
            name: array.tobytes() for name, array in first[0].numbers.items()
        }


def test_the_evidence_is_known_before_any_attention_is_computed(world: World) -> None:
    """Never the full-rank output, which is the answer: it is not even worked out, and float64 by hand agrees."""
    torch.manual_seed(0)
    stream = LayerStream(world.streams[1], world.calibration.layers[1], 256)
    for _ in range(2):
        q, k, v = (torch.randn(world.shape.heads, 128, world.shape.dim) + 0.2 for _ in range(3))
        segment = stream.advance(q, k, v)
    evidence = segment_evidence(segment)
    assert not {"full_output", "_projected"} & set(vars(segment))
    assert evidence.shape == (evidence_size(world.shape, len(world.ranks)),)
    rows = evidence.reshape(world.shape.kv_heads, -1)
    scores = segment.queries.double() @ segment.keys.double().mT / world.shape.dim**0.5
    basis = segment.basis.truncate(world.ranks[2])
    low = (segment.queries.double() @ basis.query) @ (segment.keys.double() @ basis.key).mT / world.shape.dim**0.5
    lost = (scores - low).square().sum((-2, -1)) / scores.square().sum((-2, -1))
    mean = segment.values.double().mean(1).square().sum(-1) / segment.values.double().square().sum(-1).mean(-1)
    assert rows[:, 2] == pytest.approx(lost.log10(), abs=1e-6)
    assert rows[:, -2] == pytest.approx(scores.square().mean((-2, -1)).log10(), abs=1e-6)
    assert rows[:, -1] == pytest.approx(mean.log10(), abs=1e-6)


@pytest.mark.parametrize("basis", BASES)
def test_the_shipped_guards_serve_the_default_measurement(basis: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At every context up to the default nothing is measured; a stale file (another engine, model or calibration)
    would send every user into minutes of fitting: make it anew by `python -m drrl_env.envs.conformal`."""
    monkeypatch.setattr(conformal, "fit_world", lambda world: pytest.fail("the shipped guard does not serve"))
    for context in (128, ON_CONTEXT, 2048):
        found = open_guard(open_world(Measurement(basis=basis, context=context)), Guard("conformal"))
        assert found.fitted.scores.shape == (200, 16)
        assert found.quantile > 1


@pytest.mark.parametrize("basis", BASES)
def test_the_shipped_scores_are_those_of_the_documents(basis: str) -> None:
    """A calibration document measured here over 512 tokens scores as in the file, over its first four segments."""
    here = open_world(Measurement(basis=basis, context=ON_CONTEXT))
    fitted = load_fitted(SHIPPED / f"{basis}.safetensors")
    for number in (0, -1):
        record = measure_document(here, parts(here).calibration[number])
        scores = running_scores(fitted.predictor, record, 4)
        assert scores == pytest.approx(fitted.scores[number, :4], abs=2e-3)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> int:
    """Three documents to fit on and nine to calibrate on."""
    conformal._open_fitted.cache_clear()
    test = documents("test")
    monkeypatch.setattr(conformal, "parts", lambda world: Parts(test[:3], test[3:12]))
    return 9


def test_a_users_model_is_fitted_once(few: int, llama_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kept in the cache folder and read again; a confidence beyond 9 documents is refused, naming it."""
    world = open_world(Measurement(str(llama_folder), segment=32, context=128, ranks=(4, 8, 16)))
    first = open_guard(world, Guard("conformal", confidence=0.9))
    assert first.quantile == first.fitted.scores[:, -1].max()
    with pytest.raises(
        ValueError, match=r"^guard\.confidence=0\.95: needs at least 19 .* there are 9; use at most 0\.9"
    ):
        open_guard(world, Guard("conformal", confidence=0.95))
    conformal._open_fitted.cache_clear()
    monkeypatch.setattr(conformal, "fit_world", lambda world: pytest.fail("fitted a second time"))
    again = open_guard(world, Guard("conformal", confidence=0.8))
    assert np.array_equal(again.fitted.scores, first.fitted.scores)
    assert again.quantile == np.sort(first.fitted.scores[:, -1])[7]


@pytest.mark.parametrize(
    "other", [{"segment": 64}, {"basis": "calibrated"}, {"ranks": (8, 64)}, {"value_rank": None}], ids=str
)
def test_another_measurement_is_another_world(world: World, other: dict[str, Any]) -> None:
    """Its numbers are not mixed with these; a context alone changes no number of a segment."""
    assert world_key(open_world(Measurement(context=ON_CONTEXT, **other))) != world_key(world)
    assert world_key(open_world(Measurement(context=1024))) == world_key(world)


def test_a_probe_measures_what_it_is_told(world: World) -> None:
    """Every layer and segment, in order."""
    probe = Probe("position", lambda segment: {"position": torch.tensor(segment.position)})
    record = measure_document(world, short(world, "made-up/0", 300), probe)
    assert record.numbers["position"].tolist() == [[0, 1]] * world.layers
