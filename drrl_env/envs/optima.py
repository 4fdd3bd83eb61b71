"""The oracle of each task: what could be reached on an instance, exactly or with a named bound.

Whatever a solver plans is replayed through the simulator: the value reported is what an agent would have got.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from drrl_env.data.instances import Instance, parse_uri
from drrl_env.envs.arena import Arena, check_layer, open_arena
from drrl_env.envs.game import Game
from drrl_env.envs.head_plans import heads_optimum
from drrl_env.envs.layer_plans import layers_optimum
from drrl_env.envs.layers import LayersSimulator
from drrl_env.envs.mechanism import Bools, Doubles, Integers
from drrl_env.envs.oracle import Optimum
from drrl_env.envs.play import Episode
from drrl_env.envs.processes import process, random_return
from drrl_env.envs.settings import NO_GUARD
from drrl_env.envs.simulator import Simulator
from drrl_env.envs.solvers.budget import budget_plan, budget_tables, random_budget_value
from drrl_env.envs.solvers.decision import plan
from drrl_env.envs.solvers.pareto import Front, front, supported_front


@dataclass(frozen=True)
class Question:
    """What is asked of an oracle.

    Attributes:
        arena: the task, with at least one lane.
        instance: the span of text.
        layer: the layer.
        parameter: tolerance or budget; 0 where the task draws nothing.
    """

    arena: Arena
    instance: Instance
    layer: int
    parameter: float

    @property
    def game(self) -> Game:
        """Tables and rules."""
        assert isinstance(self.arena.play, Simulator)
        return self.arena.play.game

    @property
    def block(self) -> int:
        """Number of the (instance, layer) in the store."""
        return self.game.store.block(self.instance, self.layer)


def oracle(task: str, instance: str, **arguments: Any) -> Optimum:
    """The optimum of a task on one instance; measures what is missing, a second or two for a span.

    Args:
        task: the environment id.
        instance: URI of the instance with its layer, for example `drrl://bundled/test/0007?layer=2`.
        **arguments: of the environment; `tolerance=` or `budget=` must be one number where the task draws one.

    Returns:
        Actions to play, their return, an upper bound on any return, and what random reaches.

    Raises:
        ValueError: an argument is wrong or missing; one line that names it, its value and the remedy.
    """
    question = ask(task, instance, arguments)
    if question.arena.play.vector:
        raise ValueError(f"task={task!r}: its reward is a vector, which has no one optimum; use drrl_env.pareto")
    return solve(question)


def ask(task: str, instance: str, arguments: Mapping[str, Any]) -> Question:
    """Opens the task on the one instance that a URI names."""
    uri, layer = parse_uri(instance)
    asked = arguments.get("layer", layer)
    arena = open_arena(task, 1, {**arguments, "instances": [uri], "layer": None if asked is None else asked})
    if asked is None and len(arena.layers) > 1:
        raise ValueError(f"instance={instance!r}: names no layer; use for example {uri}?layer=0")
    chosen = arena.layers[0] if asked is None else check_layer(arena.world, asked)
    return Question(arena, arena.pool[0], chosen, _parameter(arena, chosen, arguments))


def _parameter(arena: Arena, layer: int, arguments: Mapping[str, Any]) -> float:
    """The one tolerance or budget that is asked about."""
    name = arena.task.parameter
    if name is None:
        return 0.0
    value = arguments.get(name)
    if not isinstance(value, (int, float)):
        raise ValueError(f"{name}={value!r}: an oracle needs the episode's own; give info[{name!r}] of its reset")
    return arena.play.check(layer, float(value))


def solve(question: Question) -> Optimum:
    """The optimum of a question, by its task's solver."""
    return SOLVERS.get(question.arena.task.id, solve_process)(question)


def solve_process(question: Question) -> Optimum:
    """Exact, by dynamic programming over (segment, state)."""
    known = process(question.game, question.block, question.parameter)
    best = plan(known.decision)
    value, choices = replay(question, known.actions[best.choices])
    return _optimum(question, choices, value, max(value, best.value), "exact", random_return(known), 0.0)


def solve_budget(question: Question) -> Optimum:
    """Label setting pruned by dynamic programming on a fine grid of what is left; the gap is stated.

    Under a guard the budget has the last word where both together would forbid everything, so the better of two plans
    is taken, one that keeps to the guard throughout and one that does not know it, and the latter's return is a bound.
    """
    game, guarded = _unguarded(question), question.game.mechanism.masked
    known = process(game, question.block)
    rewards, flops = known.decision.rewards, known.flops
    budget = question.parameter * game.mechanism.mean_full * len(flops)
    free = budget_tables(rewards, flops)
    best = budget_plan(free, budget)
    plans = [best.choices]
    if guarded:
        plans += _guarded(rewards, flops, process(question.game, question.block).decision.allowed, budget)
    played = [replay(question, known.actions[choices], strict=not guarded) for choices in plans]
    value, choices = max(played, key=lambda each: each[0])
    random, error = sampled_random(question) if guarded else random_budget_value(free, budget)
    kind = "bound" if guarded or best.gap > 1e-9 else "exact"
    return _optimum(question, choices, value, max(value, best.bound), kind, random, error)


