"""An episode of the closed loop: what is executed flows on through the whole model, and a segment pays at its end."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from drrl_env.data.instances import Instance
from drrl_env.envs.conformal import open_guard
from drrl_env.envs.costs import FlopsCost, resolve_cost
from drrl_env.envs.game import Rules
from drrl_env.envs.mechanism import Bools, Doubles
from drrl_env.envs.predictor import segment_evidence
from drrl_env.envs.settings import Measurement, Reward
from drrl_env.envs.streamed import distances
from drrl_env.envs.world import open_world
from drrl_env.lowrank.stream import Segment
from drrl_env.models.capture import capture
from drrl_env.models.closed_loop import ClosedLoop

Terms = tuple[float, ...]


@dataclass(frozen=True)
class LogLikelihoodReward:
    """α·change of log-likelihood − β·cost ratio − γ·‖ΔS‖/‖S‖, at the last layer of each segment; 0 at those before.

    The change is the mean log-likelihood of the segment's next tokens under the approximated flow less that under the
    full model, nats per token: the text's own tokens, not a proxy. The cost ratio is what the attention of all layers
    cost in the segment over the episode's mean for full attention, so that full ranks pay −β a segment; ‖ΔS‖/‖S‖ is
    the mean over layers. The change of 128 tokens is noisy: a wrong score may help the next word by luck. A search
    that knows the text finds that luck and no policy can foresee it, so the lower bound that the oracle gives lies
    far above what can be learnt, and normalised scores look low.

    With β = .3 and the calibrated basis, the default here, the best fixed rank is neither the lowest nor full. With the
    refreshed basis, whose update is paid for in every layer, the best fixed rank about breaks even with full ranks.

    Attributes:
        weights: α, β and γ; its fidelity is of no account here. Where γ is 0 there is no term `change`.
    """

    weights: Reward

    @property
    def terms(self) -> tuple[str, ...]:
        """Names of the terms."""
        return ("log_likelihood", "flops", "change") if self.weights.gamma else ("log_likelihood", "flops")

    def score(self, gained: float, cost_ratio: float, change: float) -> Terms:
        """The terms of a segment."""
        w = self.weights
        found = w.alpha * gained, 0.0 - w.beta * cost_ratio, 0.0 - w.gamma * change
        return found[: len(self.terms)]


class FlowRules:
    """What the episodes of a set of rules share.

    Args:
        rules: the rules, ranks resolved.

    Attributes:
        world: model, calibration and sizes.
        reward: what a segment pays.
        flops: FLOPs of executing `choice` after `previous`, (layers, segments, previous, choice).
        cost: the same in what the reward charges; FLOPs by default.
        mean_full: mean full-attention FLOPs of a layer per segment.
        mean_cost: the same in what the reward charges.
    """

    def __init__(self, rules: Rules) -> None:
        self.rules, self.world = rules, open_world(rules.measurement)
        self.reward = LogLikelihoodReward(rules.reward)
        flops, charged = FlopsCost(), resolve_cost(rules.cost)
        self.flops: Doubles = flops.table(self.world)
        self.cost: Doubles = charged.table(self.world)
        self.mean_full = float(flops.full(self.world).mean())
        self.mean_cost = float(charged.full(self.world).mean())
        self.full = len(self.world.ranks) - 1
        self._nearest = distances(self.world.ranks)
        self._limits = [rules.guard.limit(position) for position in range(self.world.segments)]
        self._conformal = open_guard(self.world, rules.guard) if rules.guard.kind == "conformal" else None

    def open(self, instance: Instance) -> ClosedLoop:
        """A closed loop over an instance, at its first segment and layer."""
        world = self.world
        return ClosedLoop(world.model.network, world.streams, world.calibration.layers, world.token_ids(instance))

    def allowed(self, loop: ClosedLoop, previous: int) -> Bools:
        """What the guard allows at the attention that waits, full rank always, (ranks,).

        The conformal guard reads the live segment. Its promise is about text that runs through the full model; it does
        not hold in closed loop, where errors of the layers below are in what arrives.
        """
        if self.rules.guard.kind == "off":
            return np.ones(self.full + 1, bool)
        if self._conformal is None:
            measured = relative_changes(loop.segment)[previous]
        else:
            measured = self._conformal.bounds(loop.layer, loop.position, segment_evidence(loop.segment).numpy())
        found: Bools = measured <= self._limits[loop.position]
        found[-1] = True
        return found

    def carried_out(self, choice: int, allowed: Bools) -> int:
        """The nearest allowed rank; of two equally near the upper one."""
        return int(np.where(allowed, self._nearest[choice], np.inf).argmin())


@lru_cache(maxsize=8)
def open_flow_rules(rules: Rules) -> FlowRules:
    """The process-wide tables of a set of rules.

    Raises:
        ValueError: an argument is wrong; one line that names it, its value and the remedy.
    """
    return FlowRules(rules)


@lru_cache(maxsize=4096)
def full_log_likelihood(measurement: Measurement, instance: Instance) -> tuple[float, ...]:
    """Mean log-likelihood of each segment's next tokens under the full model, nats per token, (segments,)."""
    world = open_world(measurement)
    found = capture(world.model.network, world.token_ids(instance)).log_likelihood
    return tuple(mean(part) for part in found.split(measurement.segment))


