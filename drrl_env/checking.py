"""`drrl_env.check_env(id)`: whether an environment is what it says, with your model, text and settings.

Every check is a function of a `Case` that says in a line what it found good, or raises a `CheckError` of one line.
"""

from __future__ import annotations

import copy
import json
import os
import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.utils.env_checker import check_env as gymnasium_check
from stable_baselines3.common.env_checker import check_env as sb3_check

from drrl_env.envs import faces
from drrl_env.envs.settings import one_of, positive
from drrl_env.envs.single import RankEnv
from drrl_env.envs.tasks import TASKS
from drrl_env.envs.walking import BrokenError, Step, digests, walk
from drrl_env.sb3 import make_vec_env

INSTANCES = 4
"""Instances a check plays on unless it is told otherwise: it is about the environment, not about every text."""
PROCESS_STEPS, FACE_ROUNDS, LANES, FORKS = 256, 512, 3, 16
"""Steps computed anew in another process, rounds and lanes of the faces' comparison, and forks: at most so many."""
PROGRAM = """
import pickle, sys
import torch
arguments = pickle.load(sys.stdin.buffer)
torch.set_num_threads(arguments.pop("threads"))
from drrl_env.checking import digests_here
print("\\n".join(digests_here(**arguments)))
"""


class CheckError(AssertionError):
    """An environment is not what it says; one line that names the check, where it failed and what was seen."""


@dataclass(frozen=True)
class Case:
    """What is checked.

    Attributes:
        id: the environment id.
        steps: random steps.
        seed: of episodes and actions.
        arguments: of the environment.
    """

    id: str
    steps: int
    seed: int
    arguments: dict[str, Any]

    def make(self) -> RankEnv:
        """A one-lane environment as gym.make gives it, without wrappers."""
        found = gymnasium.make(self.id, disable_env_checker=True, **self.arguments).unwrapped
        assert isinstance(found, RankEnv)
        return found

    @cached_property
    def walked(self) -> list[str]:
        """Digests of the random walk, every step of which was looked at."""
        return digests(walk(self.make(), self.steps, self.seed))


@dataclass(frozen=True)
class Report:
    """What was checked and found good.

    Attributes:
        id: the environment id.
        arguments: of the environment.
        lines: what each check found, by its name.
    """

    id: str
    arguments: dict[str, Any]
    lines: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        """A line for the environment and one for each check."""
        given = ", ".join(f"{name}={value!r}" for name, value in self.arguments.items())
        width = max(map(len, self.lines), default=0)
        return "\n".join([f"{self.id} ({given})", *(f"  ok  {n:<{width}}  {text}" for n, text in self.lines.items())])


def check_env(env_id: str, steps: int = 10_000, seed: int = 0, **arguments: Any) -> Report:
    """Checks an environment; a minute or two for 10,000 steps.

    Observations within bounds, rewards that are floats and the exact sum of their terms, masks that are sound and the
    same wherever they are shown, infos that are plain and finite; the same bits again, in another process that
    computes anew, in every face, and from forks, pickles and states; and the checkers of Gymnasium and SB3.

    Args:
        env_id: the environment id, with or without `drrl_env:` in front.
        steps: random steps, at least one.
        seed: of the episodes and the actions.
        **arguments: of the environment, see `drrl_env.envs.arguments.Arguments`; `instances` is 4 if neither it nor a
            `text` is given.

    Returns:
        What was checked; print it.

    Raises:
        CheckError: the first thing that is wrong, in one line.
        ValueError: an argument is.
    """
    task = env_id.rpartition(":")[2]
    one_of("env_id", task, tuple(TASKS))
    positive("steps", steps)
    few = {} if "text" in arguments or "instances" in arguments else {"instances": INSTANCES}
    case = Case(task, int(steps), int(seed), {**arguments, **few})
    found = Report(task, case.arguments)
    for name in CHECKS:
        found.lines[name] = _checked(case, name)
    return found


def _checked(case: Case, name: str) -> str:
    try:
        return CHECKS[name](case)
    except BrokenError as error:
        raise CheckError(f"{case.id}: {name}: {_line(error)}") from error


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())


def check_walk(case: Case) -> str:
    """Observations, rewards, masks and infos of random steps; see `walking.Looker`."""
    return f"{len(case.walked)} observations, rewards, masks and infos looked at"


def check_repeats(case: Case) -> str:
    """The same seed and actions give the same bits in another environment of this process."""
    _same(case.walked, digests_here(case.id, case.steps, case.seed, case.arguments), "made again")
    return f"{case.steps} steps twice, the same bits"


def digests_here(env_id: str, steps: int, seed: int, arguments: dict[str, Any]) -> list[str]:
    """Digests of a random walk in this process."""
    return digests(walk(Case(env_id, steps, seed, arguments).make(), steps, seed))


