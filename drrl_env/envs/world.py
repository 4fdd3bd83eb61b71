"""A world: one model, calibrated, under one measurement, and the store of all that was measured in it.

Worlds are process-wide: every environment with the same measurement shares one, and replays its numbers.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from drrl_env.data.instances import Instance, instances, token_ids
from drrl_env.envs.observation import Layout, layout, static_entries
from drrl_env.envs.settings import Measurement, check_ranks
from drrl_env.lowrank.flops import BASES, AttentionShape, RankCost
from drrl_env.lowrank.offline import OFFLINE, priced_as
from drrl_env.lowrank.stream import StreamSettings
from drrl_env.models.calibration import Calibration, calibrate, load_calibration, save_calibration
from drrl_env.models.language_model import BUNDLED, LanguageModel, bundled_folder, load_language_model
from drrl_env.models.offline import Directions, fit_directions, load_directions, save_directions

CALIBRATION_SPANS = 32
"""Spans of the train split on which a model is calibrated."""
CALIBRATION_FILE, DIRECTIONS_FILE = "calibration.safetensors", "directions.safetensors"

Fitted = TypeVar("Fitted", Calibration, Directions)


@dataclass(frozen=True)
class World:
    """Model, calibration and everything derived from a measurement.

    Attributes:
        measurement: the settings, ranks resolved.
        model: the language model.
        calibration: its bases that are fixed at run time: the calibrated ones, or those of the offline basis that the
            measurement names.
        streams_by_basis: stream settings per layer (value ranks differ), for each kind of basis.
        layout: the observation's layout.
    """

    measurement: Measurement
    model: LanguageModel
    calibration: Calibration
    streams_by_basis: Mapping[str, tuple[StreamSettings, ...]]
    layout: Layout

    @cached_property
    def streams(self) -> tuple[StreamSettings, ...]:
        """Stream settings per layer in the measurement's basis."""
        return self.streams_of(self.measurement.basis)

    def streams_of(self, basis: str) -> tuple[StreamSettings, ...]:
        """Stream settings per layer in a basis, whatever the measurement's; an offline one has the calibrated one's."""
        return self.streams_by_basis[priced_as(basis)]

    @property
    def ranks(self) -> tuple[int, ...]:
        """Candidate ranks, ascending; the last is full."""
        return self.streams[0].ranks

    @property
    def layers(self) -> int:
        """Attention layers of the model."""
        return len(self.streams)

    @property
    def shape(self) -> AttentionShape:
        """Sizes of an attention layer."""
        return self.streams[0].shape

    @property
    def segments(self) -> int:
        """Horizon of an episode."""
        return self.measurement.segments

    def token_ids(self, instance: Instance) -> Tensor:
        """The instance's tokens, (context,), int64."""
        return torch.as_tensor(token_ids(instance, self.model.tokenizer, self.measurement.context))


@lru_cache(maxsize=8)
def open_world(measurement: Measurement) -> World:
    """Loads and calibrates the model of a measurement, once per process.

    Raises:
        ValueError: an argument is wrong; one line with its name, value and remedy.
    """
    measurement.check()
    model = _language_model(measurement.model)
    shape = model.shape(measurement.segment)
    ranks = check_ranks(measurement.ranks, shape.dim, measurement.model)
    if measurement.context > model.context:
        raise ValueError(
            f"context={measurement.context}: model {measurement.model!r} reads at most {model.context} tokens; "
            f"use context={model.context // measurement.segment * measurement.segment}"
        )
    calibration = _fixed_bases(measurement, model)
    streams = {basis: _streams(replace(measurement, basis=basis), shape, ranks, calibration) for basis in BASES}
    hidden = int(calibration.embedding_mean.shape[0])
    found = layout(static_entries(measurement.statistics, len(ranks), model.layers, shape, hidden))
    return World(replace(measurement, ranks=ranks), model, calibration, streams, found)


@lru_cache(maxsize=4)
def _language_model(name: str) -> LanguageModel:
    return load_language_model(name)


