"""Small fields, where no single rank is best everywhere; and policies by script."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest

import drrl_env  # noqa: F401  (registers the environments)
from drrl_env.envs.settings import Reward
from drrl_policies import Field, Policy, open_field

CONTEXT, SPANS = 512, 2
# Savings weigh so much that in 512 tokens some segments want full rank and others little.
REWARD = Reward(alpha=1.0, beta=1.0, gamma=0.3)
RANKS = (8, 24, 64)
SMALL = {"context": 384, "ranks": RANKS, "basis": "calibrated"}
"""Three segments and three ranks: small enough to try every sequence."""
EACH: dict[str, dict[str, Any]] = {
    "DRRL-Attention-v0": {**SMALL, "reward": REWARD},
    "DRRL-Attention-Continuous-v0": {**SMALL, "reward": REWARD, "guard": "paper"},
    "DRRL-Tolerance-v0": {**SMALL, "tolerance": (0.1, 0.9)},
    "DRRL-Budget-v0": SMALL,
    "DRRL-Heads-v0": SMALL,
    "DRRL-Basis-v0": {"context": 256, "ranks": RANKS},
    "DRRL-Layers-v0": {**SMALL, "context": 256},
    "DRRL-Latency-v0": SMALL,
}
"""Every task that has a number for a reward, small."""
VARIANTS = [
    *((basis, guard, "flops") for basis in ("refreshed", "calibrated") for guard in ("off", "paper")),
    ("refreshed", "conformal", "flops"),
    ("calibrated", "off", "latency"),
]


class Scripted(Policy):
    """Plays a sequence of choices, claiming to read and to compute what the test wants.

    Args:
        field: the field.
        choices: (steps, components), or (steps,) for all components alike.
    """

    name = "scripted"

    def __init__(self, field: Field, choices: Any, reads: Any = (), deciding_flops: float = 0.0) -> None:
        rows = np.array(choices, np.int64).reshape(field.steps, -1)
        self.sizes, self.reads, self.deciding_flops = field.sizes, frozenset(reads), deciding_flops
        self._rows = np.broadcast_to(rows, (field.steps, len(field.sizes)))

    def choose(self, situation):
        """The choices of this step."""
        return self._rows[situation.steps]


def small_field(
    task: str, spans: int = 2, seed: int = 0, repeats: int = 2, measure: bool = True, **arguments: Any
) -> Field:
    """Train spans of a task, small; two episodes on each where the task draws something."""
    return open_field(task, {**EACH[task], **arguments}, "train", spans, seed, repeats, False, measure)


def attention_field(basis: str, guard: str, cost: str = "flops", **arguments: Any) -> Field:
    """Two instances of the train split in DRRL-Attention-v0, every layer."""
    given = {"context": CONTEXT, "reward": REWARD, "basis": basis, "guard": guard, "cost": cost, **arguments}
    return open_field("DRRL-Attention-v0", given, "train", SPANS, progress=False)


def env_of(field: Field) -> gymnasium.Env:
    """The same task through Gymnasium, on the same instances."""
    rules, arena = field.arena.rules, field.arena
    sizes = {"context": rules.measurement.context, "ranks": rules.measurement.ranks}
    face = {"basis": rules.measurement.basis, "reward": rules.reward, "guard": rules.guard, "cost": rules.cost}
    return gymnasium.make(arena.task.id, **sizes, **face, instances=list(dict.fromkeys(field.instances)))


@pytest.fixture(scope="session", params=VARIANTS, ids="-".join)
def field(request: pytest.FixtureRequest) -> Field:
    """Each basis with and without the paper's guard; the conformal guard; milliseconds as the cost."""
    return attention_field(*request.param)


@pytest.fixture(scope="session", params=EACH)
def task(request: pytest.FixtureRequest) -> str:
    """The id of each task that has a number for a reward."""
    return str(request.param)


@pytest.fixture(scope="session")
def each(task: str) -> Field:
    """Each task, small; one episode of the closed loop, which is computed live."""
    return small_field(task, spans=1 if task == "DRRL-Layers-v0" else 2)


@pytest.fixture(scope="session")
def solved(each: Field) -> Field:
    """The same to ask the oracle about; of the closed loop one layer, since it searches."""
    return small_field("DRRL-Layers-v0", spans=1, layer=2) if each.live else each


@pytest.fixture(scope="session")
def make_field() -> Callable[..., Field]:
    """Makes a small field of the task that a test names; see `small_field`."""
    return small_field


@pytest.fixture(scope="session")
def scripted() -> type[Scripted]:
    """The policy that plays a sequence."""
    return Scripted


@pytest.fixture(scope="session")
def gym_env() -> Callable[[Field], gymnasium.Env]:
    """See `env_of`."""
    return env_of


@pytest.fixture(scope="session")
def free_field() -> Field:
    """The calibrated basis without a guard: ranks below full pay from the first segment on."""
    return attention_field("calibrated", "off")


@pytest.fixture(scope="session")
def refreshed_field() -> Field:
    """The refreshed basis without a guard."""
    return attention_field("refreshed", "off")


@pytest.fixture(scope="session")
def blind_field() -> Field:
    """An observation without energies."""
    return attention_field("calibrated", "off", statistics=("stable_rank",))
