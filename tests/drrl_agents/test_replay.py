"""Whatever was changed in a file of episodes, or in the table beside it, is refuted, and its place named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from drrl_agents.entrants import AGENT, BASIS
from drrl_agents.episodes import FILE, write_episodes
from drrl_agents.tasks import Task
from drrl_agents.validate import SUMMARY, Validate, Verdict, validate

Change = Callable[[str], str]


def check(path: Path, **given: object) -> Verdict:
    """Validates without bars."""
    return validate(Validate(path, progress=False, **given))  # type: ignore[arg-type]


def plus(amount: float) -> Change:
    """Adds to a number."""
    return lambda cell: repr(float(cell) + amount)


def step_plus(step: int, amount: float) -> Change:
    """Adds to a step's reward."""

    def change(cell: str) -> str:
        numbers = [float(part) for part in cell.split()]
        numbers[step] += amount
        return " ".join(map(repr, numbers))

    return change


def test_a_changed_return_is_refuted_with_both_values(cells, episodes_file):
    """Row, policy, seed, instance, layer, the value in the file and the replayed one."""
    before = cells.tamper(episodes_file, 3, return_=plus(0.01))
    (only,) = check(episodes_file).refutations
    for part in ("row 3", "an-agent seed 0", before["instance"], "layer=2", "return is", before["return"]):
        assert part in only.what


def test_a_changed_reward_is_refuted_though_the_return_fits(cells, episodes_file):
    """The step is named."""
    before = cells.tamper(episodes_file, 2, rewards=step_plus(3, 0.25), return_=plus(0.25))
    (only,) = check(episodes_file).refutations
    assert (only.row, "step 3" in only.what, before["rewards"].split()[3] in only.what) == (2, True, True)


def test_a_changed_action_is_refuted(cells, episodes_file):
    """Another rank is masked, earns another reward, or where both are beyond the tolerance takes other FLOPs."""

    def change(cell: str) -> str:
        steps = cell.split()
        return " ".join([*steps[:2], "1" if steps[2] != "1" else "2", *steps[3:]])

    cells.tamper(episodes_file, 1, actions=change)
    rows = [each for each in check(episodes_file, reference=False).refutations if each.row]
    assert [each.row for each in rows] == [1]


def test_a_masked_action_is_refuted_as_such(cells, episodes_file, compared_small):
    """One that the guard forbids: another would have been carried out."""
    field = compared_small.field
    field.arena.play.begin(range(len(field.episodes)), field.episodes)
    masks = field.arena.play.masks()
    lane = int(np.flatnonzero(~masks.all(-1))[0])
    forbidden = int(np.flatnonzero(~masks[lane])[0])
    cells.tamper(episodes_file, lane + 1, actions=lambda cell: " ".join([str(forbidden), *cell.split()[1:]]))
    rows = [each for each in check(episodes_file, reference=False).refutations if each.row]
    assert [each.row for each in rows] == [lane + 1]
    assert f"step 0): action {forbidden} is masked" in rows[0].what


@pytest.mark.parametrize("amount", [0.2, 1e-5])
def test_a_changed_parameter_is_refuted(cells, episodes_file, amount):
    """Even one so near that nothing else changes: the other policies were played on another episode."""
    cells.tamper(episodes_file, 4, parameter=plus(amount))
    found = check(episodes_file, reference=False)
    assert any(each.row == 4 for each in found.refutations)
    assert any("which the other policies have" in each.what for each in found.refutations)


@pytest.mark.parametrize("column", ["model", "calibration", "text", "cost"])
def test_another_digest_is_refuted(cells, episodes_file, column):
    """By the column's name."""
    cells.tamper(episodes_file, 5, **{column: lambda cell: "0" * 16})
    (only,) = check(episodes_file, reference=False).refutations
    assert (only.row, f"{column} is '0000000000000000'" in only.what) == (5, True)


def test_numbers_of_another_engine_are_refuted(cells, episodes_file):
    """Version 99 has not been written yet."""
    cells.tamper(episodes_file, 5, engine=lambda cell: "99")
    (only,) = check(episodes_file, reference=False).refutations
    assert "engine is '99'" in only.what


@pytest.mark.parametrize(
    "column", ["return_", "rewards", "parameter", "flops_ratio", "relative_error", "random_return", "oracle_return"]
)
def test_nan_is_refuted(cells, episodes_file, column):
    """NaN is equal to nothing, and never passes for a number that was played."""
    cells.tamper(episodes_file, 6, **{column: lambda cell: " ".join(["nan"] * len(cell.split()))})
    assert 6 in {each.row for each in check(episodes_file).refutations}


@pytest.mark.parametrize("column", ["flops_ratio", "total_flops_ratio", "relative_error"])
def test_a_flattered_number_is_refuted(cells, episodes_file, column):
    """A thousandth less than it was."""
    cells.tamper(episodes_file, 7, **{column: plus(-1e-3)})
    (only,) = check(episodes_file).refutations
    assert (only.row, column in only.what) == (7, True)


@pytest.mark.parametrize("column", ["random_return", "oracle_return"])
def test_a_changed_reference_is_refuted_unless_it_is_left_out(cells, episodes_file, column):
    """A lower oracle flatters every score: it is worked out again."""
    cells.tamper(episodes_file, 7, **{column: plus(-1e-3)})
    assert any(each.row == 7 and column in each.what for each in check(episodes_file).refutations)