def _unguarded(question: Question) -> Game:
    """The same game without its guard."""
    play = question.arena.task.play(replace(question.arena.rules, guard=NO_GUARD), 1)
    assert isinstance(play, Simulator)
    return play.game


def _guarded(rewards: Doubles, flops: Doubles, allowed: Bools, budget: float) -> list[Integers]:
    """The best plan that keeps to the guard throughout, if the budget pays one."""
    tables = budget_tables(rewards, flops, allowed)
    return [budget_plan(tables, budget).choices] if tables.cheapest[0, -1] <= budget else []


def solve_heads(question: Question) -> Optimum:
    """Head by head; exact where fidelity adds up and change costs nothing."""
    found = heads_optimum(question.game, question.block)
    value, choices = replay(question, found.choices)
    random, error = sampled_random(question) if found.random is None else (found.random, 0.0)
    kind = "exact" if found.exact else "bound"
    return _optimum(question, choices, value, max(value, found.bound), kind, random, error)


def sampled_random(question: Question, episodes: int = 2048, seed: int = 0) -> tuple[float, float]:
    """Mean return of choosing uniformly among what masks allow, and its standard error."""
    simulator, random = Simulator(question.game, episodes), np.random.default_rng(seed)
    simulator.begin(range(episodes), [Episode(question.instance, question.layer, question.parameter)] * episodes)
    offsets, returns = np.cumsum(simulator.sizes)[:-1], np.zeros(episodes)
    for _ in range(question.game.world.segments):
        masks = np.split(simulator.masks(), offsets, axis=1)
        drawn = [np.where(mask, random.random(mask.shape), -1.0).argmax(-1) for mask in masks]
        returns += simulator.step(np.stack(drawn, axis=-1)).rewards
    return float(returns.mean()), float(returns.std(ddof=1) / np.sqrt(episodes))


def solve_live(question: Question) -> Optimum:
    """Beam search over what is computed live: a lower bound, exact where nothing was given up."""
    play = question.arena.play
    assert isinstance(play, LayersSimulator)
    found = layers_optimum(play, question.instance)
    value, choices = replay(question, found.choices)
    bound, kind = (value, "exact") if found.exact else (math.inf, "lower bound")
    return _optimum(question, choices, value, bound, kind, found.random, found.random_error)


SOLVERS: dict[str, Callable[[Question], Optimum]] = {
    "DRRL-Budget-v0": solve_budget,
    "DRRL-Heads-v0": solve_heads,
    "DRRL-Layers-v0": solve_live,
}
"""Environment id to what solves it; the others are finite decision processes."""


def replay(question: Question, choices: Integers, strict: bool = True) -> tuple[float, Integers]:
    """Return of playing these choices, (segments, components), and what was carried out.

    Args:
        question: what is played.
        choices: what is asked for.
        strict: whether another action than asked for is a fault.
    """
    play = question.arena.play
    play.begin([0], [Episode(question.instance, question.layer, question.parameter)])
    total, done = 0.0, []
    for row in choices:
        batch = play.step(row[None])
        if strict and batch.changed[0]:
            raise AssertionError(f"the plan {row.tolist()} was not carried out: the oracle and the simulator disagree")
        total += float(batch.rewards[0].sum())
        done.append(batch.actions[0])
    return total, np.stack(done)


def _optimum(
    question: Question, choices: Integers, value: float, bound: float, kind: str, random: float, error: float
) -> Optimum:
    actions = question.arena.codec.encode(choices, question.arena.play.sizes)
    return Optimum(
        question.arena.task.id, question.instance.uri, question.layer, question.parameter,
        actions, choices, value, bound, kind, random, error,
    )  # fmt: skip


def pareto(task: str, instance: str, precision: float | None = 0.0, **arguments: Any) -> Front:
    """The Pareto front of the vector return on one instance.

    Args:
        task: `DRRL-Attention-MO-v0`.
        instance: URI with its layer.
        precision: 0 for the exact front, about a thousand points and a tenth of a second for 16 segments; above 0 a
            front from which no feasible return sticks out by that much in any objective, for long episodes; None for
            the corners of the exact front only, every return that is best under some weights.
        **arguments: of the environment.

    Raises:
        ValueError: another task, or a front too large to list.
    """
    question = ask(task, instance, arguments)
    if not question.arena.play.vector:
        raise ValueError(f"task={task!r}: its reward is a number; use DRRL-Attention-MO-v0")
    known = process(question.game, question.block)
    rewards: Doubles = known.terms
    allowed = known.decision.allowed
    return supported_front(rewards, allowed) if precision is None else front(rewards, allowed, precision)
