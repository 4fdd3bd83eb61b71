"""Three faces, one environment: the same seeds and actions give the same bits, in every task, guard and mode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import mo_gymnasium
import numpy as np
import pytest
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from gymnasium.wrappers.vector import RecordEpisodeStatistics
from mo_gymnasium.wrappers import LinearReward

from drrl_env.envs import faces
from drrl_env.envs.faces import DISABLED, MODES, NEXT_STEP, SAME_STEP
from drrl_env.envs.store import Store
from drrl_env.envs.tasks import TASKS
from drrl_env.envs.vector import RankVectorEnv
from drrl_env.sb3 import make_vec_env

SHORT = {"context": 512, "instances": 2}
CONTEXTS = {"DRRL-Layers-v0": 256}
"""Of tasks with a step per segment and layer, so that an episode ends within the rounds driven."""
LANES, ROUNDS, SEED = 3, 11, 5
ATTENTION = "DRRL-Attention-v0"
SCALAR = [task for task in TASKS if "-MO-" not in task]


def vector_env(task: str, mode: str = SAME_STEP, lanes: int = LANES, **arguments: Any) -> Any:
    """The Gymnasium vector face, by gym.make_vec."""
    arguments = {**SHORT, "context": CONTEXTS.get(task, SHORT["context"]), **arguments}
    return gymnasium.make_vec(task, lanes, "vector_entry_point", autoreset_mode=mode, **arguments)


def singles_of(task: str, lanes: int = LANES, **arguments: Any) -> list[gymnasium.Env[Any, Any]]:
    """As many one-lane environments, by gym.make, wrappers and all."""
    arguments = {**SHORT, "context": CONTEXTS.get(task, SHORT["context"]), **arguments}
    return [gymnasium.make(task, disable_env_checker=True, **arguments) for _ in range(lanes)]


def actions_for(task: str, rounds: int = ROUNDS, **arguments: Any) -> Any:
    """Random actions, masked ones among them."""
    return faces.random_actions(vector_env(task, **arguments), rounds, seed=1)


@pytest.mark.parametrize("guard", ["off", "paper"])
@pytest.mark.parametrize("task", TASKS)
def test_the_vector_face_is_as_many_one_lane_environments(task: str, guard: str) -> None:
    """Observations, masks, rewards, ends, infos and final observations, bit for bit, in all three autoreset modes."""
    actions = actions_for(task, guard=guard)
    for mode in MODES:
        one = faces.drive_singles(singles_of(task, guard=guard), actions, SEED, mode)
        two = faces.drive_vector(vector_env(task, mode, guard=guard), actions, SEED)
        assert faces.difference(one, two) is None, mode
        assert sum(seen.done for row in one for seen in row) >= LANES


@pytest.mark.parametrize("guard", ["off", "paper"])
@pytest.mark.parametrize("task", SCALAR)
def test_the_sb3_face_is_as_many_one_lane_environments(task: str, guard: str) -> None:
    """Terminal observations included; rewards to the float32 that SB3 takes."""
    actions = actions_for(task, guard=guard)
    one = faces.drive_singles(singles_of(task, guard=guard), actions, SEED, SAME_STEP)
    context = CONTEXTS.get(task, SHORT["context"])
    native = make_vec_env(task, LANES, guard=guard, **{**SHORT, "context": context})
    two = faces.drive_sb3(native, actions, SEED)
    assert faces.difference(one, two) is None


def test_the_faces_agree_where_actions_are_numbers() -> None:
    """`actions="box"` for a task whose own are indices: the same bits in all three faces and autoreset modes."""
    task, box = "DRRL-Tolerance-v0", {"guard": "paper", "actions": "box"}
    actions = actions_for(task, **box)
    assert actions.dtype == np.float32
    for mode in MODES:
        one = faces.drive_singles(singles_of(task, **box), actions, SEED, mode)
        two = faces.drive_vector(vector_env(task, mode, **box), actions, SEED)
        assert faces.difference(one, two) is None, mode
    one = faces.drive_singles(singles_of(task, **box), actions, SEED, SAME_STEP)
    three = faces.drive_sb3(make_vec_env(task, LANES, **SHORT, **box), actions, SEED)
    assert faces.difference(one, three) is None


@pytest.mark.slow
@pytest.mark.parametrize("task", [ATTENTION, "DRRL-Tolerance-v0", "DRRL-Budget-v0", "DRRL-Heads-v0"])
def test_the_faces_agree_under_the_conformal_guard(task: str) -> None:
    """Its bounds are worked out segment by segment, whoever comes first."""
    actions = actions_for(task, guard="conformal")
    one = faces.drive_singles(singles_of(task, guard="conformal"), actions, SEED, SAME_STEP)
    two = faces.drive_vector(vector_env(task, SAME_STEP, guard="conformal"), actions, SEED)
    three = faces.drive_sb3(make_vec_env(task, LANES, guard="conformal", **SHORT), actions, SEED)
    assert faces.difference(one, two) is None
    assert faces.difference(one, three) is None


@pytest.mark.parametrize("mode", [NEXT_STEP, SAME_STEP])
@pytest.mark.parametrize("task", SCALAR)
def test_gymnasiums_own_vector_environment_shows_the_same(task: str, mode: str) -> None:
    """SyncVectorEnv over gym.make, driven by the same calls: infos in Gymnasium's vector form are its, key by key."""
    sync = SyncVectorEnv(
        [lambda: singles_of(task, 1, guard="paper")[0]] * LANES,
        autoreset_mode=AutoresetMode(mode),
    )
    native, actions = vector_env(task, mode, guard="paper"), actions_for(task)
    assert_same_returns(sync.reset(seed=SEED), native.reset(seed=SEED))
    for row in actions:
        assert_same_returns(sync.step(row), native.step(row))


