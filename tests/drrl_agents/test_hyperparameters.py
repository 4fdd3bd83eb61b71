"""Hyperparameters stand in files that RL Baselines3 Zoo reads as they are; ours reads them and runs nothing."""

from __future__ import annotations

import inspect
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import yaml
from gymnasium import spaces
from gymnasium.wrappers import FlattenObservation
from stable_baselines3 import PPO, TD3
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.utils import LinearSchedule

from drrl_agents.algorithms import ALGORITHMS, PLAYABLE, accepts, box_needed, hyperparameters_of
from drrl_agents.hyperparameters import FOLDER, SCHEDULED, ZOO, constructor_arguments, read_entry
from drrl_agents.warm_start import FILE as RECIPES
from drrl_env.envs.wrappers import BoxActions

ZOO_NAMES = {
    "a2c", "ddpg", "dqn", "ppo", "sac", "td3", "ars", "crossq", "qrdqn", "tqc", "trpo", "ppo_lstm", "ppo_mask",
}  # fmt: skip
"""How the Zoo names them (rl_zoo3.utils.ALGOS, 2.9); `ppo_mask`, which it does not know, after sb3_contrib's module."""
NUMBER = spaces.Box(-1.0, 1.0, (1,), np.float32)


def zoo_reads(algo: str, task: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the Zoo takes from a file, by the rules of `rl_zoo3.exp_manager`: for itself, and for the constructor."""
    entries = yaml.safe_load((FOLDER / f"{ALGORITHMS[algo].file}.yml").read_text())
    entry = dict(entries[task])
    own = {name: entry.pop(name) for name in ZOO if name in entry and name != "policy"}
    for name in SCHEDULED:
        if isinstance(entry.get(name), str):
            _, initial = entry[name].split("_")
            entry[name] = float(initial)
    if entry.get("noise_type") is not None:
        assert "normal" in entry.pop("noise_type")
        entry["action_noise"] = float(entry.pop("noise_std"))
    return own, entry


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_the_zoo_can_read_every_entry(algo: str) -> None:
    """Every task the algorithm accepts has an entry of arguments that its constructor knows, and no other task has."""
    entries = yaml.safe_load((FOLDER / f"{ALGORITHMS[algo].file}.yml").read_text())
    assert set(entries) == {"default", *(task for task in PLAYABLE if accepts(algo, task))}
    known = inspect.signature(ALGORITHMS[algo].make).parameters
    for task in set(entries) - {"default"}:
        own, given = zoo_reads(algo, task)
        assert own["n_timesteps"] > 0
        assert own["n_envs"] >= 1
        assert set(given) <= set(known), task
        assert given["policy"] == ALGORITHMS[algo].policy
        assert not isinstance(given.get("policy_kwargs", {}), str), "the Zoo would evaluate it"
        assert wrappers(own) == [
            *([BoxActions] if box_needed(algo, task) else []),
            *([] if ALGORITHMS[algo].dicts else [FlattenObservation]),
        ]


def test_every_file_belongs_to_an_algorithm() -> None:
    """Named as the Zoo looks for them, one each; the recipes of cloning are no algorithm's and not the Zoo's."""
    assert {path.stem for path in Path(FOLDER).glob("*.yml")} - {RECIPES} == {
        found.file for found in ALGORITHMS.values()
    }
    assert {found.file for found in ALGORITHMS.values()} == ZOO_NAMES


def wrappers(own: dict[str, Any]) -> list[type]:
    """What the Zoo wraps an environment in, training and evaluation alike: each can be imported."""
    named = own.get("env_wrapper", [])
    parts = [path.rpartition(".") for path in ([named] if isinstance(named, str) else named)]
    return [getattr(import_module(module), name) for module, _, name in parts]


@pytest.mark.parametrize("algo", ["tqc", "crossq"])
def test_an_algorithm_learns_on_what_the_zoo_wraps(algo: str) -> None:
    """Made by its id alone and wrapped, as the Zoo does it: the algorithm accepts it and takes a step."""
    own, given = zoo_reads(algo, "DRRL-Attention-v0")
    env: Any = gymnasium.make("DRRL-Attention-v0", context=512, instances=1, basis="calibrated")
    for wrapper in wrappers(own):
        env = wrapper(env)
    model = ALGORITHMS[algo].make(given["policy"], env, learning_starts=1, batch_size=2, buffer_size=8)
    assert model.learn(4).num_timesteps == 4


@pytest.mark.skipif(find_spec("rl_zoo3") is None, reason="rl_zoo3 is not installed; its rules are mirrored above")
@pytest.mark.parametrize("algo", [algo for algo in ALGORITHMS if algo != "maskable-ppo"])
def test_the_zoo_itself_reads_the_file(algo: str, tmp_path: Path) -> None:
    """Its own reader and preprocessing leave what the algorithm's constructor takes."""
    manager: Any = import_module("rl_zoo3.exp_manager").ExperimentManager
    file = ALGORITHMS[algo].file
    task = "DRRL-Tolerance-v0"
    found = manager(None, file, task, str(tmp_path), config=str(FOLDER / f"{file}.yml"), verbose=0, device="cpu")
    values, _, _, _ = found._preprocess_hyperparams(found.read_hyperparameters()[0])
    assert found.n_timesteps == 100_000
    assert found.env_kwargs == {}
    assert set(values) - {"noise_type", "noise_std"} <= set(inspect.signature(ALGORITHMS[algo].make).parameters)


def test_a_task_without_an_entry_gets_the_default() -> None:
    """And what was read can be changed without changing what is read next."""
    found = read_entry("ppo", "Pendulum-v1")
    assert found == read_entry("ppo")
    found["gamma"] = 0.1
    assert read_entry("ppo")["gamma"] == 0.95


def test_plain_values_hold_nothing_of_the_zoos() -> None:
    """They are what a config keeps and a constructor takes: numbers, names and mappings."""
    for algo in ALGORITHMS:
        values = hyperparameters_of(algo)
        assert not set(values) & set(ZOO)
        assert all(isinstance(value, (bool, int, float, str, dict)) for value in values.values())


def test_values_become_what_a_constructor_takes() -> None:
    """A schedule that falls linearly to zero, noise of the action's shape, a pair of a number and a unit."""
    given = {"learning_rate": "lin_0.004", "noise_type": "normal", "noise_std": 0.3, "train_freq": [2, "episode"]}
    found = constructor_arguments(given, TD3, NUMBER)
    schedule, noise = found["learning_rate"], found["action_noise"]
    assert isinstance(schedule, LinearSchedule)
    assert [schedule(1.0), schedule(0.25), schedule(0.0), schedule(-0.01)] == pytest.approx([0.004, 0.001, 0, 0])
    assert isinstance(noise, NormalActionNoise)
    assert noise._sigma.tolist() == [0.3]
    assert found["train_freq"] == (2, "episode")
    assert set(found) == {"learning_rate", "action_noise", "train_freq"}


WRONG = [
    ({"learning_rate": "cos_0.1"}, r"learning_rate='cos_0.1': not a schedule; use a number, or lin_0.001"),
    ({"learning_rate": "1e-3"}, r"learning_rate='1e-3': not a schedule"),
    ({"policy_kwargs": "dict(net_arch=[64])"}, r"policy_kwargs='dict\(net_arch=\[64\]\)': never evaluated; use a map"),
    ({"noise_type": "ornstein-uhlenbeck"}, r"noise_type='ornstein-uhlenbeck': unknown; use one of 'normal'"),
    ({"gama": 0.9}, r"hyperparameter='gama': unknown; use one of .*'gamma'"),
]


@pytest.mark.parametrize(("given", "message"), WRONG)
def test_a_wrong_value_is_named(given: dict[str, Any], message: str) -> None:
    """One line, and nothing was evaluated."""
    with pytest.raises(ValueError, match=message) as caught:
        constructor_arguments(given, PPO, NUMBER)
    assert "\n" not in str(caught.value)
