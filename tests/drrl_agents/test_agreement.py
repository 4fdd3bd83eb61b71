"""Rows that hold one by one can still be a file that nobody played: they must agree, and be all there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from drrl_agents.episodes import FILE, write_episodes
from drrl_agents.tasks import Task
from drrl_agents.validate import SUMMARY, Validate, Verdict, validate
from drrl_env.envs.optima import Question, solve


def check(path: Path, **given: object) -> Verdict:
    """Validates without bars."""
    return validate(Validate(path, progress=False, **given))  # type: ignore[arg-type]


def test_an_agent_with_a_reference_of_its_own_is_refuted(cells, episodes_file):
    """Random and oracle of a worse basis, worked out truly: each row holds by itself, and the score is another."""
    rows, task = cells.rows(episodes_file), json.loads(cells.rows(episodes_file)[0]["arguments"])
    arguments = {**task, "basis": "separate-svd"}
    other = Task("DRRL-Tolerance-v0", **{**arguments})
    arena = other.field("test", 4, repeats=2, progress=False).single
    for row in rows:
        if row["policy"] == "an-agent":
            play = next(each for each in arena.pool if each.uri == row["instance"])
            best = solve(Question(arena, play, int(row["layer"]), float(row["parameter"])))
            row |= {"reference_arguments": json.dumps(arguments, sort_keys=True)}
            row |= {"random_return": repr(best.random), "oracle_return": repr(best.value)}
    cells.write(episodes_file, rows)
    episodes_file.with_name(SUMMARY).unlink()
    found = check(episodes_file)
    agents = {number for number, row in enumerate(rows, start=1) if row["policy"] == "an-agent"}
    assert {each.row for each in found.refutations} == agents
    assert any("reference_arguments is" in each.what for each in found.refutations)


@pytest.mark.parametrize(("column", "value"), [("task", "DRRL-Attention-v0"), ("split", "train")])
def test_a_row_of_another_task_or_split_is_refuted(cells, episodes_file, column, value):
    """Whatever else holds of it."""
    cells.tamper(episodes_file, 5, **{column: lambda cell: value})
    told = [each.what for each in check(episodes_file, reference=False).refutations if each.row == 5]
    assert any(f"{column} is '{value}', and " in each for each in told)


def test_a_policy_with_easier_rules_than_the_oracles_is_refuted(cells, compare_few, tmp_path):
    """The paper's reward for one of them: it could be replayed, and would be measured against another task's oracle."""
    path = write_episodes(compare_few(Task(context=512, layer=2, basis="calibrated"), 1, bases=False), tmp_path / FILE)
    cells.tamper(path, 1, arguments=lambda cell: json.dumps({**json.loads(cell), "reward": "paper"}, sort_keys=True))
    told = [each.what for each in check(path, reference=False).refutations]
    assert any("arguments: reward other than random and the oracle had" in each for each in told)


def test_an_instance_left_out_for_all_policies_is_missed(cells, episodes_file):
    """It went badly for the agent, say: the first instances of the split were to be played, and one is not there."""
    rows = cells.rows(episodes_file)
    gone = rows[0]["instance"]
    cells.write(episodes_file, [row for row in rows if row["instance"] != gone])
    episodes_file.with_name(SUMMARY).unlink()
    told = [each.what for each in check(episodes_file, reference=False).refutations]
    assert any(gone in each and "is missing in the file" in each for each in told)


def test_an_instance_counted_twice_for_all_policies_is_refuted(cells, episodes_file):
    """It went well."""
    rows = cells.rows(episodes_file)
    twice = [row for row in rows if row["instance"] == rows[0]["instance"]]
    cells.write(episodes_file, [*rows, *twice])
    episodes_file.with_name(SUMMARY).unlink()
    found = check(episodes_file, reference=False).refutations
    assert {each.row for each in found} == set(range(len(rows) + 1, len(rows) + len(twice) + 1))


def test_a_parameter_that_was_not_drawn_is_refuted(cells, episodes_file):
    """Another tolerance for all policies alike, rewards and returns as they follow: not what the seed draws."""
    rows = cells.rows(episodes_file)
    drawn = rows[0]["instance"], rows[0]["parameter"]
    for row in rows:
        if (row["instance"], row["parameter"]) == drawn:
            row["parameter"] = "0.5"
    cells.write(episodes_file, rows)
    told = [each.what for each in check(episodes_file, reference=False).refutations]
    assert any("parameter 0.5, is none of them" in each for each in told)