def assert_same_returns(one: Any, two: Any) -> None:
    """Nested dicts and arrays with equal keys, types and bits."""
    if isinstance(one, dict):
        assert set(one) == set(two)
        for name in one:
            assert_same_returns(one[name], two[name])
    elif isinstance(one, tuple):
        assert len(one) == len(two)
        for first, second in zip(one, two, strict=True):
            assert_same_returns(first, second)
    elif isinstance(one, np.ndarray) and one.dtype == object:
        for first, second in zip(one, two, strict=True):
            assert_same_returns(first, second)
    else:
        assert getattr(one, "dtype", None) == getattr(two, "dtype", None)
        assert np.array_equal(one, two)


def test_it_runs_in_gymnasiums_subprocess_workers() -> None:
    """AsyncVectorEnv by the id that imports the package, NextStep: the bits of the native face."""
    task = "drrl_env:DRRL-Budget-v0"
    workers = AsyncVectorEnv([lambda: gymnasium.make(task, **SHORT)] * 2, context="fork", shared_memory=False)
    try:
        native = vector_env("DRRL-Budget-v0", NEXT_STEP, lanes=2)
        actions = faces.random_actions(native, 6, seed=2)
        assert_same_returns(workers.reset(seed=SEED), native.reset(seed=SEED))
        for row in actions:
            assert_same_returns(workers.step(row), native.step(row))
    finally:
        workers.close()


def poke(part: str) -> Callable[[faces.Seen], None]:
    """Changes one thing in what a lane saw."""

    def change(seen: faces.Seen) -> None:
        if part == "observation":
            seen.observation["energy"][0] = np.nextafter(seen.observation["energy"][0], np.float32(2))
        elif part == "mask":
            seen.mask[0] = not seen.mask[0]
        elif part == "info":
            seen.info["reward_terms"]["change"] = np.nextafter(seen.info["reward_terms"]["change"], 1.0)
        else:
            seen.last["energy"][1] += 1e-6

    return change


@pytest.mark.parametrize("part", ["observation", "mask", "info", "last"])
def test_the_comparison_sees_one_bit(part: str) -> None:
    """A last bit changed in the lane's fourth round, when its episode ends, is named with round, lane and place."""
    actions = actions_for(ATTENTION, rounds=4)
    one, two = (faces.drive_singles(singles_of(ATTENTION), actions, SEED, SAME_STEP) for _ in range(2))
    assert faces.difference(one, two) is None
    poke(part)(two[4][1])
    assert str(faces.difference(one, two)).startswith(f"round 4, lane 1: {part}")


def test_the_comparison_sees_a_round_too_few() -> None:
    """Equal as far as both go is not equal."""
    actions = actions_for(ATTENTION, rounds=2)
    found = faces.drive_singles(singles_of(ATTENTION), actions, SEED, SAME_STEP)
    assert faces.difference(found, found[:-1]) == "3 rounds of 3 lanes against 2 of 3"


def test_lanes_of_a_number_are_the_first_of_more() -> None:
    """Two lanes see what the first two of five see: no lane depends on its neighbours."""
    actions = faces.random_actions(vector_env("DRRL-Heads-v0", lanes=5, guard="paper"), 9, seed=3)
    many = faces.drive_vector(vector_env("DRRL-Heads-v0", lanes=5, guard="paper"), actions, SEED)
    few = faces.drive_vector(vector_env("DRRL-Heads-v0", lanes=2, guard="paper"), actions[:, :2], SEED)
    assert faces.difference(few, [row[:2] for row in many]) is None


@pytest.mark.parametrize("mode", MODES)
def test_the_vector_face_declares_its_mode(mode: str) -> None:
    """In metadata, where Gymnasium's vector wrappers look; a mode there is not is refused."""
    assert vector_env(ATTENTION, mode).metadata["autoreset_mode"] is AutoresetMode(mode)
    with pytest.raises(ValueError, match=r"autoreset_mode='Never'.*'NextStep'"):
        vector_env(ATTENTION, "Never")


