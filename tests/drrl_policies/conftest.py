"""Small games: two instances of 512 tokens, with a reward under which no single rank is best everywhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gymnasium
import pytest

from drrl_env.envs.game import Game
from drrl_env.envs.settings import Reward
from drrl_env.envs.simulator import pairs
from drrl_env.envs.single import RankEnv
from drrl_policies.rollout import Pair

CONTEXT, SPANS = 512, 2
# Savings weigh so much that in 512 tokens some segments want full rank and others little.
REWARD = Reward(alpha=1.0, beta=1.0, gamma=0.3)
TASKS = [
    *((basis, guard, "flops") for basis in ("refreshed", "calibrated") for guard in ("off", "paper")),
    ("refreshed", "conformal", "flops"),
    ("calibrated", "off", "latency"),
]


@dataclass(frozen=True)
class Field:
    """Tables of a task and the episodes to play on them.

    Attributes:
        game: the tables.
        pairs: (instance, layer) of each episode.
    """

    game: Game
    pairs: tuple[Pair, ...]

    @property
    def free(self) -> bool:
        """Whether there is no guard."""
        return self.game.rules.guard.kind == "off"

    def env(self) -> gymnasium.Env:
        """The same task through Gymnasium."""
        rules = self.game.rules
        uris = list(dict.fromkeys(instance.uri for instance, _ in self.pairs))
        sizes = {"context": rules.measurement.context, "ranks": rules.measurement.ranks, "instances": uris}
        face = {"basis": rules.measurement.basis, "reward": rules.reward, "guard": rules.guard, "cost": rules.cost}
        return gymnasium.make("DRRL-Attention-v0", **sizes, **face)


def open_field(basis: str, guard: str, cost: str = "flops", **arguments: Any) -> Field:
    """Two instances of the train split, every layer."""
    given = {"context": CONTEXT, "instances": SPANS, "reward": REWARD, **arguments}
    env = gymnasium.make("drrl_env:DRRL-Attention-v0", basis=basis, guard=guard, cost=cost, **given).unwrapped
    assert isinstance(env, RankEnv)
    return Field(env.game, tuple(pairs(env.pool, env.arena.layers)))


@pytest.fixture(scope="session", params=TASKS, ids="-".join)
def field(request: pytest.FixtureRequest) -> Field:
    """Each basis with and without the paper's guard; the conformal guard; milliseconds as the cost."""
    return open_field(*request.param)


@pytest.fixture(scope="session")
def free_field() -> Field:
    """The calibrated basis without a guard: ranks below full pay from the first segment on."""
    return open_field("calibrated", "off")


@pytest.fixture(scope="session")
def refreshed_field() -> Field:
    """The refreshed basis without a guard."""
    return open_field("refreshed", "off")


@pytest.fixture(scope="session")
def tiny_field() -> Field:
    """Three segments and three ranks: small enough to try every sequence."""
    return open_field("calibrated", "off", context=384, ranks=(8, 24, 64))


@pytest.fixture(scope="session")
def blind_field() -> Field:
    """An observation without energies."""
    return open_field("calibrated", "off", statistics=("stable_rank",))
