"""A world is made of parts that belong together, or not at all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from drrl_env.envs.settings import Measurement
from drrl_env.envs.world import calibration_path, open_world
from drrl_env.lowrank.flops import BASES
from drrl_env.models.calibration import save_calibration
from drrl_env.models.language_model import load_language_model


def test_a_calibration_of_other_weights_is_refused_although_its_sizes_fit(
    llama_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model trained on under the same name would run with bases of what it was."""
    monkeypatch.setenv("DRRL_CACHE", str(tmp_path))
    measurement = Measurement(str(llama_folder), segment=32, context=64)
    found = open_world(measurement)
    path = calibration_path(measurement, found.model)
    open_world.cache_clear()
    assert open_world(measurement).calibration.model_digest == found.model.digest
    save_calibration(replace(found.calibration, model_digest="0123456789abcdef"), path)
    open_world.cache_clear()
    with pytest.raises(ValueError, match="fitted to another model; delete it to fit anew") as error:
        open_world(measurement)
    assert str(path) in str(error.value)
    assert found.model.digest == load_language_model(str(llama_folder)).digest


def test_each_kind_of_basis_brings_its_own_value_ranks() -> None:
    """As calibrated for it, equal ranks otherwise; `streams` is that of the measurement's basis."""
    for basis in BASES:
        world = open_world(Measurement(context=512, basis=basis))
        assert world.streams == world.streams_of(basis)
        for kind in BASES:
            table = world.calibration.value_ranks[kind]
            for layer, stream in enumerate(world.streams_of(kind)):
                assert stream.basis == kind
                assert stream.ranks == world.ranks
                wanted = table[layer][torch.tensor(stream.ranks)].tolist()
                assert [cost.value_rank for cost in stream.costs] == wanted
