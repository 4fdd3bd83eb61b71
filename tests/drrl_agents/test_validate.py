"""`drrl validate` confirms what was played, task by task; says what it found; refuses what it cannot read."""

from __future__ import annotations

import numpy as np
import pytest

from drrl_agents.comparison_files import write_summary
from drrl_agents.episodes import COLUMNS, FILE, write_episodes
from drrl_agents.tasks import Task
from drrl_agents.validate import SUMMARY, Validate, Verdict, run_validate, validate
from drrl_env.data.instances import instances
from drrl_policies.rollout import Reference


def check(path, **given: object) -> Verdict:
    """Validates without bars."""
    return validate(Validate(path, progress=False, **given))  # type: ignore[arg-type]


def test_what_was_played_is_confirmed_bit_for_bit(episodes_file, compared_small):
    """Every row, every reference, and every number of the summary, intervals included."""
    found = check(episodes_file, exact=True)
    assert found.refutations == ()
    assert found.rows == sum(len(played.episodes) for entry in compared_small.entries for played in entry.rollouts)
    assert found.steps == found.rows * compared_small.field.steps
    assert (found.references, found.summaries) == (len(compared_small.field.episodes), len(compared_small.entries))


@pytest.mark.parametrize(
    "task",
    [
        Task("DRRL-Heads-v0", context=512, layer=1, guard="paper"),
        Task("DRRL-Basis-v0", context=512, layer=1),
        Task("DRRL-Budget-v0", context=512, layer=2, guard="paper", basis="calibrated"),
        Task("DRRL-Latency-v0", context=512, layer=2, value_rank="none"),
        Task("DRRL-Attention-Continuous-v0", context=512, layer=0),
        Task("DRRL-Attention-v0", context=512, layer=2, guard="paper", basis="calibrated"),
    ],
    ids=lambda task: task.env,
)
def test_every_kind_of_task_is_confirmed_bit_for_bit(cells, task, compare_few, tmp_path):
    """Several components, refreshed bases, budgets, milliseconds, numbers as actions, guards: and one changed
    reward is found in each."""
    found = compare_few(task, 1, bases=False)
    path = write_episodes(found, tmp_path / FILE)
    write_summary(found, tmp_path / SUMMARY)
    assert check(path, exact=True).refutations == ()
    cells.tamper(path, 1, rewards=lambda cell: " ".join([*cell.split()[:2], "7.5", *cell.split()[3:]]))
    (only,) = check(path, reference=False).refutations
    assert (only.row, "step 2" in only.what) == (1, True)


def test_live_episodes_are_confirmed_bit_for_bit(cells, compare_few, tmp_path):
    """DRRL-Layers-v0 has no tables; its search for an optimum is left out here, the numbers for it are made up."""
    task = Task("DRRL-Layers-v0", context=512, layer=1)
    found = compare_few(task, 1, Reference(np.array([-9.0]), np.array([9.0])), bases=False)
    path = write_episodes(found, tmp_path / FILE)
    write_summary(found, tmp_path / SUMMARY)
    assert check(path, exact=True, reference=False).refutations == ()
    cells.tamper(path, 1, actions=lambda cell: " ".join(["0" if cell[0] != "0" else "1", *cell.split()[1:]]))
    assert [each.row for each in check(path, reference=False).refutations if each.row] == [1]


def test_a_users_own_text_is_read_again(compare_few, tmp_path):
    """Confirmed while the text is as it was; refuted, naming the instance, when it is gone or another."""
    own = tmp_path / "own.txt"
    own.write_text("It was a bright cold day in April, and the clocks were striking thirteen. " * 200)
    found = compare_few(Task("DRRL-Attention-v0", context=512, layer=0, text=own), 1, bases=False)
    path = write_episodes(found, tmp_path / FILE)
    assert check(path, exact=True).refutations == ()
    own.write_text("All happy families are alike; each unhappy family is unhappy in its own way. " * 200)
    refuted = check(path)
    assert refuted.refuted == refuted.rows
    assert "drrl://text/" in refuted.refutations[0].what


