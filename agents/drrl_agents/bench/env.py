"""`drrl bench env`: how fast an environment steps, replayed and live, beside the attention it must compute anyway."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import gymnasium
import numpy as np
import torch
from tqdm import tqdm

from drrl_agents.bench.report import Row
from drrl_env.envs.attention_env import AttentionEnv
from drrl_env.envs.store import Store, clear_stores
from drrl_env.lowrank.attention import full_attention
from drrl_env.lowrank.grams import group_queries

ID = "DRRL-Attention-v0"
SPANS, ROUNDS, REPLAYED_STEPS = 3, 5, 20_000


def run(threads: int = 1) -> list[Row]:
    """Measures; medians over interleaved rounds."""
    torch.set_num_threads(threads)
    live, attention, capture = _live_rounds()
    replayed, everything = _replayed()
    ratio = median(a / b for a, b in zip(live, attention, strict=True))
    return [
        Row("replayed steps per second through gym.make", replayed, "steps/s", ">= 30000", replayed >= 30_000),
        Row("live step, nothing remembered", 1e3 * median(live), "ms", None, None),
        Row("live steps per second", 1 / median(live), "steps/s", None, None),
        Row("scaled_dot_product_attention alone, same segments", 1e3 * median(attention), "ms", None, None),
        Row("live step over attention alone", ratio, "ratio", "<= 3", ratio <= 3),
        Row("capture of one span, not counted in live", 1e3 * median(capture), "ms", None, None),
        Row("capture and all ranks of one span", everything, "s", None, None),
    ]


def _fresh_env() -> tuple[Any, Store]:
    """An environment that remembers nothing."""
    clear_stores()
    env = gymnasium.make(ID, instances=SPANS)
    assert isinstance(env.unwrapped, AttentionEnv)
    return env, env.unwrapped.transitions.store


def _live_rounds() -> tuple[list[float], list[float], list[float]]:
    """Seconds per live step, per attention of the same segments, and per capture."""
    live, attention, capture = [], [], []
    for _ in tqdm(range(ROUNDS), desc="live"):
        env, store = _fresh_env()
        pool, layers = env.unwrapped.pool, env.unwrapped.layers
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
    choices = np.random.default_rng(layer).integers(env.action_space.n, size=env.unwrapped.transitions.world.segments)

    def play() -> None:
        env.reset(options={"instance": uri, "layer": layer})
        for choice in choices:
            env.step(choice)

    return _seconds(play)


def _attention(store: Store, found: Any, layer: int) -> float:
    """Seconds of the full attention of the same segments, and nothing else."""
    world, (queries, keys, values) = store.world, store.captured(found).layers[layer]
    size = world.measurement.segment
    grouped = [group_queries(part, world.shape.kv_heads) for part in queries.split(size, dim=1)]

    def attend() -> None:
        for position, part in enumerate(grouped):
            held = (position + 1) * size
            full_attention(part, keys[:, :held], values[:, :held], size)

    return _seconds(attend)


def _replayed() -> tuple[float, float]:
    """Replayed steps per second, and seconds to measure one span whole."""
    env, store = _fresh_env()
    everything = _seconds(lambda: store.fill(env.unwrapped.pool, progress=False)) / SPANS
    choices = np.random.default_rng(0).integers(env.action_space.n, size=REPLAYED_STEPS).tolist()
    rates = [REPLAYED_STEPS / _seconds(lambda: _replay(env, choices)) for _ in tqdm(range(ROUNDS), desc="replayed")]
    return median(rates), everything


def _replay(env: Any, choices: list[int]) -> None:
    ended = True
    for choice in choices:
        if ended:
            env.reset()
        _, _, ended, _, _ = env.step(choice)