def mean(values: Tensor) -> float:
    """Mean in float64."""
    return float(values.double().mean())


@torch.no_grad()
def relative_changes(segment: Segment) -> Doubles:
    """‖S_r − S_r'‖ / ‖S‖ over all heads of a segment, (ranks, ranks)."""
    total = segment.products.total.sum().item() / segment.settings.shape.dim
    squared: Doubles = segment.changes.sum(0).numpy()
    return np.sqrt(squared / total) if total > 0 else np.zeros_like(squared)


class Flow:
    """An episode on an instance: a closed loop, and what was executed in it.

    Args:
        shared: rules and tables.
        instance: the span of text.
        layers: layers whose ranks are chosen, ascending; the others run at full rank by themselves.

    Attributes:
        loop: the closed loop, at an attention that waits for a choice, or at its end.
        executed: choice of every (segment, layer) so far, layers of a segment side by side.
    """

    def __init__(self, shared: FlowRules, instance: Instance, layers: Sequence[int]) -> None:
        self.shared, self.instance, self.layers = shared, instance, tuple(layers)
        self.loop, self.executed = shared.open(instance), list[int]()
        self._changes: list[float] = []
        self._pass_others()

    def fork(self) -> Flow:
        """An independent episode at the same point."""
        twin = copy(self)
        twin.loop, twin.executed, twin._changes = self.loop.fork(), list(self.executed), list(self._changes)
        return twin

    @property
    def steps(self) -> int:
        """Choices made so far."""
        begun = self.loop.position * len(self.layers)
        return begun + sum(layer < self.loop.layer for layer in self.layers)

    @property
    def choices(self) -> list[int]:
        """The choices made so far, those of layers that run by themselves left out."""
        depth = self.shared.world.layers
        return [choice for place, choice in enumerate(self.executed) if place % depth in self.layers]

    def before(self, segments: int, layer: int) -> int:
        """What was executed at a layer in a segment, counted from 0; full before the first."""
        place = segments * self.shared.world.layers + layer
        return self.executed[place] if place >= 0 else self.shared.full

    @property
    def previous(self) -> int:
        """What was executed last at the layer that waits; full at the start."""
        return self.before(self.loop.position - 1, self.loop.layer)

    def allowed(self) -> Bools:
        """What the guard allows now, (ranks,); everything at the end."""
        if self.loop.ended:
            return np.ones(self.shared.full + 1, bool)
        return self.shared.allowed(self.loop, self.previous)

    def execute(self, choice: int) -> tuple[Terms, float | None]:
        """Executes a rank, whatever the guard says, and lets it flow on to the next layer whose rank is chosen.

        Returns:
            The terms of the reward, and the change of log-likelihood, nats per token, where a segment was completed.
        """
        position = self.loop.position
        self._run(choice)
        self._pass_others()
        if self.loop.position == position:
            return (0.0,) * len(self.shared.reward.terms), None
        gained = self._gained(position)
        change = sum(self._changes) / max(1, len(self._changes))
        self._changes = []
        return self.shared.reward.score(gained, self._cost_ratio(position), change), gained

    def _run(self, choice: int) -> None:
        """One layer of one segment."""
        changes = []
        if self.shared.reward.weights.gamma:
            changes = [float(relative_changes(self.loop.segment)[self.previous, choice])]
        self.loop.choose(choice)
        self.executed.append(choice)
        self._changes += changes

    def _pass_others(self) -> None:
        """Full rank at the layers that nobody chooses for."""
        while not self.loop.ended and self.loop.layer not in self.layers:
            self._run(self.shared.full)

    def _gained(self, position: int) -> float:
        """Mean log-likelihood of a segment's next tokens, less that under the full model."""
        measurement = self.shared.world.measurement
        rows = slice(position * measurement.segment, (position + 1) * measurement.segment)
        return mean(self.loop.log_likelihood[rows]) - full_log_likelihood(measurement, self.instance)[position]

    def _cost_ratio(self, position: int) -> float:
        """What all layers cost in a segment, over the mean for full attention."""
        layers = range(self.shared.world.layers)
        cost = [
            self.shared.cost[at, position, self.before(position - 1, at), self.before(position, at)] for at in layers
        ]
        return float(sum(cost)) / (len(cost) * self.shared.mean_cost)
