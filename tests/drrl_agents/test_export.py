"""A run leaves a policy that anybody can load, and an exported one says what it reaches."""

from __future__ import annotations

import json

import pytest

from drrl_agents.agent import load_agent
from drrl_agents.evaluation import Evaluate, run_evaluate
from drrl_agents.export import Export, run_export, shareable
from drrl_policies import load
from drrl_policies.rollout import rollout
from drrl_policies.trained import CARD, WEIGHTS


@pytest.fixture(scope="module")
def exported(finished_run, tmp_path_factory):
    """The run's card and the folder it was exported to, evaluated on three spans of the test split."""
    folder = tmp_path_factory.mktemp("exported") / "policy"
    return run_export(Export(finished_run, folder, instances=3, progress=False)), folder


def test_a_run_folder_is_a_policy(finished_run, task):
    """`load` takes it as `drrl evaluate` does; its card says what the run's config says, and fits the environment."""
    policy, config = load(finished_run), json.loads((finished_run / "config.json").read_text())
    assert policy.card == load_agent(finished_run).card
    assert (policy.card.task, policy.card.algorithm) == (config["task"]["env"], config["algo"])
    assert policy.card.ranks == tuple(config["ranks"])
    assert policy.card.versions == config["versions"]
    assert policy.card.score is None
    env = task.make("test", 1)
    policy.check(env.observation_space, env.action_space)
    assert task.arguments() == policy.card.arguments


def test_an_exported_policy_is_the_same_with_a_score(exported, finished_run, task):
    """The same choices in every step; the score is that of `drrl evaluate` on the same episodes."""
    card, folder = exported
    policy, agent = load(folder), load_agent(finished_run)
    assert policy.card == card
    assert sorted(path.name for path in folder.iterdir()) == [CARD, WEIGHTS]
    field = task.field("test", 3, progress=False)
    first, second = rollout(policy, field), rollout(agent, field)
    assert (first.wanted == second.wanted).all()
    row = run_evaluate(Evaluate(finished_run, instances=3, progress=False)).rows[0]
    score = card.score
    assert (score.score, score.low, score.high) == (row.normalised_score, row.low, row.high)
    assert (score.split, score.instances, score.episodes) == ("test", 3, len(field.episodes))
    assert score.mean_return == pytest.approx(first.returns.mean())
    assert score.score == pytest.approx((score.mean_return - score.random) / (score.oracle - score.random))
    assert score.low <= score.score <= score.high


def test_a_command_on_a_card_names_no_folder_of_a_machine():
    """Where runs were written is nobody's business; everything else of the command stays."""
    given = "drrl train DRRL-Tolerance-v0 --logdir /home/me/runs --steps 5 --logdir=/tmp/x --resume /a --seed 1"
    assert shareable(given) == "drrl train DRRL-Tolerance-v0 --steps 5 --seed 1"


def test_one_instance_is_too_few_for_an_interval(finished_run, tmp_path):
    """Said before anything is played or written."""
    with pytest.raises(ValueError, match="instances=1: an interval needs more than one"):
        run_export(Export(finished_run, tmp_path / "out", instances=1, progress=False))
    assert list((tmp_path / "out").iterdir()) == []
