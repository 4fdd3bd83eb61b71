"""The batched simulator: n lanes, each an episode of rank choices over an (instance, layer). No Gym word in it.

Values are computed per instance (see `store`); lanes only gather them, so one lane and many give the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drrl_env.data.instances import Instance
from drrl_env.envs.observation import STATIC, WINDOW
from drrl_env.envs.transitions import COLUMNS, Transitions

Observation = dict[str, NDArray[np.float32]]
Lanes = NDArray[np.int64]
REWARD = COLUMNS.index("reward")


@dataclass(frozen=True)
class Batch:
    """What a step gave, lane by lane.

    Attributes:
        numbers: `COLUMNS` of the transition, (lanes, columns), float64.
        executed: choice carried out, (lanes,).
        terminated: whether the episode has ended, (lanes,).
    """

    numbers: NDArray[np.float64]
    executed: Lanes
    terminated: NDArray[np.bool_]


class Simulator:
    """Episodes in lanes.

    Args:
        transitions: tables of the rules.
        lanes: number of lanes.
    """

    def __init__(self, transitions: Transitions, lanes: int) -> None:
        self.transitions, self.world = transitions, transitions.world
        self._ranks, self._segments = len(self.world.ranks), self.world.segments
        self._one_hot = np.eye(self._ranks, dtype=np.float32)
        self._shares = np.array(self.world.ranks, np.float32) / np.float32(self.world.shape.dim)
        self._clock = np.linspace(0, 1, self._segments + 1, dtype=np.float32)[:, None]
        self._block = np.zeros(lanes, np.int64)
        self._position = np.full(lanes, self._segments, np.int64)
        self._previous = np.full(lanes, self._ranks - 1, np.int64)
        self._history = np.zeros((lanes, WINDOW), np.float32)
        self._locate()

    def _locate(self) -> None:
        """Where the lanes are in the tables: after the last segment they still look at it."""
        self._ended = self._position == self._segments
        self._some_ended = bool(self._ended.any())
        seen = np.minimum(self._position, self._segments - 1) if self._some_ended else self._position
        self._row = self._block * self._segments + seen
        self._state = self._row * self._ranks + self._previous

    def start(self, lane: int, instance: Instance, layer: int) -> None:
        """Begins an episode in a lane: the previous rank is full."""
        self._block[lane] = self.transitions.store.block(instance, layer)
        self._previous = self._previous.copy()  # the last batch may still show it
        self._position[lane], self._previous[lane] = 0, self._ranks - 1
        self._history[lane] = 0
        self.transitions.prepare(int(self._block[lane]), 0)
        self._locate()

    def step(self, choices: Lanes) -> Batch:
        """Carries out a choice in every lane; a masked choice becomes the nearest allowed one.

        Args:
            choices: index of the wanted rank, (lanes,).

        Returns:
            The transitions.

        Raises:
            ValueError: a lane's episode has ended, or none was begun.
        """
        if self._some_ended:
            raise ValueError("step: the episode has ended; call reset first")
        first = self._state * self._ranks
        executed = self.transitions.executed.take(first + choices)
        numbers = self._numbers(first + executed, executed)
        self._advance(executed)
        return Batch(numbers, executed, self._ended)

    def _numbers(self, rows: Lanes, executed: Lanes) -> NDArray[np.float64]:
        """Gathers the transitions, measuring first what was never measured."""
        numbers = self.transitions.table.take(rows, axis=0)
        missing = np.isnan(numbers[:, REWARD])
        if missing.any():
            for lane in np.flatnonzero(missing):
                self.transitions.fill(int(self._block[lane]), int(self._position[lane]), int(executed[lane]))
            numbers = self.transitions.table.take(rows, axis=0)
        return numbers

    def _advance(self, executed: Lanes) -> None:
        """Moves every lane to its next segment and looks it up there, streaming it if it is new."""
        self._position = self._position + 1
        self._previous = executed
        self._history = np.concatenate([self._history[:, 1:], self._shares.take(executed)[:, None]], axis=1)
        self._locate()
        known = self.transitions.known.take(self._row)
        if not known.all():
            for lane in np.flatnonzero(~known):
                self.transitions.prepare(int(self._block[lane]), int(self._position[lane]))

    def observe(self) -> Observation:
        """The observation of every lane, fresh arrays, (lanes, size) each."""
        static = self.transitions.store.static.take(self._row, axis=0)
        slices = self.world.layout.slices
        found = {name: static[:, slices[name]] for name in STATIC}
        found["previous_rank"] = self._one_hot.take(self._previous, axis=0)
        found["window_ranks"] = self._history.copy()
        found["position"] = self._clock.take(self._position, axis=0)
        return found

    def masks(self) -> NDArray[np.bool_]:
        """Allowed choices of every lane, (lanes, ranks); everything is allowed once an episode has ended."""
        allowed = self.transitions.allowed.take(self._state, axis=0)
        if self._some_ended:
            allowed[self._ended] = True
        return allowed

    def info(self, lane: int, batch: Batch, choice: int, mask: NDArray[np.bool_]) -> dict[str, Any]:
        """What a user wants to know of a step of one lane, plain values."""
        values = dict(zip(COLUMNS[1:], batch.numbers[lane].tolist()[1:], strict=True))
        executed = int(batch.executed[lane])
        terms = {name: values.pop(f"{name}_term") for name in ("fidelity", "flops", "change")}
        cost = self.world.streams[self.layer(lane)].costs[executed]
        return {
            **values,
            "reward_terms": terms,
            "rank": cost.rank,
            "value_rank": cost.value_rank,
            "choice": executed,
            "masked_action": executed != choice,
            "action_mask": mask,
        }

    def layer(self, lane: int) -> int:
        """The layer a lane plays on."""
        return self.transitions.store.origin(int(self._block[lane]))[1]

    def lane_states(self) -> tuple[Lanes, Lanes, Lanes]:
        """Blocks, positions and previous choices of all lanes."""
        return self._block.copy(), self._row % self._segments, self._previous.copy()


def pairs(found: Sequence[Instance], layers: Sequence[int]) -> list[tuple[Instance, int]]:
    """Every (instance, layer), instances first."""
    return [(instance, layer) for instance in found for layer in layers]