def check_process(case: Case) -> str:
    """And in another process, which computes all of it anew: it reads no traces."""
    steps = min(case.steps, PROCESS_STEPS)
    settings = {**os.environ, "DRRL_TRACES": "off", "PYTHONHASHSEED": "random"}
    wanted = {"env_id": case.id, "steps": steps, "seed": case.seed, "arguments": case.arguments}
    told = pickle.dumps({**wanted, "threads": torch.get_num_threads()})
    ran = subprocess.run([sys.executable, "-c", PROGRAM], input=told, env=settings, capture_output=True, check=False)
    if ran.returncode:
        last = ran.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise BrokenError(f"the other process ended with code {ran.returncode}: {' '.join(last)}")
    anew = ran.stdout.decode().split()
    _same(case.walked[: len(anew)], anew, "computed anew in another process")
    return f"{steps} steps computed anew, the same bits"


def _same(one: Sequence[str], two: Sequence[str], how: str) -> None:
    for turn, (first, second) in enumerate(zip(one, two, strict=False)):
        if first != second:
            raise BrokenError(f"observation {turn}, resets counted, has other bits when {how}")
    if len(one) != len(two):
        raise BrokenError(f"{len(one)} observations, but {len(two)} when {how}")


def check_faces(case: Case) -> str:
    """gym.make, gym.make_vec in each autoreset mode and the stable-baselines3 face show the same bits."""
    rounds, shown = min(case.steps, FACE_ROUNDS), []
    for mode in faces.MODES:
        env: Any = gymnasium.make_vec(case.id, LANES, "vector_entry_point", autoreset_mode=mode, **case.arguments)
        actions = faces.random_actions(env, rounds, case.seed)
        singles = faces.drive_singles([case.make() for _ in range(LANES)], actions, case.seed, mode)
        shown.append((f"the vector face in {mode}", singles, faces.drive_vector(env, actions, case.seed)))
        if mode == faces.SAME_STEP and not env.arena.play.vector:
            native = make_vec_env(case.id, LANES, **case.arguments)
            shown.append(("the stable-baselines3 face", singles, faces.drive_sb3(native, actions, case.seed)))
    for name, one, two in shown:
        differs = faces.difference(one, two)
        if differs is not None:
            raise BrokenError(f"one lane and {name} differ in {differs}")
    return f"{rounds} rounds of {LANES} lanes: one lane, {', '.join(name for name, _, _ in shown)}"


def check_forks(case: Case) -> str:
    """A fork, a pickle, a deep copy and a state through JSON go on as the original does, next episodes included."""
    env, random = case.make(), np.random.default_rng(case.seed)
    env.reset(seed=case.seed)
    count = min(FORKS, case.steps)
    for number in range(count):
        _wander(env, int(random.integers(2 * env.arena.world.segments)), number)
        twins = {"fork": env.fork(), "pickle": pickle.loads(pickle.dumps(env)), "deepcopy": copy.deepcopy(env)}
        restored = case.make()
        restored.set_state(json.loads(json.dumps(env.get_state())))
        futures = {name: _wander(twin, 12, number) for name, twin in {**twins, "state through JSON": restored}.items()}
        own = _wander(env, 12, number)
        for name, future in futures.items():
            _same(own, future, f"gone on with from a {name}")
    return f"{count} forks, pickles, deep copies and states through JSON go on alike"


def _wander(env: RankEnv, steps: int, seed: int) -> list[str]:
    """Digests of random steps from where the environment is, a reset where an episode has ended."""
    env.action_space.seed(seed)
    return digests(_go_on(env, steps))


def _go_on(env: RankEnv, steps: int) -> Any:
    for _ in range(steps):
        if env.get_state()["ended"]:
            observation, info = env.reset()
            yield Step(observation, 0.0, False, info)
            continue
        observation, reward, terminated, _, info = env.step(env.action_space.sample())
        yield Step(observation, reward, terminated, info)


def check_checkers(case: Case) -> str:
    """Gymnasium's and stable-baselines3's own checkers say nothing, warnings included."""
    env = case.make()
    if env.arena.play.vector:
        return "not asked: they know no vector reward"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _ask("gymnasium", gymnasium_check, env)
        _ask("stable-baselines3", sb3_check, env)
    return "gymnasium's and stable-baselines3's have nothing to say"


def _ask(name: str, checker: Callable[[Any], None], env: RankEnv) -> None:
    try:
        checker(env)
    except Exception as error:
        raise BrokenError(f"{name}'s checker says: {error}") from error


CHECKS: dict[str, Callable[[Case], str]] = {
    "random steps": check_walk,
    "determinism": check_repeats,
    "another process": check_process,
    "faces": check_faces,
    "state": check_forks,
    "checkers": check_checkers,
}
"""The checks by name, in the order in which they are made."""
