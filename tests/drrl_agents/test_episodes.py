"""What a comparison did is written so that it can be read back, and played again, without a loss."""

from __future__ import annotations

import csv
import math
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from drrl_agents.comparison import Comparison, outcome
from drrl_agents.entrants import AGENT, BASIS, Entrant
from drrl_agents.episodes import COLUMNS, FILE, Record, from_json, read_episodes, text_digest, to_json, write_episodes
from drrl_agents.tasks import Task
from drrl_env.data.instances import instances
from drrl_env.lowrank.version import ENGINE_VERSION


def test_what_is_read_back_is_what_was_played(compared_small: Comparison, episodes_file: Path):
    """Bit for bit: rewards, returns, ratios, parameters, references and actions of every policy and episode."""
    rows = iter(read_episodes(episodes_file))
    for entry in compared_small.entries:
        for seed, played in zip(entry.entrant.seeds, entry.rollouts, strict=True):
            for number, episode in enumerate(played.episodes):
                row = next(rows)
                assert (row.policy, row.kind, row.seed) == (entry.row.policy, entry.row.kind, seed)
                assert row.episode == (episode.instance.uri, episode.layer, episode.parameter)
                assert row.rewards == tuple(played.rewards[number].tolist())
                assert row.return_ == played.returns[number]
                assert row.actions == tuple(map(tuple, played.executed[number].tolist()))
                assert row.relative_error == played.columns["relative_error"][number].mean()
                assert row.oracle_return == compared_small.judge.reference.oracle[number]
                assert row.text == text_digest(episode.instance)
    assert next(rows, None) is None


def test_plain_csv_tools_read_the_file(episodes_file: Path):
    """`csv` finds the columns of `Record`, a number where a number is due, JSON where arguments are."""
    with episodes_file.open(newline="") as file:
        found = list(csv.DictReader(file))
    assert tuple(found[0]) == COLUMNS == tuple(each.name.rstrip("_") for each in fields(Record))
    assert all(math.isclose(float(row["return"]), sum(map(float, row["rewards"].split()))) for row in found)
    assert {row["engine"] for row in found} == {str(ENGINE_VERSION)}
    assert from_json(found[0]["task"], found[0]["arguments"]).context == 512


def test_an_offline_basis_has_arguments_of_its_own_and_the_references_of_the_others(episodes_file: Path):
    """Its rows name its basis; what they are scored against is the comparison's task."""
    rows = read_episodes(episodes_file)
    offline = [row for row in rows if row.kind == BASIS]
    assert {from_json(row.task, row.arguments).basis for row in offline} == {"calibrated", "keys-pca", "separate-svd"}
    assert len({row.reference_arguments for row in rows}) == 1
    assert len({row.calibration for row in rows}) > 1


def test_every_seed_of_an_agent_has_its_rows(compared_small: Comparison, episodes_file: Path):
    """Two seeds, as many rows each as there are episodes."""
    seeds = [row.seed for row in read_episodes(episodes_file) if row.kind == AGENT]
    assert {seed: seeds.count(seed) for seed in seeds} == dict.fromkeys((0, 1), len(compared_small.field.episodes))


@pytest.mark.parametrize(
    "task",
    [
        Task("DRRL-Heads-v0"),
        Task("DRRL-Tolerance-v0", tolerance=(0.1, 0.3), ranks=(8, 64), context=512),
        Task("DRRL-Attention-v0", value_rank="none", statistics=("effective_rank",), text=Path("own.txt"), layer=2),
    ],
)
def test_arguments_survive_json(task: Task):
    """Tuples, paths and None come back as they were; defaults take no room."""
    again = from_json(task.env, to_json(task))
    assert again.arguments() | {"text": None} == task.arguments() | {"text": None}
    assert str(again.text) == str(task.text)
    assert to_json(Task(task.env)) == "{}"


def test_arguments_of_no_task_are_refused_in_one_line():
    """An argument that nothing has, and what is no JSON."""
    for wrong in ('{"colour": 1}', "[1]", "{"):
        with pytest.raises(ValueError, match="arguments=") as found:
            from_json("DRRL-Attention-v0", wrong)
        assert "\n" not in str(found.value)


def test_two_instances_have_two_digests():
    """And one instance always the same."""
    first, second = instances("test")[:2]
    assert text_digest(first) == text_digest(first) != text_digest(second)


def test_actions_of_several_components_are_read_back(tmp_path: Path, compared_heads: Comparison):
    """A rank for every head: `3|0|7|2` a step."""
    path = write_episodes(compared_heads, tmp_path / FILE)
    found = read_episodes(path)
    assert {len(step) for row in found for step in row.actions} == {len(compared_heads.field.sizes)}
    assert np.array_equal(np.array(found[0].actions), compared_heads.entries[0].rollouts[0].executed[0])


def test_a_name_with_commas_quotes_and_tags_is_kept(compared_small: Comparison, tmp_path: Path):
    """A second agent with the same numbers under such a name is another policy in the file."""
    first = compared_small.entries[0]
    other = Entrant('twin, <b>"quoted"</b>', AGENT, first.entrant.policies, first.entrant.seeds, first.entrant.task)
    twin = type(first)(other, first.rollouts, compared_small.judge.row(other.name, AGENT, first.rollouts))
    both = outcome(compared_small.task, compared_small.split, [*compared_small.entries, twin], compared_small.judge)
    rows = read_episodes(write_episodes(both, tmp_path / FILE))
    assert sum(row.policy == other.name for row in rows) == sum(row.policy == first.row.policy for row in rows)
