"""Observations stay inside their space, say what they are, and know neither the answer nor the future."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from drrl_env.envs import live
from drrl_env.envs.observation import CHUNKS, COMPONENTS, LIMIT, WINDOW, needs_basis, observing_flops
from drrl_env.envs.settings import Measurement
from drrl_env.envs.store import Store
from drrl_env.envs.world import World, open_world
from drrl_env.lowrank.statistics import DEFAULT_STATISTICS, STATISTICS, register_statistic
from drrl_env.lowrank.views import Sizes, Statistic, View
from drrl_env.models.capture import Capture, capture

SHORT = Measurement(context=512)


@pytest.fixture(autouse=True)
def _computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing comes from disk: a fault that is put into the computation has to show."""
    monkeypatch.setenv("DRRL_TRACES", "off")


def static_rows(store: Store, instance: Any, layer: int) -> np.ndarray:
    """The static observation of every segment, (segments, row)."""
    block, segments = store.block(instance, layer), store.world.segments
    store.ensure_segment(block, segments - 1)
    return store.static[block * segments : (block + 1) * segments].copy()


@pytest.mark.parametrize("variant", [{}, {"basis": "calibrated", "guard": "paper"}, {"ranks": (2, 64)}])
def test_observations_lie_in_their_space(variant: dict[str, Any], make: Any, play: Any) -> None:
    """Over random episodes: float32, within bounds, no NaN, and each of its own memory."""
    env = make(**variant)
    for seed in range(12):
        steps = play(env, seed=seed)
        assert all(env.observation_space.contains(step.observation) for step in steps)
        assert all(value.dtype == np.float32 for step in steps for value in step.observation.values())


def test_every_entry_is_documented(make: Any) -> None:
    """Name, size, range, cost, meaning and source; the space is made of the entries and nothing else."""
    env, world = make(), open_world(SHORT)
    assert [entry.name for entry in world.layout.entries] == ["energy", "segment", "window", "layer", "tokens"]
    assert {entry.name for entry in env.arena.play.entries} == set(env.observation_space)
    for entry in env.arena.play.entries:
        box = env.observation_space[entry.name]
        assert box.shape == (entry.size,)
        assert (box.low == entry.low).all()
        assert (box.high == entry.high).all()
        assert len(entry.meaning) > 20
        assert entry.source
        assert entry.flops(world.shape, 48) >= 0


def test_statistics_cost_and_the_free_entries_do_not(make: Any) -> None:
    """A policy that reads a table key pays nothing; one that reads statistics pays for them and for the basis, once."""
    found, shape = make().arena.play.entries, open_world(SHORT).shape
    free = frozenset({"layer", "previous_rank", "window_ranks", "position"})
    assert observing_flops(found, free, shape, 48) == 0
    assert not needs_basis(found, free)
    costs = [observing_flops(found, frozenset(names), shape, 48) for names in (["segment"], ["segment", "window"])]
    assert costs[0] == costs[1] > observing_flops(found, frozenset(["energy"]), shape, 48) > 0
    assert needs_basis(found, frozenset(["energy"]))


def test_entries_are_of_about_unit_scale_on_real_text(make: Any) -> None:
    """Standard deviation over spans, layers and segments between .02 and 3; under 1 % of the numbers are clipped."""
    env = make(instances=4)
    store = Store(open_world(SHORT))
    rows = np.concatenate([static_rows(store, found, layer) for found in env.pool for layer in range(4)])
    for columns in store.world.layout.slices.values():
        part = rows[:, columns]
        assert 0.02 < part.std() < 3
        assert (np.abs(part) >= LIMIT).mean() < 0.01


def test_the_start_of_an_episode_is_empty(make: Any, play: Any) -> None:
    """Previous rank full, no past ranks, no past segments, clock at 0; the clock ends at 1."""
    steps = play(make(), choices=[0, 1, 2, 3])
    first = steps[0].observation
    assert first["previous_rank"].tolist() == [0] * 7 + [1]
    assert not first["window"].any()
    assert not first["window_ranks"].any()
    assert [float(step.observation["position"][0]) for step in steps] == [0, 0.25, 0.5, 0.75, 1]


def test_the_window_holds_the_last_segments_latest_last(make: Any, play: Any) -> None:
    """Row by row what `segment` said then, zero before; and the ranks executed then, over dim."""
    steps = play(make(context=1024), choices=[0, 1, 2, 3, 4, 5, 6, 7])
    segments = [step.observation["segment"] for step in steps]
    shares = np.array([8, 12, 16, 20, 24, 32, 40, 64], np.float32) / 64
    for position, step in enumerate(steps[:-1]):
        window = step.observation["window"].reshape(WINDOW, -1)
        for back in range(1, WINDOW + 1):
            seen = position >= back
            assert np.array_equal(window[-back], segments[position - back] if seen else np.zeros_like(window[-back]))
            assert step.observation["window_ranks"][-back] == (shares[position - back] if seen else 0)


