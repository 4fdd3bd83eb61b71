"""Offline bases in the environments: the calibrated account to the last FLOP, and the numbers of direct computation."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from drrl_env.data.instances import Instance
from drrl_env.envs import world as worlds
from drrl_env.envs.arena import open_arena
from drrl_env.envs.costs import FlopsCost, resolve_cost
from drrl_env.envs.settings import Measurement
from drrl_env.envs.tasks import TASKS
from drrl_env.envs.world import World, directions_path, open_world
from drrl_env.lowrank.attention import causal_mask
from drrl_env.lowrank.flops import cache_bytes
from drrl_env.lowrank.offline import OFFLINE
from drrl_env.models.capture import capture
from drrl_env.models.language_model import bundled_folder, load_language_model
from drrl_env.models.offline import load_directions

LAYER, CHOICE = 2, 4
SIZES = {"context": 128, "segment": 32, "instances": 2}
"""Of tiny models."""


def world_of(basis: str, **sizes: Any) -> World:
    """The bundled model in a basis."""
    return open_world(Measurement(basis=basis, context=512, **sizes))


@pytest.mark.parametrize("basis", OFFLINE)
def test_the_account_is_the_calibrated_one(basis: str) -> None:
    """Ranks, value ranks, FLOPs and milliseconds of every transition, and cache bytes: equal, not nearly."""
    ours, theirs = world_of("calibrated"), world_of(basis)
    assert theirs.streams == ours.streams
    for cost in (FlopsCost(), resolve_cost("latency")):
        assert np.array_equal(cost.table(theirs), cost.table(ours))
        assert np.array_equal(cost.full(theirs), cost.full(ours))
    for one, two in zip(theirs.streams, ours.streams, strict=True):
        pairs = zip(one.costs, two.costs, strict=True)
        assert all(cache_bytes(one.shape, 3, a, one.basis) == cache_bytes(two.shape, 3, b, two.basis) for a, b in pairs)


@pytest.mark.parametrize("basis", OFFLINE)
def test_nothing_but_the_score_bases_is_exchanged(basis: str) -> None:
    """Value bases, value ranks and statistics of the weights are the calibration's; its digest is not."""
    ours, theirs = world_of("calibrated").calibration, world_of(basis).calibration
    assert theirs.digest() != ours.digest()
    assert theirs.value_ranks.keys() == ours.value_ranks.keys()
    assert all(torch.equal(theirs.value_ranks[kind], table) for kind, table in ours.value_ranks.items())
    assert torch.equal(theirs.weights, ours.weights)
    for one, two in zip(theirs.layers, ours.layers, strict=True):
        assert torch.equal(one.value, two.value)
        assert not torch.equal(one.key, two.key)


def products(basis: str, layer: int, rank: int) -> Tensor:
    """P_q P_kᵀ as the papers write it, from the shipped directions, (heads, dim, dim), float64."""
    found = load_directions(bundled_folder() / "directions.safetensors").layers[layer]
    query, key = (side.double()[..., :rank] for side in (found.query, found.key))
    return {"keys-pca": key @ key.mT, "separate-svd": query @ query.mT @ key @ key.mT}[basis]


def direct_errors(basis: str, world: World, instance: Instance, choices: list[int]) -> NDArray[np.float64]:
    """Relative output error of every segment with a candidate for each head, in float64, one head after the other."""
    queries, keys, values = (
        rows.double() for rows in capture(world.model.network, world.token_ids(instance)).layers[LAYER]
    )
    size, found = world.measurement.segment, []
    for start in range(0, world.measurement.context, size):
        lost = total = 0.0
        for head, choice in enumerate(choices):
            q, k, v = queries[head, start : start + size], keys[head, : start + size], values[head, : start + size]
            cost = world.streams[LAYER].costs[choice]
            back = world.calibration.layers[LAYER].value[head, :, : cost.value_rank].double()
            mask = causal_mask(size, start + size, 1).double()
            exact, low = (
                torch.softmax(scores / math.sqrt(64) + mask, -1) @ v
                for scores in (q @ k.mT, q @ products(basis, LAYER, cost.rank)[head] @ k.mT)
            )
            lost += float((low @ back @ back.mT - exact).square().sum())
            total += float(exact.square().sum())
        found.append(math.sqrt(lost / total))
    return np.array(found)