def _streams(
    measurement: Measurement, shape: AttentionShape, ranks: Iterable[int], calibration: Calibration
) -> tuple[StreamSettings, ...]:
    """Stream settings of every layer."""
    tables = calibration.value_ranks[measurement.basis].tolist()
    costs = [[RankCost(r, _value_rank(measurement.value_rank, r, shape, table)) for r in ranks] for table in tables]
    return tuple(StreamSettings(shape, tuple(found), measurement.basis) for found in costs)


def _value_rank(wanted: str | int | None, rank: int, shape: AttentionShape, balanced: list[int]) -> int:
    """The value rank that goes with a rank; full rank always brings full values."""
    if wanted is None or rank >= shape.dim:
        return shape.value_dim
    if wanted == "balanced":
        return balanced[rank]
    return min(shape.value_dim, rank if wanted == "same" else int(wanted))


def calibration_texts(model: LanguageModel, context: int, count: int = CALIBRATION_SPANS) -> list[Tensor]:
    """Token ids of the calibration spans: the first of the train split, kinds alternating."""
    return [torch.as_tensor(token_ids(span, model.tokenizer, context)) for span in instances("train")[:count]]


def _fixed_bases(measurement: Measurement, model: LanguageModel) -> Calibration:
    """The calibration, its score bases exchanged where an offline one of the literature is asked for."""
    found = _calibration(measurement, model)
    if measurement.basis not in OFFLINE:
        return found
    make, fitted = OFFLINE[measurement.basis], _directions(measurement, model).layers
    layers = tuple(make(own, layer.value) for own, layer in zip(fitted, found.layers, strict=True))
    return replace(found, layers=layers)


def _calibration(measurement: Measurement, model: LanguageModel) -> Calibration:
    """The shipped artefact of the bundled model, or one fitted once and kept in the cache folder."""
    path = calibration_path(measurement, model)
    if path.is_file():
        return _fitting(load_calibration(path), model, path)
    sizes = _sizes(measurement)
    _make_writable(path.parent)
    found = calibrate(model, calibration_texts(model, sizes.context), sizes.segment)
    save_calibration(found, path)
    return found


def _directions(measurement: Measurement, model: LanguageModel) -> Directions:
    """The same for what offline bases are made of, fitted when the first of them is asked for."""
    path = directions_path(measurement, model)
    if path.is_file():
        return _fitting(load_directions(path), model, path)
    sizes = _sizes(measurement)
    _make_writable(path.parent)
    found = fit_directions(model, calibration_texts(model, sizes.context))
    save_directions(found, path)
    return found


def _sizes(measurement: Measurement) -> Measurement:
    """Sizes to fit at: what ships with the bundled model must not depend on who asked first."""
    return Measurement() if measurement.model == BUNDLED else measurement


def _fitting(found: Fitted, model: LanguageModel, path: Path) -> Fitted:
    """The artefact, if it was fitted to the model's very weights."""
    if found.model_digest != model.digest:
        raise ValueError(f"calibration={str(path)!r}: it was fitted to another model; delete it to fit anew")
    return found


def _make_writable(folder: Path) -> None:
    """Makes the folder now: a calibration takes a while and should not be lost for want of a place."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"DRRL_CACHE={str(folder)!r}: {error.strerror}; set it to a folder you can write to"
        ) from error
    if not os.access(folder, os.W_OK):
        raise ValueError(f"DRRL_CACHE={str(folder)!r}: not writable; set it to a folder you can write to")


def calibration_path(measurement: Measurement, model: LanguageModel) -> Path:
    """Where the calibration of a model lies."""
    if measurement.model == BUNDLED:
        return bundled_folder() / CALIBRATION_FILE
    name = f"{model.digest}-{measurement.segment}-{measurement.context}.safetensors"
    return cache_folder() / "calibrations" / name


def directions_path(measurement: Measurement, model: LanguageModel) -> Path:
    """Where what its offline bases are made of lies."""
    if measurement.model == BUNDLED:
        return bundled_folder() / DIRECTIONS_FILE
    return cache_folder() / "directions" / calibration_path(measurement, model).name


def cache_folder() -> Path:
    """Where derived files are kept: $DRRL_CACHE, else the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("DRRL_CACHE") or Path(base) / "drrl-env")