@pytest.mark.parametrize(
    "changes",
    [
        {"instance": lambda cell: "drrl://bundled/test/9999"},
        {"layer": lambda cell: "17"},
        {"actions": lambda cell: cell.replace(cell.split()[0], "8", 1)},
        {"actions": lambda cell: cell.rpartition(" ")[0]},
        {"rewards": lambda cell: cell + " 0.0"},
        {"task": lambda cell: "DRRL-Basis-v0"},
        {"task": lambda cell: "DRRL-Nothing-v0"},
        {"arguments": lambda cell: cell.replace("512", "511")},
        {"arguments": lambda cell: "not JSON"},
        {"reads": lambda cell: "the_future"},
        {"deciding_flops": lambda cell: "-1.0"},
    ],
)
def test_what_cannot_be_played_is_refuted_and_the_rest_confirmed(cells, episodes_file, changes):
    """No instance, layer, choice, length, task or argument of that kind: one row, one line."""
    cells.tamper(episodes_file, 1, **changes)
    rows = [each for each in check(episodes_file, reference=False).refutations if each.row]
    assert {each.row for each in rows} == {1}
    assert "\n" not in rows[0].what


def test_a_policy_that_claims_to_read_less_is_refuted(cells, compare_few, tmp_path):
    """What it reads is in all FLOPs counted, where no guard has read it already."""
    path = write_episodes(compare_few(Task(context=512, layer=2), 1, bases=False), tmp_path / FILE)
    row = next(n for n, each in enumerate(cells.rows(path), start=1) if each["reads"])
    cells.tamper(path, row, reads=lambda cell: "")
    assert any(each.row == row and "total_flops_ratio" in each.what for each in check(path).refutations)


def test_a_row_that_is_gone_or_there_twice_is_noticed(cells, episodes_file):
    """All policies were played on the same episodes: one less, one more."""
    rows = cells.rows(episodes_file)
    cells.write(episodes_file, [*rows[:2], *rows[3:]])
    missing = check(episodes_file, reference=False).refutations
    assert any("an-agent seed 0: no row of" in each.what for each in missing)
    cells.write(episodes_file, [*rows[:3], rows[2], *rows[3:]])
    assert any(each.row == 4 for each in check(episodes_file, reference=False).refutations)


def test_a_policy_that_is_gone_is_missed_by_the_summary(cells, episodes_file):
    """A file cut off between two policies reads well; the table beside it knows better."""
    rows = cells.rows(episodes_file)
    cells.write(episodes_file, [row for row in rows if row["kind"] != "oracle"])
    assert any("'oracle' has no episodes" in each.what for each in check(episodes_file, reference=False).refutations)


NUMBERS = (
    "mean_return",
    "normalised_score",
    "low",
    "interquartile_mean",
    "total_flops_ratio",
    "cache_ratio",
    "mean_rank",
)


@pytest.mark.parametrize("column", NUMBERS)
def test_a_changed_summary_is_refuted(cells, episodes_file, column):
    """Returns, scores, intervals, costs: each follows from the episodes."""
    beside = episodes_file.with_name(SUMMARY)
    cells.tamper(beside, 1, **{column: plus(0.01)})
    (only,) = check(episodes_file, reference=False).refutations
    assert (only.row, f"{column} of 'an-agent'" in only.what) == (0, True)


def test_a_summary_of_other_policies_or_kinds_is_refuted(cells, episodes_file):
    """A rule cannot be sold as an agent, nor a policy renamed in one of the files only."""
    beside = episodes_file.with_name(SUMMARY)
    cells.tamper(beside, 2, kind=lambda cell: AGENT)
    assert ["kind of" in each.what for each in check(episodes_file, reference=False).refutations] == [True]
    cells.tamper(beside, 2, policy=lambda cell: "renamed")
    told = [each.what for each in check(episodes_file, reference=False).refutations]
    assert any("'renamed' has no episodes" in each for each in told)
    assert any("is not in it" in each for each in told)


def test_the_order_of_rows_does_not_matter(cells, episodes_file):
    """Sorted by whatever, everything holds, intervals included."""
    rows = cells.rows(episodes_file)
    cells.write(episodes_file, [rows[k] for k in np.random.default_rng(0).permutation(len(rows))])
    assert check(episodes_file, reference=False).refutations == ()


def test_tolerance_forgives_last_digits_and_exact_does_not(cells, episodes_file):
    """1e-9 is another processor's arithmetic; 1e-4 is not."""
    cells.tamper(episodes_file, 2, rewards=step_plus(0, 1e-9))
    assert check(episodes_file, reference=False).refutations == ()
    assert check(episodes_file, reference=False, exact=True).refuted == 1
    cells.tamper(episodes_file, 2, rewards=step_plus(0, 1e-4))
    assert check(episodes_file, reference=False).refuted == 1
    assert check(episodes_file, reference=False, tolerance=1e-2).refutations == ()


def test_an_offline_basis_is_played_in_its_own_basis(cells, episodes_file):
    """Told that it was another one, its numbers do not come out."""
    row = [each["kind"] for each in cells.rows(episodes_file)].index(BASIS) + 9
    cells.tamper(episodes_file, row, arguments=lambda cell: cell.replace("keys-pca", "separate-svd"))
    assert row in {each.row for each in check(episodes_file, reference=False).refutations}
