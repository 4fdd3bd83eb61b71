"""A state is a value: what was taken anywhere goes on the same anywhere else, bit for bit, next episodes included."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from drrl_env.envs.faces import MODES, NEXT_STEP, SAME_STEP
from drrl_env.envs.settings import Guard, Reward
from drrl_env.envs.single import RankEnv
from drrl_env.envs.tasks import TASKS
from drrl_env.envs.vector import RankVectorEnv
from drrl_env.sb3 import RankVecEnv, make_vec_env

SHORT = {"context": 512, "instances": 2}
CONTEXTS = {"DRRL-Layers-v0": 256}
"""Of tasks with a step per segment and layer: an episode should end within the steps gone on."""
ATTENTION = "DRRL-Attention-v0"
SCALAR = [task for task in TASKS if "-MO-" not in task]
FAR = 11
"""Steps gone on: the rest of an episode, the next, and the beginning of the one after."""

Copy = Callable[[Any], Any]
COPIES: dict[str, Copy] = {
    "fork": lambda env: env.fork(),
    "deepcopy": copy.deepcopy,
    "pickle": lambda env: pickle.loads(pickle.dumps(env)),
    "state through JSON": lambda env: restored(env),
}


def restored(env: Any) -> Any:
    """Another environment of the same arguments, put into the state after it went through JSON."""
    made = type(env)(**env._made_of)
    made.set_state(json.loads(json.dumps(env.get_state())))
    return made


def single(task: str = ATTENTION, **arguments: Any) -> RankEnv:
    """The one-lane face."""
    return RankEnv(task, **{**short(task), **arguments})


def short(task: str) -> dict[str, Any]:
    """Arguments that make a task's episodes short."""
    return {**SHORT, "context": CONTEXTS.get(task, SHORT["context"])}


def future(env: RankEnv, seed: int, steps: int = FAR) -> list[Any]:
    """What random actions bring from here; an episode that has ended is reset."""
    env.action_space.seed(seed)
    found: list[Any] = []
    for _ in range(steps):
        if env.get_state()["ended"]:
            found.append(env.reset())
        else:
            found.append(env.step(env.action_space.sample()))
        found.append(env.action_masks())
    return found


def future_of_lanes(env: Any, seed: int, steps: int = FAR) -> list[Any]:
    """The same for lanes that reset themselves, less the clock in `info["episode"]`."""
    random, space = np.random.default_rng(seed), env.arena.action_space
    found: list[Any] = []
    for _ in range(steps):
        space.seed(int(random.integers(1000)))
        outcome = env.step(np.stack([space.sample() for _ in range(env.num_envs)]))
        infos = outcome[-1] if isinstance(outcome[-1], list) else []
        for info in infos:
            info.get("episode", {}).pop("t", None)
        found += [outcome, env.action_masks()]
    return found


def same(one: Any, two: Any) -> bool:
    """Equal bits, however nested."""
    if isinstance(one, dict):
        return set(one) == set(two) and all(same(one[name], two[name]) for name in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(two) and all(same(a, b) for a, b in zip(one, two, strict=True))
    if isinstance(one, np.ndarray) and one.dtype == object:
        return same(one.tolist(), two.tolist())
    if isinstance(one, np.ndarray):
        return one.dtype == two.dtype and np.array_equal(one, two)
    return bool(one == two)


@pytest.mark.parametrize("guard", ["off", "paper"])
@pytest.mark.parametrize("task", TASKS)
@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.integers(0, 9), seed=st.integers(0, 2**31), how=st.sampled_from(sorted(COPIES)))
def test_a_copy_of_one_lane_goes_on_alike(task: str, guard: str, steps: int, seed: int, how: str) -> None:
    """From any step, the last and a reset among them; and what the copy did left no trace in the original."""
    env = single(task, guard=guard)
    env.reset(seed=seed)
    future(env, seed, steps)
    before = env.get_state()
    wanted = future(COPIES[how](env), seed)
    assert env.get_state() == before
    assert same(wanted, future(env, seed))


