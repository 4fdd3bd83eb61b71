"""The oracle of DRRL-Layers-v0: a lower bound that no fixed rank beats, and the optimum where nothing is given up."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drrl_env.envs import layer_plans
from drrl_env.envs.arena import Arena, open_arena
from drrl_env.envs.flow import Flow
from drrl_env.envs.layer_plans import EPISODES, Node, always, layers_optimum, played, to_come
from drrl_env.envs.layers import LayersSimulator
from drrl_env.envs.optima import oracle
from drrl_env.envs.play import Episode
from drrl_env.envs.settings import Guard, Reward

TASK = "DRRL-Layers-v0"
TINY = {"context": 64, "segment": 32, "ranks": (4, 16), "reward": Reward(1.0, 0.004, 0.0)}
"""Two segments, two layers, two ranks: sixteen episodes; at this price neither rank is best everywhere."""
SHORT = {"context": 256, "instances": 1, "split": "validation"}


def arena(**arguments: Any) -> tuple[Arena, LayersSimulator]:
    """The task with one lane, and its simulator."""
    found = open_arena(TASK, 1, {"instances": 1, **arguments})
    assert isinstance(found.play, LayersSimulator)
    return found, found.play


def returns(found: Arena, plan: Any) -> float:
    """What an agent gets for these choices."""
    found.play.begin([0], [Episode(found.pool[0], found.layers[0])])
    return float(sum(found.play.step(np.array([[choice]])).rewards[0] for choice in plan))


@pytest.mark.parametrize(
    "arguments", [{}, {"guard": Guard("paper", 0.3, 0.0)}, {"layer": 1}, {"reward": Reward(1.0, 0.004, 0.01)}]
)
def test_a_beam_that_gives_nothing_up_finds_the_optimum(arguments: dict[str, Any], llama_folder: Path) -> None:
    """The best of all episodes played one by one, named exact; it is no fixed rank, so a fixed plan would not do."""
    found, play = arena(model=llama_folder, **{**TINY, **arguments})
    steps = 2 if "layer" in arguments else 4
    gained = {plan: returns(found, plan) for plan in product((0, 1), repeat=steps)}
    best = layers_optimum(play, found.pool[0], width=16, progress=False)
    assert best.exact
    assert returns(found, best.choices[:, 0]) == max(gained.values())
    if not arguments:
        assert max(gained.values()) > max(gained[(0,) * steps], gained[(1,) * steps])


def test_what_is_reported_is_what_an_agent_would_get(llama_folder: Path) -> None:
    """The oracle's actions played give its value; the default beam holds all four ways to choose for one layer."""
    found, _ = arena(model=llama_folder, layer=1, **TINY)
    best = oracle(TASK, f"{found.pool[0].uri}?layer=1", model=llama_folder, **TINY)
    assert (best.kind, best.bound) == ("exact", best.value)
    assert returns(found, best.actions) == best.value
    assert best.random < best.value
    assert best.random_error > 0


def test_a_beam_led_astray_gives_way_to_a_fixed_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    """Made to follow the lowest ranks, where far more likelihood is lost than FLOPs are saved."""
    found, play = arena(**SHORT, ranks=(8, 32, 64))
    monkeypatch.setattr(layer_plans, "to_come", lambda node, choice: -1e3 * sum(node.flow.executed))
    best = layers_optimum(play, found.pool[0], width=1, progress=False)
    fixed = [returns(found, [choice] * 8) for choice in range(3)]
    assert fixed[0] < max(fixed) == returns(found, best.choices[:, 0])


@pytest.mark.parametrize("width", [1, 2])
def test_no_fixed_rank_beats_it(width: int) -> None:
    """On the bundled model at any width, and it says that it is a bound; a narrow beam may be short-sighted."""
    found, play = arena(**SHORT, ranks=(16, 32, 64))
    best = layers_optimum(play, found.pool[0], width=width, progress=False)
    value = returns(found, best.choices[:, 0])
    fixed = [returns(found, [choice] * 8) for choice in range(3)]
    assert not best.exact
    assert value >= max(fixed)
    assert best.random < max(fixed)


def test_the_bound_is_named_as_one() -> None:
    """Nothing is known above it, and its gap is infinite; one layer alone is asked for by the instance's name."""
    found, _ = arena(**SHORT)
    best = oracle(TASK, f"{found.pool[0].uri}?layer=3", context=256, ranks=(16, 24, 32, 64))
    assert (best.layer, best.choices.shape) == (3, (2, 1))
    assert best.kind == "exact"
    best = oracle(TASK, found.pool[0].uri, context=128, ranks=(16, 32, 64))
    assert (best.kind, best.bound, best.gap) == ("lower bound", np.inf, np.inf)


def test_what_is_to_come_is_the_rest_of_the_segment() -> None:
    """At one rank, from any layer; nothing where a segment begins, and asking moves nothing."""
    found, play = arena(**SHORT)
    root = Node(Flow(play.shared, found.pool[0], play.layers))
    assert to_come(root, 3) == 0
    for taken in (1, 3):
        node = played(root, always(0), taken)
        whole = played(node, always(5), 4 - taken)
        assert to_come(node, 5) == whole.reward != 0
        assert node.flow.steps == taken


def test_random_is_the_mean_of_sampled_episodes_with_its_error(llama_folder: Path) -> None:
    """Within four standard errors of the exact mean over all sixteen episodes, and the same every time."""
    found, play = arena(model=llama_folder, **TINY)
    gained = [returns(found, plan) for plan in product((0, 1), repeat=4)]
    one, two = (layers_optimum(play, found.pool[0], width=1, progress=False) for _ in range(2))
    assert (one.random, one.random_error) == (two.random, two.random_error)
    assert abs(one.random - np.mean(gained)) < 4 * np.std(gained) / np.sqrt(EPISODES)
