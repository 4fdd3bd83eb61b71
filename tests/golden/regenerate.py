"""Writes golden trajectories: `python tests/golden/regenerate.py [ID ...] [--replace]`; without ID, all missing ones.

A golden file holds what an environment id gave when it was published: seeds, actions (masked ones among them), rewards
and FLOPs. Numbers under a published id never change: what changes them gets a new version suffix.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

import drrl_env  # noqa: F401  (registers the environments)
from drrl_env.envs.settings import Guard
from drrl_env.envs.tasks import TASKS
from drrl_env.envs.traces import SWITCH

FOLDER = Path(__file__).resolve().parent
SETTINGS = {"context": 1024, "instances": 4, "split": "validation"}
"""Eight segments on one of four spans: seconds to measure, long enough for a basis to go stale."""
CASES: dict[str, dict[str, Any]] = {
    "open": {"seed": 7, "arguments": {}},
    "guard": {"seed": 11, "arguments": {"guard": {"kind": "paper", "threshold": 0.15}}},
}


def made(task: str, arguments: dict[str, Any]) -> Any:
    """The environment of a case, without gymnasium's wrappers."""
    given = {**SETTINGS, **arguments}
    if "guard" in given:
        given["guard"] = Guard(**given["guard"])
    return gymnasium.make(task, disable_env_checker=True, **given).unwrapped


def actions_of(env: Any, seed: int, steps: int) -> list[Any]:
    """Random actions of every kind, the lowest ranks among them, which a guard forbids."""
    random = np.random.default_rng(seed)
    if isinstance(env.action_space, gymnasium.spaces.Box):
        drawn = random.uniform(-1, 1, (steps, *env.action_space.shape)).round(3)
    else:
        sizes = np.atleast_1d(getattr(env.action_space, "nvec", getattr(env.action_space, "n", None)))
        drawn = random.integers(sizes, size=(steps, len(sizes)))
        drawn = drawn[:, 0] if isinstance(env.action_space, gymnasium.spaces.Discrete) else drawn
    drawn[:: max(2, steps // 4)] = env.action_space.low if hasattr(env.action_space, "low") else 0
    found: list[Any] = drawn.tolist()
    return found


def played(task: str, case: dict[str, Any]) -> dict[str, Any]:
    """Plays a case: its actions where it has some, else new ones to the end of the episode.

    Returns:
        The case with where it began, its actions, and per step reward, FLOPs, choice and whether it was masked.
    """
    env = made(task, case["arguments"])
    _, start = env.reset(seed=case["seed"])
    actions = case.get("actions") or actions_of(env, case["seed"], _horizon(env))
    begun = {name: value for name, value in start.items() if name != "action_mask"}
    steps = [env.step(action) for action in actions]
    infos = [step[-1] for step in steps]
    return {
        "seed": case["seed"],
        "arguments": case["arguments"],
        "start": begun,
        "actions": actions,
        "rewards": [np.asarray(step[1], float).round(7).tolist() for step in steps],
        "flops": [info["flops"] for info in infos],
        "choices": [np.array(info["choice"]).tolist() for info in infos],
        "masked": [info["masked_action"] for info in infos],
        "terminated": bool(steps[-1][2]),
    }


def _horizon(env: Any) -> int:
    """Steps of an episode, by playing a copy of it to its end."""
    copy, count, ended = env.fork(), 0, False
    while not ended:
        ended, count = copy.step(copy.action_space.sample())[2], count + 1
    return count


def write(task: str, replace: bool) -> Path:
    """Writes a golden file.

    Raises:
        SystemExit: the id has one already, and `replace` was not asked for.
    """
    path = FOLDER / f"{task}.json"
    if path.exists() and not replace:
        raise SystemExit(
            f"{path.name}: published already; raise the version suffix of {task} (and keep the old id registered or "
            "refuse it), or, if the id was never released, pass --replace"
        )
    cases = {name: played(task, case) for name, case in CASES.items()}
    if not any(cases["guard"]["masked"]):
        raise SystemExit(f"{task}: no action was masked under the guard; choose other actions")
    path.write_text(json.dumps({"id": task, "settings": SETTINGS, "cases": cases}, indent=1) + "\n")
    return path


def main() -> None:
    """Writes the files that are asked for, or all that are missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("ids", nargs="*", metavar="ID", help="environment ids; all without a file if none is given")
    parser.add_argument("--replace", action="store_true", help="overwrite the file of an id that was never released")
    asked = parser.parse_args()
    os.environ[SWITCH] = "off"  # measured now, by this very engine
    for task in asked.ids or [task for task in TASKS if not (FOLDER / f"{task}.json").exists()]:
        if task not in TASKS:
            raise SystemExit(f"{task}: unknown; use one of {', '.join(TASKS)}")
        print(write(task, asked.replace).name)


if __name__ == "__main__":
    main()
