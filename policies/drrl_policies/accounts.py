"""What a policy costs beside attention: observing, deciding, and the bytes of cache that its choices read."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from drrl_env.envs.basis import CALIBRATED, REFRESHED
from drrl_env.envs.mechanism import Doubles, Integers
from drrl_env.envs.observation import needs_basis, observing_flops
from drrl_env.envs.predictor import evidence_flops
from drrl_env.lowrank.flops import AttentionShape, RankCost, basis_flops, cache_bytes, energy_flops
from drrl_policies.base import Policy
from drrl_policies.field import Field


def overhead(policy: Policy, field: Field, executed: Integers) -> Doubles:
    """FLOPs of observing and deciding of every episode, (episodes,).

    A refreshed basis that attention has paid for is not paid for again; where it ran full, or in another basis, it is.
    A guard looks at the energies too, and the conformal one at evidence beyond them, so under it every policy pays for
    that. The oracle is no policy anyone runs and pays for the guard alone.

    Args:
        policy: the policy.
        field: the episodes.
        executed: choices carried out, (episodes, steps, components).
    """
    world, guard, steps = field.arena.world, field.arena.rules.guard.kind, executed.shape[1]
    entries, reads, guarded = field.arena.play.entries, policy.reads, guard != "off"
    width, basis = world.streams[0].width, _account(field)
    each = observing_flops(entries, reads, world.shape, width) + policy.deciding_flops
    if guarded and not needs_basis(entries, reads):
        each += energy_flops(world.shape, width)
    if guard == "conformal":
        each += evidence_flops(world.shape)
    looked = float(guarded or needs_basis(entries, reads)) * basis_flops(world.shape, width, basis)
    found: Doubles = steps * each + _unpaid(field, executed).sum(-1) * looked
    return np.zeros(len(executed)) if policy.privileged and not guarded else found


def _unpaid(field: Field, executed: Integers) -> Doubles:
    """Share of a step's key heads whose attention did not pay for the basis that is looked at, (episodes, steps)."""
    if _account(field) != "refreshed":
        return np.ones(executed.shape[:2])
    full = executed[..., : field.rank_components] == len(field.arena.world.ranks) - 1
    if _chooses_basis(field):
        ran: Doubles = np.where(~full[..., 0] & (executed[..., 1] == REFRESHED), 0.0, 1.0)
        return ran
    kv_heads = field.arena.world.shape.kv_heads if field.rank_components > 1 else 1
    found: Doubles = full.reshape(*full.shape[:2], kv_heads, -1).all(-1).mean(-1)
    return found


def _account(field: Field) -> str:
    """What the measurement's basis costs like: every offline basis costs what the calibrated one does."""
    return "refreshed" if field.arena.world.measurement.basis == "refreshed" else "calibrated"


def _chooses_basis(field: Field) -> bool:
    """Whether an action is a rank and a kind of basis."""
    return len(field.sizes) > field.rank_components


def cache_ratio(field: Field, executed: Integers) -> Doubles:
    """KV-cache bytes read over full attention's, (episodes,). A group of heads reads what its largest rank needs."""
    layers, positions = step_layers(field), step_positions(field)
    ranks = executed[..., : field.rank_components]
    kv_heads = field.arena.world.shape.kv_heads if field.rank_components > 1 else 1
    largest = ranks.reshape(*ranks.shape[:2], kv_heads, -1).max(-1)
    tables = {basis: _bytes(field, basis) for basis in ("calibrated", "refreshed")}
    own = _account(field)
    read = tables[own][layers[..., None], positions[None, :, None], largest].mean(-1)
    if _chooses_basis(field):
        calibrated = tables["calibrated"][layers, positions[None], ranks[..., 0]]
        read = np.where(executed[..., 1] == CALIBRATED, calibrated, read)
    full = tables[own][0, positions, -1]
    found: Doubles = read.sum(-1) / full.sum()
    return found


def _bytes(field: Field, basis: str) -> Doubles:
    """Bytes that a choice reads, all heads at it, (layers, segments, ranks)."""
    world = field.arena.world
    streams = world.streams_of(basis)
    return np.array(
        [[[_read(s.shape, t, cost, basis) for cost in s.costs] for t in range(world.segments)] for s in streams]
    )


def _read(shape: AttentionShape, position: int, cost: RankCost, basis: str) -> float:
    return float(cache_bytes(shape, position, cost, basis))


def step_layers(field: Field) -> NDArray[np.int64]:
    """Layer of every step, (episodes, steps)."""
    if field.live:
        played = field.arena.play.layers  # type: ignore[attr-defined]
        return np.tile(np.array(played), (len(field.episodes), field.arena.world.segments))
    return np.repeat(field.layers[:, None], field.steps, axis=1)


def step_positions(field: Field) -> NDArray[np.int64]:
    """Segment of every step, (steps,)."""
    return np.arange(field.steps) // (field.steps // field.arena.world.segments)
