"""Playing a policy over (instance, layer) episodes, and counting everything it cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from drrl_env.data.instances import Instance
from drrl_env.envs.observation import needs_basis, observing_flops
from drrl_env.envs.oracle import normalised_score
from drrl_env.envs.simulator import Simulator
from drrl_env.envs.transitions import COLUMNS, Transitions
from drrl_env.lowrank.flops import basis_flops, cache_bytes, energy_flops
from drrl_policies.base import Policy, Situation

Doubles = NDArray[np.float64]
Pair = tuple[Instance, int]


@dataclass(frozen=True)
class Rollout:
    """What a policy did, one episode per (instance, layer).

    Attributes:
        policy: its name.
        pairs: the episodes' (instance, layer).
        numbers: `transitions.COLUMNS` of every step, (episodes, segments, columns).
        executed: choice carried out, (episodes, segments).
        wanted: choice asked for, (episodes, segments).
        overhead: FLOPs of observing and deciding, per episode, (episodes,).
        cache_ratio: KV-cache bytes read over those of full attention, (episodes,).
    """

    policy: str
    pairs: tuple[Pair, ...]
    numbers: Doubles
    executed: NDArray[np.int64]
    wanted: NDArray[np.int64]
    overhead: Doubles
    cache_ratio: Doubles

    def column(self, name: str) -> Doubles:
        """One of `COLUMNS`, (episodes, segments)."""
        found: Doubles = self.numbers[..., COLUMNS.index(name)]
        return found

    @property
    def returns(self) -> Doubles:
        """Return of every episode, (episodes,)."""
        found: Doubles = self.column("reward").sum(-1)
        return found

    def total_ratio(self, mean_full: float) -> Doubles:
        """FLOPs of attention, observing and deciding over full attention's, per episode."""
        found: Doubles = (self.column("flops").sum(-1) + self.overhead) / (mean_full * self.numbers.shape[1])
        return found


def rollout(policy: Policy, transitions: Transitions, pairs: Sequence[Pair]) -> Rollout:
    """Plays one episode per (instance, layer), all in lanes; measures what was never measured.

    Args:
        policy: the policy.
        transitions: the task's tables.
        pairs: (instance, layer) of each episode.
    """
    simulator = Simulator(transitions, len(pairs))
    for lane, (instance, layer) in enumerate(pairs):
        simulator.start(lane, instance, layer)
    steps = [_play(policy, simulator) for _ in range(transitions.world.segments)]
    numbers, executed, wanted = (np.stack(parts, axis=1) for parts in zip(*steps, strict=True))
    overhead = _overhead(policy, transitions, executed)
    ratio = _cache_ratio(transitions, pairs, executed)
    return Rollout(policy.name, tuple(pairs), numbers, executed, wanted, overhead, ratio)


def _play(policy: Policy, simulator: Simulator) -> tuple[Doubles, NDArray[np.int64], NDArray[np.int64]]:
    wanted = policy.choose(look(simulator))
    batch = simulator.step(wanted)
    return batch.numbers, batch.executed, wanted


def look(simulator: Simulator) -> Situation:
    """What is in front of the lanes now."""
    return Situation(simulator.observe(), simulator.masks(), *simulator.lane_states())


def _overhead(policy: Policy, transitions: Transitions, executed: NDArray[np.int64]) -> Doubles:
    """FLOPs of observing and deciding of every episode.

    A refreshed basis that attention has paid for is not paid for again; at full segments it is. The paper's
    guard looks at the energies too, so under it every policy pays for them.
    """
    world, (episodes, segments) = transitions.world, executed.shape
    entries, reads = world.layout.entries, policy.reads
    guarded = transitions.rules.guard.kind != "off"
    width, basis = world.streams[0].width, world.measurement.basis
    each = observing_flops(entries, reads, world.shape, width) + policy.deciding_flops
    if guarded and not needs_basis(entries, reads):
        each += energy_flops(world.shape, width)
    unpaid = np.full(episodes, float(segments))
    if basis == "refreshed":
        unpaid = (executed == len(world.ranks) - 1).sum(-1).astype(float)
    looked = float(guarded or needs_basis(entries, reads)) * basis_flops(world.shape, width, basis)
    found: Doubles = segments * each + unpaid * looked
    return np.zeros(episodes) if policy.privileged and not guarded else found


def _cache_ratio(transitions: Transitions, pairs: Sequence[Pair], executed: NDArray[np.int64]) -> Doubles:
    """KV-cache bytes read over full attention's, per episode."""
    world = transitions.world
    basis = world.measurement.basis
    table = np.array(
        [
            [[cache_bytes(stream.shape, t, cost, basis) for cost in stream.costs] for t in range(world.segments)]
            for stream in world.streams
        ],
        dtype=float,
    )
    layers = np.array([layer for _, layer in pairs])
    read = table[layers[:, None], np.arange(world.segments)[None], executed]
    found: Doubles = read.sum(-1) / table[0, :, -1].sum()
    return found


@dataclass(frozen=True)
class Reference:
    """What random and the oracle reach on the same episodes.

    Attributes:
        pairs: the episodes' (instance, layer).
        random: exact expected return of random, (episodes,).
        oracle: optimal return, (episodes,).
    """

    pairs: tuple[Pair, ...]
    random: Doubles
    oracle: Doubles

    def score(self, returns: Doubles) -> float:
        """Normalised score of returns on these episodes: a ratio of means."""
        return normalised_score(float(returns.mean()), float(self.random.mean()), float(self.oracle.mean()))

    def regret(self, returns: Doubles, segments: int) -> float:
        """Mean return lost to the oracle per step."""
        return float((self.oracle - returns).mean()) / segments
