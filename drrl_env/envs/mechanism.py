"""What an action does to attention: the part in which tasks of one rank, of a rank per head and of a basis differ.

A mechanism is asked in batches of lanes and answers from what the store measured. Lanes never see each other, and
only elementwise arithmetic touches them, so one lane and many give the same bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from drrl_env.envs.observation import Entry
from drrl_env.envs.store import Store
from drrl_env.envs.world import World

Integers = NDArray[np.int64]
Doubles = NDArray[np.float64]
Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]


@dataclass
class Lanes:
    """Where every lane is.

    Attributes:
        block: its (instance, layer) in the store, (lanes,).
        layer: its layer, (lanes,).
        position: segment it is at; the number of segments once its episode has ended, (lanes,).
        state: what the mechanism remembers of past actions, (lanes, state).
        history: ranks executed at the last segments over dim, oldest first, (lanes, WINDOW · components).
        parameter: what the objective drew for the episode, (lanes,).
        spent: FLOPs spent since the episode began, (lanes,).
    """

    block: Integers
    layer: Integers
    position: Integers
    state: Integers
    history: Floats
    parameter: Doubles
    spent: Doubles


class Effects(NamedTuple):
    """What the executed actions did, lane by lane, each (lanes,), float64; a tuple, since every step makes one.

    Attributes:
        cosine: cosine similarity of the output with full attention's.
        relative_error: ‖ΔO‖/‖O‖.
        flops: FLOPs of the segment's attention, update included.
        flops_ratio: over the episode's mean full-attention FLOPs per segment.
        cost: what the cost model charges, in its unit; FLOPs by default.
        cost_ratio: over the episode's mean cost of full attention per segment.
        full_ratio: the same ratio for full attention of this segment.
        score_change: ‖S_new − S_previous‖ / ‖S‖.
    """

    cosine: Doubles
    relative_error: Doubles
    flops: Doubles
    flops_ratio: Doubles
    cost: Doubles
    cost_ratio: Doubles
    full_ratio: Doubles
    score_change: Doubles


class Mechanism(Protocol):
    """What an action does.

    Attributes:
        world: the world.
        store: what was measured in it.
        sizes: number of choices in each component of an action: (ranks,), (ranks,) · heads, (ranks, 3).
        start: state at the beginning of an episode.
        state_sizes: number of values of each part of a state.
        entries: entries of the observation that show the state.
        masked: whether anything is ever forbidden.
        heads: rank components of an action.
        mean_full: mean full-attention FLOPs per segment of an episode.
    """

    world: World
    store: Store
    sizes: tuple[int, ...]
    start: tuple[int, ...]
    state_sizes: tuple[int, ...]
    entries: tuple[Entry, ...]
    masked: bool
    heads: int
    mean_full: float

    def prepare(self, lanes: Lanes, lane: int) -> None:
        """Makes what a lane needs to look at its segment (the last one, once it has ended) be there."""

    def ready(self, lanes: Lanes) -> Bools:
        """Whether `prepare` has nothing to do, (lanes,)."""

    def effects(self, lanes: Lanes, actions: Integers) -> Effects:
        """What actions (lanes, components) do, measured first where they never were."""

    def following(self, lanes: Lanes, actions: Integers) -> Integers:
        """State after the actions, (lanes, state)."""

    def allowed(self, lanes: Lanes) -> Bools:
        """Allowed choices of every component side by side, (lanes, sum of sizes); never empty in a component."""

    def carried_out(self, lanes: Lanes, actions: Integers, allowed: Bools) -> Integers:
        """The nearest allowed action of each, (lanes, components)."""

    def shares(self, actions: Integers) -> Floats:
        """Executed ranks over dim, (lanes, rank components)."""

    def observe(self, lanes: Lanes) -> dict[str, Floats]:
        """`entries` of every lane, (lanes, size) each."""

    def describe(self, lanes: Lanes, actions: Integers) -> Mapping[str, list[object]]:
        """What `info` says of the executed actions, a list over lanes per key."""

    def states(self, position: int) -> Integers:
        """Every state a lane may be in at a segment, (states, state)."""
