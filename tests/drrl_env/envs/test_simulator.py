"""Many lanes are one lane many times, and another process is this one again: bit for bit."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drrl_env.envs.costs import resolve_cost
from drrl_env.envs.game import Game, Rules
from drrl_env.envs.objectives import LinearObjective
from drrl_env.envs.play import Episode
from drrl_env.envs.ranks import RankMechanism
from drrl_env.envs.simulator import Simulator, pairs
from drrl_env.envs.store import Store
from drrl_env.envs.world import open_world

LANES, ROUNDS = 9, 24
PROGRAM = """
import hashlib, json
import numpy as np, torch
torch.set_num_threads(1)
import gymnasium, drrl_env

env = gymnasium.make("DRRL-Attention-v0", context=512, instances=2, guard="paper")
digest = hashlib.sha256()
def take(observation, reward, info):
    for name in sorted(observation):
        digest.update(observation[name].tobytes())
    plain = {key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in info.items()}
    digest.update(json.dumps([reward, plain], sort_keys=True).encode())

actions = np.random.default_rng(3)
for episode in range(4):
    observation, info = env.reset(seed=11 if episode == 0 else None)
    take(observation, 0.0, info)
    terminated = False
    while not terminated:
        observation, reward, terminated, _, info = env.step(int(actions.integers(8)))
        take(observation, reward, info)
print(digest.hexdigest())
"""


def new_simulator(rules: Rules, lanes: int) -> Simulator:
    """A simulator over a store of its own, where nothing is measured yet."""
    store = Store(open_world(rules.measurement))
    game = Game(
        rules,
        store,
        lambda store, rules: RankMechanism(store, rules.guard, resolve_cost(rules.cost)),
        lambda rules, mechanism: LinearObjective(rules.reward),
    )
    return Simulator(game, lanes)


def starts_of(lane: int, found: Any) -> Any:
    """Episodes of a lane: its own walk through all (instance, layer)."""
    while True:
        lane += 5
        yield found[lane % len(found)]


def test_lanes_equal_one_lane_runs_bit_for_bit(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """9 lanes on mixed spans and layers, begun at different times, under a guard; one lane has a store of its own."""
    monkeypatch.setenv("DRRL_TRACES", "off")
    env = make(instances=3, guard="paper")
    found, rules = pairs(env.pool, env.arena.layers), env.game.rules
    choices = np.random.default_rng(0).integers(8, size=(ROUNDS, LANES, 1))
    together = play_together(new_simulator(rules, LANES), found, choices)
    for lane in range(LANES):
        alone = play_alone(new_simulator(rules, 1), starts_of(lane, found), choices[lane % 3 :, lane])
        assert len(alone) == len(together[lane]) > 0
        for one, two in zip(alone, together[lane], strict=True):
            assert_same(one, two)


def play_together(simulator: Simulator, found: Any, choices: np.ndarray) -> list[list[dict[str, np.ndarray]]]:
    """All lanes at once; lane i idles for its first i % 3 rounds (it plays an episode that is not looked at)."""
    walks = [starts_of(lane, found) for lane in range(LANES)]
    seen: list[list[dict[str, np.ndarray]]] = [[] for _ in range(LANES)]
    simulator.begin(range(LANES), [Episode(*found[0])] * LANES)
    ended = np.zeros(LANES, bool)
    for turn, row in enumerate(choices):
        for lane in range(LANES):
            if turn == lane % 3 or (ended[lane] and turn > lane % 3):
                simulator.begin([lane], [Episode(*next(walks[lane]))])
        batch = simulator.step(row)
        ended = batch.terminated
        observed, masks = simulator.observe(), simulator.masks()
        for lane in np.flatnonzero(turn >= np.arange(LANES) % 3):
            seen[lane].append(picture(batch, observed, masks, lane))
    return seen


def play_alone(simulator: Simulator, walk: Any, choices: np.ndarray) -> list[dict[str, np.ndarray]]:
    """The same choices in one lane."""
    found, ended = [], True
    for choice in choices:
        if ended:
            simulator.begin([0], [Episode(*next(walk))])
        batch = simulator.step(choice[None])
        ended = bool(batch.terminated[0])
        found.append(picture(batch, simulator.observe(), simulator.masks(), 0))
    return found


def picture(batch: Any, observed: Any, masks: np.ndarray, lane: int) -> dict[str, np.ndarray]:
    """Everything a lane shows after a step."""
    shown = {name: rows[lane].copy() for name, rows in observed.items()}
    terms = {f"term {name}": values[lane] for name, values in batch.terms.items()}
    columns = {f"column {name}": values[lane] for name, values in batch.columns.items()}
    numbers = {"reward": batch.rewards[lane], "action": batch.actions[lane], "changed": batch.changed[lane]}
    return {**shown, **terms, **columns, **numbers, "mask": masks[lane].copy()}


def assert_same(one: dict[str, np.ndarray], two: dict[str, np.ndarray]) -> None:
    """Equal bits in every part."""
    for name in one:
        assert np.array_equal(one[name], two[name]), name


def test_the_environment_is_the_one_lane_simulator(make: Any, play: Any) -> None:
    """Rewards and observations of gym.make are the simulator's."""
    env = make()
    steps = play(env, choices=[0, 3, 5, 7], instance=env.pool[1].uri, layer=2)
    simulator = Simulator(env.game, 1)
    simulator.begin([0], [Episode(env.pool[1], 2)])
    for choice, step in zip([0, 3, 5, 7], steps[1:], strict=True):
        batch = simulator.step(np.array([[choice]]))
        assert step.reward == batch.rewards[0]
        assert_same(step.observation, {name: rows[0] for name, rows in simulator.observe().items()})


