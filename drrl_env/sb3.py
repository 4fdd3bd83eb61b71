"""The stable-baselines3 face: a native `VecEnv`, because SB3 refuses Gymnasium's vector environments.

Same-step autoreset, `terminal_observation`, batched action masks and `info["episode"]`: neither `VecMonitor` nor
`Monitor` is needed.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium.utils import seeding
from numpy.typing import NDArray
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env.base_vec_env import VecEnv, VecEnvIndices, VecEnvStepReturn

from drrl_env.envs.arena import Arena, open_arena, restored_generator
from drrl_env.envs.play import Observation
from drrl_env.envs.settings import positive

LANE_METHODS = ("action_masks", "get_state", "set_state")
"""Methods of a lane that `env_method` reaches."""


def make_vec_env(task: str, n_envs: int = 1, seed: int | None = None, **arguments: Any) -> RankVecEnv:
    """Lanes of a task as an SB3 `VecEnv`.

    Args:
        task: the environment id.
        n_envs: number of lanes.
        seed: lane i is seeded with seed + i at the first reset.
        **arguments: see `drrl_env.envs.arguments.Arguments`.

    Raises:
        ValueError: an argument is wrong; one line that names it, its value and the remedy.
    """
    env = RankVecEnv(task, n_envs, **arguments)
    if seed is not None:
        env.seed(seed)
    return env


class RankVecEnv(VecEnv):
    """Lanes of one task, stepped together; bit for bit what as many one-lane environments give.

    Args:
        task: the environment id.
        num_envs: number of lanes.
        **arguments: see `drrl_env.envs.arguments.Arguments`.
    """

    def __init__(self, task: str, num_envs: int, **arguments: Any) -> None:
        positive("n_envs", num_envs)
        self._made_of = {"task": task, "num_envs": num_envs, **arguments}
        self.arena: Arena = open_arena(task, num_envs, arguments)
        if self.arena.play.vector:
            raise ValueError(f"task={task!r}: its reward is a vector, which SB3 does not know; use mo_gymnasium.make")
        self._generators: list[np.random.Generator | None] = [None] * num_envs
        self._returns, self._lengths = np.zeros(num_envs), np.zeros(num_envs, np.int64)
        self._actions = np.zeros((num_envs, len(self.arena.play.sizes)), np.int64)
        self._started = time.time()
        super().__init__(num_envs, self.arena.observation_space, self.arena.action_space)

    def reset(self) -> Observation:
        """Begins an episode in every lane, with the seeds and options set before; returns observations."""
        for lane, seed in enumerate(self._seeds):
            if seed is not None or self._generators[lane] is None:
                self._generators[lane] = seeding.np_random(seed)[0]
        lanes = range(self.num_envs)
        self._begin(lanes, self._options if any(self._options) else None)
        self.reset_infos = [self.arena.play.start_info(lane) for lane in lanes]
        self._reset_seeds()
        self._reset_options()
        return self.arena.play.observe()

    def _begin(self, lanes: Sequence[int], options: Sequence[dict[str, Any]] | None = None) -> None:
        generators = [generator for lane in lanes if (generator := self._generators[lane]) is not None]
        self.arena.begin(lanes, generators, options)
        self._returns[list(lanes)], self._lengths[list(lanes)] = 0.0, 0

    def step_async(self, actions: NDArray[Any]) -> None:
        """Takes the actions, (lanes, ...)."""
        self._actions = self.arena.decode(actions)

    def step_wait(self) -> VecEnvStepReturn:
        """Applies them: observations, rewards (float32), dones, infos."""
        play = self.arena.play
        batch = play.step(self._actions)
        self._returns += batch.rewards
        self._lengths += 1
        infos, dones = play.infos(batch, play.masks()), batch.terminated
        observation = play.observe()
        if dones.any():
            observation = self._restart(np.flatnonzero(dones).tolist(), infos, observation)
        return observation, batch.rewards.astype(np.float32), dones.copy(), infos

    def _restart(self, lanes: list[int], infos: list[dict[str, Any]], last: Observation) -> Observation:
        """Begins the next episode where one has ended; its last observation and totals go into its info."""
        elapsed, names = round(time.time() - self._started, 6), tuple(last)
        rows = last.values() if len(lanes) == self.num_envs else (values[lanes] for values in last.values())
        totals = self._returns[lanes].tolist(), self._lengths[lanes].tolist()
        for lane, gained, steps, *seen in zip(lanes, *totals, *rows, strict=True):
            info = infos[lane]
            info["terminal_observation"] = dict(zip(names, seen, strict=True))
            info["episode"] = {"r": gained, "l": steps, "t": elapsed}
            info["TimeLimit.truncated"] = False
        self._begin(lanes)
        for lane in lanes:
            self.reset_infos[lane] = self.arena.play.start_info(lane)
        return self.arena.play.observe()

    def close(self) -> None:
        """Nothing to free: what was measured is shared."""

    def action_masks(self) -> NDArray[np.bool_]:
        """Allowed choices of every lane, (lanes, choices of all components side by side)."""
        return self.arena.play.masks()

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """An attribute, the same for each lane; `has_attr` asks here, and so do sb3-contrib's masks."""
        if attr_name == "render_mode":
            return [None for _ in self._get_indices(indices)]
        value = getattr(self, attr_name) if hasattr(self, attr_name) else getattr(self.arena, attr_name)
        return [value for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Sets an attribute of all lanes together."""
        setattr(self, attr_name, value)

    def env_method(self, method_name: str, *args: Any, indices: VecEnvIndices = None, **kwargs: Any) -> list[Any]:
        """Calls a lane's method: `action_masks`, `get_state` or `set_state`."""
        lanes = list(self._get_indices(indices))
        if method_name == "action_masks":
            masks = self.arena.play.masks()
            return list(masks if indices is None else masks[lanes])
        if method_name == "get_state":
            return [self.lane_state(lane) for lane in lanes]
        if method_name == "set_state":
            for lane in lanes:
                self._set_lane(lane, *args, **kwargs)
            return [None for _ in lanes]
        raise AttributeError(f"env_method={method_name!r}: unknown; lanes have {', '.join(LANE_METHODS)}")

    def env_is_wrapped(self, wrapper_class: Any, indices: VecEnvIndices = None) -> list[bool]:
        """Whether `info["episode"]` is there as the wrapper would put it: as if by a Monitor, and by nothing else."""
        return [wrapper_class is Monitor for _ in self._get_indices(indices)]

    def lane_state(self, lane: int) -> dict[str, Any]:
        """A lane as plain JSON; it fits the other faces too."""
        found = self.arena.state(lane, self._generators[lane])
        totals = {"return": float(self._returns[lane]), "length": int(self._lengths[lane])}
        waiting = {"seed": self._seeds[lane], "options": dict(self._options[lane])}
        return {**found, "ended": not found["instance"], **totals, **waiting}

    def _set_lane(self, lane: int, state: dict[str, Any]) -> None:
        self.arena.restore(lane, state)
        self._generators[lane] = restored_generator(state)
        self._seeds[lane], self._options[lane] = state.get("seed"), dict(state.get("options", {}))
        self._returns[lane], self._lengths[lane] = state.get("return", 0.0), state.get("length", 0)
        if state["ended"] and state["instance"]:  # no lane of this face stays where an episode has ended
            self._begin([lane])

    def get_state(self) -> list[dict[str, Any]]:
        """Every lane as plain JSON."""
        return [self.lane_state(lane) for lane in range(self.num_envs)]

    def set_state(self, states: Sequence[dict[str, Any]]) -> None:
        """Goes to states that `get_state` gave; those of other faces' lanes fit too, counted from where they are.

        Where an episode has ended the next one begins.

        Raises:
            ValueError: one of them is of another task or of other arguments, or there is not one a lane.
        """
        self.arena.check_states(states)
        for lane, state in enumerate(states):
            self._set_lane(lane, state)

    def fork(self) -> RankVecEnv:
        """Independent lanes in the same state."""
        made = type(self)(**self._made_of)
        made.set_state(self.get_state())
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuilt, (self._made_of, self.get_state())


def _rebuilt(made_of: dict[str, Any], states: list[dict[str, Any]]) -> RankVecEnv:
    made = RankVecEnv(**made_of)
    made.set_state(states)
    return made
