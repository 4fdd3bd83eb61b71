"""Cost models as the simulator uses them: FLOPs by the one account, and how a cost is named."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from drrl_env.envs.costs import CostModel, FlopsCost, resolve_cost
from drrl_env.envs.latency import LatencyCost
from drrl_env.envs.settings import Measurement
from drrl_env.envs.world import World, open_world
from drrl_env.lowrank.flops import full_flops, segment_flops


@pytest.fixture(scope="module", params=["refreshed", "calibrated"])
def world(request: pytest.FixtureRequest) -> World:
    return open_world(Measurement(context=512, basis=request.param))


def test_flops_are_those_of_the_one_account(world):
    """Every transition of every layer, to the bit."""
    found = FlopsCost().table(world)
    assert found.shape == (4, 4, 8, 8)
    for (layer, position, before, choice), flops in np.ndenumerate(found):
        stream = world.streams[layer]
        costs = stream.costs[choice], stream.costs[before]
        assert flops == segment_flops(world.shape, position, *costs, stream.basis, stream.width)
    assert FlopsCost().full(world).tolist() == [full_flops(world.shape, position) for position in range(4)]


@pytest.mark.parametrize("name", ["flops", "latency"])
def test_the_last_choice_costs_what_full_attention_costs(name, world):
    """Whatever was executed before, in every layer; and every cost is above 0."""
    cost = resolve_cost(name)
    table, full = cost.table(world), cost.full(world)
    assert full.shape == (world.segments,)
    assert (table[..., -1] == full[None, :, None]).all()
    assert min(table.min(), full.min()) > 0


def test_a_cost_is_named_or_given():
    """By name, by path, or as an object; names carry units."""
    assert isinstance(resolve_cost("flops"), FlopsCost)
    latency = resolve_cost("latency")
    assert isinstance(latency, LatencyCost)
    assert resolve_cost(latency) is latency
    assert resolve_cost(latency.path) == resolve_cost(str(latency.path)) == latency
    assert [(cost.name, cost.unit) for cost in (resolve_cost("flops"), latency)] == [
        ("flops", "FLOPs"),
        ("latency", "ms"),
    ]
    assert all(isinstance(cost, CostModel) for cost in (FlopsCost(), latency))


@pytest.mark.parametrize("name", ["flops", "latency"])
def test_a_cost_is_a_value(name):
    """Equal and hashable by what it is, and the same after it was sent to another process."""
    cost = resolve_cost(name)
    sent = pickle.loads(pickle.dumps(cost))
    assert sent == cost == resolve_cost(name)
    assert hash(sent) == hash(cost)
    assert resolve_cost("flops") != resolve_cost("latency")


@pytest.mark.parametrize("cost", ["energy", "no/such/table.csv", "", 3, None, object()])
def test_an_unknown_cost_is_refused_in_one_line(cost):
    """It names what was given, and the ways there are."""
    with pytest.raises(ValueError, match=r"\Acost=[^\n]*'flops', 'latency' or a table that `drrl calibrate latency`"):
        resolve_cost(cost)
