"""Bases of earlier segments: what the store says of them is what float64 scores, written out, say."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from drrl_env.data.instances import instances
from drrl_env.envs import live
from drrl_env.envs.live import LiveLayer
from drrl_env.envs.settings import Measurement
from drrl_env.envs.store import Store
from drrl_env.envs.world import open_world
from drrl_env.lowrank.segment import Segment

SHORT = Measurement(context=512)
LAYER, POSITION, SLOT = 1, 3, 2
RANKS = (8, 12, 16, 20, 24, 32, 40, 64)


@pytest.fixture(autouse=True)
def no_traces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is computed here."""
    monkeypatch.setenv("DRRL_TRACES", "off")


@pytest.fixture
def store() -> Store:
    """A store that remembers nothing."""
    return Store(open_world(SHORT))


@pytest.fixture(scope="module")
def layer() -> LiveLayer:
    """The refreshed stream of a layer of the first span, by itself."""
    world = open_world(SHORT)
    return live.LiveInstance(world, instances("train")[0]).layer(LAYER, "refreshed")


def scores(layer: LiveLayer, segment: Segment, source: int, rank: int) -> Tensor:
    """Scaled scores in a basis (0 calibrated, 1 + s that of segment s) cut to a rank, (kv_heads, queries, keys)."""
    queries, keys = segment.queries.double(), segment.keys.double()
    if rank < 64:
        basis = layer.basis(source - 1)
        queries, keys = queries @ basis.query[..., :rank], keys @ basis.key[..., :rank]
    return queries @ keys.mT / 8


def test_changes_between_bases_are_those_of_the_scores(store: Store, layer: LiveLayer) -> None:
    """Every previous and new (basis, rank) of a slot: ‖S_new − S_previous‖/‖S‖ of whole score matrices, to 1e-6."""
    block = store.block(instances("train")[0], LAYER)
    store.ensure_source_changes(block, POSITION, SLOT)
    found, segment = store.source_changes[block, POSITION, SLOT], layer.segment(POSITION)
    sources = (0, SLOT, POSITION + 1)
    held = {(k, r): scores(layer, segment, sources[k], rank) for k in range(3) for r, rank in enumerate(RANKS)}
    norm = held[0, 7].norm()
    for before, r, after, new in product(range(2), range(8), range(3), range(8)):
        wanted = float((held[after, new] - held[before, r]).norm() / norm)
        assert found[before, r, after, new] == pytest.approx(wanted, abs=1e-6)


def test_without_a_refreshed_basis_nothing_is_kept(store: Store) -> None:
    """Slot 0: NaN wherever the slot's basis would be, numbers elsewhere; what was not asked for is NaN."""
    block = store.block(instances("train")[0], LAYER)
    store.ensure_source_changes(block, POSITION, 0)
    found = store.source_changes[block, POSITION, 0]
    assert np.isnan(found[1]).all()
    assert np.isnan(found[0, :, 1]).all()
    assert not np.isnan(found[0][:, [0, 2]]).any()
    assert np.isnan(store.source_changes[block, POSITION, 1:]).all()


def test_keeping_basis_and_rank_changes_nothing(store: Store) -> None:
    """Exactly 0, calibrated or kept, and between any two bases at full rank."""
    block = store.block(instances("train")[0], LAYER)
    store.ensure_source_changes(block, POSITION, SLOT)
    found = store.source_changes[block, POSITION, SLOT]
    for basis in range(2):
        assert (found[basis, range(8), basis, range(8)] == 0).all()
    assert (found[:, 7, :, 7] == 0).all()


def outcome(layer: LiveLayer, source: int, choice: int) -> tuple[float, float]:
    """Cosine and relative error of the output by float64 attention, values reduced as the kind of basis has it."""
    world, segment = open_world(SHORT), layer.segment(POSITION)
    cost = world.streams_of("refreshed" if source else "calibrated")[LAYER].costs[choice]
    values = segment.values.double()
    base = segment.bases.value[..., : cost.value_rank].double()
    reduced = values @ base @ base.mT if cost.rank < 64 else values
    exact = attend(scores(layer, segment, 0, 64), values)
    low = attend(scores(layer, segment, source, cost.rank), reduced)
    return float((exact * low).sum() / (exact.norm() * low.norm())), float((exact - low).norm() / exact.norm())


