"""`drrl bench env`: how fast an environment steps, replayed through every face and live, beside what it is made of."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from statistics import median
from typing import Any

import gymnasium
import numpy as np
import torch
from tqdm import tqdm

from drrl_agents.bench.faces import faces
from drrl_agents.bench.report import Row
from drrl_env.data.instances import Instance
from drrl_env.envs.single import RankEnv
from drrl_env.envs.store import Store, clear_stores
from drrl_env.envs.traces import SWITCH
from drrl_env.lowrank.attention import full_attention
from drrl_env.lowrank.grams import group_queries

ID = "DRRL-Attention-v0"
SPANS, ROUNDS, LANES = 3, 5, 256
REPLAYED_STEPS = 20_000
"""Steps of all lanes together in a round of a replayed face."""


def run(threads: int = 1) -> list[Row]:
    """Measures; medians over interleaved rounds."""
    torch.set_num_threads(threads)
    found = [*_replayed_rows(), *_live_rows(), *_disk_rows()]
    clear_stores()
    return found


def _replayed_rows() -> list[Row]:
    """Every face on the same remembered spans, a round of each after the other; the first round warms up."""
    env, store = _fresh_env()
    store.fill(env.unwrapped.pool, progress=False)
    known = faces(ID, LANES, REPLAYED_STEPS, instances=SPANS)
    rates: dict[str, list[float]] = {face.name: [] for face in known}
    for number in tqdm(range(ROUNDS + 1), desc="replayed"):
        for face in known:
            rate = face.rate()
            rates[face.name] += [rate] if number else []
    return [_rate_row(face.name, median(rates[face.name]), face.target) for face in known]


def _rate_row(name: str, rate: float, target: int | None) -> Row:
    unit = "steps/s of processor time"
    return Row(name, rate, unit) if target is None else Row(name, rate, unit, f">= {target}", rate >= target)


def _live_rows() -> list[Row]:
    live, attention, capture = _live_rounds()
    ratio = median(a / b for a, b in zip(live, attention, strict=True))
    return [
        Row("live step, nothing remembered", 1e3 * median(live), "ms"),
        Row("live steps per second", 1 / median(live), "steps/s"),
        Row("scaled_dot_product_attention alone, same segments", 1e3 * median(attention), "ms"),
        Row("live step over attention alone", ratio, "ratio", "<= 3", ratio <= 3),
        Row("capture of one span, not counted in live", 1e3 * median(capture), "ms"),
    ]


def _disk_rows() -> list[Row]:
    measured, loaded = _disk_rounds()
    ratio = median(a / b for a, b in zip(measured, loaded, strict=True))
    return [
        Row("capture and all ranks of one span, kept on disk", median(measured), "s"),
        Row("the same span loaded from disk, its files just written", 1e3 * median(loaded), "ms"),
        Row("measuring a span over loading it", ratio, "ratio"),
    ]


@contextmanager
def _variables(**wanted: str) -> Iterator[None]:
    """Environment variables, put back afterwards."""
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            os.environ |= {} if value is None else {name: value}


def _fresh_env(traces: str = "off") -> tuple[Any, Store]:
    """An environment that remembers nothing; what lies on disk is live only in name, so it is not read."""
    clear_stores()
    with _variables(**{SWITCH: traces}):
        env = gymnasium.make(ID, instances=SPANS)
    assert isinstance(env.unwrapped, RankEnv)
    return env, env.unwrapped.game.store


def _live_rounds() -> tuple[list[float], list[float], list[float]]:
    """Seconds per live step, per attention of the same segments, and per capture."""
    live, attention, capture = [], [], []
    for _ in tqdm(range(ROUNDS), desc="live"):
        env, store = _fresh_env()
        pool, layers = env.unwrapped.pool, env.unwrapped.arena.layers
        capture += [_seconds(partial(store.captured, found)) for found in pool]
        pairs = [(found, layer) for found in pool for layer in layers]
        times = [(_episode(env, found.uri, layer), _attention(store, found, layer)) for found, layer in pairs]
        steps = store.world.segments
        live.append(sum(a for a, _ in times) / len(times) / steps)
        attention.append(sum(b for _, b in times) / len(times) / steps)
    return live, attention, capture


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _episode(env: Any, uri: str, layer: int) -> float:
    """Seconds of one episode of random ranks, its reset included."""
    choices = np.random.default_rng(layer).integers(env.action_space.n, size=env.unwrapped.game.world.segments)

    def play() -> None:
        env.reset(options={"instance": uri, "layer": layer})
        for choice in choices:
            env.step(choice)

    return _seconds(play)


def _attention(store: Store, found: Instance, layer: int) -> float:
    """Seconds of the full attention of the same segments, and nothing else."""
    world, (queries, keys, values) = store.world, store.captured(found).layers[layer]
    size = world.measurement.segment
    grouped = [group_queries(part, world.shape.kv_heads) for part in queries.split(size, dim=1)]

    def attend() -> None:
        for position, part in enumerate(grouped):
            held = (position + 1) * size
            full_attention(part, keys[:, :held], values[:, :held], size)

    return _seconds(attend)


def _disk_rounds() -> tuple[list[float], list[float]]:
    """Seconds to measure a span whole and keep it, and to load what was kept."""
    measured, loaded = [], []
    for _ in tqdm(range(ROUNDS), desc="disk"):
        with tempfile.TemporaryDirectory() as folder, _variables(DRRL_CACHE=folder):
            env, store = _fresh_env(traces="on")
            pool, layers = env.unwrapped.pool, env.unwrapped.arena.layers
            measured.append(_seconds(partial(store.fill, pool, progress=False)) / SPANS)
            _, again = _fresh_env(traces="on")
            loaded.append(_seconds(partial(_load, again, pool, layers)) / SPANS)
    return measured, loaded


def _load(store: Store, pool: tuple[Instance, ...], layers: tuple[int, ...]) -> None:
    """Looks every block up; raises a RuntimeError where one of them is not whole."""
    for found in pool:
        if not store.is_filled(found, layers):
            raise RuntimeError(f"instance={found.uri}: its traces were not kept")
