"""The stable-baselines3 face keeps the promises of a `VecEnv`, so that any algorithm trains on it unwrapped."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
from sb3_contrib import MaskablePPO
from sb3_contrib.common.maskable.utils import get_action_masks, is_masking_supported
from stable_baselines3 import DQN, PPO, SAC
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecMonitor, VecNormalize

from drrl_env.envs.tasks import TASKS
from drrl_env.sb3 import RankVecEnv, make_vec_env

SHORT = {"context": 512, "instances": 2}
ATTENTION = "DRRL-Attention-v0"
SCALAR = [task for task in TASKS if "-MO-" not in task]
CONTEXTS = {"DRRL-Layers-v0": 256}
"""Of tasks with a step per segment and layer: an episode should end within the steps made."""


def short(task: str) -> dict[str, Any]:
    """Arguments that make a task's episodes short."""
    return {**SHORT, "context": CONTEXTS.get(task, SHORT["context"])}


def lanes(task: str = ATTENTION, count: int = 3, seed: int | None = 5, **arguments: Any) -> RankVecEnv:
    """A few lanes on short spans."""
    return make_vec_env(task, count, seed=seed, **{**short(task), **arguments})


def monitored(task: str, **arguments: Any) -> Any:
    """gym.make under SB3's Monitor, as its own make_vec_env does."""
    return lambda: Monitor(gymnasium.make(f"drrl_env:{task}", disable_env_checker=True, **short(task), **arguments))


def sampled(env: Any, turn: int) -> Any:
    """Random actions of all lanes."""
    env.action_space.seed(turn)
    return np.stack([env.action_space.sample() for _ in range(env.num_envs)])


@pytest.mark.parametrize("task", SCALAR)
def test_it_is_what_sb3_makes_of_monitored_environments(task: str) -> None:
    """DummyVecEnv of Monitors: the same observations, rewards, dones, masks and infos, terminal observations included.

    `info["episode"]` has Monitor's return (which it rounds to 6 digits) and length.
    """
    native, dummy = lanes(task, guard="paper"), DummyVecEnv([monitored(task, guard="paper")] * 3)
    dummy.seed(5)
    assert_same(native.reset(), dummy.reset())
    assert_same(native.reset_infos, dummy.reset_infos)
    for turn in range(9):
        actions = sampled(native, turn)
        one, two = native.step(actions), dummy.step(actions)
        for info in [*one[3], *two[3]]:
            info.get("episode", {}).pop("t", None)
        for info in one[3]:
            if "episode" in info:
                info["episode"]["r"] = round(info["episode"]["r"], 6)
        # DummyVecEnv says of every step that it was not cut short, this face of last ones, which alone are asked.
        told = [{k: v for k, v in info.items() if k != "TimeLimit.truncated" or "episode" in info} for info in two[3]]
        assert_same((*one[:3], one[3]), (*two[:3], told))
        assert_same(get_action_masks(native), get_action_masks(dummy))
        assert_same([x for x, end in zip(native.reset_infos, one[2], strict=True) if end],
                    [x for x, end in zip(dummy.reset_infos, two[2], strict=True) if end])  # fmt: skip


def assert_same(one: Any, two: Any) -> None:
    """Equal keys, types and bits, however nested."""
    if isinstance(one, dict):
        assert set(one) == set(two)
        for name in one:
            assert_same(one[name], two[name])
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(two)
        for first, second in zip(one, two, strict=True):
            assert_same(first, second)
    else:
        assert getattr(one, "dtype", None) == getattr(two, "dtype", None)
        assert np.array_equal(one, two)