def attend(found: Tensor, values: Tensor) -> Tensor:
    """Causal attention from scores."""
    keys = found.shape[-1]
    rows = torch.arange(keys - 128, keys)[:, None]
    return found.masked_fill(torch.arange(keys) > rows, -torch.inf).softmax(-1) @ values


@pytest.mark.parametrize("source", [0, 1, 2, POSITION + 1])
def test_outcomes_in_another_basis_are_those_of_float64_attention(source: int, store: Store, layer: LiveLayer) -> None:
    """Calibrated, stale by two segments or one, and the own: cosine and error to 1e-4 at three ranks."""
    block = store.block(instances("train")[0], LAYER)
    for choice in (0, 4, 7):
        store.ensure_source_outcome(block, POSITION, source, choice)
        found = store.source_outcomes[block, POSITION, source, choice]
        np.testing.assert_allclose(found, outcome(layer, source, choice), atol=1e-4)


def test_the_own_basis_gives_what_every_task_sees(store: Store) -> None:
    """Source 1 + t at segment t is the refreshed measurement, bit for bit; a calibrated world says the same of it."""
    blunt = Store(open_world(Measurement(context=512, basis="calibrated")))
    span = instances("train")[0]
    for found in (store, blunt):
        for choice in range(8):
            found.ensure_source_outcome(found.block(span, LAYER), POSITION, POSITION + 1, choice)
            store.ensure_outcome(store.block(span, LAYER), POSITION, choice)
        wanted = store.outcomes[store.block(span, LAYER), POSITION]
        assert np.array_equal(found.source_outcomes[found.block(span, LAYER), POSITION, POSITION + 1], wanted)


def test_a_stale_basis_is_worse_than_a_calibrated_one(store: Store) -> None:
    """Design §2: mean error of a basis two segments old exceeds the calibrated one's; a fresh one is best."""
    block = store.block(instances("train")[0], LAYER)
    for source, choice in product((0, 2, 4), range(7)):
        store.ensure_source_outcome(block, POSITION, source, choice)
    calibrated, stale, fresh = store.source_outcomes[block, POSITION, [0, 2, 4], :7, 1].mean(1)
    assert fresh < calibrated < stale


def test_the_order_of_asking_does_not_matter(store: Store) -> None:
    """Everything of a block in order, and shuffled: the same bits."""
    span, other = instances("train")[0], Store(open_world(SHORT))
    store.fill_sources(store.block(span, LAYER))
    block, random = other.block(span, LAYER), np.random.default_rng(0)
    wanted = [(t, s, a) for t in range(4) for s in range(t + 2) for a in range(8)]
    for place in random.permutation(len(wanted)):
        position, source, choice = wanted[place]
        other.ensure_source_outcome(block, position, source, choice)
        other.ensure_source_changes(block, position, min(source, position))
    for name in ("source_outcomes", "source_changes"):
        one, two = getattr(store, name)[0], getattr(other, name)[block]
        assert np.array_equal(one, two, equal_nan=True), name


def test_arrays_of_other_bases_take_memory_only_where_they_are_used(store: Store) -> None:
    """A store that nobody asks for them has none."""
    store.ensure_outcome(store.block(instances("train")[0], LAYER), 0, 0)
    assert not {"source_outcomes", "source_changes"} & set(vars(store))
    assert np.isnan(store.source_changes[0]).all()
    with pytest.raises(AttributeError, match="source_things"):
        _ = store.source_things


def test_a_second_capture_measures_the_block_in_every_basis(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lanes that take turns would otherwise run the model at every step: never a third time."""
    monkeypatch.setattr(live, "LIVE_BYTES", 1)
    captured: list[str] = []
    real = live.LiveInstance

    def counted(world: Any, instance: Any) -> Any:
        captured.append(instance.uri)
        return real(world, instance)

    monkeypatch.setattr(live, "LiveInstance", counted)
    one, two = instances("train")[:2]
    for turn, span in enumerate((one, two, one)):
        store.ensure_source_outcome(store.block(span, LAYER), POSITION, 0, turn)
    block = store.block(one, LAYER)
    for position in range(4):
        assert not np.isnan(store.source_outcomes[block, position, : position + 2]).any()
        store.ensure_source_changes(block, position, position)
    assert captured == [one.uri, two.uri, one.uri]