def test_the_tokens_entry_is_chunk_means_of_the_embeddings(make: Any, play: Any) -> None:
    """8 means of 16 tokens each, times √16, in 16 whitened components: recomputed from the model, to 1e-4."""
    env = make(layer=0)
    steps = play(env)
    world = open_world(SHORT)
    found = next(item for item in env.pool if item.uri == steps[0].info["instance"])
    embeddings = world.model.network.get_input_embeddings()(world.token_ids(found))
    means = embeddings.reshape(4, CHUNKS, -1, embeddings.shape[-1]).mean(2) - world.calibration.embedding_mean
    wanted = (4 * means @ world.calibration.embedding_components).reshape(4, CHUNKS * COMPONENTS).clamp(-LIMIT, LIMIT)
    for step, row in zip(steps, wanted, strict=False):
        np.testing.assert_allclose(step.observation["tokens"], row.detach().numpy(), atol=1e-4)


def shown(names: tuple[str, ...] | None, instance: Any, layer: int = 1, basis: str = "refreshed") -> dict[str, Any]:
    """The static entries of every segment under a selection, (segments, size) each."""
    store = Store(open_world(replace(SHORT, statistics=names, basis=basis)))
    rows = static_rows(store, instance, layer)
    return {name: rows[:, columns] for name, columns in store.world.layout.slices.items()}


def test_nothing_asked_for_shows_the_default(make: Any) -> None:
    """Asking for the default by name gives its bits, and each entry holds its statistics one after the other."""
    instance, world = make().pool[0], open_world(SHORT)
    found, named = shown(None, instance), shown(DEFAULT_STATISTICS, instance)
    sizes = {"energy": 8, "segment": 8 + 8 + 4, "window": 80, "layer": 4 + 9, "tokens": 128}
    assert {name: rows.shape[1] for name, rows in found.items()} == sizes
    assert all(np.array_equal(found[name], named[name]) for name in sizes)
    one_hot = np.tile([0, 1, 0, 0], (4, 1))
    weights = np.tile(world.calibration.weights[1].numpy(), (4, 1))
    assert np.array_equal(found["layer"], np.concatenate([one_hot, weights], axis=1).astype(np.float32))


@pytest.mark.parametrize(
    ("names", "sizes"),
    [
        ((), {"layer": 4}),
        (("energy_ratio",), {"energy": 8, "layer": 4}),
        (("hidden_states",), {"layer": 4, "tokens": 128}),
        (("weight_alpha",), {"layer": 4 + 3}),
        (("nuclear_share", "head_residual_level"), {"segment": 1 + 32, "window": 4 * 33, "layer": 4}),
        (tuple(STATISTICS), {"energy": 8, "segment": 62, "window": 248, "layer": 13, "tokens": 128}),
    ],
)
@pytest.mark.parametrize("basis", ["refreshed", "calibrated"])
def test_an_observation_shows_what_was_asked_for(
    make: Any, basis: str, names: tuple[str, ...], sizes: dict[str, int]
) -> None:
    """Entries of the sizes that follow, none with nothing to show; finite, within their boxes."""
    found = shown(names, make().pool[0], basis=basis)
    assert {name: rows.shape[1] for name, rows in found.items()} == sizes
    assert all(np.isfinite(rows).all() and (np.abs(rows) <= LIMIT).all() for rows in found.values())
    window = found.get("window", np.zeros((4, 0))).reshape(4, WINDOW, -1)
    if "segment" in found:
        assert np.array_equal(window[3, 1:], found["segment"][:3])
        assert not window[0].any()


def test_a_statistic_is_the_same_whatever_is_shown_beside_it(make: Any) -> None:
    """Bit for bit as among the default, in the order that was asked for."""
    instance = make().pool[0]
    every, few = shown(None, instance), shown(("stable_rank", "residual_level", "weight_mean"), instance)
    assert np.array_equal(few["segment"], every["segment"][:, [17, *range(8)]])
    assert np.array_equal(few["layer"][:, 4:], every["layer"][:, [4, 7, 10]])


def _free(sizes: Sizes, width: int) -> float:
    return 0.0


def _share(view: View) -> torch.Tensor:
    """Share of the keys that are this segment's, per head."""
    return torch.full((4,), 1 / (view.segment.position + 1))


USERS = (
    Statistic("newcomers", ("kv_heads",), _free, "this test", _share, needs_basis=False),
    Statistic("doubled", ("matrices",), _free, "this test", lambda view: 2 * view.weights[:, 0], "weights", False),
    Statistic("first_chunk", ("components",), _free, "this test", lambda view: view.tokens[0], "text", False),
)