@pytest.mark.parametrize("mode", MODES[:2])
@pytest.mark.parametrize("task", TASKS)
@settings(max_examples=3)
@given(steps=st.integers(0, 9), seed=st.integers(0, 2**31), how=st.sampled_from(sorted(COPIES)))
def test_a_copy_of_the_vector_face_goes_on_alike(task: str, mode: str, steps: int, seed: int, how: str) -> None:
    """Three lanes; in NextStep also between an end and the reset after it."""
    env = RankVectorEnv(3, task, mode, guard="paper", **short(task))
    env.reset(seed=seed)
    future_of_lanes(env, seed, steps)
    assert same(future_of_lanes(COPIES[how](env), seed), future_of_lanes(env, seed))


@pytest.mark.parametrize("task", SCALAR)
@settings(max_examples=3)
@given(steps=st.integers(0, 9), seed=st.integers(0, 2**31), how=st.sampled_from(sorted(COPIES)))
def test_a_copy_of_the_sb3_face_goes_on_alike(task: str, steps: int, seed: int, how: str) -> None:
    """Three lanes; the running totals of `info["episode"]` too."""
    env = make_vec_env(task, 3, seed=seed, guard="paper", **short(task))
    env.reset()
    future_of_lanes(env, seed, steps)
    assert same(future_of_lanes(COPIES[how](env), seed), future_of_lanes(env, seed))


@pytest.mark.parametrize("task", SCALAR)
def test_a_lane_goes_on_in_any_other_face(task: str) -> None:
    """A lane of either vector face goes on in one-lane environments as it does there, and the other way round."""
    lanes: Any = make_vec_env(task, 3, seed=4, guard="paper", **short(task))
    lanes.reset()
    future_of_lanes(lanes, seed=1, steps=2)
    states = json.loads(json.dumps(lanes.get_state()))
    alone, vector = single(task, guard="paper"), RankVectorEnv(3, task, SAME_STEP, guard="paper", **short(task))
    vector.set_state(states)
    space = lanes.action_space
    space.seed(3)
    for turn in range(9):
        actions = np.stack([space.sample() for _ in range(3)])
        if turn == 0:
            alone.set_state(states[2])
        one, two = lanes.step(actions), vector.step(actions)
        observation, reward, ended, _, _ = alone.step(actions[2])
        assert reward == two[1][2]
        assert np.float32(reward) == one[1][2]
        if ended:
            observation, _ = alone.reset()
        for name, values in observation.items():
            assert np.array_equal(values, one[0][name][2])
            assert np.array_equal(values, two[0][name][2])
    lanes.set_state([alone.get_state()] * 3)
    assert same(lanes.env_method("action_masks"), [alone.action_masks()] * 3)
    actions = np.stack([space.sample()] * 3)
    assert lanes.step(actions)[1].tolist() == [np.float32(alone.step(actions[0])[1])] * 3


@pytest.mark.parametrize("task", TASKS)
def test_a_state_from_before_the_first_reset_is_one_too(task: str) -> None:
    """It is JSON, its copy can be reset, and set over an episode it takes the episode back."""
    env = single(task)
    early = json.loads(json.dumps(env.get_state()))
    assert same(env.fork().reset(seed=3), env.reset(seed=3))
    env.set_state(early)
    assert env.get_state() == early
    with pytest.raises(ValueError, match="call reset first"):
        env.step(env.action_space.sample())
    assert same(env.reset(seed=3), single(task).reset(seed=3))


def test_lanes_that_never_began_are_copied_as_such() -> None:
    """Both vector faces; seeds and options that wait for SB3's reset wait in the copy."""
    with pytest.raises(ValueError, match="call reset first"):
        RankVectorEnv(2, **SHORT).fork().step(np.zeros(2, int))
    env = make_vec_env("DRRL-Tolerance-v0", 2, seed=7, **SHORT)
    env.set_options({"tolerance": 0.3})
    twin = pickle.loads(pickle.dumps(env))
    assert same(env.reset(), twin.reset())
    assert env.reset_infos[1]["tolerance"] == twin.reset_infos[1]["tolerance"] == 0.3
    assert same(env.reset(), twin.reset())


