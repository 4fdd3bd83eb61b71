"""What was measured once is replayed bit for bit, never computed again, and does not depend on who asked when."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from drrl_env.data.instances import instances
from drrl_env.envs import live
from drrl_env.envs.settings import Measurement
from drrl_env.envs.store import Store, clear_stores, open_store
from drrl_env.envs.world import open_world
from drrl_env.lowrank.stream import LayerStream, Segment

SHORT = Measurement(context=512)
POSITIONS, CHOICES, LAYERS = range(4), range(8), range(4)
NUMBERS = ("static", "changes", "head_changes", "outcomes", "moments")


@pytest.fixture(autouse=True)
def no_traces(monkeypatch: pytest.MonkeyPatch) -> None:
    """What these tests say of computing holds without the disk; `test_traces` is about what it adds."""
    monkeypatch.setenv("DRRL_TRACES", "off")


@pytest.fixture
def pool() -> Any:
    """Three spans."""
    return instances("train")[:3]


@pytest.fixture
def filled(pool: Any) -> Store:
    """A store with everything of the three spans in it, measured span by span."""
    store = Store(open_world(SHORT))
    store.fill(pool, progress=False)
    return store


def numbers(store: Store, pool: Any) -> dict[str, np.ndarray]:
    """Everything measured of these spans, in the order of (span, layer), whatever the order of the blocks."""
    blocks = [store.block(instance, layer) for instance in pool for layer in LAYERS]
    static = store.static.reshape(-1, store.world.segments, store.world.layout.width)
    return {name: (static if name == "static" else getattr(store, name))[blocks] for name in NUMBERS}


def assert_same_bits(one: Store, two: Store, pool: Any) -> None:
    """Every number of these spans is there and the same."""
    first, second = numbers(one, pool), numbers(two, pool)
    for name in NUMBERS:
        assert not np.isnan(first[name]).any()
        assert np.array_equal(first[name], second[name]), name


def count_calls(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> list[int]:
    """A list that grows by one at each call of `owner.name`."""
    calls, real = list[int](), getattr(owner, name)

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return real(*args, **kwargs)

    monkeypatch.setattr(owner, name, counted)
    return calls


@pytest.mark.usefixtures("fresh")
def test_live_and_remembered_steps_give_the_same_bits(make: Any, play: Any) -> None:
    """An episode computed live, the same replayed, and computed live again in a new store."""
    env = make(guard="paper")
    episodes = [play(env, seed=1), play(env, seed=1)]
    clear_stores()
    anew = make(guard="paper")
    assert anew.game.store is not env.game.store
    episodes.append(play(anew, seed=1))
    for other in episodes[1:]:
        for one, two in zip(episodes[0], other, strict=True):
            assert one.reward == two.reward
            assert all(np.array_equal(one.observation[name], two.observation[name]) for name in one.observation)
            assert {**one.info, "action_mask": 0} == {**two.info, "action_mask": 0}


def test_nothing_is_computed_twice(pool: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asking again, in any order, makes no call of the model, the stream or the attention."""
    store = Store(open_world(SHORT))
    calls = [
        count_calls(monkeypatch, live, "capture"),
        count_calls(monkeypatch, LayerStream, "advance"),
        count_calls(monkeypatch, Segment, "moments"),
    ]
    for _ in range(2):
        for choice in (5, 1):
            store.ensure_outcome(store.block(pool[0], 2), 3, choice)
    assert [len(found) for found in calls] == [1, 4, 2]


