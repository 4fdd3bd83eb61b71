"""The Gymnasium vector face: `gym.make_vec(id, n, vectorization_mode="vector_entry_point")`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from drrl_env.envs.arena import Arena, open_arena, restored_generator
from drrl_env.envs.play import Observation
from drrl_env.envs.settings import one_of, positive

MODES = {mode.value: mode for mode in AutoresetMode}
Step = tuple[Observation, NDArray[Any], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]


class RankVectorEnv(VectorEnv[Observation, NDArray[Any], NDArray[Any]]):
    """Lanes of one task, stepped together; bit for bit what as many one-lane environments give.

    Args:
        num_envs: number of lanes.
        task: the environment id.
        autoreset_mode: `NextStep` (Gymnasium's default), `SameStep` or `Disabled`; declared in `metadata`.
        render_mode: None; render a lane by giving its state to a one-lane environment.
        **arguments: see `drrl_env.envs.arguments.Arguments`.
    """

    def __init__(
        self,
        num_envs: int = 1,
        task: str = "DRRL-Attention-v0",
        autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP,
        render_mode: str | None = None,
        **arguments: Any,
    ) -> None:
        positive("num_envs", num_envs)
        mode = str(getattr(autoreset_mode, "value", autoreset_mode))
        one_of("autoreset_mode", mode, tuple(MODES))
        if render_mode is not None:
            raise ValueError(f"render_mode={render_mode!r}: lanes have no picture; use gym.make, set_state and render")
        self.num_envs, self.mode = int(num_envs), MODES[mode]
        self.metadata = {"autoreset_mode": self.mode, "render_modes": []}
        self._made_of = {"num_envs": num_envs, "task": task, "autoreset_mode": mode, **arguments}
        self.arena: Arena = open_arena(task, self.num_envs, arguments)
        self.single_observation_space = cast("Any", self.arena.observation_space)
        self.single_action_space = self.arena.action_space
        self.observation_space = cast("Any", batch_space(self.single_observation_space, self.num_envs))
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        if self.arena.play.vector:
            self.reward_space = batch_space(self.arena.reward_space, self.num_envs)
        self._generators: list[np.random.Generator | None] = [None] * self.num_envs
        self._ended = np.ones(self.num_envs, bool)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begins an episode in every lane, or in those of `options["reset_mask"]`.

        Args:
            seed: lane i is seeded with seed + i, or with its own of a list.
            options: for every lane, see `RankEnv.reset`; and `reset_mask`, (lanes,) bool.
        """
        wanted = dict(options or {})
        mask = np.asarray(wanted.pop("reset_mask", np.ones(self.num_envs, bool)))
        if mask.shape != (self.num_envs,) or mask.dtype != np.bool_ or not mask.any():
            raise ValueError(f"options['reset_mask']={mask}: must be {self.num_envs} truth values, at least one true")
        lanes = np.flatnonzero(mask).tolist()
        self._seed(lanes, seed)
        self._begin(lanes, [wanted] * len(lanes) if wanted else None)
        infos: dict[str, Any] = {}
        for lane in lanes:
            infos = self._add_info(infos, self.arena.play.start_info(lane), lane)
        return self.arena.play.observe(), infos

    def _seed(self, lanes: Sequence[int], seed: int | Sequence[int | None] | None) -> None:
        if isinstance(seed, (int, np.integer)):
            seeds: list[int | None] = [int(seed) + lane for lane in range(self.num_envs)]
        else:
            seeds = [None] * self.num_envs if seed is None else list(seed)
        if len(seeds) != self.num_envs:
            raise ValueError(f"seed: {len(seeds)} seeds for num_envs={self.num_envs}; give one number, or one a lane")
        for lane in lanes:
            if seeds[lane] is not None or self._generators[lane] is None:
                self._generators[lane] = seeding.np_random(seeds[lane])[0]

    def _begin(self, lanes: Sequence[int], options: Sequence[dict[str, Any]] | None = None) -> None:
        generators = [generator for lane in lanes if (generator := self._generators[lane]) is not None]
        if len(generators) < len(lanes):
            raise ValueError("step: no episode was begun; call reset first")
        self.arena.begin(lanes, generators, options)
        self._ended[list(lanes)] = False

    def step(self, actions: NDArray[Any]) -> Step:
        """Applies an action in every lane.

        Returns:
            Observations, rewards (float64; float32 where they are vectors), terminated, truncated (never), and infos
            in Gymnasium's vector form. `NextStep`: a lane that ended is reset by the next step, whose action it
            ignores. `SameStep`: it is reset at once; `final_obs` and `final_info` hold what was there before.
        """
        decoded, fresh = self.arena.decode(actions), self._fresh()
        stepped = np.flatnonzero(~fresh)
        rewards, terminated, infos = self._advance(decoded[stepped], stepped)
        observation = self.arena.play.observe()
        infos |= {lane: self.arena.play.start_info(lane) for lane in np.flatnonzero(fresh).tolist()}
        self._ended = terminated.copy()
        if self.mode is AutoresetMode.SAME_STEP and terminated.any():
            observation = self._restart(observation, infos)
        return observation, rewards, terminated, np.zeros(self.num_envs, bool), self._joined(infos)

    def _fresh(self) -> NDArray[np.bool_]:
        """Lanes that this step only resets, (lanes,)."""
        found = self._ended.copy() if self.mode is AutoresetMode.NEXT_STEP else np.zeros(self.num_envs, bool)
        if found.any():
            self._begin(np.flatnonzero(found).tolist())
        return found

    def _advance(
        self, choices: NDArray[np.int64], stepped: NDArray[np.int64]
    ) -> tuple[NDArray[Any], NDArray[np.bool_], dict[int, dict[str, Any]]]:
        """Rewards and ends of all lanes, nothing where a lane was only reset, and infos of those that were stepped."""
        play = self.arena.play
        shape = (self.num_envs, len(play.terms)) if play.vector else (self.num_envs,)
        rewards = np.zeros(shape, np.float32 if play.vector else np.float64)
        terminated = np.zeros(self.num_envs, bool)
        if not len(stepped):
            return rewards, terminated, {}
        batch = play.step(choices, None if len(stepped) == self.num_envs else stepped)
        rewards[stepped], terminated[stepped] = batch.rewards, batch.terminated
        found = play.infos(batch, play.masks()[stepped])
        return rewards, terminated, dict(zip(stepped.tolist(), found, strict=True))

    def _restart(self, last: Observation, infos: dict[int, dict[str, Any]]) -> Observation:
        """Resets the lanes that ended; their last observation and info move to `final_obs` and `final_info`."""
        lanes = np.flatnonzero(self._ended).tolist()
        self._begin(lanes)
        for lane in lanes:
            final = {"final_obs": {name: rows[lane] for name, rows in last.items()}, "final_info": infos[lane]}
            infos[lane] = {**self.arena.play.start_info(lane), **final}
        return self.arena.play.observe()

    def _joined(self, infos: dict[int, dict[str, Any]]) -> dict[str, Any]:
        """Infos of lanes in Gymnasium's vector form."""
        found: dict[str, Any] = {}
        for lane in sorted(infos):
            found = self._add_info(found, infos[lane], lane)
        return found

    def action_masks(self) -> NDArray[np.bool_]:
        """Which choices are allowed now, (lanes, choices of all components)."""
        return self.arena.play.masks()

    def get_state(self) -> list[dict[str, Any]]:
        """Every lane as plain JSON; one lane's state fits a one-lane environment too."""
        return [
            {**self.arena.state(lane, self._generators[lane]), "ended": bool(self._ended[lane])}
            for lane in range(self.num_envs)
        ]

    def set_state(self, states: Sequence[dict[str, Any]]) -> None:
        """Goes to states that `get_state` gave; those of other faces' lanes fit too.

        `SameStep` shows no lane whose episode has ended: given one, it begins the next episode there.

        Raises:
            ValueError: one of them is of another task or of other arguments, or there is not one a lane.
        """
        self.arena.check_states(states)
        for lane, state in enumerate(states):
            self.arena.restore(lane, state)
            self._generators[lane], self._ended[lane] = restored_generator(state), state["ended"]
            if self.mode is AutoresetMode.SAME_STEP and state["ended"] and state["instance"]:
                self._begin([lane])

    def fork(self) -> RankVectorEnv:
        """Independent lanes in the same state."""
        made = type(self)(**self._made_of)
        made.spec = self.spec
        made.set_state(self.get_state())
        return made

    def __deepcopy__(self, memo: dict[int, Any]) -> RankVectorEnv:
        return self.fork()

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuilt, (type(self), self._made_of, self.get_state(), self.spec)


def _rebuilt(
    cls: type[RankVectorEnv], made_of: dict[str, Any], states: list[dict[str, Any]], spec: EnvSpec | None
) -> RankVectorEnv:
    made = cls(**made_of)
    made.spec = spec
    made.set_state(states)
    return made