def test_a_step_beyond_the_end_is_refused(make: Any, play: Any) -> None:
    """It would read another episode's numbers."""
    env = make()
    play(env)
    with pytest.raises(ValueError, match="call reset first"):
        env.step(0)


def test_a_step_of_some_lanes_leaves_the_others_where_they_are(make: Any) -> None:
    """Lanes 0 and 2 of three are stepped: lane 1 shows what it showed, they what they show alone."""
    env = make(guard="paper")
    simulator, alone = Simulator(env.game, 3), Simulator(env.game, 2)
    episodes = [Episode(*pair) for pair in pairs(env.pool, env.arena.layers)[:3]]
    simulator.begin(range(3), episodes)
    alone.begin(range(2), [episodes[0], episodes[2]])
    before, mask = simulator.observe(), simulator.masks()[1]
    some, both = simulator.step(np.array([[3], [0]]), np.array([0, 2])), alone.step(np.array([[3], [0]]))
    assert np.array_equal(some.rewards, both.rewards)
    infos = simulator.infos(some, simulator.masks()[[0, 2]])
    assert [info["layer"] for info in infos] == [episodes[0].layer, episodes[2].layer]
    assert np.array_equal(simulator.masks()[1], mask)
    for name, rows in simulator.observe().items():
        assert np.array_equal(rows[1], before[name][1]), name
        assert np.array_equal(rows[[0, 2]], alone.observe()[name]), name


@pytest.mark.parametrize("action", [-1, 8])
def test_an_action_out_of_range_is_refused(action: int, make: Any) -> None:
    """It would read the neighbouring transition."""
    env = make()
    env.reset(seed=0)
    with pytest.raises(ValueError, match=f"action={action}: .* use 0 to 7"):
        env.step(action)


def test_the_same_seed_and_actions_give_the_same_bits_in_another_process(tmp_path: Path) -> None:
    """A hash of all observations, rewards and infos of four episodes, from two processes that compute all anew."""
    settings = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "random", "DRRL_TRACES": "off"}
    program = [sys.executable, "-c", PROGRAM]
    runs = [
        subprocess.run(program, cwd=tmp_path, env=settings, capture_output=True, text=True, check=True)
        for _ in range(2)
    ]
    hashes = {run.stdout.strip() for run in runs}
    assert len(hashes) == 1
    assert len(hashes.pop()) == len(hashlib.sha256().hexdigest())


def test_seeds_draw_different_episodes_and_reset_repeats_them(make: Any) -> None:
    """The same seed begins the same (instance, layer); without a seed the next draw differs over a few resets."""
    env = make(instances=8)

    def drawn(seed: int | None) -> tuple[str, int]:
        info = env.reset(seed=seed)[1]
        return info["instance"], info["layer"]

    assert drawn(5) == drawn(5)
    assert len({drawn(seed) for seed in range(12)}) > 4
    assert len({drawn(None) for _ in range(12)}) > 4
