"""What happened in an episode so far, for pictures: a few numbers a step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

KEPT = (
    "segment", "layer", "rank", "relative_error", "cosine", "flops_ratio", "reward_terms", "masked_action", "basis",
    "basis_age", "budget_left", "latency", "log_likelihood_change",
)  # fmt: skip
"""What a picture needs of a step's info, where it is there."""


class Trail:
    """Steps of one episode.

    Args:
        start: what `reset` said.

    Attributes:
        start: instance, layer and what was drawn; empty before the first reset.
        steps: per step `KEPT` of its info.
    """

    def __init__(self, start: Mapping[str, Any] | None = None) -> None:
        self.start = {name: value for name, value in (start or {}).items() if name != "action_mask"}
        self.steps: list[dict[str, Any]] = []

    def add(self, info: Mapping[str, Any]) -> None:
        """Keeps what a picture needs of a step."""
        self.steps.append({name: info[name] for name in KEPT if name in info})

    @property
    def total(self) -> float:
        """Sum of all terms of the reward so far: the return, where the reward is a number."""
        return float(sum(sum(step["reward_terms"].values()) for step in self.steps))

    def column(self, name: str) -> list[Any]:
        """One number of every step that has it."""
        return [step[name] for step in self.steps if name in step]

    def state(self) -> dict[str, Any]:
        """Plain JSON."""
        return {"start": self.start, "steps": list(self.steps)}

    @classmethod
    def restored(cls, state: Mapping[str, Any]) -> Trail:
        """The trail of a state."""
        found = cls(state["start"])
        found.steps = list(state["steps"])
        return found
