"""The oracle is what an exhaustive search finds, random what enumeration averages to."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from drrl_env.envs.attention_env import AttentionEnv
from drrl_env.envs.oracle import Episode, episode, normalised_score, oracle, random_return
from drrl_env.envs.settings import Guard, Reward

TINY = {"context": 384, "ranks": (8, 24, 64)}
SEQUENCES = list(itertools.product(range(3), repeat=3))
GUARDS = {"off": "off", "half": Guard("paper", 0.3, 0.2), "only full": Guard("paper", 1e-9, 0.0)}
CHEAP = Reward(alpha=1.0, beta=0.6, gamma=0.3)


@pytest.fixture(params=[(name, layer) for name in GUARDS for layer in (0, 2)], ids=str)
def tiny(request: pytest.FixtureRequest, make: Any) -> AttentionEnv:
    """Three segments, three ranks, one span and layer."""
    name, layer = request.param
    env: AttentionEnv = make(**TINY, instances=1, layer=layer, guard=GUARDS[name], reward=CHEAP)
    return env


def whole(env: AttentionEnv) -> Episode:
    """The decision process of its one (instance, layer)."""
    return episode(env.transitions, env.transitions.store.block(env.pool[0], env.layers[0]))


def played(env: AttentionEnv, choices: tuple[int, ...]) -> tuple[float, float]:
    """(return, probability under the random policy) of choices; probability 0 where one of them is not allowed."""
    _, info = env.reset()
    value, probability = 0.0, 1.0
    for choice in choices:
        mask = info["action_mask"]
        probability *= float(mask[choice]) / mask.sum()
        _, reward, _, _, info = env.step(choice)
        value += reward
    return value, probability


def test_the_oracle_is_the_best_of_all_sequences(tiny: AttentionEnv) -> None:
    """All 27 played in the environment: the best return to 1e-12, and the oracle's choices reach it."""
    plan = oracle(whole(tiny))
    best = max(played(tiny, choices)[0] for choices in SEQUENCES)
    assert plan.value == pytest.approx(best, abs=1e-12)
    assert played(tiny, tuple(plan.choices))[0] == pytest.approx(best, abs=1e-12)
    assert played(tiny, tuple(plan.choices))[1] > 0


def test_random_is_the_average_of_all_allowed_sequences(tiny: AttentionEnv) -> None:
    """Each sequence weighed by its probability among the allowed ranks, masks included, to 1e-12."""
    found = [played(tiny, choices) for choices in SEQUENCES]
    assert sum(probability for _, probability in found) == pytest.approx(1)
    wanted = sum(value * probability for value, probability in found)
    assert random_return(whole(tiny)) == pytest.approx(wanted, abs=1e-12)


def test_the_policy_table_continues_best_from_anywhere(tiny: AttentionEnv) -> None:
    """From every previous rank at every segment no single deviation gains: Bellman's equation."""
    found = whole(tiny)
    policy, ahead = oracle(found).policy, np.zeros(3)
    for position in reversed(range(3)):
        gains = np.where(found.allowed[position], found.rewards[position] + ahead, -np.inf)
        chosen = np.take_along_axis(gains, policy[position][:, None], axis=-1)[:, 0]
        assert np.array_equal(chosen, gains.max(-1))
        ahead = chosen


def made_up(rewards: Any, allowed: Any = True) -> Episode:
    """A decision process of one's own, (segments, previous, choice)."""
    numbers = np.asarray(rewards, float)
    executed = np.broadcast_to(np.arange(numbers.shape[-1]), numbers.shape)
    return Episode(numbers, np.broadcast_to(allowed, numbers.shape), executed)


def test_ties_go_to_the_higher_rank() -> None:
    """Equal everywhere: the last choice; equal between two of three: the upper of the two."""
    assert oracle(made_up(np.zeros((3, 3, 3)))).choices.tolist() == [2, 2, 2]
    rewards = np.zeros((2, 3, 3)) + np.array([1.0, 1.0, 0.0])
    assert oracle(made_up(rewards)).choices.tolist() == [1, 1]


def test_what_is_not_allowed_is_not_chosen_however_good() -> None:
    """A forbidden reward of 100 counts neither for the oracle nor for random."""
    rewards, allowed = np.ones((2, 2, 2)), np.ones((2, 2, 2), bool)
    rewards[:, :, 0], allowed[:, :, 0] = 100, False
    found = made_up(rewards, allowed)
    assert oracle(found).value == random_return(found) == 2


def test_the_score_is_0_for_random_and_1_for_the_oracle() -> None:
    """And linear between; where all policies are alike there is none."""
    assert [normalised_score(value, 2.0, 6.0) for value in (2.0, 4.0, 6.0)] == [0, 0.5, 1]
    with pytest.raises(ValueError, match=r"oracle=2\.0"):
        normalised_score(2.0, 2.0, 2.0)


def test_on_the_default_task_there_is_something_to_choose(make: Any) -> None:
    """Oracle above the best fixed rank above the worst, on a span of the bundled model at 1024 tokens."""
    env = make(context=1024, instances=1)
    for layer in env.layers:
        found = episode(env.transitions, env.transitions.store.block(env.pool[0], layer))
        fixed = [found.rewards[0, -1, a] + found.rewards[1:, a, a].sum() for a in range(8)]
        assert oracle(found).value > max(fixed) > random_return(found)
