"""`drrl bench update`: the incremental update against decomposing anew, in time and in quality of the output."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from statistics import mean, median

import torch
from torch import Tensor
from tqdm import tqdm

from drrl_agents.bench.report import Row
from drrl_env.data.instances import instances
from drrl_env.envs.settings import Measurement
from drrl_env.envs.world import World, open_world
from drrl_env.lowrank.attention import project, relative_error
from drrl_env.lowrank.bases import cold, refresh
from drrl_env.lowrank.flops import RankCost
from drrl_env.lowrank.grams import Grams, gram, update_grams
from drrl_env.lowrank.stream import LayerStream, Segment, StreamSettings, run_stream
from drrl_env.models.capture import capture

HEADS, DIM, SEGMENT, WIDTH = 12, 64, 128, 32
KEYS = (512, 2048, 4096, 16384)
ROUNDS, QUICK_REPEATS = 15, 5
QUALITY_RANKS, QUALITY_SPANS = (16, 24, 32, 40), 2

UPDATE = "incremental update (Grams and warm step)"
COLD = "Gram update and cold decomposition"
PROJECTION = "re-projection of the cached keys"
FLOAT32 = "float32 SVDs of the segment's q and of k"
FLOAT32_ALL = "float32 SVDs of q and k, both of n tokens"
FLOAT64 = "float64 SVDs of the segment's q and of k"
QUICK = (UPDATE, COLD, PROJECTION)

Works = Mapping[str, Callable[[], object]]


def run(threads: int = 1) -> list[Row]:
    """Times every variant in turns, and compares what their bases do to real layers' output."""
    torch.set_num_threads(threads)
    times = measure({keys: works(keys) for keys in KEYS})
    return [*_ratio_rows(times), *_time_rows(times), *_quality_rows()]


@dataclass(frozen=True)
class Layer:
    """A layer of random queries and keys whose spectrum decays as real ones do.

    Attributes:
        queries: of n tokens, (heads, keys, dim); the segment's are the last.
        keys: (heads, keys, dim).
        held: Gram of the keys before the segment.
        start: columns a warm step begins from, (heads, dim, width).
    """

    queries: Tensor
    keys: Tensor
    held: Tensor
    start: Tensor

    @property
    def segment(self) -> tuple[Tensor, Tensor]:
        """Queries and keys of the segment."""
        return self.queries[:, -SEGMENT:].contiguous(), self.keys[:, -SEGMENT:].contiguous()


def random_layer(keys: int) -> Layer:
    """A layer that holds `keys` keys, its last segment new."""
    random = torch.Generator().manual_seed(keys)
    decay = torch.arange(1, DIM + 1) ** -0.5
    q, k, other = (torch.randn(HEADS, keys, DIM, generator=random) * decay for _ in range(3))
    start = cold(Grams(gram(q), gram(other)), WIDTH).key
    return Layer(q, k, gram(k[:, :-SEGMENT]), start)


def works(keys: int) -> Works:
    """What is timed on a layer of that many keys, by name."""
    layer = random_layer(keys)
    queries, new = layer.segment
    basis = _update(layer, queries, new, "warm")
    return {
        UPDATE: partial(_update, layer, queries, new, "warm"),
        COLD: partial(_update, layer, queries, new, "cold"),
        PROJECTION: partial(project, layer.keys, basis),
        FLOAT32: partial(_decompose, queries, layer.keys),
        FLOAT32_ALL: partial(_decompose, layer.queries, layer.keys),
        FLOAT64: partial(_decompose, queries.double(), layer.keys.double()),
    }


def _update(layer: Layer, queries: Tensor, new: Tensor, method: str) -> Tensor:
    """The segment's work: the new rows into the Grams, and the basis refreshed."""
    return refresh(update_grams(layer.held, queries, new), layer.start, method).key


def _decompose(*matrices: Tensor) -> None:
    for matrix in matrices:
        torch.linalg.svd(matrix, full_matrices=False)


