"""A random walk through an environment, every step of it looked at: what `check_env` holds against each."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drrl_env.envs.play import Observation
from drrl_env.envs.single import RankEnv

ANSWERS = ("oracle", "optim", "best", "regret", "score_of", "alternative")
"""Words no name in an info may hold: what could have been had is the oracle's to tell."""
PLAIN = (bool, int, float, str)


class BrokenError(Exception):
    """What is wrong, in one line."""


@dataclass(frozen=True)
class Step:
    """What an environment gave; a reset gives no reward.

    Attributes:
        observation: entries by name.
        reward: a float, or a float32 vector.
        terminated: whether the episode has ended.
        info: plain values and the mask.
    """

    observation: Observation
    reward: Any
    terminated: bool
    info: dict[str, Any]


def digests(steps: Iterable[Step]) -> list[str]:
    """A digest of all that each step gave, 16 hexadecimal digits."""
    return [_digest(step) for step in steps]


def _digest(step: Step) -> str:
    found = blake2b(digest_size=8)
    for name, values in sorted(step.observation.items()):
        found.update(f"{name} {values.dtype} {values.shape}".encode())
        found.update(values.tobytes())
    found.update(json.dumps([step.reward, step.terminated, step.info], sort_keys=True, default=_listed).encode())
    return found.hexdigest()


def _listed(value: Any) -> Any:
    return [str(value.dtype), value.tolist()]


def walk(env: RankEnv, steps: int, seed: int) -> Iterator[Step]:
    """Random steps, drawn whatever is masked, each looked at before it is handed on; resets come between, not counted.

    Raises:
        BrokenError: a step is not what the environment says.
    """
    env.action_space.seed(seed)
    observation, info = env.reset(seed=seed)
    yield _looked_at(env, Step(observation, 0.0, False, info), 0)
    for turn in range(1, steps + 1):
        action, mask = env.action_space.sample(), info["action_mask"].copy()
        observation, reward, terminated, truncated, info = env.step(action)
        step = _looked_at(env, Step(observation, reward, terminated, info), turn)
        _look_at_step(env, step, truncated, turn)
        _look_at_action(env, action, mask, info, turn)
        yield step
        if terminated:
            observation, info = env.reset()
            yield _looked_at(env, Step(observation, 0.0, False, info), turn)


def _looked_at(env: RankEnv, step: Step, turn: int) -> Step:
    """The step, its observation within bounds, its mask sound and its info plain."""
    if not env.observation_space.contains(step.observation):
        raise BrokenError(f"step {turn}: observation {_outside(env, step.observation)}")
    _look_at_mask(env, step.info, turn)
    for name, value in step.info.items():
        _look_at_value(name, value, turn, max(len(env.arena.play.sizes), 1))
    return step


def _outside(env: RankEnv, observation: Observation) -> str:
    space: Any = env.observation_space
    if set(observation) != set(space.spaces):
        return f"has entries {sorted(observation)}, its space {sorted(space.spaces)}"
    wrong = next(name for name, values in observation.items() if not space[name].contains(values))
    values, box = observation[wrong], space[wrong]
    return f"{wrong!r} lies in {values.min()} to {values.max()} ({values.dtype}, {values.shape}), its space is {box}"


def _look_at_mask(env: RankEnv, info: Mapping[str, Any], turn: int) -> None:
    mask = info["action_mask"]
    if not np.array_equal(mask, env.action_masks()):
        raise BrokenError(f"step {turn}: info['action_mask'] is {mask}, action_masks() says {env.action_masks()}")
    if mask.dtype != np.bool_ or mask.shape != (sum(env.arena.play.sizes),):
        raise BrokenError(
            f"step {turn}: the mask is {mask.shape} {mask.dtype}, for components of {env.arena.play.sizes}"
        )
    for component, allowed in enumerate(_components(env, mask)):
        if not allowed.any():
            raise BrokenError(f"step {turn}: nothing is allowed in component {component}")


def _components(env: RankEnv, mask: NDArray[np.bool_]) -> list[NDArray[np.bool_]]:
    return np.split(mask, np.cumsum(env.arena.play.sizes)[:-1])


def _look_at_value(name: str, value: Any, turn: int, components: int) -> None:
    """Plain, finite, and nothing but what was done: no list is longer than an action."""
    if any(word in name.lower() for word in ANSWERS):
        raise BrokenError(f"step {turn}: info[{name!r}] tells what could have been had")
    if name == "action_mask":
        return
    if isinstance(value, Mapping):
        for inner, part in value.items():
            _look_at_value(inner, part, turn, components)
        return
    parts = value if isinstance(value, list) else [value]
    if len(parts) > components or any(type(part) not in PLAIN for part in parts):
        raise BrokenError(f"step {turn}: info[{name!r}]={value!r} is not plain: a number, a text, or one per component")
    if any(isinstance(part, float) and not math.isfinite(part) for part in parts):
        raise BrokenError(f"step {turn}: info[{name!r}]={value!r} is not finite")


def _look_at_step(env: RankEnv, step: Step, truncated: bool, turn: int) -> None:
    """A reward of the right type that is the sum of its terms; an end that is an end, not a truncation."""
    terms, vector = list(step.info["reward_terms"].values()), env.arena.play.vector
    if vector and not np.array_equal(step.reward, np.array(terms, np.float32)):
        raise BrokenError(f"step {turn}: the reward {step.reward} is not its terms {terms}")
    if not vector and type(step.reward) is not float:
        raise BrokenError(f"step {turn}: the reward is a {type(step.reward).__name__}, not a float")
    if not vector and _sum(terms) != step.reward:
        raise BrokenError(
            f"step {turn}: the reward {step.reward!r} is not the sum {_sum(terms)!r} of its terms {terms}"
        )
    if type(step.terminated) is not bool or truncated is not False:
        raise BrokenError(
            f"step {turn}: terminated={step.terminated!r}, truncated={truncated!r}; a fixed horizon terminates"
        )


def _sum(terms: Iterable[float]) -> float:
    """From left to right, without Python's compensated summation: the bits of the batched sum."""
    total = 0.0
    for term in terms:
        total += term
    return total


def _look_at_action(env: RankEnv, action: Any, mask: NDArray[np.bool_], info: Mapping[str, Any], turn: int) -> None:
    """What was carried out was allowed; it is what was asked for unless info says otherwise; a masked one never is."""
    asked = env.arena.decode(np.asarray(action)[None])[0].tolist()
    done, allowed = np.ravel(info["choice"]).tolist(), _components(env, mask)
    if not all(part[choice] for part, choice in zip(allowed, done, strict=True)):
        raise BrokenError(f"step {turn}: {done} was carried out, which the mask {mask} forbids")
    if info["masked_action"] != (asked != done):
        raise BrokenError(f"step {turn}: {asked} was asked for, {done} done, but masked_action={info['masked_action']}")
    forbidden = not all(part[choice] for part, choice in zip(allowed, asked, strict=True))
    if forbidden and not info["masked_action"]:
        raise BrokenError(f"step {turn}: {asked} was carried out although the mask {mask} forbids it")