def test_exit_codes_say_what_came_of_it(cells, episodes_file, drrl):
    """0 and a line where all holds; 1 and the places where something does not."""
    code, _ = drrl("validate", episodes_file, "--no-progress")
    assert code == 0
    cells.tamper(episodes_file, 3, return_=lambda cell: "7.0")
    code, told = drrl("validate", episodes_file, "--no-progress", "--no-reference")
    assert (code, told) == (1, "")


def test_what_is_printed_names_the_rows_and_the_count(cells, episodes_file, capsys):
    """At most twenty lines of refutations, and how many more there are."""
    rows = cells.rows(episodes_file)
    cells.write(episodes_file, [{**row, "return": "7.0"} for row in rows])
    with pytest.raises(SystemExit):
        run_validate(Validate(episodes_file, reference=False, progress=False))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 22
    assert lines[0].startswith("row 1 (an-agent seed 0")
    assert lines[-2] == f"and {len(rows) - 20} more"
    assert lines[-1].startswith(f"refuted: 0 of {len(rows)} rows hold")


def cut(data: bytes) -> bytes:
    """Two thirds of a file."""
    return data[: 2 * len(data) // 3]


@pytest.mark.usefixtures("_no_measuring")
@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (cut, "row"),
        (lambda data: data[:-1], "cut off"),
        (lambda data: data[: data.index(b"\n") + 1], "cut off"),
        (lambda data: b"", "has no column 'task'"),
        (lambda data: b"\xff\xfe" + data, "cannot be read"),
        (lambda data: data.replace(b",oracle_return\n", b",oracle_return,extra\n"), "column 'extra' too many"),
        (lambda data: data.replace(b"oracle_return\n", b"optimum\n"), "no column 'oracle_return'"),
        (lambda data: data.replace(b"task,arguments", b"arguments,task"), "another order"),
        (lambda data: data.replace(b"\n", b",1\n").replace(b"return,1\n", b"return\n", 1), "columns"),
    ],
)
def test_a_file_that_cannot_be_read_ends_with_one_line(episodes_file, drrl, damage, says):
    """Cut off, another format, a column too many: exit code 2 before anything is played."""
    episodes_file.write_bytes(damage(episodes_file.read_bytes()))
    code, told = drrl("validate", episodes_file)
    assert (code, told.count("\n"), says in told) == (2, 1, True), told


def test_a_missing_file_a_wrong_cell_and_a_wrong_tolerance_end_with_one_line(cells, episodes_file, tmp_path, drrl):
    """Each by name."""
    for given in ([tmp_path / "none.csv"], [episodes_file, "--tolerance", "-1"], [episodes_file, "--threads", "0"]):
        code, told = drrl("validate", *given)
        assert (code, told.count("\n")) == (2, 1)
    cells.tamper(episodes_file, 2, seed=lambda cell: "first")
    code, told = drrl("validate", episodes_file)
    assert (code, "row 2, column 'seed'" in told) == (2, True)


def test_a_damaged_summary_ends_with_one_line(episodes_file, drrl):
    """It is not passed over in silence."""
    episodes_file.with_name(SUMMARY).write_text("policy,kind\nan-agent\n")
    code, told = drrl("validate", episodes_file)
    assert (code, told.count("\n"), SUMMARY in told) == (2, 1, True)


def test_without_a_summary_the_episodes_stand_for_themselves(episodes_file):
    """And the last line says that there was none."""
    episodes_file.with_name(SUMMARY).unlink()
    found = check(episodes_file, reference=False)
    assert (found.refutations, found.summaries, found.references) == ((), None, 0)


def test_columns_are_all_there(cells, episodes_file):
    """What the issue asks of a row, by name."""
    asked = {"task", "arguments", "policy", "seed", "instance", "layer", "parameter", "actions", "rewards", "return"}
    assert asked < set(COLUMNS)
    assert {row["instance"] for row in cells.rows(episodes_file)} == {each.uri for each in instances("test")[:4]}
