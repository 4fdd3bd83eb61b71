"""A rollout is what stepping the environment gives, on every task."""

from __future__ import annotations

from functools import reduce

import numpy as np
import pytest

from drrl_env.envs.play import EFFECTS
from drrl_policies import EnergyThreshold, Oracle, Policy, Random, Table, constant, open_field
from drrl_policies.fitting import candidates, full, oracle_policy, rule_policies
from drrl_policies.rollout import reference, rollout


def table_of(field) -> Table:
    """Other choices at every layer and step."""
    shape = (field.arena.world.layers, field.steps, 1, len(field.sizes))
    return Table("table", field.sizes, np.arange(np.prod(shape)).reshape(shape) % np.array(field.sizes))


def policies_of(field) -> list[Policy]:
    """A rule that observes nothing, one that observes energies, one that observes layer and clock."""
    lowest = constant("fixed", field.sizes, (1,) * len(field.sizes))
    return [lowest, full(field), EnergyThreshold(field.sizes, 0.98, field.rank_components), table_of(field)]


def check_by_stepping(policy, field, env):
    """Rewards, choices and every number of info are those of `gym.make` and `predict`, bit for bit."""
    found, drawn = rollout(policy, field), field.arena.play.parameter
    for number, episode in enumerate(field.episodes):
        options = {"instance": episode.instance.uri, "layer": episode.layer}
        observation, _ = env.reset(options={**options, **({drawn: episode.parameter} if drawn else {})})
        for step in range(field.steps):
            masks = env.get_wrapper_attr("action_masks")()
            choice, _ = policy.predict(observation, action_masks=masks)
            action = field.arena.codec.encode(np.reshape(choice, (1, -1)), field.sizes)[0]
            observation, reward, ended, _, info = env.step(action)
            assert reward == found.rewards[number, step]
            assert np.array_equal(np.ravel(info["choice"]), found.executed[number, step])
            assert info["masked_action"] == (found.executed[number, step] != found.wanted[number, step]).any()
            for name, steps in found.columns.items():
                assert info[name] == steps[number, step]
            assert info["reward_terms"] == {name: steps[number, step] for name, steps in found.terms.items()}
        assert ended


def test_a_rollout_is_what_stepping_the_environment_by_hand_gives(field, gym_env):
    """Under every guard, in both bases, at both costs."""
    env = gym_env(field)
    for policy in policies_of(field):
        check_by_stepping(policy, field, env)


def test_a_rollout_of_every_task_is_what_stepping_it_by_hand_gives(each, gym_env):
    """One rank, a rank per head, rank and basis, the closed loop; tolerances and budgets as they were drawn."""
    env = gym_env(each)
    for policy in policies_of(each):
        check_by_stepping(policy, each, env)


def test_a_policy_sees_what_the_environment_shows(make_field, gym_env):
    """Observation and masks of every lane at every step, and the episode and step that only the oracle may look at."""
    field, seen = make_field("DRRL-Heads-v0", spans=1, guard="paper"), []

    class Watching(Random):
        def choose(self, situation):
            seen.append(situation)
            return np.zeros((len(situation.masks), 4), np.int64)

    rollout(Watching(field.sizes), field)
    env = gym_env(field)
    for number, episode in enumerate(field.episodes):
        observation, _ = env.reset(options={"instance": episode.instance.uri, "layer": episode.layer})
        for step, situation in enumerate(seen):
            assert (situation.episodes[number], situation.steps[number]) == (number, step)
            assert all((situation.observation[name][number] == rows).all() for name, rows in observation.items())
            assert (situation.masks[number] == env.get_wrapper_attr("action_masks")()).all()
            observation = env.step(np.zeros(4, np.int64))[0]


def test_the_reward_is_the_sum_of_its_terms(each):
    """In every step of a random rollout, to the last bit; and the return is the sum of the rewards."""
    found = rollout(Random(each.sizes), each)
    assert (found.rewards == sum(found.terms.values())).all()
    assert (found.returns == found.rewards.sum(1)).all()
    assert found.rewards.shape == (len(each.episodes), each.steps)
    assert set(found.columns) >= set(EFFECTS)


def test_what_is_masked_is_asked_for_and_not_carried_out(make_field):
    """Full attention throughout breaks a budget: it was wanted, and less was executed."""
    field = make_field("DRRL-Budget-v0")
    found = rollout(full(field), field)
    assert (found.wanted == 2).all()
    assert (found.executed < 2).any()
    assert (found.columns["flops"].sum(1) <= field.parameters * field.mean_full * field.steps * (1 + 1e-12)).all()


def test_a_vector_reward_is_rolled_out_term_by_term():
    """DRRL-Attention-MO-v0: returns have a column a term, and each is the total of that term."""
    field = open_field("DRRL-Attention-MO-v0", {"context": 384}, "train", 1, progress=False)
    found = rollout(candidates(field)[1].table, field)
    assert found.returns.shape == (4, 3)
    assert (found.returns == np.stack([values.sum(1) for values in found.terms.values()], axis=-1)).all()


def added(found) -> list[float]:
    """Returns, added up step after step as the replay of a plan adds them."""
    return reduce(np.add, found.rewards.T).tolist()


def test_the_oracle_gets_the_value_of_its_plans_exactly(solved):
    """Bit for bit what the solver reported, and everything it asks for is carried out."""
    found = rollout(oracle_policy(solved), solved)
    assert added(found) == [optimum.value for optimum in solved.optima]
    assert (found.wanted == np.stack([optimum.choices for optimum in solved.optima])).all()
    assert (found.executed == found.wanted).all()


def test_under_a_guard_the_oracle_gets_the_value_of_its_plans_too(field):
    """With either guard, in either basis, at either cost."""
    found = rollout(oracle_policy(field), field)
    assert added(found) == [optimum.value for optimum in field.optima]
    assert (found.executed == found.wanted).all()


def test_the_reference_is_that_of_the_optima(solved):
    """Random and optimum of every episode, in order; score 0, 1 and regret 0 follow."""
    known = reference(solved)
    assert known.oracle.tolist() == [optimum.value for optimum in solved.optima]
    assert known.random.tolist() == [optimum.random for optimum in solved.optima]
    assert known.score(known.oracle) == 1
    assert known.score(known.random) == 0
    assert known.regret(known.oracle, solved.steps) == 0
    assert known.regret(known.oracle - 3.0, 3) == pytest.approx(1)


def test_exact_random_is_the_mean_of_many_random_episodes(field):
    """Within five standard errors of 100 episodes each; uniform over *all* ranks would miss it under the guard."""
    exact, rule = reference(field).random, Random(field.sizes, 0)
    played = np.stack([rollout(rule, field).returns for _ in range(100)])
    errors = played.std(0, ddof=1) / len(played) ** 0.5
    assert (np.abs(played.mean(0) - exact) < 5 * errors + 1e-9).all()


def test_an_oracle_of_other_episodes_says_so(free_field):
    """A plan that is missing is an error, not a guess."""
    with pytest.raises(IndexError):
        rollout(Oracle(free_field.sizes, np.zeros((1, 4, 1), np.int64)), free_field)


def test_everything_counted_is_at_least_attention(field):
    """total ratio ≥ FLOPs ratio for every rule, and the rest is observing and deciding over full attention."""
    for policy in rule_policies(field):
        found = rollout(policy, field)
        total, attention = found.total_ratio(field.mean_full), found.columns["flops_ratio"].mean(-1)
        np.testing.assert_allclose(total - attention, found.overhead / (field.mean_full * field.steps), atol=1e-12)
        assert (found.overhead >= 0).all()
