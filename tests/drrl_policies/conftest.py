"""Small games: two instances of 512 tokens, with a reward under which no single rank is best everywhere."""

from __future__ import annotations

from dataclasses import dataclass

import gymnasium
import pytest

from drrl_env.envs.attention_env import AttentionEnv, instance_pool, observation_space
from drrl_env.envs.settings import Measurement, Reward, resolve_guard
from drrl_env.envs.simulator import pairs
from drrl_env.envs.transitions import Rules, Transitions, open_transitions
from drrl_env.envs.world import open_world
from drrl_policies.rollout import Pair

CONTEXT, SPANS = 512, 2
# Savings weigh so much that in 512 tokens some segments want full rank and others little.
REWARD = Reward(alpha=1.0, beta=1.0, gamma=0.3)
TASKS = [(basis, guard) for basis in ("refreshed", "calibrated") for guard in ("off", "paper")]


@dataclass(frozen=True)
class Game:
    """Tables of a task and the episodes to play on them.

    Attributes:
        transitions: the tables.
        pairs: (instance, layer) of each episode.
    """

    transitions: Transitions
    pairs: tuple[Pair, ...]

    @property
    def free(self) -> bool:
        """Whether there is no guard."""
        return self.transitions.rules.guard.kind == "off"

    def env(self) -> gymnasium.Env:
        """The same task through Gymnasium."""
        rules = self.transitions.rules
        uris = list(dict.fromkeys(instance.uri for instance, _ in self.pairs))
        sizes = {"context": rules.measurement.context, "ranks": rules.measurement.ranks}
        face = {"basis": rules.measurement.basis, "reward": rules.reward, "guard": rules.guard, "instances": uris}
        return gymnasium.make("DRRL-Attention-v0", **sizes, **face)


def open_game(basis: str, guard: str, split: str = "train", context: int = CONTEXT, ranks=None) -> Game:
    """Two instances of a split, every layer."""
    measurement = open_world(Measurement(context=context, ranks=ranks, basis=basis)).measurement
    transitions = open_transitions(Rules(measurement, REWARD, resolve_guard(guard)))
    pool = instance_pool(transitions.world, split, SPANS)
    return Game(transitions, tuple(pairs(pool, range(transitions.world.layers))))


@pytest.fixture(scope="session", params=TASKS, ids="-".join)
def game(request: pytest.FixtureRequest) -> Game:
    """Each basis with and without the paper's guard, on the train split."""
    return open_game(*request.param)


@pytest.fixture(scope="session")
def free_game() -> Game:
    """The calibrated basis without a guard: ranks below full pay from the first segment on."""
    return open_game("calibrated", "off")


@pytest.fixture(scope="session")
def refreshed_game() -> Game:
    """The refreshed basis without a guard."""
    return open_game("refreshed", "off")


@pytest.fixture(scope="session")
def tiny_game() -> Game:
    """Three segments and three ranks: small enough to try every sequence."""
    return open_game("calibrated", "off", context=384, ranks=(8, 24, 64))


@pytest.fixture(scope="session")
def space(free_game: Game) -> gymnasium.spaces.Dict:
    """The observation space of these games."""
    env = free_game.env().unwrapped
    assert isinstance(env, AttentionEnv)
    return observation_space(free_game.transitions.world.layout)