def measure(layers: Mapping[int, Works], rounds: int = ROUNDS) -> dict[tuple[str, int], float]:
    """Median seconds by (name, keys); variants take turns, so that a busy moment hits all of them."""
    found: dict[tuple[str, int], list[float]] = {}
    for _ in tqdm(range(rounds), desc="timing"):
        for _ in range(QUICK_REPEATS):
            _time_once(layers, QUICK, found)
        _time_once(layers, (FLOAT32, FLOAT32_ALL, FLOAT64), found)
    return {case: median(seconds) for case, seconds in found.items()}


def _time_once(layers: Mapping[int, Works], names: tuple[str, ...], found: dict[tuple[str, int], list[float]]) -> None:
    for name in names:
        for keys, work in layers.items():
            if name in QUICK:
                work[name]()  # what ran before has filled the cache with its own numbers
            started = time.perf_counter()
            work[name]()
            found.setdefault((name, keys), []).append(time.perf_counter() - started)


def _ratio_rows(times: Mapping[tuple[str, int], float]) -> list[Row]:
    def ratio(name: str, keys: int) -> float:
        return times[name, keys] / times[UPDATE, keys]

    flat = times[UPDATE, KEYS[-1]] / times[UPDATE, KEYS[0]]
    at = 4096
    speed = ratio(FLOAT32_ALL, at)
    return [
        Row(f"{FLOAT32_ALL} over update, n={at}", speed, "ratio", ">= 40", speed >= 40),
        *(Row(f"{FLOAT32_ALL} over update, n={n}", ratio(FLOAT32_ALL, n), "ratio") for n in KEYS if n != at),
        *(Row(f"{name} over update, n={at}", ratio(name, at), "ratio") for name in (FLOAT32, FLOAT64, COLD)),
        Row(f"update at n={KEYS[-1]} over n={KEYS[0]}", flat, "ratio", "<= 1.3", flat <= 1.3),
    ]


def _time_rows(times: Mapping[tuple[str, int], float]) -> list[Row]:
    return [Row(f"{name}, n={keys}", 1e3 * seconds, "ms") for (name, keys), seconds in times.items()]


def _quality_rows() -> list[Row]:
    """Relative error of the output with full values, mean over the bundled model's layers, on validation text."""
    world = open_world(Measurement())
    spans = [capture(world.model.network, world.token_ids(span)) for span in instances("validation")[:QUALITY_SPANS]]
    cases = [(layer, span.layers[layer]) for span in spans for layer in range(world.layers)]
    errors: dict[tuple[str, int], list[float]] = {}
    for layer, tensors in tqdm(cases, desc="quality"):
        for case, error in layer_errors(world, layer, tensors).items():
            errors.setdefault(case, []).append(error)
    return [
        Row(f"relative error of the output, rank {rank}, {way}", mean(found), "ratio")
        for (way, rank), found in sorted(errors.items(), key=lambda item: item[0][1])
    ]


def layer_errors(world: World, layer: int, tensors: tuple[Tensor, Tensor, Tensor]) -> dict[tuple[str, int], float]:
    """Relative error by (warm, cold or calibrated, rank) of one layer over every fourth segment of a span."""
    full = world.shape.value_dim
    costs = tuple(RankCost(rank, full) for rank in QUALITY_RANKS)
    ways = {"warm": StreamSettings(world.shape, costs, "refreshed")}
    ways["calibrated"] = replace(ways["warm"], basis="calibrated")
    bases, tokens = world.calibration.layers[layer], tensors[1].shape[-2]
    segments = {way: _every_fourth(LayerStream(s, bases, tokens), tensors) for way, s in ways.items()}
    segments["cold"] = [replace(found, basis=cold(found.grams, found.basis.width)) for found in segments["warm"]]
    return {
        (way, rank): relative_error(torch.cat([segment.moments(choice) for segment in found]))
        for way, found in segments.items()
        for choice, rank in enumerate(QUALITY_RANKS)
    }


def _every_fourth(stream: LayerStream, tensors: tuple[Tensor, Tensor, Tensor]) -> list[Segment]:
    count = tensors[1].shape[-2] // stream.settings.shape.segment
    return run_stream(stream, tensors, count)[3::4]
