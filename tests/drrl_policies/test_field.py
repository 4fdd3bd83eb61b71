"""A field holds the episodes that it was asked for, spread over what the task draws, and the same ones every time."""

from __future__ import annotations

import numpy as np
import pytest

from drrl_env.envs.store import Store
from drrl_policies import constant, open_field
from drrl_policies.rollout import rollout

DRAWN = {"DRRL-Tolerance-v0": 4, "DRRL-Budget-v0": 4}
"""Tasks that draw something, and how many episodes on each (instance, layer) are asked for below."""


def test_every_layer_of_every_instance_is_played(task, make_field):
    """Instances first, then layers; repeated only where the task draws something; live, an episode is all layers."""
    found = make_field(task, repeats=4)
    layers = [0] if found.live else range(4)
    pairs = [(instance, layer) for instance in found.single.pool for layer in layers]
    assert [each[:2] for each in found.episodes] == [pair for pair in pairs for _ in range(DRAWN.get(task, 1))]
    assert found.arena.lanes == len(found.episodes)
    assert found.layers.tolist() == [each.layer for each in found.episodes]
    assert found.instances == tuple(each.instance.uri for each in found.episodes)


def test_tolerances_are_spread_evenly_over_their_range(make_field):
    """Of the four episodes on each (instance, layer) one lies in each quarter of the log-range, and no two agree."""
    found = make_field("DRRL-Tolerance-v0", repeats=4)
    place = np.log(found.parameters / 0.1) / np.log(0.9 / 0.1)
    assert (np.floor(place.reshape(-1, 4) * 4) == [0, 1, 2, 3]).all()
    assert len(set(found.parameters.tolist())) == len(found.episodes)


def test_budgets_are_spread_evenly_over_their_range(make_field):
    """From each layer's own cheapest way to full attention, a quarter each."""
    found = make_field("DRRL-Budget-v0", repeats=4)
    low = found.game.objective.cheapest[found.layers]
    place = (found.parameters - low) / (1 - low)
    assert (np.floor(place.reshape(-1, 4) * 4) == [0, 1, 2, 3]).all()


@pytest.mark.parametrize("drawn", DRAWN)
def test_a_seed_says_what_is_drawn(drawn, make_field):
    """The same seed the same numbers, another seed others; the instances stay."""
    first, again, other = (make_field(drawn, seed=seed) for seed in (1, 1, 2))
    assert first.episodes == again.episodes
    assert first.instances == other.instances
    assert not np.isclose(first.parameters, other.parameters).any()


def test_a_task_that_draws_nothing_has_no_parameter(make_field):
    """Zero for all."""
    assert (make_field("DRRL-Heads-v0", repeats=4).parameters == 0).all()


def test_a_live_episode_runs_through_the_layers_that_are_chosen_for(make_field):
    """Two segments of four layers are eight steps; with layer=2 two steps, which begin there."""
    everything, one = make_field("DRRL-Layers-v0", repeats=4), make_field("DRRL-Layers-v0", layer=2, repeats=4)
    assert (everything.live, everything.steps, one.steps) == (True, 8, 2)
    assert one.layers.tolist() == [2, 2]


def test_sizes_steps_and_full_flops_are_those_of_the_task(task, make_field):
    """Heads has four ranks, Basis a rank and a kind; a step of full attention costs 2 · 4 heads · T · n̄ · 128."""
    found = make_field(task, spans=1, repeats=4)
    assert found.sizes == {"DRRL-Heads-v0": (3,) * 4, "DRRL-Basis-v0": (3, 3)}.get(task, (3,))
    assert found.rank_components == (4 if task == "DRRL-Heads-v0" else 1)
    segments = found.arena.world.segments
    assert found.steps == (4 * segments if found.live else segments)
    visible = np.mean([128 * t + 64.5 for t in range(segments)])
    assert found.mean_full == pytest.approx(2 * 4 * 128 * visible * 128)


def test_everything_is_measured_before_it_is_played(make_field, monkeypatch):
    """Afterwards every rank of every segment is in the tables: nothing is streamed in a rollout."""
    found = make_field("DRRL-Attention-v0", repeats=4)
    monkeypatch.setattr(Store, "ensure_segment", lambda *_: pytest.fail("measured late"))
    monkeypatch.setattr(Store, "ensure_outcome", lambda *_: pytest.fail("measured late"))
    play = found.arena.play
    play.begin(range(len(found.episodes)), found.episodes)
    for step in range(found.steps):
        play.step(np.full((len(found.episodes), 1), step % 3))


def test_a_field_that_is_not_measured_beforehand_measures_what_is_played(make_field, monkeypatch):
    """The same episodes, rewards and columns as of a field that was, to the bit; and opening it measured nothing."""
    measured, filled = make_field("DRRL-Attention-v0", spans=1), []
    inner = Store.fill
    monkeypatch.setattr(Store, "fill", lambda *given: filled.append(inner(*given)))
    late = make_field("DRRL-Attention-v0", spans=1, measure=False)
    assert not filled
    assert late.episodes == measured.episodes
    policy = constant("fixed", (24,), (1,))
    one, other = rollout(policy, measured), rollout(policy, late)
    assert (one.rewards == other.rewards).all()
    assert all((one.columns[name] == other.columns[name]).all() for name in one.columns)


def test_the_optima_are_worked_out_once(make_field, monkeypatch):
    """Scores of many policies ask for them again and again."""
    found = make_field("DRRL-Attention-v0", spans=1, repeats=4)
    first = found.optima
    monkeypatch.setattr("drrl_policies.field.solve", lambda _: pytest.fail("solved again"))
    assert found.optima is first


def test_a_wrong_argument_is_one_line():
    """Before anything is measured; the line names the argument."""
    with pytest.raises(ValueError, match=r"^split='dev': [^\n]*$"):
        open_field("DRRL-Attention-v0", {"context": 384}, "dev", 1)
    with pytest.raises(ValueError, match=r"^budget=[^\n]*DRRL-Budget-v0$"):
        open_field("DRRL-Attention-v0", {"context": 384, "budget": 0.5}, "train", 1)


def test_live_lanes_have_no_tables(make_field):
    """Who asks for them is told that there are none."""
    with pytest.raises(AssertionError, match="live"):
        _ = make_field("DRRL-Layers-v0", spans=1, repeats=4).game


def test_an_optimum_is_that_of_its_episode(solved):
    """Instance, layer and parameter go with the plan."""
    found = [(optimum.instance, optimum.layer, optimum.parameter) for optimum in solved.optima]
    assert found == [(episode.instance.uri, *episode[1:]) for episode in solved.episodes]
