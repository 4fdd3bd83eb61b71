"""What the offline bases of the literature are made of, fitted once per model on the calibration text.

An artefact of its own: the calibration, on which every measured number depends, stays what it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor
from tqdm import tqdm

from drrl_env.lowrank.offline import Subspaces, subspaces
from drrl_env.models.artefact import load_artefact, save_artefact
from drrl_env.models.calibration import Moments
from drrl_env.models.capture import capture
from drrl_env.models.language_model import LanguageModel


@dataclass(frozen=True)
class Directions:
    """Principal directions of a model's queries and keys.

    Attributes:
        layers: of each layer, float32.
        model_digest: digest of the weights they were fitted to; see `LanguageModel.digest`.
    """

    layers: tuple[Subspaces, ...]
    model_digest: str


def fit_directions(model: LanguageModel, texts: Sequence[Tensor], progress: bool = True) -> Directions:
    """Fits them on the texts that the calibration is fitted on.

    Args:
        model: the model.
        texts: token ids of calibration spans, each (tokens,), of the train split.
        progress: whether to show a progress bar.
    """
    moments, shape = Moments(), model.shape(segment=1)  # only its heads matter here
    for ids in tqdm(texts, desc="fitting offline bases", disable=not progress):
        moments.add(capture(model.network, ids), shape)
    exact = [subspaces(grams) for grams in moments.grams()]
    return Directions(tuple(Subspaces(found.query.float(), found.key.float()) for found in exact), model.digest)


def save_directions(found: Directions, path: Path) -> None:
    """Writes the artefact as safetensors, atomically."""
    tensors = {f"{index}.query": layer.query for index, layer in enumerate(found.layers)}
    tensors |= {f"{index}.key": layer.key for index, layer in enumerate(found.layers)}
    save_artefact(tensors, found.model_digest, path)


def load_directions(path: Path) -> Directions:
    """Reads an artefact.

    Raises:
        ValueError: the file is damaged; one line with the remedy.
    """
    return load_artefact("offline bases", path, _from_tensors)


def _from_tensors(tensors: dict[str, Tensor], model_digest: str) -> Directions:
    count = sum(name.endswith(".query") for name in tensors)
    layers = (Subspaces(tensors[f"{index}.query"], tensors[f"{index}.key"]) for index in range(count))
    return Directions(tuple(layers), model_digest)