def test_a_users_statistic_is_one_object_in_the_table(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Registered or put there by hand, it goes where its level says; nothing else has to know of it."""
    monkeypatch.setattr("drrl_env.lowrank.statistics.STATISTICS", dict(STATISTICS))
    for statistic in USERS:
        register_statistic(statistic)
    found = shown(tuple(statistic.name for statistic in USERS), make().pool[0])
    assert list(found) == ["segment", "window", "layer", "tokens"]
    assert found["segment"].tolist() == np.repeat(1 / np.arange(1, 5), 4).reshape(4, 4).astype(np.float32).tolist()
    default = shown(None, make().pool[0])
    assert np.array_equal(found["layer"][:, 4:], 2 * default["layer"][:, [4, 7, 10]])
    assert np.array_equal(found["tokens"], default["tokens"][:, :COMPONENTS])


def test_an_unknown_statistic_is_refused_before_any_work() -> None:
    """One line with what could have been meant; no model is loaded for it."""
    with pytest.raises(ValueError, match=r"'weight_alfa': unknown, did you mean 'weight_alpha'\?; use"):
        Measurement(model="no such model", statistics=("weight_alfa",)).check()


def test_each_selection_pays_for_what_it_shows() -> None:
    """By hand: a stable rank costs its power step and the energies; weights and, of the basis, text cost nothing."""

    def cost(*names: str) -> tuple[float, bool]:
        world = open_world(replace(SHORT, statistics=names))
        read, found = frozenset(world.layout.slices), world.layout.entries
        return observing_flops(found, read, world.shape, 48), needs_basis(found, read)

    energies, power = 4 * (2 * 64**2 + 48), 4 * 8 * 64**2
    assert cost() == cost("weight_mean", "weight_alpha") == (0, False)
    assert cost("energy_ratio") == (energies, True)
    assert cost("stable_rank") == (energies + power + 4 * 2, True)
    assert cost("stable_rank", "spectral_share", "energy_ratio") == cost("stable_rank")
    assert cost("hidden_states") == (128 * 256 + 8 * 2 * 256 * 16, False)


def test_the_statics_do_not_depend_on_what_was_measured(make: Any) -> None:
    """Bit for bit the same before any rank was measured and after all were."""
    world = open_world(SHORT)
    instance = make().pool[0]
    untouched, filled = Store(world), Store(world)
    filled.fill([instance], progress=False)
    for layer in range(world.layers):
        assert np.array_equal(static_rows(untouched, instance, layer), static_rows(filled, instance, layer))
    assert np.isnan(untouched.outcomes[: world.layers]).all()
    assert not np.isnan(filled.outcomes[: world.layers]).any()


def test_the_full_rank_output_cannot_leak(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With other values every output and error is another, and the observation the same, bit for bit."""
    world, instance = open_world(SHORT), make().pool[0]

    def with_other_values(*args: Any) -> Capture:
        found = capture(*args)
        noise = torch.Generator().manual_seed(0)
        layers = [(q, k, torch.randn(v.shape, generator=noise)) for q, k, v in found.layers]
        return replace(found, layers=tuple(layers))

    real, other = Store(world), Store(world)
    rows = static_rows(real, instance, 1)
    real.ensure_outcome(0, 3, 2)
    monkeypatch.setattr(live, "capture", with_other_values)
    assert np.array_equal(static_rows(other, instance, 1), rows)
    other.ensure_outcome(0, 3, 2)
    assert other.outcomes[0, 3, 2, 1] != real.outcomes[0, 3, 2, 1]


@pytest.mark.parametrize("basis", ["refreshed", "calibrated"])
def test_nothing_is_known_of_the_text_to_come(basis: str, make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Text that changes after segment 1 changes the observation from segment 2 on, and before not by a bit."""
    world, instance = open_world(replace(SHORT, basis=basis)), make().pool[0]
    rows = [static_rows(Store(world), instance, layer) for layer in range(world.layers)]
    ids = world.token_ids(instance)
    changed = torch.cat([ids[:256], ids[256:].flip(0)])
    monkeypatch.setattr(World, "token_ids", lambda self, found: changed)
    for layer, before in enumerate(rows):
        after = static_rows(Store(world), instance, layer)
        assert np.array_equal(after[:2], before[:2])
        assert (after[2:] != before[2:]).any(axis=1).all()


def test_an_observation_that_was_handed_out_does_not_change_later(make: Any) -> None:
    """Each step gives arrays of their own: a replay buffer may keep them, and writing to them harms no one."""
    env = make()
    first, _ = env.reset(seed=0)
    kept = {name: value.copy() for name, value in first.items()}
    second = env.step(0)[0]
    assert all(np.array_equal(first[name], kept[name]) for name in kept)
    for value in (*first.values(), *second.values()):
        value[:] = 0
    again, _ = env.reset(seed=0)
    assert all(np.array_equal(again[name], kept[name]) for name in kept)
