"""Playing a policy over (instance, layer) episodes, and counting everything it cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from drrl_env.data.instances import Instance
from drrl_env.envs.game import Game
from drrl_env.envs.mechanism import Integers
from drrl_env.envs.observation import needs_basis, observing_flops
from drrl_env.envs.oracle import normalised_score
from drrl_env.envs.play import Batch, Episode
from drrl_env.envs.predictor import evidence_flops
from drrl_env.envs.simulator import Simulator
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
        rewards: of every step, (episodes, segments).
        terms: terms of the reward of every step, by name, (episodes, segments) each.
        columns: what else every step reports, by name, (episodes, segments) each.
        executed: choice carried out, (episodes, segments).
        wanted: choice asked for, (episodes, segments).
        overhead: FLOPs of observing and deciding, per episode, (episodes,).
        cache_ratio: KV-cache bytes read over those of full attention, (episodes,).
    """

    policy: str
    pairs: tuple[Pair, ...]
    rewards: Doubles
    terms: dict[str, Doubles]
    columns: dict[str, Doubles]
    executed: NDArray[np.int64]
    wanted: NDArray[np.int64]
    overhead: Doubles
    cache_ratio: Doubles

    @property
    def returns(self) -> Doubles:
        """Return of every episode, (episodes,)."""
        found: Doubles = self.rewards.sum(-1)
        return found

    def total_ratio(self, mean_full: float) -> Doubles:
        """FLOPs of attention, observing and deciding over full attention's, per episode."""
        found: Doubles = (self.columns["flops"].sum(-1) + self.overhead) / (mean_full * self.rewards.shape[1])
        return found


def rollout(policy: Policy, game: Game, pairs: Sequence[Pair], parameters: Doubles | None = None) -> Rollout:
    """Plays one episode per (instance, layer), all in lanes; measures what was never measured.

    Args:
        policy: the policy.
        game: the task's game, of one rank per layer.
        pairs: (instance, layer) of each episode.
        parameters: what the task draws for each, (episodes,); zeros where it draws nothing.
    """
    simulator = Simulator(game, len(pairs))
    drawn = np.zeros(len(pairs)) if parameters is None else parameters
    simulator.begin(range(len(pairs)), [Episode(*pair, float(x)) for pair, x in zip(pairs, drawn, strict=True)])
    steps = [_play(policy, simulator) for _ in range(game.world.segments)]
    batches = [batch for batch, _ in steps]
    executed = np.stack([batch.actions[:, 0] for batch in batches], axis=1)
    return Rollout(
        policy.name,
        tuple(pairs),
        np.stack([batch.rewards for batch in batches], axis=1),
        _stacked([dict(batch.terms) for batch in batches]),
        _stacked([dict(batch.columns) for batch in batches]),
        executed,
        np.stack([wanted for _, wanted in steps], axis=1),
        _overhead(policy, game, executed),
        _cache_ratio(game, pairs, executed),
    )


def _play(policy: Policy, simulator: Simulator) -> tuple[Batch, Integers]:
    wanted = policy.choose(look(simulator))
    return simulator.step(wanted[:, None]), wanted


def _stacked(steps: Sequence[dict[str, Doubles]]) -> dict[str, Doubles]:
    """Name to (episodes, segments)."""
    return {name: np.stack([step[name] for step in steps], axis=1) for name in steps[0]}


def look(simulator: Simulator) -> Situation:
    """What is in front of the lanes now."""
    at = simulator.lanes
    position = np.minimum(at.position, simulator.world.segments - 1)
    return Situation(simulator.observe(), simulator.masks(), at.block.copy(), position, at.state[:, 0].copy())


def _overhead(policy: Policy, game: Game, executed: NDArray[np.int64]) -> Doubles:
    """FLOPs of observing and deciding of every episode.

    A refreshed basis that attention has paid for is not paid for again; at full segments it is. A guard looks at
    the energies too, and the conformal one at evidence beyond them, so under it every policy pays for that.
    """
    world, (episodes, segments) = game.world, executed.shape
    entries, reads = world.layout.entries, policy.reads
    guard = game.rules.guard.kind
    guarded = guard != "off"
    width, basis = world.streams[0].width, world.measurement.basis
    each = observing_flops(entries, reads, world.shape, width) + policy.deciding_flops
    if guarded and not needs_basis(entries, reads):
        each += energy_flops(world.shape, width)
    if guard == "conformal":
        each += evidence_flops(world.shape)
    unpaid = np.full(episodes, float(segments))
    if basis == "refreshed":
        unpaid = (executed == len(world.ranks) - 1).sum(-1).astype(float)
    looked = float(guarded or needs_basis(entries, reads)) * basis_flops(world.shape, width, basis)
    found: Doubles = segments * each + unpaid * looked
    return np.zeros(episodes) if policy.privileged and not guarded else found


def _cache_ratio(game: Game, pairs: Sequence[Pair], executed: NDArray[np.int64]) -> Doubles:
    """KV-cache bytes read over full attention's, per episode."""
    world = game.world
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