@pytest.mark.parametrize("task", ["DRRL-Heads-v0", "DRRL-Basis-v0"])
def test_masks_of_several_components_are_one_row_side_by_side(task: str) -> None:
    """(lanes, sum of sizes), as MaskablePPO splits them; `has_attr` answers, so that masking is found."""
    env = lanes(task, guard="paper")
    env.reset()
    assert is_masking_supported(env)
    assert get_action_masks(env).shape == (3, int(env.action_space.nvec.sum()))  # type: ignore[attr-defined]
    assert_same(np.stack(env.env_method("action_masks", indices=[2, 0])), env.action_masks()[[2, 0]])
    assert_same(env.env_method("action_masks", indices=1)[0], env.action_masks()[1])


def test_attributes_answer_as_sb3_asks() -> None:
    """`has_attr` through `get_attr`; what there is not is not there; `indices` choose lanes."""
    env = lanes()
    assert env.has_attr("action_masks")
    assert env.has_attr("observation_space")
    assert not env.has_attr("compute_reward")
    assert env.get_attr("num_envs") == [3, 3, 3]
    assert len(env.get_attr("pool", indices=[0, 1])) == 2
    env.set_attr("note", "kept")
    assert env.get_attr("note", indices=2) == ["kept"]
    assert env.env_is_wrapped(Monitor) == [True] * 3
    with pytest.raises(AttributeError, match=r"env_method='dance'.*lanes have action_masks"):
        env.env_method("dance")


def test_seeds_and_options_count_for_one_reset() -> None:
    """As in every `VecEnv`: lane i gets seed + i, the next reset draws on; options are forgotten after a reset."""
    env, again = lanes(seed=9), lanes(seed=None)
    assert again.seed(9) == [9, 10, 11]
    assert_same(env.reset(), again.reset())
    assert_same(env.reset(), again.reset())
    uri = env.arena.pool[1].uri
    env.set_options({"instance": uri, "layer": 3})
    env.reset()
    assert {(info["instance"], info["layer"]) for info in env.reset_infos} == {(uri, 3)}
    drawn = set()
    for _ in range(4):
        env.reset()
        drawn |= {(info["instance"], info["layer"]) for info in env.reset_infos}
    assert len(drawn) > 1


def test_options_may_differ_by_lane() -> None:
    """A list of one a lane; an empty one leaves the lane to chance."""
    env = lanes("DRRL-Tolerance-v0")
    env.set_options([{"tolerance": 0.1}, {}, {"tolerance": 0.4}])
    env.reset()
    assert env.reset_infos[0]["tolerance"] == 0.1
    assert env.reset_infos[2]["tolerance"] == 0.4


def test_a_step_before_a_reset_or_with_too_few_actions_is_refused() -> None:
    """In one line each."""
    env = lanes()
    with pytest.raises(ValueError, match="call reset first"):
        env.step(np.zeros(3, int))
    env.reset()
    with pytest.raises(ValueError, match="2 actions for 3 lanes"):
        env.step(np.zeros(2, int))
    with pytest.raises(ValueError, match="n_envs=0"):
        lanes(count=0)
    with pytest.raises(ValueError, match="task='DRRL-Atention-v0'"):
        lanes("DRRL-Atention-v0")


def test_observations_and_infos_are_ones_own() -> None:
    """A buffer may keep them and write to them: the next step and the other lanes see nothing of it."""
    env, twin = lanes(guard="paper"), lanes(guard="paper")
    env.reset()
    twin.reset()
    for turn in range(9):
        one, two = env.step(sampled(env, turn)), twin.step(sampled(twin, turn))
        for info in (*one[3], *two[3]):
            info.get("episode", {}).pop("t", None)
        assert_same(one, two)
        for values in one[0].values():
            values[:] = -1
        one[1][:], one[2][:] = 0, True
        for info in one[3]:
            info["action_mask"][:] = False
            info["reward_terms"].clear()