@pytest.mark.parametrize("mode", [NEXT_STEP, SAME_STEP])
def test_gymnasiums_episode_statistics_wrap_it(mode: str) -> None:
    """Returns and lengths of four segments as summed by hand."""
    env = RecordEpisodeStatistics(vector_env(ATTENTION, mode))
    env.reset(seed=0)
    total = np.zeros(LANES)
    for _ in range(4):
        _, rewards, terminated, _, infos = env.step(np.array([0, 3, 7]))
        total += rewards
    assert terminated.all()
    assert infos["episode"]["r"] == pytest.approx(total)
    assert infos["episode"]["l"].tolist() == [4] * LANES


def test_a_lane_that_ended_is_not_stepped_in_disabled_mode() -> None:
    """It is reset by `reset_mask`, others go on; a mask of the wrong shape is refused in one line."""
    env = vector_env(ATTENTION, DISABLED)
    env.reset(seed=0)
    for _ in range(4):
        env.step(np.zeros(LANES, int))
    with pytest.raises(ValueError, match="call reset first"):
        env.step(np.zeros(LANES, int))
    env.reset(options={"reset_mask": np.ones(LANES, bool)})
    env.step(np.zeros(LANES, int))
    with pytest.raises(ValueError, match=r"options\['reset_mask'\]"):
        env.reset(options={"reset_mask": np.zeros(LANES, bool)})
    observations, infos = env.reset(options={"reset_mask": np.array([False, True, False])})
    assert observations["position"].ravel().tolist() == [0.25, 0.0, 0.25]
    assert infos["_instance"].tolist() == [False, True, False]


def test_a_list_of_seeds_seeds_lane_by_lane() -> None:
    """And a seed too few is named."""
    env, single = vector_env(ATTENTION), singles_of(ATTENTION, 1)[0]
    observations, _ = env.reset(seed=[9, 4, 9])
    wanted, _ = single.reset(seed=4)
    assert all(np.array_equal(observations[name][1], wanted[name]) for name in wanted)
    with pytest.raises(ValueError, match="seed: 2 seeds for num_envs=3"):
        env.reset(seed=[1, 2])


def test_one_action_for_several_lanes_is_refused() -> None:
    """NumPy would broadcast it without a word."""
    env = vector_env(ATTENTION)
    env.reset(seed=0)
    with pytest.raises(ValueError, match="1 actions for 3 lanes; give one for each"):
        env.step(np.array([2]))


def test_options_reach_every_lane() -> None:
    """The same instance, layer and parameter in each."""
    env = RankVectorEnv(LANES, "DRRL-Tolerance-v0", **SHORT)
    uri = env.arena.pool[1].uri
    _, infos = env.reset(seed=0, options={"instance": f"{uri}?layer=2", "tolerance": 0.25})
    assert infos["instance"].tolist() == [uri] * LANES
    assert infos["layer"].tolist() == [2] * LANES
    assert infos["tolerance"].tolist() == [0.25] * LANES


def test_the_multi_objective_task_has_a_vector_reward() -> None:
    """mo_gymnasium.make: three terms in `reward_space`, and its LinearReward gives their weighted sum."""
    env = mo_gymnasium.make("DRRL-Attention-MO-v0", **SHORT)
    scalar = LinearReward(mo_gymnasium.make("DRRL-Attention-MO-v0", **SHORT), weight=np.array([1.0, 0.3, 0.05]))
    twin = gymnasium.make(ATTENTION, **SHORT)
    for each in (env, scalar, twin):
        each.reset(seed=SEED)
    assert env.unwrapped.reward_space.shape == (3,)  # type: ignore[attr-defined]
    for action in (0, 5, 2, 7):
        _, reward, _, _, info = env.step(action)
        assert env.unwrapped.reward_space.contains(reward)  # type: ignore[attr-defined]
        assert np.array_equal(reward, np.array(list(info["reward_terms"].values()), np.float32))  # type: ignore[arg-type]
        assert list(info["reward_terms"]) == ["fidelity", "flops", "change"]
        alone = scalar.step(action)[1]
        assert alone == pytest.approx(twin.step(action)[1], abs=1e-6)
    with pytest.raises(ValueError, match=r"reward is a vector.*mo_gymnasium\.make"):
        make_vec_env("DRRL-Attention-MO-v0", 1, **SHORT)


def test_info_cannot_tell_what_was_not_measured(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """No oracle leaks: an episode computed live measures the ranks it executes and no others."""
    monkeypatch.setenv("DRRL_TRACES", "off")
    asked: list[tuple[int, int]] = []
    real = Store._measure

    def counted(self: Store, block: int, position: int, choice: int, segment: Any) -> None:
        asked.append((position, choice))
        real(self, block, position, choice, segment)

    monkeypatch.setattr(Store, "_measure", counted)
    env = make(context=384, instances=1, ranks=(8, 24, 40, 64), layer=3)
    env.reset(seed=0)
    for choice in (1, 0, 2):
        env.step(choice)
    assert asked == [(0, 1), (1, 0), (2, 2)]
