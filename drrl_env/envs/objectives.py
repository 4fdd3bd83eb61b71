"""What a task pays for: the reward of a step, what is drawn for an episode, and what that forbids."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np

from drrl_env.envs.history import free
from drrl_env.envs.mechanism import Bools, Doubles, Effects, Floats, Integers, Lanes
from drrl_env.envs.observation import Entry
from drrl_env.envs.ranks import RankMechanism
from drrl_env.envs.settings import Reward
from drrl_env.envs.solvers.budget import cheapest_to_go


class Objective(Protocol):
    """Reward and rules of a task.

    Attributes:
        terms: names of the reward's terms, which sum to it (or are it, where it is a vector).
        vector: whether the reward is the vector of its terms.
        parameter: name of what is drawn for an episode; None where nothing is.
        entries: entries of the observation that show it.
    """

    terms: tuple[str, ...]
    vector: bool
    parameter: str | None
    entries: tuple[Entry, ...]

    def draw(self, layers: Integers, uniform: Doubles) -> Doubles:
        """The parameter of new episodes from uniform numbers in [0, 1), (lanes,)."""

    def check(self, layer: int, value: float) -> float:
        """A parameter somebody asked for; a ValueError where no episode can have it."""

    def score(self, effects: Effects, lanes: Lanes) -> tuple[Doubles, ...]:
        """The terms of a step, (lanes,) each."""

    def facts(self, effects: Effects, lanes: Lanes) -> Mapping[str, Doubles]:
        """Further numbers of a step for `info`, (lanes,) each."""

    def allowed(self, lanes: Lanes, allowed: Bools) -> Bools:
        """What the mechanism allows, less what the objective forbids; never empty."""

    def observe(self, lanes: Lanes) -> dict[str, Floats]:
        """`entries` of every lane, (lanes, size) each."""


class LinearObjective:
    """α·fidelity − β·cost ratio − γ·‖ΔS‖/‖S‖; the vector of the three where `vector`, unweighted.

    Args:
        weights: α, β, γ and what fidelity means.
        vector: return (fidelity, −cost ratio, −‖ΔS‖/‖S‖) instead of their weighted sum.
    """

    parameter: str | None = None
    entries: tuple[Entry, ...] = ()

    def __init__(self, weights: Reward, vector: bool = False) -> None:
        self.weights, self.vector = (Reward(1.0, 1.0, 1.0, weights.fidelity) if vector else weights), vector
        self.terms: tuple[str, ...] = ("fidelity", "flops", "change")

    def draw(self, layers: Integers, uniform: Doubles) -> Doubles:
        """Nothing is drawn."""
        return np.zeros(len(layers))

    def check(self, layer: int, value: float) -> float:
        """Nothing is drawn."""
        return 0.0

    def score(self, effects: Effects, lanes: Lanes) -> tuple[Doubles, ...]:
        """Fidelity, cost and change, weighted."""
        found = fidelity(effects, self.weights.fidelity)
        w = self.weights
        return w.alpha * found, 0.0 - w.beta * effects.cost_ratio, 0.0 - w.gamma * effects.score_change

    def facts(self, effects: Effects, lanes: Lanes) -> Mapping[str, Doubles]:
        """Nothing further."""
        return {}

    def allowed(self, lanes: Lanes, allowed: Bools) -> Bools:
        """Nothing is forbidden."""
        return allowed

    def observe(self, lanes: Lanes) -> dict[str, Floats]:
        """Nothing is drawn."""
        return {}


def fidelity(effects: Effects, kind: str) -> Doubles:
    """`cosine`, or `error`: 1 − ‖ΔO‖²/‖O‖², (lanes,)."""
    return effects.cosine if kind == "cosine" else 1 - effects.relative_error * effects.relative_error


class ToleranceObjective(LinearObjective):
    """β · the fraction of cost saved, and −α where the output's relative error exceeds ε; less γ·‖ΔS‖/‖S‖.

    Saved is full attention's cost of this segment less what was paid, over the episode's mean: the mean over an
    episode without violations is the fraction saved in it. ε is log-uniform, drawn per episode and observed.

    Args:
        weights: α and β are 1 and γ is 0 by default.
        low: smallest ε.
        high: largest ε.
    """

    parameter: str | None = "tolerance"

    def __init__(self, weights: Reward, low: float, high: float) -> None:
        super().__init__(weights)
        self.low, self.high = low, high
        self.terms = ("saving", "violation", "change") if weights.gamma else ("saving", "violation")
        meaning = f"1 + log10(ε)/4, the scale of `residual_level`; ε is log-uniform in [{low:g}, {high:g}]"
        self.entries = (Entry("tolerance", 1, -1.0, 2.0, False, free, meaning, "task"),)

    def draw(self, layers: Integers, uniform: Doubles) -> Doubles:
        """ε, log-uniform."""
        return np.array([self.low * (self.high / self.low) ** u for u in uniform.tolist()])

    def check(self, layer: int, value: float) -> float:
        """ε above zero."""
        if not 0 < value < 1e3:
            raise ValueError(f"options['tolerance']={value}: must be a relative error above 0; use for example 0.2")
        return float(value)

    def score(self, effects: Effects, lanes: Lanes) -> tuple[Doubles, ...]:
        """What was saved, or the price of a violation."""
        kept, w = effects.relative_error <= lanes.parameter, self.weights
        saved = w.beta * (effects.full_ratio - effects.cost_ratio)
        terms = np.where(kept, saved, 0.0), np.where(kept, 0.0, -w.alpha)
        return (*terms, 0.0 - w.gamma * effects.score_change) if w.gamma else terms

    def facts(self, effects: Effects, lanes: Lanes) -> Mapping[str, Doubles]:
        """ε."""
        return {"tolerance": lanes.parameter}

    def observe(self, lanes: Lanes) -> dict[str, Floats]:
        """ε on a logarithmic scale; scalar by scalar, since vectorised logarithms may differ in their last bit."""
        levels = [[1 + float(np.log10(e)) / 4] if e > 0 else [0.0] for e in lanes.parameter.tolist()]
        return {"tolerance": np.array(levels, np.float32)}


class BudgetObjective(LinearObjective):
    """α·fidelity within a FLOPs budget for the whole episode; an action must leave enough for the cheapest way on.

    The budget is a fraction of full attention's FLOPs, drawn uniformly per episode between what the layer's cheapest
    way costs and 1 (or within the given limits), and observed with what is left of it. Where budget and guard
    together would forbid everything, the budget stands.

    Args:
        weights: α, β, γ and what fidelity means; β is 0 by default, the budget being the price.
        mechanism: whose FLOPs are spent.
        limits: lowest and highest fraction; None for the cheapest way and 1.
    """

    parameter: str | None = "budget"

    def __init__(self, weights: Reward, mechanism: RankMechanism, limits: tuple[float, float] | None) -> None:
        super().__init__(weights)
        self._mechanism, self._limits = mechanism, limits
        self._total = float(mechanism.full_flops.sum())
        self._to_go = np.stack([cheapest_to_go(table) for table in mechanism.flops])
        self._remaining = np.append(np.cumsum(mechanism.full_flops[::-1])[::-1], mechanism.full_flops[-1])
        self.cheapest = self._to_go[:, 0, -1] / self._total
        meaning = "budget over full attention's FLOPs; what is left over full attention's from here, at most 4"
        self.entries = (Entry("budget", 2, 0.0, 4.0, False, free, meaning, "task"),)

    def draw(self, layers: Integers, uniform: Doubles) -> Doubles:
        """Uniform between the layer's cheapest way and 1, or within the limits."""
        low = self.cheapest.take(layers)
        high = np.ones(len(layers))
        if self._limits is not None:
            low, high = np.maximum(low, self._limits[0]), np.maximum(low, self._limits[1])
        found: Doubles = low + uniform * (high - low)
        return found

    def check(self, layer: int, value: float) -> float:
        """A budget that pays at least the cheapest way."""
        if not self.cheapest[layer] <= value <= 1e3:
            raise ValueError(
                f"options['budget']={value}: the cheapest way through layer {layer} costs "
                f"{self.cheapest[layer]:.4f} of full attention; use at least that"
            )
        return float(value)

    def left(self, lanes: Lanes) -> Doubles:
        """FLOPs left, (lanes,)."""
        return lanes.parameter * self._total - lanes.spent

    def facts(self, effects: Effects, lanes: Lanes) -> Mapping[str, Doubles]:
        """Budget, and what is left of it after the step, over full attention's FLOPs."""
        return {"budget": lanes.parameter, "budget_left": (self.left(lanes) - effects.flops) / self._total}

    def allowed(self, lanes: Lanes, allowed: Bools) -> Bools:
        """Only ranks after which the cheapest way to the end can be paid."""
        segments = self._to_go.shape[1] - 1
        after = np.minimum(lanes.position, segments - 1) + 1
        ahead = self._to_go.reshape(-1, self._to_go.shape[-1]).take(lanes.layer * (segments + 1) + after, axis=0)
        need = self._mechanism.prices(lanes) + ahead
        # The cheapest way is always open: its own sum, added up in another order, may differ in the last bit.
        paid = (need <= self.left(lanes)[:, None]) | (need == need.min(-1, keepdims=True))
        both = allowed & paid
        found: Bools = np.where(both.any(-1, keepdims=True), both, paid)
        return found

    def observe(self, lanes: Lanes) -> dict[str, Floats]:
        """Budget and what is left."""
        left = self.left(lanes) / self._remaining.take(lanes.position)
        return {"budget": np.stack([lanes.parameter, left], axis=-1).clip(0, 4).astype(np.float32)}


def resolve_range(name: str, value: float | tuple[float, float]) -> tuple[float, float]:
    """One number, or (low, high), checked: 0 < low ≤ high."""
    low, high = (value, value) if isinstance(value, (int, float)) else (float(value[0]), float(value[-1]))
    if not 0 < low <= high < float("inf"):
        raise ValueError(f"{name}={value!r}: must be above 0 and ascend; use one number, or (low, high)")
    return float(low), float(high)
