"""What every test shares: one thread, reproducible random examples, and the bundled model's real layers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import hypothesis
import pytest
import torch
from torch import Tensor

from drrl_env.data.instances import instances
from drrl_env.envs.settings import Measurement
from drrl_env.envs.world import open_world
from drrl_env.lowrank.flops import AttentionShape
from drrl_env.lowrank.stream import LayerBases
from drrl_env.models.capture import capture

torch.set_num_threads(1)
hypothesis.settings.register_profile("drrl", deadline=None, derandomize=True, database=None, print_blob=True)
hypothesis.settings.load_profile("drrl")

KINDS_OF_TEXT = 4


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test reads, fills or clears the user's cache, and none replays what another left on disk unless it says so."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DRRL_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("DRRL_TRACES", "off")  # what is computed anew in a test is computed, not read
        yield


@dataclass(frozen=True)
class RealLayers:
    """The bundled model's attention on text it never saw.

    Attributes:
        shape: sizes of its layers for segments of 128 tokens.
        bases: the shipped calibrated bases per layer.
        spans: per span and layer (queries, keys, values), (heads, 2048, dim) and (kv_heads, 2048, dim).
    """

    shape: AttentionShape
    bases: tuple[LayerBases, ...]
    spans: tuple[tuple[tuple[Tensor, Tensor, Tensor], ...], ...]


@pytest.fixture(scope="session")
def bundled_layers() -> RealLayers:
    """Every layer of the bundled model on one validation span of each kind of text, as shipped."""
    world = open_world(Measurement())
    found = [world.token_ids(span) for span in instances("validation")[:KINDS_OF_TEXT]]
    spans = tuple(capture(world.model.network, ids).layers for ids in found)
    return RealLayers(world.shape, world.calibration.layers, spans)
