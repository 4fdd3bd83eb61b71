"""What every face shares: how episodes are drawn, and which may be asked for."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
import pytest

from drrl_env.envs.arena import DRAWS, open_arena
from drrl_env.envs.arguments import Arguments, known_arguments
from drrl_env.envs.fingerprint import check_fingerprint
from drrl_env.envs.registration import IDS
from drrl_env.envs.tasks import TASKS

SHORT = {"context": 512, "instances": 2}


def test_every_registered_id_is_a_task_with_two_entry_points() -> None:
    """gym.make and gym.make_vec find it; a task that is not registered could not be made."""
    assert set(TASKS) <= set(IDS)
    for name in IDS:
        spec = gymnasium.spec(name)
        assert spec.entry_point is not None
        assert spec.vector_entry_point is not None
        assert spec.kwargs["task"] == name


@pytest.mark.parametrize("task", TASKS)
def test_an_episode_takes_as_many_numbers_whatever_it_is(task: str) -> None:
    """Three a reset, options or not: what a lane draws next does not depend on what was asked for before."""
    arena = open_arena(task, 1, SHORT)
    one, two, plain = (np.random.default_rng(3) for _ in range(3))
    arena.begin([0], [one])
    arena.begin([0], [two], [{"instance": arena.pool[1].uri, "layer": arena.layers[-1]}])
    plain.random(DRAWS)
    assert one.random() == two.random() == plain.random()


def test_instances_and_layers_are_drawn_evenly() -> None:
    """Each of 3 × 4 within half and double its share of 600 draws."""
    arena, random = open_arena("DRRL-Attention-v0", 1, {**SHORT, "instances": 3}), np.random.default_rng(0)
    drawn: Counter[tuple[str, int]] = Counter()
    for _ in range(600):
        arena.begin([0], [random])
        info = arena.play.start_info(0)
        drawn[info["instance"], info["layer"]] += 1
    assert len(drawn) == 12
    assert min(drawn.values()) > 25
    assert max(drawn.values()) < 100


def test_what_options_leave_open_stays_as_drawn() -> None:
    """A layer asked for keeps the drawn instance, and the other way round."""
    arena = open_arena("DRRL-Attention-v0", 1, {**SHORT, "instances": 8})

    def begun(options: dict[str, Any] | None) -> dict[str, Any]:
        arena.begin([0], [np.random.default_rng(8)], None if options is None else [options])
        return arena.play.start_info(0)

    drawn = begun(None)
    other = next(found.uri for found in arena.pool if found.uri != drawn["instance"])
    assert begun({"layer": 3})["instance"] == drawn["instance"]
    assert begun({"instance": other})["layer"] == drawn["layer"]
    assert begun({"instance": f"{other}?layer=1"})["layer"] == 1
    assert begun({"instance": f"{other}?layer=1", "layer": 2})["layer"] == 2


def test_a_layer_asked_for_draws_the_budget_of_that_layer() -> None:
    """The cheapest way differs by layer: the same uniform number lies between that and 1 there."""
    arena = open_arena("DRRL-Budget-v0", 1, SHORT)
    for layer in arena.layers:
        uniform = np.random.default_rng(1).random(DRAWS)[2]
        arena.begin([0], [np.random.default_rng(1)], [{"layer": layer}])
        low = arena.play.game.objective.cheapest[layer]  # type: ignore[attr-defined]
        assert arena.play.start_info(0)["budget"] == pytest.approx(low + uniform * (1 - low), abs=1e-15)


@pytest.mark.parametrize("task", TASKS)
def test_the_observation_space_is_a_flat_dict_of_the_entries(task: str) -> None:
    """1-D float32 boxes, an entry each: SB3 warns of 2-D ones and takes 3-D ones for images."""
    arena = open_arena(task, 1, SHORT)
    assert sorted(entry.name for entry in arena.play.entries) == sorted(arena.observation_space.spaces)
    for entry in arena.play.entries:
        space = arena.observation_space[entry.name]
        assert space.shape == (entry.size,)
        assert space.dtype == np.float32


def test_names_of_arguments_are_those_of_the_dataclass() -> None:
    """All of them are known; a misspelt one is answered with the nearest."""
    assert known_arguments("DRRL-Attention-v0", {"layer": 2}) == replace(Arguments(), layer=2)
    with pytest.raises(
        ValueError, match=r"basiss='refreshed': DRRL-Heads-v0 has no such argument; did you mean 'basis'"
    ):
        known_arguments("DRRL-Heads-v0", {"basiss": "refreshed"})


def test_fingerprints_differ_where_arguments_do_and_name_the_first() -> None:
    """Equal to its own copy; to another it says the argument's name and both values."""
    one, two = (open_arena("DRRL-Attention-v0", 1, {**SHORT, "ranks": r}).fingerprint for r in (None, (16, 64)))
    check_fingerprint(one, dict(one))
    with pytest.raises(ValueError, match=r"taken with ranks=\[16, 64\], this environment has ranks=\[8, 12"):
        check_fingerprint(one, two)


def test_environments_of_the_same_arguments_share_their_tables() -> None:
    """Lanes, modes and faces are views of one game; other rewards are another."""
    arenas = [open_arena("DRRL-Heads-v0", lanes, SHORT) for lanes in (1, 4)]
    other = open_arena("DRRL-Heads-v0", 1, {**SHORT, "reward": "paper"})
    games: list[Any] = [arena.play.game for arena in (*arenas, other)]  # type: ignore[attr-defined]
    assert games[0] is games[1]
    assert games[0] is not games[2]
    assert games[0].store is games[2].store


URI = "drrl://bundled/test/0007"


def test_a_layer_may_be_named_behind_the_instances() -> None:
    """`instances=["...?layer=2"]` plays that layer only; plain URIs and `layer=2` are the same environment."""
    named = open_arena("DRRL-Attention-v0", 1, {"context": 512, "instances": [f"{URI}?layer=2"]})
    plain = open_arena("DRRL-Attention-v0", 1, {"context": 512, "instances": [URI], "layer": 2})
    assert (named.layers, named.pool) == (plain.layers, plain.pool) == ((2,), plain.pool)


@pytest.mark.parametrize(
    "arguments",
    [
        {"instances": [f"{URI}?layer=2", f"{URI}?layer=3"]},
        {"instances": [f"{URI}?layer=2", "drrl://bundled/test/0008"]},
        {"instances": [f"{URI}?layer=2"], "layer": 1},
    ],
)
def test_several_layers_behind_the_instances_are_refused(arguments: dict[str, Any]) -> None:
    """One line with the remedy: an environment draws from one layer or from all."""
    with pytest.raises(ValueError, match="name one layer, or none"):
        open_arena("DRRL-Attention-v0", 1, {"context": 512, **arguments})