def test_a_revisited_episode_measures_nothing(make: Any, play: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor do other environments of the same measurement, whatever their reward and guard."""
    play(make(), seed=7)
    calls = count_calls(monkeypatch, Segment, "moments")
    play(make(), seed=7)
    play(make(reward="paper"), seed=7)
    assert not calls


def test_the_order_of_asking_does_not_matter(pool: Any, filled: Store) -> None:
    """Random (span, layer, segment, rank) one by one, spans interleaved: the same bits as span by span."""
    store, random = Store(open_world(SHORT)), np.random.default_rng(0)
    wanted = [(i, layer, t, a) for i in range(3) for layer in LAYERS for t in POSITIONS for a in CHOICES]
    for index in random.permutation(len(wanted)):
        span, layer, position, choice = wanted[index]
        store.ensure_outcome(store.block(pool[span], layer), position, choice)
    assert_same_bits(store, filled, pool)


def test_growing_keeps_what_is_there() -> None:
    """Beyond the first 16 blocks: the first block's numbers, whatever table, and the tables over them are unharmed."""
    pool, store = instances("train")[:6], Store(open_world(SHORT))
    store.fill(pool[:1], progress=False)
    block = store.block(pool[0], 1)
    store.ensure_source_outcome(block, 2, 1, 3)
    store.ensure_source_changes(block, 2, 1)
    before = {name: array.copy() for name, array in numbers(store, pool[:1]).items()}
    sources = store.source_outcomes[block].copy(), store.source_changes[block].copy()
    store.fill(pool, progress=False)
    assert len(store.ready) >= 24
    after = numbers(store, pool[:1])
    assert all(np.array_equal(before[name], after[name]) for name in NUMBERS)
    assert not np.isnan(numbers(store, pool)["outcomes"]).any()
    assert np.array_equal(sources[0], store.source_outcomes[block], equal_nan=True)
    assert np.array_equal(sources[1], store.source_changes[block], equal_nan=True)
    assert np.isnan(store.source_changes[store.block(pool[5], 3)]).all()


def test_heads_add_up_to_the_layer(filled: Store, pool: Any) -> None:
    """‖ΔS‖² over the layer is the sum over its heads, to 1e-12; no head has it all."""
    found = numbers(filled, pool)
    total = found["head_changes"].sum(2)
    np.testing.assert_allclose(np.sqrt(total), found["changes"], rtol=1e-12, atol=1e-12)
    assert found["head_changes"].shape[2] == filled.world.shape.heads
    assert found["head_changes"][..., 0, -1].max(-1).mean() < 0.9 * total[..., 0, -1].mean()


def test_tables_grow_with_the_store(make: Any, play: Any) -> None:
    """24 blocks through one environment: rewards of the first are the same before and after."""
    env = make(instances=6)
    options = {"instance": env.pool[0].uri, "layer": 0}
    before = [step.reward for step in play(env, choices=[1, 2, 3, 4], **options)]
    for found in env.pool:
        for layer in LAYERS:
            play(env, choices=[0, 0, 7, 7], instance=found.uri, layer=layer)
    assert [step.reward for step in play(env, choices=[1, 2, 3, 4], **options)] == before


def test_memory_for_one_span_gives_the_same_bits(pool: Any, filled: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """With no room for a second span every change of span drops one; results and their bits do not change."""
    monkeypatch.setattr(live, "LIVE_BYTES", 1)
    store = Store(open_world(SHORT))
    for choice in CHOICES:
        for instance in pool:
            for layer in LAYERS:
                store.ensure_outcome(store.block(instance, layer), choice % 4, choice)
                assert len(store._live._held) <= 1
    assert_same_bits(store, filled, pool)


def test_a_second_capture_measures_the_whole_span(pool: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A span that was dropped and is asked for again is filled, held no longer, and never captured a third time."""
    monkeypatch.setattr(live, "LIVE_BYTES", 1)
    captures = count_calls(monkeypatch, live, "capture")
    store = Store(open_world(SHORT))
    for choice, instance in enumerate((pool[0], pool[1], pool[0])):
        store.ensure_outcome(store.block(instance, 0), 0, choice)
    assert store.is_filled(pool[0], LAYERS)
    assert not store.is_filled(pool[1], LAYERS)
    for position in POSITIONS:
        store.ensure_outcome(store.block(pool[0], 3), position, 6)
    assert len(captures) == 3
    assert pool[0].uri not in store._live._held


def test_only_the_segment_asked_for_last_keeps_its_projections(pool: Any) -> None:
    """The outputs and projections of every visited segment would be twice the memory of the span."""
    store = Store(open_world(SHORT))
    block = store.block(pool[0], 1)
    for position in (3, 0, 2, 1):
        store.ensure_outcome(block, position, 2)
    segments = store._live.get(pool[0]).layer(1)._segments
    assert [("full_output" in vars(segment)) for segment in segments] == [False, True, False, False]


def test_filling_holds_nothing_live_afterwards(filled: Store, pool: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """No capture is kept, and filling again measures nothing."""
    assert not filled._live._held
    calls = count_calls(monkeypatch, Segment, "moments")
    filled.fill(pool, progress=False)
    assert filled.is_filled(pool[0], LAYERS)
    assert not calls


def test_the_memory_estimate_covers_what_a_span_holds(pool: Any) -> None:
    """Tensors of the capture and of four streams, within a factor of two either way."""
    store = Store(open_world(SHORT))
    for layer in LAYERS:
        store.ensure_outcome(store.block(pool[0], layer), 3, 2)
    held = store._live._held[pool[0].uri]
    streams = [held.layer(layer)._stream for layer in LAYERS]
    names = ("_keys", "_values", "_reduced_values", "_kept_keys")
    tensors = [getattr(stream, name) for stream in streams for name in names]
    measured = held.capture.bytes + sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    assert measured / 2 < held.bytes < 2 * measured


@pytest.mark.usefixtures("fresh")
def test_one_store_serves_every_environment_of_a_measurement(make: Any) -> None:
    """And one set of tables every environment of the same rules; other ranks have a store of their own."""
    one, two, paper = make(), make(instances=1, layer=3), make(reward="paper")
    assert one.game is two.game
    assert one.game is not paper.game
    assert one.game.store is paper.game.store is open_store(SHORT)
    assert make(ranks=(8, 64)).game.store is not one.game.store
