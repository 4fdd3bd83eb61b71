"""Documents as units: which of them a guard is fitted and calibrated on, and what is measured on each.

A document is read from its beginning, up to the context, in whole segments. Every one is measured once and kept in
the cache folder, so that a run that was stopped goes on where it was.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from drrl_env.data.corpus import Document
from drrl_env.data.instances import Instance, documents, instance_text, instances, manifest
from drrl_env.envs.predictor import Record, segment_evidence
from drrl_env.envs.settings import Measurement
from drrl_env.envs.world import CALIBRATION_SPANS, World, cache_folder
from drrl_env.lowrank.attention import relative_error
from drrl_env.lowrank.segment import Segment
from drrl_env.lowrank.stream import LayerStream
from drrl_env.lowrank.version import ENGINE_VERSION
from drrl_env.models.capture import capture
from drrl_env.models.language_model import BUNDLED

FORMAT = 1
"""Raised when a probe measures something else: nothing kept from before is read again; see also `ENGINE_VERSION`."""


@dataclass(frozen=True)
class Parts:
    """Documents by what they are for; no document is in both.

    Attributes:
        predictor: documents that the calibrated bases have seen: the predictor is fitted on them.
        calibration: the other documents of the train split and all of the validation split: neither bases nor
            predictor have seen them, so they are exchangeable with a new document of the same sort.
    """

    predictor: tuple[Document, ...]
    calibration: tuple[Document, ...]


def parts(world: World) -> Parts:
    """The documents a guard is made of; the test split is never among them."""
    seen = _seen_by_bases(world)
    train = documents("train")
    unseen = tuple(document for document in train if document.name not in seen)
    return Parts(tuple(d for d in train if d.name in seen), unseen + documents("validation"))


def _seen_by_bases(world: World) -> set[str]:
    """Names of the documents in which the calibration spans lie, as far as they were read."""
    context = (Measurement() if world.measurement.model == BUNDLED else world.measurement).context
    spans = instances("train")[:CALIBRATION_SPANS]
    return {name for span in spans for name in _documents_read(span, _characters_read(world, span, context))}


def _characters_read(world: World, span: Instance, tokens: int) -> int:
    """Characters of the first `tokens` tokens of a span."""
    tokenizer, characters, ends = world.model.tokenizer, 4 * tokens, list[int]()
    while len(ends) < tokens:
        characters *= 2
        text = instance_text(span, characters)
        found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        ends = [int(end) for _, end in found["offset_mapping"]]
    return ends[tokens - 1]


def _documents_read(span: Instance, characters: int) -> Iterator[str]:
    """Documents that the first characters of a span come from; a span that reads on does so in whole laps."""
    laps = -(-characters // sum(piece.length for piece in span.pieces))
    for piece in span.pieces:
        stop = piece.start + laps * piece.length
        for name, start, length in manifest()["streams"][piece.stream]["documents"]:
            if start < stop and piece.start < start + length:
                yield name


def document_ids(world: World, document: Document) -> Tensor:
    """The document's tokens from its beginning, whole segments of them, at most the context, (tokens,), int64."""
    measurement, tokenizer = world.measurement, world.model.tokenizer
    bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    ids = [*bos, *tokenizer(document.text, add_special_tokens=False, verbose=False)["input_ids"]]
    whole = min(len(ids), measurement.context) // measurement.segment * measurement.segment
    return torch.tensor(ids[:whole], dtype=torch.int64)


@dataclass(frozen=True)
class Probe:
    """What is measured of every segment.

    Attributes:
        name: names it in the cache.
        function: of a segment, arrays by name.
    """

    name: str
    function: Callable[[Segment], Mapping[str, Tensor]]


def _guard_numbers(segment: Segment) -> dict[str, Tensor]:
    """Errors of the reduced ranks and the evidence to predict them from, float64."""
    reduced = range(len(segment.settings.ranks) - 1)
    errors = [relative_error(segment.moments(choice)) for choice in reduced]
    return {"errors": torch.tensor(errors, dtype=torch.float64), "evidence": segment_evidence(segment)}


GUARD_PROBE = Probe("guard", _guard_numbers)
"""What a conformal guard is fitted on."""


def measure_documents(
    world: World, found: Iterable[Document], probe: Probe = GUARD_PROBE, progress: bool = True
) -> list[Record]:
    """Measures documents, or reads what was measured before; a second or two for each that is new.

    Args:
        world: model, calibration and settings.
        found: the documents; those shorter than one segment are left out.
        probe: what to measure.
        progress: whether to show a progress bar when something is to be measured.

    Returns:
        A record for each document that holds a segment, in their order.
    """
    folder = _folder(world, probe)
    wanted = [document for document in found if len(document_ids(world, document))]
    new = [document for document in wanted if _kept(folder, document) is None]
    for document in tqdm(new, desc="measuring documents", unit="document", disable=not (progress and new)):
        _keep(folder, document, measure_document(world, document, probe))
    kept = [_kept(folder, document) for document in wanted]
    return [record for record in kept if record is not None]


@torch.inference_mode()
def measure_document(world: World, document: Document, probe: Probe = GUARD_PROBE) -> Record:
    """Captures a document once and measures every layer's segments, each array (layers, segments, ...)."""
    ids = document_ids(world, document)
    shown = capture(world.model.network, ids)
    layers = [_layer_numbers(world, layer, tensors, probe) for layer, tensors in enumerate(shown.layers)]
    stacked = {name: torch.stack([numbers[name] for numbers in layers]).numpy() for name in layers[0]}
    return Record(document.name, document.kind, stacked)


def _layer_numbers(world: World, layer: int, tensors: tuple[Tensor, ...], probe: Probe) -> dict[str, Tensor]:
    """What the probe sees of a layer, each array (segments, ...)."""
    size, tokens = world.measurement.segment, tensors[0].shape[-2]
    stream = LayerStream(world.streams[layer], world.calibration.layers[layer], tokens)
    rows = [probe.function(stream.advance(*(t[:, k : k + size] for t in tensors))) for k in range(0, tokens, size)]
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def world_key(world: World) -> str:
    """A name for everything that a measured document depends on but its length, 16 hex digits."""
    costs = [[(cost.rank, cost.value_rank) for cost in stream.costs] for stream in world.streams]
    digests = (world.model.digest, world.calibration.digest())
    facts = (FORMAT, ENGINE_VERSION, *digests, world.measurement.segment, world.measurement.basis, costs)
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def _folder(world: World, probe: Probe) -> Path:
    found = cache_folder() / "documents" / f"{world_key(world)}-{world.measurement.context}" / probe.name
    try:
        found.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        place = str(cache_folder())
        raise ValueError(f"DRRL_CACHE={place!r}: {error.strerror}; set it to a folder you can write to") from error
    return found


def _file(folder: Path, document: Document) -> Path:
    return folder / f"{hashlib.sha256(document.text.encode()).hexdigest()[:16]}.safetensors"


def _kept(folder: Path, document: Document) -> Record | None:
    """What was measured before; None if nothing was, or nothing that can be read."""
    try:
        numbers = load_file(_file(folder, document))
    except (OSError, SafetensorError):
        return None
    return Record(document.name, document.kind, {name: np.asarray(array) for name, array in numbers.items()})


def _keep(folder: Path, document: Document, record: Record) -> None:
    """Writes a record atomically: others may measure the same document at the same time."""
    path = _file(folder, document)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    save_file({name: np.ascontiguousarray(array) for name, array in record.numbers.items()}, partial)
    partial.replace(path)