@pytest.mark.parametrize("basis", OFFLINE)
def test_a_fixed_rank_gives_what_direct_computation_gives(basis: str, make: Any, play: Any) -> None:
    """Relative error of each step to 1e-4 of float64 attention with the papers' products; another basis is further."""
    env = make(basis=basis, layer=LAYER)
    steps = play(env, choices=[CHOICE] * 4, instance=env.pool[0].uri)[1:]
    found = np.array([step.info["relative_error"] for step in steps])
    expected = direct_errors(basis, env.game.world, env.pool[0], [CHOICE] * 4)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    other = next(name for name in OFFLINE if name != basis)
    assert np.abs(direct_errors(other, env.game.world, env.pool[0], [CHOICE] * 4) / found - 1).max() > 0.01


@pytest.mark.parametrize("basis", OFFLINE)
def test_heads_of_their_own_ranks_give_what_direct_computation_gives(basis: str, make: Any, play: Any) -> None:
    """DRRL-Heads-v0, to 1e-4: the query side of every rank is that rank's own."""
    env, choices = make("DRRL-Heads-v0", basis=basis, layer=LAYER), [1, 6, 3, 5]
    steps = play(env, choices=[np.array(choices)] * 4, instance=env.pool[0].uri)[1:]
    found = [step.info["relative_error"] for step in steps]
    np.testing.assert_allclose(found, direct_errors(basis, env.game.world, env.pool[0], choices), rtol=1e-4)


@pytest.mark.parametrize("task", [task for task in TASKS if task != "DRRL-Basis-v0"])
def test_every_task_with_a_basis_of_its_own_takes_them(task: str) -> None:
    """By name, the FLOPs of an episode at one rank those of the calibrated basis, to the last one."""
    found = {}
    for basis in ("calibrated", *OFFLINE):
        arena = open_arena(task, 1, {"context": 256, "instances": 1, "basis": basis})
        arena.begin([0], [np.random.default_rng(3)])
        wanted, done = np.full((1, len(arena.play.sizes)), CHOICE), []
        while not done or not done[-1].terminated[0]:
            done.append(arena.play.step(wanted))
        found[basis] = [info["flops"] for batch in done for info in arena.play.infos(batch, arena.play.masks())]
    assert found["keys-pca"] == found["separate-svd"] == found["calibrated"]


def test_where_the_agent_chooses_the_basis_they_are_refused() -> None:
    """DRRL-Basis-v0 has three kinds of its own."""
    with pytest.raises(ValueError, match="basis='keys-pca': unknown; use one of 'refreshed'"):
        open_arena("DRRL-Basis-v0", 1, {"basis": "keys-pca"})
    with pytest.raises(ValueError, match=r"use one of 'refreshed', 'calibrated', 'keys-pca', 'separate-svd'$"):
        open_arena("DRRL-Attention-v0", 1, {"basis": "loki"})


@pytest.mark.parametrize("basis", OFFLINE)
def test_a_users_model_gets_them_fitted_once(
    basis: str, llama_folder: Path, make: Any, play: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Grouped queries; kept in the cache folder under the calibration's name, and read by the next world."""
    env = make(model=llama_folder, basis=basis, **SIZES)
    path = directions_path(env.game.rules.measurement, env.game.world.model)
    assert path.is_file()
    assert path.parent.name == "directions"
    assert np.isfinite([step.reward for step in play(env, seed=1)]).all()
    monkeypatch.setattr(worlds, "fit_directions", lambda *args: pytest.fail("fitted again"))
    make(model=llama_folder, basis=basis, **SIZES, ranks=(4, 16))


def test_directions_of_another_model_are_refused(
    llama_folder: Path, make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Copied by hand, they would project with directions of the wrong size."""
    monkeypatch.setenv("DRRL_CACHE", str(tmp_path))
    sizes = Measurement(str(llama_folder), segment=64, context=192)
    path = directions_path(sizes, load_language_model(str(llama_folder)))
    path.parent.mkdir(parents=True)
    path.write_bytes((bundled_folder() / "directions.safetensors").read_bytes())
    with pytest.raises(ValueError, match="fitted to another model; delete it"):
        make(model=llama_folder, basis="keys-pca", segment=64, context=192, instances=1)
