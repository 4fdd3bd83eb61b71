"""Cost models: what executing a choice costs, in FLOPs or in milliseconds, for every transition of a world."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from drrl_env.lowrank.flops import full_flops, segment_flops

if TYPE_CHECKING:
    from drrl_env.envs.world import World

Doubles = NDArray[np.float64]

COSTS = ("flops", "latency")
"""Costs by name; `cost=` also takes the path of a user's own timing table."""


@runtime_checkable
class CostModel(Protocol):
    """What a transition costs; a user's own is any hashable object with these."""

    @property
    def name(self) -> str:
        """`flops` or `latency`."""
        ...

    @property
    def unit(self) -> str:
        """`FLOPs` or `ms`."""
        ...

    def table(self, world: World) -> Doubles:
        """Cost of executing `choice` after `previous`, (layers, segments, previous, choice), above 0."""
        ...

    def full(self, world: World) -> Doubles:
        """Cost of full attention, (segments,), above 0."""
        ...


@dataclass(frozen=True)
class FlopsCost:
    """The complete FLOPs account of `lowrank.flops`.

    Attributes:
        name: `flops`.
        unit: `FLOPs`.
    """

    name: str = field(default="flops", init=False)
    unit: str = field(default="FLOPs", init=False)

    def table(self, world: World) -> Doubles:
        """FLOPs of every transition, (layers, segments, previous, choice)."""
        found = np.empty((world.layers, world.segments, len(world.ranks), len(world.ranks)))
        for layer, stream in enumerate(world.streams):
            for (t, p, a), _ in np.ndenumerate(found[layer]):
                chosen, before = stream.costs[a], stream.costs[p]
                found[layer, t, p, a] = segment_flops(stream.shape, t, chosen, before, stream.basis, stream.width)
        return found

    def full(self, world: World) -> Doubles:
        """FLOPs of full attention, (segments,)."""
        return np.array([full_flops(world.shape, position) for position in range(world.segments)])


def resolve_cost(cost: str | Path | CostModel) -> CostModel:
    """A cost model by name, the latency of a user's own timing table, or the model itself.

    Raises:
        ValueError: neither a cost model, nor a name, nor a file that holds timings; one line with the remedy.
    """
    if cost == "flops":
        return FlopsCost()
    if isinstance(cost, str | Path):
        from drrl_env.envs.latency import LatencyCost  # scikit-learn takes a second to import, and FLOPs need none

        return LatencyCost.committed() if cost == "latency" else LatencyCost.read(_table(cost))
    if not isinstance(cost, CostModel):
        raise ValueError(f"cost={cost!r}: must be {_choices()}, or a cost model")
    return cost


def _table(cost: str | Path) -> Path:
    path = Path(cost).expanduser()
    if not path.is_file():
        raise ValueError(f"cost={str(cost)!r}: neither a name nor a file; use {_choices()}")
    return path


def _choices() -> str:
    return f"{', '.join(map(repr, COSTS))} or a table that `drrl calibrate latency` wrote"