@pytest.mark.parametrize("task", TASKS)
def test_the_end_of_an_episode_is_a_state(task: str) -> None:
    """Its copy refuses a step, shows the same mask, and the next episode is the same; lanes begin it by themselves."""
    env = single(task)
    env.reset(seed=2)
    while not env.get_state()["ended"]:
        env.step(env.action_space.sample())
    state = env.get_state()
    twin = restored(env)
    with pytest.raises(ValueError, match="call reset first"):
        twin.step(env.action_space.sample())
    assert same(twin.action_masks(), env.action_masks())
    lanes = RankVectorEnv(1, task, SAME_STEP, **short(task))
    lanes.set_state([state])
    waiting = RankVectorEnv(1, task, NEXT_STEP, **short(task))
    waiting.set_state([state])
    begun = waiting.step(lanes.action_space.sample())[0]
    observation, _ = env.reset()
    assert same(observation, twin.reset()[0])
    assert same({name: rows[0] for name, rows in begun.items()}, observation)
    assert same({name: rows[0] for name, rows in lanes.arena.play.observe().items()}, observation)


OTHERS: dict[str, dict[str, Any]] = {
    "ranks": {"ranks": (8, 32, 64)},
    "context": {"context": 640},
    "segment": {"segment": 64},
    "value_rank": {"value_rank": "same"},
    "basis": {"basis": "calibrated"},
    "statistics": {"statistics": ("energy_ratio",)},
    "reward": {"reward": "paper"},
    "reward weights": {"reward": Reward(alpha=0.9)},
    "guard": {"guard": "paper"},
    "guard threshold": {"guard": Guard("paper", threshold=0.3)},
    "cost": {"cost": "latency"},
    "layer": {"layer": 1},
    "instances": {"instances": 3},
    "split": {"split": "validation"},
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_state_goes_only_where_the_arguments_are_the_same(name: str) -> None:
    """Refused in one line that names the argument, and nothing has changed: the numbers would mean another game."""
    state = single().get_state()
    other = single(**OTHERS[name])
    other.reset(seed=1)
    before = other.get_state()
    named = "instances" if name == "split" else name.split()[0]
    with pytest.raises(ValueError, match=f"state: it was taken with {named}=.*use one of the same arguments") as error:
        other.set_state(state)
    assert "\n" not in str(error.value)
    assert other.get_state() == before


def test_the_same_arguments_given_otherwise_are_the_same() -> None:
    """Defaults spelt out, NumPy numbers, URIs instead of their number: a state fits."""
    env = single()
    env.reset(seed=0)
    uris = [found.uri for found in env.pool]
    spelt = single(instances=uris, ranks=np.array(env.ranks), reward=Reward(), guard=Guard(), context=np.int64(512))
    spelt.set_state(json.loads(json.dumps(env.get_state())))
    assert same(future(spelt, 1), future(env, 1))


@pytest.mark.parametrize("state", [None, {}, [], "state", {"task": "DRRL-Budget-v0"}, {"task": ATTENTION}])
def test_what_is_no_state_is_refused_in_one_line(state: Any) -> None:
    """Also a state of another task."""
    with pytest.raises(ValueError, match=r"give what .*get_state returned") as error:
        single().set_state(state)
    assert "\n" not in str(error.value)


def test_a_state_for_other_than_every_lane_is_refused() -> None:
    """Too few, too many, one that is not in a list, a wrong one among them: and no lane has moved."""
    for env in (RankVectorEnv(2, **SHORT), make_vec_env(ATTENTION, 2, **SHORT)):
        env.reset()
        states = env.get_state()
        for wrong in (states[:1], states * 2, states[0]):
            with pytest.raises(ValueError, match=r"states: \d of them for 2 lanes; give a list of one a lane"):
                env.set_state(wrong)
        env.step(np.zeros(2, int))
        before = env.get_state()
        with pytest.raises(ValueError, match="give what its get_state returned"):
            env.set_state([states[0], {"task": "DRRL-Budget-v0"}])
        assert env.get_state() == before


def test_pickle_and_deepcopy_keep_wrappers_and_spec() -> None:
    """An environment of gym.make stays one, whose registered id is known."""
    env = gymnasium.make(ATTENTION, **SHORT)
    env.reset(seed=1)
    env.step(2)
    for how in ("deepcopy", "pickle"):
        twin = COPIES[how](env)
        assert twin.unwrapped.spec.id == ATTENTION
        assert same(twin.step(3), env.unwrapped.fork().step(3))


def test_a_picture_goes_with_the_state() -> None:
    """The restored environment draws the same text, of the steps before too."""
    env = single("DRRL-Heads-v0", render_mode="ansi")
    env.reset(seed=1)
    future(env, 0, 3)
    assert restored(env).render() == env.render()
    assert isinstance(make_vec_env("DRRL-Heads-v0", 1, **SHORT), RankVecEnv)