@pytest.mark.parametrize("task", [ATTENTION, "DRRL-Heads-v0"])
def test_a_monitor_is_told_that_it_is_not_needed(task: str) -> None:
    """VecMonitor says so and reports the return that is already there, to float32; VecNormalize passes it on."""
    with pytest.warns(UserWarning, match="already wrapped with a `Monitor`"):
        watched = VecMonitor(lanes(task))
    env = VecNormalize(watched, norm_obs=False, norm_reward=False)
    env.reset()
    twin = lanes(task)
    twin.reset()
    for turn in range(8):
        infos, own = env.step(sampled(env, turn))[3], twin.step(sampled(twin, turn))[3]
        for info, other in zip(infos, own, strict=True):
            assert ("episode" in info) == ("episode" in other)
            if "episode" in info:
                assert info["episode"]["r"] == pytest.approx(other["episode"]["r"], abs=1e-5)
                assert info["episode"]["l"] == other["episode"]["l"] == 4


def rounded(step: Any) -> Any:
    """Observations, rewards and dones; the rewards of workers come in float64, and every other VecEnv's in float32."""
    return step[0], step[1].astype(np.float32), step[2]


@pytest.mark.slow
@pytest.mark.parametrize("task", SCALAR)
def test_it_equals_sb3s_subprocess_workers(task: str) -> None:
    """SubprocVecEnv by the id that imports the package: the bits of the native face, measured in another process."""
    workers, native = SubprocVecEnv([monitored(task)] * 2, start_method="spawn"), lanes(task, 2)
    try:
        workers.seed(5)
        assert_same(workers.reset(), native.reset())
        for turn in range(6):
            actions = sampled(native, turn)
            assert_same(rounded(workers.step(actions)), native.step(actions)[:3])
    finally:
        workers.close()


def test_it_equals_one_subprocess_worker() -> None:
    """The fast case of the above: a forked worker, one task."""
    workers, native = SubprocVecEnv([monitored(ATTENTION)], start_method="fork"), lanes(ATTENTION, 1)
    try:
        workers.seed(5)
        assert_same(workers.reset(), native.reset())
        for turn in range(5):
            actions = sampled(native, turn)
            assert_same(rounded(workers.step(actions)), native.step(actions)[:3])
    finally:
        workers.close()


FEW = {"n_steps": 8, "batch_size": 8, "n_epochs": 1}
OFF = {"learning_starts": 12, "buffer_size": 64, "batch_size": 8}
TRAINED: list[tuple[str, Any, dict[str, Any]]] = [
    (ATTENTION, PPO, FEW),
    (ATTENTION, DQN, OFF),
    (ATTENTION, MaskablePPO, FEW),
    ("DRRL-Heads-v0", MaskablePPO, FEW),
    ("DRRL-Basis-v0", MaskablePPO, FEW),
    ("DRRL-Budget-v0", MaskablePPO, FEW),
    ("DRRL-Heads-v0", PPO, FEW),
    ("DRRL-Attention-Continuous-v0", SAC, OFF),
]


@pytest.mark.parametrize(("task", "algorithm", "settings"), TRAINED, ids=lambda value: str(value)[-24:])
def test_the_algorithm_trains_on_it_unwrapped(task: str, algorithm: Any, settings: dict[str, Any]) -> None:
    """48 steps of three lanes without a Monitor: episodes of four segments in its buffer, predictions in the space."""
    env = lanes(task, guard="paper")
    agent = algorithm("MultiInputPolicy", env, seed=0, device="cpu", **settings).learn(48)
    assert agent.num_timesteps >= 48
    assert {episode["l"] for episode in agent.ep_info_buffer} == {4}
    action, _ = agent.predict(env.reset(), deterministic=True)
    assert env.action_space.contains(action[0])


def test_a_masked_agent_never_asks_for_what_is_not_allowed_in_any_component() -> None:
    """MaskablePPO on a mask of several components: every executed choice is the one asked for."""
    env = lanes("DRRL-Heads-v0", guard="paper")
    agent = MaskablePPO("MultiInputPolicy", env, seed=0, device="cpu", **FEW)
    observations = env.reset()
    for _ in range(8):
        actions, _ = agent.predict(observations, action_masks=get_action_masks(env))
        observations, _, _, infos = env.step(actions)
        assert not any(info["masked_action"] for info in infos)
