"""A lane of DRRL-Layers-v0 shows what arrives and what was executed, and its state is the instance and the choices."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from drrl_env.envs import lane as lanes
from drrl_env.envs.settings import Guard, Reward
from drrl_env.envs.single import RankEnv
from drrl_env.models.closed_loop import ClosedLoop

LAYERS, FULL = 4, 7
SHORT = {"context": 384, "instances": 2}
"""Three segments of four layers: twelve steps."""

Make = Callable[..., RankEnv]
Step = tuple[dict[str, Any], float, bool, dict[str, Any]]


@pytest.fixture(scope="session")
def layers(make: Make) -> Make:
    """Makes the environment on short spans; arguments override."""
    return lambda **arguments: make("DRRL-Layers-v0", **{**SHORT, **arguments})


@pytest.fixture
def nobody() -> Iterator[None]:
    """No lane of this process is where a state was taken, as in another process: states are replayed."""
    lanes._RESTING.clear()
    yield
    lanes._RESTING.clear()


def drive(env: RankEnv, choices: Sequence[int], seed: int | None = 0) -> list[Step]:
    """An episode, or a part of one, with these choices; from where it is if there is no seed."""
    if seed is not None:
        env.reset(seed=seed)
    found = []
    for choice in choices:
        observation, reward, ended, _, info = env.step(choice)
        found.append((observation, reward, ended, info))
    return found


def scattered(count: int, seed: int = 1, choices: int = FULL + 1) -> list[int]:
    """Random choices."""
    return np.random.default_rng(seed).integers(choices, size=count).tolist()


def test_what_is_observed_is_what_arrives(layers: Make, make: Make) -> None:
    """After full ranks as in DRRL-Attention-v0 (1e-4); after the lowest ones above layer 0 it is 5e-4 off and more."""
    longer = {**SHORT, "context": 768}
    env = layers(basis="refreshed", **longer)
    first, info = env.reset(seed=0)
    uri = info["instance"]
    seen = {choice: [first, *(step[0] for step in drive(env, [choice] * 24))] for choice in (FULL, 0)}
    for layer in range(LAYERS):
        plain = make("DRRL-Attention-v0", **longer)
        observation, _ = plain.reset(options={"instance": uri, "layer": layer})
        for position in range(6):
            place = position * LAYERS + layer
            for name in env.arena.world.layout.slices:
                assert np.abs(seen[FULL][place][name] - observation[name]).max() < 1e-4, (name, place)
            moved = max(np.abs(seen[0][place][name] - observation[name]).max() for name in ("energy", "segment"))
            assert moved == 0 if layer == 0 else moved > 5e-4
            observation = plain.step(FULL)[0]


def test_history_shows_what_was_executed_at_this_layer_and_below(layers: Make) -> None:
    """Previous rank and window of the waiting layer, ranks of layers below in this segment, steps over all steps."""
    env, choices = layers(), scattered(12, seed=3)
    shares = np.array(env.ranks, np.float32) / np.float32(64)
    first, _ = env.reset(seed=0)
    for step, observation in enumerate([first, *(step[0] for step in drive(env, choices))]):
        position, layer = divmod(step, LAYERS)
        at_layer = choices[layer:step:LAYERS][:position] if step < 12 else choices[LAYERS - 1 :: LAYERS]
        below = choices[position * LAYERS : step] if step < 12 else choices[-LAYERS:]
        assert observation["previous_rank"].argmax() == (at_layer[-1] if at_layer else FULL)
        assert observation["previous_rank"].sum() == 1
        window = [0.0] * (4 - len(at_layer)) + [shares[choice] for choice in at_layer]
        assert observation["window_ranks"].tolist() == window
        padded = [shares[choice] for choice in below] + [0.0] * (LAYERS - len(below))
        assert observation["layers_ranks"].tolist() == padded
        assert observation["position"][0] == np.float32(step / 12)
        assert observation["layer"][:LAYERS].argmax() == (layer if step < 12 else LAYERS - 1)


def test_the_last_observation_is_kept_at_the_end(layers: Make) -> None:
    """What was seen before the last choice, history and clock aside; every action is allowed."""
    env = layers(guard="paper")
    steps = drive(env, scattered(12))
    for name in env.arena.world.layout.slices:
        assert np.array_equal(steps[-1][0][name], steps[-2][0][name])
    assert env.action_masks().all()
    with pytest.raises(ValueError, match="call reset first"):
        env.step(0)


def test_a_state_is_the_instance_and_what_was_executed(layers: Make) -> None:
    """Plain JSON without an array, under 1 kB less fingerprint and generator; masked actions as they were executed."""
    env = layers(guard=Guard("paper", 0.2))
    steps = drive(env, scattered(7, choices=2))
    own = env.arena.play.state(0)
    assert own["choices"] == [info["choice"] for *_, info in steps] != scattered(7, choices=2)
    assert own["instance"] == steps[0][-1]["instance"]
    assert json.loads(json.dumps(own)) == own
    assert len(json.dumps(own)) < 1000


@pytest.mark.parametrize("arguments", [{}, {"guard": Guard("paper", 0.2)}, {"layer": 1}, {"basis": "refreshed"}])
def test_a_replayed_state_has_the_bits_of_the_original(arguments: dict[str, Any], layers: Make, nobody: None) -> None:
    """At every step to the end: what another process would make of the JSON is what the fork in this one shows."""
    env = layers(reward=Reward(1.0, 0.3, 0.5), **arguments)
    env.reset(seed=2)
    horizon, choices = 12 if "layer" not in arguments else 3, scattered(12, seed=4)
    for done in range(0, horizon + 1, 3):
        twin, other = env.fork(), layers(reward=Reward(1.0, 0.3, 0.5), **arguments)
        lanes._RESTING.clear()
        other.set_state(json.loads(json.dumps(env.get_state())))
        for one, two in zip(rest(twin, choices[done:horizon]), rest(other, choices[done:horizon]), strict=True):
            assert one == two
        drive(env, choices[done : min(done + 3, horizon)], seed=None)


def rest(env: RankEnv, choices: Sequence[int]) -> list[str]:
    """What is seen from here on, as text: every bit of a float shows."""
    found = [repr({name: values.tolist() for name, values in env.arena.play.observe().items()})]
    found += [repr(env.action_masks().tolist()), repr(env.arena.play.spectrum(0).tolist())]
    for observation, reward, ended, info in drive(env, choices, seed=None):
        shown = {name: values.tolist() for name, values in observation.items()}
        told = {name: value for name, value in info.items() if name != "action_mask"}
        found += [repr(shown), repr((reward, ended, told, env.action_masks().tolist()))]
    return found


def test_a_fork_in_this_process_computes_nothing_anew(layers: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """It shares the caches of the closed loop until one of the two writes; and goes its own way from there."""
    env, choices = layers(reward=Reward(1.0, 0.3, 0.5)), scattered(12)
    drive(env, choices[:6])
    with monkeypatch.context() as patch:
        patch.setattr(ClosedLoop, "choose", lambda *_: pytest.fail("a fork was replayed"))
        twin = env.fork()
    drive(twin, [0] * 6, seed=None)
    alone = [reward for _, reward, *_ in drive(layers(reward=Reward(1.0, 0.3, 0.5)), choices)]
    assert [reward for _, reward, *_ in drive(env, choices[6:], seed=None)] == alone[6:]


def test_a_lane_that_went_on_is_not_taken_for_one_that_rests(layers: Make) -> None:
    """A state taken before it moved is gone back to, not to where the lane is now."""
    env = layers()
    drive(env, scattered(5))
    state, other = env.get_state(), layers()
    one = drive(env, [0, 1, 2], seed=None)
    other.set_state(state)
    assert [step[1] for step in drive(other, [0, 1, 2], seed=None)] == [step[1] for step in one]


def test_a_state_of_other_layers_is_refused(layers: Make) -> None:
    """All layers and layer 0 alone begin alike, and mean another thing by every choice."""
    env = layers(layer=0)
    drive(env, [1])
    with pytest.raises(ValueError, match=r"chosen at layers \[0\], here they are chosen at \[0, 1, 2, 3\]"):
        layers().set_state(env.get_state())


@pytest.mark.parametrize("layer", [None, 3])
def test_the_spectrum_is_of_the_layer_that_waits(layer: int | None, layers: Make) -> None:
    """A row for every segment that arrived there: ascending with rank, all of the energy at full rank."""
    env = layers(layer=layer)
    assert env.arena.play.spectrum(0).shape == (0, 8)
    env.reset(seed=0)
    for step in range(12 if layer is None else 3):
        found = env.arena.play.spectrum(0)
        assert found.shape == ((step // LAYERS if layer is None else step) + 1, 8)
        assert (np.diff(found) > 0).all()
        assert (found[:, -1] == 1).all()
        env.step(3)
