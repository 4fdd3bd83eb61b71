"""Every algorithm trains on every task whose actions it can choose, and says so of the others."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.spaces import Box
from stable_baselines3 import PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecEnv

from drrl_agents import algorithm_page
from drrl_agents.agent import load_agent, read_config, task_of
from drrl_agents.algorithms import (
    ALGORITHMS,
    PLAYABLE,
    accepts,
    box_needed,
    check_pair,
    fit_env,
    hyperparameters_of,
    make_algorithm,
)
from drrl_agents.tasks import Task
from drrl_agents.training import Train, train
from drrl_env.envs.registration import IDS
from drrl_env.envs.settings import Guard
from drrl_env.sb3 import RankVecEnv, make_vec_env
from drrl_policies.extractors import FlatVecEnv
from drrl_policies.rollout import rollout

ATTENTION = "DRRL-Attention-v0"
PAIRS = [(algo, task) for algo in ALGORITHMS for task in PLAYABLE if accepts(algo, task)]
MATRIX = [(algo, task, policy) for algo, task in PAIRS for policy in ALGORITHMS[algo].policies]
SMALL: dict[str, Any] = {
    "batch_size": 16, "n_epochs": 1, "learning_starts": 16, "buffer_size": 256, "n_delta": 2, "n_top": 2,
    "n_eval_episodes": 2, "cg_max_steps": 2, "n_critic_updates": 1, "target_update_interval": 16,
}  # fmt: skip
"""Settings of the shortest runs, each for the algorithms that have it."""
ROLLOUT = 16
"""Steps of a rollout of the algorithms that learn from rollouts."""


def lanes_of(task: str, algo: str = "ppo", **more: Any) -> RankVecEnv:
    """Two lanes of four segments."""
    actions = {"actions": "box"} if box_needed(algo, task) else {}
    return make_vec_env(task, 2, seed=0, context=512, instances=1, **actions, **more)


def small(algo: str) -> dict[str, Any]:
    """Hyperparameters of an algorithm, with the settings of `SMALL` that it has."""
    known = inspect.signature(ALGORITHMS[algo].make).parameters
    values = hyperparameters_of(algo)
    found = {name: value for name, value in SMALL.items() if name in known}
    return {**values, **found, **({"n_steps": ROLLOUT} if "n_steps" in values else {})}


def trained(algo: str, policy: str, lanes: VecEnv, steps: int) -> BaseAlgorithm:
    """A trained agent, every weight finite and every trained tensor moved."""
    model = make_algorithm(algo, policy, lanes, 0, small(algo))
    before = {name: weight.detach().clone() for name, weight in model.policy.named_parameters()}
    assert model.learn(steps).num_timesteps >= steps
    for name, weight in model.policy.named_parameters():
        assert torch.isfinite(weight).all(), name
        assert "target" in name or not torch.equal(before[name], weight), name
    return model


def check_actions(model: BaseAlgorithm, steps: int = 4) -> None:
    """Plays, and asserts that each action lies within its space."""
    assert model.env is not None
    observation, state = model.env.reset(), None
    for _ in range(steps):
        actions, state = model.predict(observation, state, deterministic=True)
        assert all(model.action_space.contains(action) for action in actions)
        observation, rewards, _, _ = model.env.step(actions)
        assert np.isfinite(rewards).all()


@pytest.mark.parametrize("task", PLAYABLE)
def test_every_task_is_trained_on(task: str) -> None:
    """Two rollouts; then, under a guard that leaves full rank alone, masks keep every action from what is forbidden.

    Without its masks the same agent asks for what is forbidden.
    """
    algo = "maskable-ppo" if accepts("maskable-ppo", task) else "ppo"
    model = trained(algo, "mlp", lanes_of(task, algo), 2 * ROLLOUT * 2)
    check_actions(model)
    if algo == "maskable-ppo":
        guarded = lanes_of(task, algo, guard=Guard("paper", 1e-9, 0.0))
        assert asked_for_masked(model, guarded, masked=True) == 0
        assert asked_for_masked(model, guarded, masked=False) > 0


def asked_for_masked(model: BaseAlgorithm, lanes: RankVecEnv, masked: bool) -> int:
    """How many actions of an episode were forbidden."""
    observation, found = lanes.reset(), 0
    for _ in range(4):
        known = {"action_masks": lanes.action_masks()} if masked else {}
        actions, _ = model.predict(observation, deterministic=False, **known)
        observation, _, _, infos = lanes.step(actions)
        found += sum(info["masked_action"] for info in infos)
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("algo", "task", "policy"), MATRIX)
def test_the_whole_matrix_trains(algo: str, task: str, policy: str, tmp_path: Path) -> None:
    """Every algorithm on every task it accepts, with every network it can have, by what `drrl train` calls.

    200 steps (64 in the closed loop) end in a run whose policy loads and plays validation episodes.
    """
    chosen = Task(task, context=512 if task == "DRRL-Budget-v0" else 256)
    steps = 64 if task == "DRRL-Layers-v0" else 200
    counts = {"n_envs": 2, "instances": 1, "validation_instances": 1, "validate_every": steps}
    settings = Train(chosen, algo, policy, steps, logdir=tmp_path, progress=False, **counts)
    run = train(settings, hyperparameters=small(algo))
    field = task_of(read_config(run)).field("validation", 1, progress=False)
    assert np.isfinite(rollout(load_agent(run), field).returns).all()


def test_what_is_accepted_is_what_the_action_spaces_say() -> None:
    """Counted by hand: five tasks of one index, two of several, one number; an index can be given as a number."""
    counts = {algo: sum(accepts(algo, task) for task in IDS) for algo in ALGORITHMS}
    assert counts == {
        "maskable-ppo": 7, "ppo": 8, "a2c": 8, "trpo": 8, "recurrent-ppo": 8, "dqn": 5, "qr-dqn": 5, "sac": 6,
        "tqc": 6, "td3": 6, "ddpg": 6, "crossq": 6, "ars": 6,
    }  # fmt: skip
    assert [task for task in IDS if box_needed("sac", task)] == [task for task in PLAYABLE if accepts("dqn", task)]
    assert not any(box_needed(algo, task) for algo in ("ppo", "ars", "dqn", "maskable-ppo") for task in IDS)


REFUSED = [
    ("dqn", "mlp", "DRRL-Heads-v0", r"algo='dqn': chooses Discrete, and DRRL-Heads-v0 is MultiDiscrete; use it on DR"),
    ("ars", "mlp", "DRRL-Basis-v0", r"algo='ars': chooses Discrete or Box, and DRRL-Basis-v0 is MultiDiscrete; use"),
    ("sac", "mlp", "DRRL-Heads-v0", r"algo='sac': .*; use it on .*DRRL-Tolerance-v0"),
    ("maskable-ppo", "mlp", "DRRL-Attention-Continuous-v0", r"is Box; use it on DRRL-Attention-v0, "),
    ("ars", "transformer", ATTENTION, r"policy='transformer': ars takes no features extractor; use policy='mlp', on"),
    ("ars", "transformer", "DRRL-Heads-v0", r"algo='ars': chooses Discrete or Box, and DRRL-Heads-v0 is MultiDiscrete"),
    ("ppo", "mlp", "DRRL-Attention-MO-v0", r"task='DRRL-Attention-MO-v0': unknown; use one of 'DRRL-Attention-v0'"),
    ("reinforce", "mlp", ATTENTION, r"algo='reinforce': unknown; use one of 'maskable-ppo'"),
    ("ppo", "cnn", ATTENTION, r"policy='cnn': unknown; use one of 'transformer', 'mlp'"),
]  # fmt: skip


@pytest.mark.parametrize(("algo", "policy", "task", "message"), REFUSED)
def test_an_impossible_pair_is_refused_in_one_line(algo: str, policy: str, task: str, message: str) -> None:
    """It names what was asked for and every task that fits, and no other."""
    with pytest.raises(ValueError, match=message) as caught:
        check_pair(algo, policy, task)
    text = str(caught.value)
    assert "\n" not in text
    if "use it on" in text:
        named = text.partition("use it on ")[2].split(", ")
        assert named == [other for other in PLAYABLE if accepts(algo, other)]


CONTRADICTED = [
    ("maskable-ppo", ATTENTION, "box", "leave actions out, or use ppo, a2c"),
    ("sac", ATTENTION, "discrete", "leave actions out, or use maskable-ppo, ppo"),
    ("sac", "DRRL-Attention-Continuous-v0", "discrete", "leave actions out, or use maskable-ppo, ppo"),
]


@pytest.mark.parametrize(("algo", "task", "actions", "way"), CONTRADICTED)
def test_actions_that_an_algorithm_cannot_choose_are_refused_before_any_work(
    algo: str, task: str, actions: str, way: str, tmp_path: Path
) -> None:
    """One line that says what they would be, with the way out; no folder is made."""
    with pytest.raises(ValueError, match=rf"^actions='{actions}': {task} is [^\n]*{algo} cannot choose; {way}[^\n]*$"):
        train(Train(Task(task, actions=actions), algo, "mlp", 64, logdir=tmp_path, progress=False))
    assert not list(tmp_path.iterdir())
    check_pair("maskable-ppo", "mlp", "DRRL-Attention-Continuous-v0", "discrete")
    check_pair("sac", "mlp", ATTENTION, "box")


def test_every_possible_pair_passes() -> None:
    """What the table says can be trained is never refused."""
    for algo, task, policy in MATRIX:
        check_pair(algo, policy, task)


def test_lanes_of_other_actions_are_refused_with_the_way_out() -> None:
    """Made by hand, lanes name no wrong task: what they lack is the box."""
    lanes = lanes_of(ATTENTION)
    with pytest.raises(ValueError, match=r"algo='sac': chooses Box, and these lanes take Discrete; use actions='box'"):
        make_algorithm("sac", "mlp", lanes, 0)
    with pytest.raises(ValueError, match=r"algo='ars': chooses Discrete or Box, and these lanes take MultiDiscrete$"):
        fit_env("ars", lanes_of("DRRL-Heads-v0"))


@pytest.mark.parametrize("algo", ["sac", "a2c", "ddpg", "qr-dqn"])
def test_policy_kwargs_are_nobody_elses(algo: str) -> None:
    """These algorithms write into the policy_kwargs they are given: neither the next agent nor the caller sees it."""
    given = {**small(algo), "policy_kwargs": {"net_arch": [8]}}
    lanes = lanes_of(ATTENTION, algo)
    first, second = (make_algorithm(algo, "mlp", lanes, 0, given) for _ in range(2))
    assert len(first.policy_kwargs) > 1
    assert first.policy_kwargs is not second.policy_kwargs
    first.policy_kwargs["net_arch"].append(9)
    assert second.policy_kwargs["net_arch"] == given["policy_kwargs"]["net_arch"] == [8]
    assert set(given["policy_kwargs"]) == {"net_arch"}


def test_hyperparameters_given_take_the_place_of_the_files() -> None:
    """All of them: what a resumed run began with is not mixed with what the file says by now."""
    lanes = lanes_of(ATTENTION)
    model: Any = make_algorithm("ppo", "mlp", lanes, 0, {"gamma": 0.5, "learning_rate": "lin_0.01"})
    assert (model.gamma, model.gae_lambda, model.ent_coef) == (0.5, PPO("MultiInputPolicy", lanes).gae_lambda, 0.0)
    assert isinstance(model.learning_rate, LinearSchedule)
    assert [model.lr_schedule(left) for left in (1.0, 0.5, 0.0)] == pytest.approx([0.01, 0.005, 0.0])
    assert make_algorithm("ppo", "mlp", lanes, 0).gamma == hyperparameters_of("ppo", ATTENTION)["gamma"]


@pytest.mark.parametrize("algo", ["maskable-ppo", "crossq"])
def test_the_same_seed_gives_the_same_agent(algo: str) -> None:
    """Weights to the bit, through the flattening too; another seed begins with others."""
    first, second = (trained(algo, "mlp", lanes_of(ATTENTION, algo), 64).policy.state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    zero, one = (make_algorithm(algo, "mlp", lanes_of(ATTENTION, algo), seed).policy.state_dict() for seed in (0, 1))
    assert not all(torch.equal(zero[name], one[name]) for name in zero)


def test_algorithms_without_dicts_get_flattened_lanes() -> None:
    """And those with them get the lanes themselves; what is flat already stays."""
    lanes = lanes_of(ATTENTION, "crossq")
    flat = fit_env("crossq", lanes)
    assert isinstance(flat, FlatVecEnv)
    assert isinstance(flat.observation_space, Box)
    assert fit_env("crossq", flat) is flat
    assert fit_env("sac", lanes) is lanes
    assert isinstance(lanes.observation_space, spaces.Dict)


def test_the_page_of_algorithms_is_fresh() -> None:
    """docs/algorithms.md is what the table says now, a row for each algorithm and a column for each task."""
    text = algorithm_page.page()
    assert algorithm_page.PATH.read_text() == text, f"docs/algorithms.md is stale: run `{algorithm_page.COMMAND}`"
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    assert [row.split("`")[1] for row in rows[: len(ALGORITHMS)]] == list(ALGORITHMS)
