"""A game: one task's rules on one world, with its mechanism and its objective, shared by every environment of them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

from drrl_env.envs.costs import resolve_cost
from drrl_env.envs.history import CLOCK
from drrl_env.envs.mechanism import Doubles, Effects, Mechanism
from drrl_env.envs.objectives import Objective
from drrl_env.envs.observation import Entry
from drrl_env.envs.play import Batch
from drrl_env.envs.settings import NO_GUARD, Guard, Measurement, Reward
from drrl_env.envs.store import Store, open_store


@dataclass(frozen=True)
class Rules:
    """What turns measurements into a task.

    Attributes:
        measurement: what is measured.
        reward: weights of the reward.
        guard: which ranks are allowed.
        cost: what the reward charges: `flops`, `latency`, or the path of a timing table.
        limits: range of what the task draws for an episode; None for its own.
    """

    measurement: Measurement
    reward: Reward
    guard: Guard = NO_GUARD
    cost: str = "flops"
    limits: tuple[float, float] | None = None


MakeMechanism = Callable[[Store, Rules], Mechanism]
MakeObjective = Callable[[Rules, Any], Objective]


class Game:
    """Mechanism and objective of one set of rules.

    Args:
        rules: the rules, ranks resolved.
        store: what was measured.
        mechanism: makes the mechanism.
        objective: makes the objective.

    Attributes:
        mean_full: mean full-attention FLOPs per segment of an episode.
        memory: steps of one lane, remembered whole by the simulator.
        masked: whether any action is ever forbidden.
        entries: every entry of the observation.
    """

    def __init__(self, rules: Rules, store: Store, mechanism: MakeMechanism, objective: MakeObjective) -> None:
        self.rules, self.store, self.world = rules, store, store.world
        self.mechanism = mechanism(store, rules)
        self.objective = objective(rules, self.mechanism)
        self.mean_full = self.mechanism.mean_full
        self.memory: dict[Hashable, Batch] = {}
        self.masked = self.mechanism.masked or self.objective.parameter == "budget"
        self.entries: tuple[Entry, ...] = (
            *self.world.layout.entries, *self.mechanism.entries, *self.objective.entries, CLOCK
        )  # fmt: skip

    def cost_facts(self, effects: Effects) -> Mapping[str, Doubles]:
        """What the cost model charged, where it is not FLOPs."""
        if self.rules.cost == "flops":
            return {}
        return {"latency": effects.cost, "latency_ratio": effects.cost_ratio}


def open_game(rules: Rules, mechanism: MakeMechanism, objective: MakeObjective) -> Game:
    """The process-wide game of a set of rules; `clear_stores` forgets it with what it was worked out from.

    Raises:
        ValueError: an argument is wrong; one line that names it, its value and the remedy.
    """
    resolve_cost(rules.cost)
    store = open_store(rules.measurement)
    key = (rules, mechanism, objective)
    if key not in store.derived:
        store.derived[key] = Game(rules, store, mechanism, objective)
    found = store.derived[key]
    assert isinstance(found, Game)
    return found
