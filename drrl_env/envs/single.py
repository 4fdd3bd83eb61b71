"""The one-lane Gymnasium face."""

from __future__ import annotations

import copy
from typing import Any, cast

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec
from numpy.typing import NDArray

from drrl_env.data.instances import Instance
from drrl_env.envs.arena import Arena, open_arena, restored_generator
from drrl_env.envs.game import Game
from drrl_env.envs.play import Observation
from drrl_env.envs.render import check_render_mode, render_lane
from drrl_env.envs.simulator import Simulator
from drrl_env.envs.trail import Trail


class RankEnv(gymnasium.Env[Observation, Any]):
    """Choose the rank of real attention, segment by segment.

    An episode is an instance (a span of text under a trained language model, cut into segments) and a layer. At each
    step the incremental update takes in the segment's keys, and what was chosen is applied to its attention.

    Args:
        task: the environment id, a row of `drrl_env.envs.tasks.TASKS`.
        render_mode: None, `ansi` or `rgb_array`.
        **arguments: see `drrl_env.envs.arguments.Arguments`.

    Raises:
        ValueError: an argument is wrong; one line that names it, its value and the remedy.
    """

    metadata = {"render_modes": ["ansi", "rgb_array"], "render_fps": 4}  # noqa: RUF012  (Gymnasium's own declaration)

    def __init__(self, task: str = "DRRL-Attention-v0", render_mode: str | None = None, **arguments: Any) -> None:
        self.render_mode = check_render_mode(render_mode)
        self._made_of = {"task": task, "render_mode": render_mode, **arguments}
        self.arena: Arena = open_arena(task, 1, arguments)
        self.observation_space = cast("Any", self.arena.observation_space)
        self.action_space = self.arena.action_space
        if self.arena.play.vector:
            self.reward_space = self.arena.reward_space
        self._trail, self._ended = Trail(), True

    @property
    def ranks(self) -> tuple[int, ...]:
        """Candidate ranks, ascending; the last is full."""
        return self.arena.world.ranks

    @property
    def game(self) -> Game:
        """Tables and rules, which environments of the same arguments share.

        Raises:
            ValueError: the task has none, since what it computes depends on every action before.
        """
        if not isinstance(self.arena.play, Simulator):
            raise ValueError(f"task={self.arena.task.id!r}: it is played live; no table holds its transitions")
        return self.arena.play.game

    @property
    def pool(self) -> tuple[Instance, ...]:
        """Instances episodes are drawn from."""
        return self.arena.pool

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begins an episode.

        Args:
            seed: seed of the choice of instance, layer and what else the task draws.
            options: `instance` (a URI of the pool, `?layer=N` allowed), `layer`, and the task's parameter
                (`tolerance`, `budget`) to begin with instead of drawn ones.
        """
        super().reset(seed=seed)
        self.arena.begin([0], [self.np_random], None if options is None else [options])
        info = _own_mask(self.arena.play.start_info(0))
        self._trail, self._ended = Trail(info), False
        return self._observe(), info

    def _observe(self) -> Observation:
        return {name: rows[0] for name, rows in self.arena.play.observe().items()}

    def step(self, action: Any) -> tuple[Observation, Any, bool, bool, dict[str, Any]]:
        """Applies an action to the current segment; `info` says what it cost and what it did."""
        play = self.arena.play
        batch = play.step(self.arena.decode(np.asarray(action)[None]))
        info = _own_mask(play.infos(batch, play.masks())[0])
        self._trail.add(info)
        self._ended = bool(batch.terminated[0])
        reward = batch.rewards[0].astype(np.float32) if play.vector else float(batch.rewards[0])
        return self._observe(), reward, self._ended, False, info

    def action_masks(self) -> NDArray[np.bool_]:
        """Which choices are allowed now, component after component, never empty; the same as `info["action_mask"]`."""
        mask: NDArray[np.bool_] = self.arena.play.masks()[0]
        return mask

    def render(self) -> Any:
        """What happened so far: text for `ansi`, a picture (height, width, 3) for `rgb_array`."""
        return render_lane(self.render_mode, self.arena, 0, self._trail)

    def get_state(self) -> dict[str, Any]:
        """Everything the future depends on, as plain JSON."""
        return {**self.arena.state(0, self._np_random), "ended": self._ended, "trail": self._trail.state()}

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes to a state that `get_state` gave, here or in another environment of the same arguments.

        A lane's state of the other faces fits too; pictures then begin where it was taken.

        Raises:
            ValueError: it is of another task or of other arguments; one line that names what differs.
        """
        self.arena.restore(0, state)
        self._np_random, self._np_random_seed = restored_generator(state), None
        self._ended = bool(state["ended"])
        self._trail = Trail.restored(state["trail"]) if "trail" in state else Trail(self.arena.play.start_info(0))

    def fork(self) -> RankEnv:
        """An independent environment in the same state."""
        return copy.deepcopy(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> RankEnv:
        made = type(self)(**self._made_of)
        made.spec = self.spec
        made.set_state(self.get_state())
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuilt, (type(self), self._made_of, self.get_state(), self.spec)


def _rebuilt(cls: type[RankEnv], made_of: dict[str, Any], state: dict[str, Any], spec: EnvSpec | None) -> RankEnv:
    made = cls(**made_of)
    made.spec = spec
    made.set_state(state)
    return made


def _own_mask(info: dict[str, Any]) -> dict[str, Any]:
    """The info with a mask of its own: without a guard the lanes of a simulator share one that nobody may write to."""
    info["action_mask"] = info["action_mask"].copy()
    return info
