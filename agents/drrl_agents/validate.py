"""`drrl validate FILE`: plays a comparison's episodes again and confirms or refutes what the file says of them."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import tyro
from tqdm import tqdm

from drrl_agents.agreement import check_agreement, check_selection
from drrl_agents.episodes import read_episodes
from drrl_agents.replay import (
    Arenas,
    Batch,
    Refutation,
    Rows,
    Tolerance,
    batches,
    check_playable,
    check_references,
    compare,
    replay,
)
from drrl_agents.scoring import Judge, judge
from drrl_env.envs.settings import positive
from drrl_env.envs.traces import SWITCH
from drrl_policies.rollout import Reference

SUMMARY = "comparison.csv"
"""A row per policy, looked for beside the file."""
SUMMED = 1e-12
"""Closeness of summaries under `exact`: sums in another order differ in the last digits."""
SHOWN = 20
"""Refutations that are printed."""


@dataclass(frozen=True)
class Validate:
    """Play the episodes of a comparison again, step by step, and confirm or refute every return.

    Checked of every row: model, calibration, text and engine; that every action is allowed and none is changed; the
    reward of every step; return, FLOPs, error; random and oracle; that all policies were played on the same episodes of
    one task, and that these are the first of the split, none left out; and, where comparison.csv lies beside the file,
    every number in it. What is not checked: whether a policy would choose these actions again, what it says that it
    reads and computes, and, without comparison.csv, whether all policies and seeds are there.

    Numbers may differ by a relative 1e-6 (of the larger of the number and 1), since another processor's arithmetic may
    differ in the last digits; on the machine that wrote the file `--exact` holds. Rows count from 1 below the header,
    steps from 0. Exit code: 0 all confirmed, 1 something refuted, 2 the file cannot be read.

    Example: drrl validate runs/DRRL-Tolerance-v0/compare-test/episodes.csv

    Attributes:
        file: the episodes.csv that `drrl compare` wrote.
        tolerance: largest relative difference.
        exact: bit for bit instead.
        reference: work random and the oracle out again, the longest part.
        fresh: measure anew what earlier commands left in the cache.
        threads: torch threads.
        progress: show progress bars.
    """

    file: tyro.conf.Positional[Path]
    tolerance: float = 1e-6
    exact: bool = False
    reference: bool = True
    fresh: bool = False
    threads: int = 1
    progress: bool = True


@dataclass(frozen=True)
class Verdict:
    """What came of it.

    Attributes:
        rows: how many the file has.
        steps: how many were played again.
        references: how many episodes' random and oracle returns were worked out again.
        summaries: how many rows of comparison.csv were compared; None where it is not there.
        refutations: what does not hold, by row.
    """

    rows: int
    steps: int
    references: int
    summaries: int | None
    refutations: tuple[Refutation, ...] = field(repr=False)

    @property
    def refuted(self) -> int:
        """How many rows are refuted."""
        return len({each.row for each in self.refutations if each.row})


def validate(settings: Validate) -> Verdict:
    """Plays the episodes again.

    Raises:
        ValueError: an argument is wrong, or the file cannot be read; one line with the remedy.
    """
    positive("threads", settings.threads)
    if not 0 <= settings.tolerance < 1:
        raise ValueError(f"tolerance={settings.tolerance}: must be a relative difference; use for example 1e-6")
    rows = dict(enumerate(read_episodes(settings.file), start=1))
    summary = _read_summary(settings.file.with_name(SUMMARY))
    torch.set_num_threads(settings.threads)
    arenas, equal = Arenas(), Tolerance(0.0 if settings.exact else settings.tolerance)
    episodes, refuted = check_playable(rows, arenas)
    playable = {row: rows[row] for row in episodes}
    if settings.reference:
        refuted += check_references(rows, episodes, arenas, equal, settings.progress)
    bar = tqdm(batches(playable), "replaying", unit="policy", leave=False, disable=not settings.progress)
    played = [replay(batch, episodes, arenas) for batch in bar]
    refuted += [each for batch in played for each in compare(batch, equal)]
    refuted += [*check_agreement(rows), *check_selection(rows)]
    if summary is not None:
        refuted += check_summary(summary, rows, played, Tolerance(max(equal.relative, SUMMED)))
    return Verdict(
        len(rows),
        sum(batch.played.rewards.size for batch in played),
        len(set(episodes.values())) if settings.reference else 0,
        None if summary is None else len(summary),
        tuple(sorted(set(refuted), key=lambda each: (each.row == 0, each.row))),
    )


def _read_summary(path: Path) -> list[dict[str, str]] | None:
    """The rows of comparison.csv; None where it is not there."""
    if not path.is_file():
        return None
    try:
        with path.open(newline="", encoding="utf-8") as file:
            found = list(csv.DictReader(file, strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(
            f"{SUMMARY}={str(path)!r}: cannot be read ({error}); move it away, or copy it again"
        ) from error
    if not found or any("policy" not in row or None in row or None in row.values() for row in found):
        raise ValueError(f"{SUMMARY}={str(path)!r}: no table with a row per policy; move it away, or copy it again")
    return found


def check_summary(
    summary: Sequence[Mapping[str, str]], rows: Rows, played: Sequence[Batch], equal: Tolerance
) -> Iterator[Refutation]:
    """What comparison.csv says that does not follow from the episodes as replayed.

    A policy whose rows could not all be played, which is refuted already, is passed over.
    """
    policies = {record.policy: 0 for record in rows.values()}
    for record in rows.values():
        policies[record.policy] += 1
    told = [row["policy"] for row in summary]
    for name in policies.keys() - set(told):
        yield Refutation(0, f"{SUMMARY}: policy {name!r}, which has episodes, is not in it")
    for row in summary:
        name = row["policy"]
        mine = [batch for batch in played if next(iter(batch.rows.values())).policy == name]
        if name not in policies or told.count(name) > 1:
            what = "has no episodes" if name not in policies else "is in it more than once"
            yield Refutation(0, f"{SUMMARY}: policy {name!r} {what}")
        elif sum(len(batch.rows) for batch in mine) == policies[name]:
            yield from _check_row(row, mine, equal)


def _check_row(told: Mapping[str, str], mine: Sequence[Batch], equal: Tolerance) -> Iterator[Refutation]:
    """One policy's row."""
    name, first = told["policy"], next(iter(mine[0].rows.values()))
    ordered = sorted(mine, key=lambda batch: next(iter(batch.rows.values())).seed)
    if len({batch.played.episodes for batch in mine}) > 1:
        return  # its seeds were played on different episodes, which is refuted already
    try:
        found = _judge(mine[0]).row(name, first.kind, [batch.played for batch in ordered]).values()
    except ValueError as error:
        yield Refutation(0, f"{SUMMARY}: nothing follows for policy {name!r}: {error}")
        return
    for column in sorted({*told, *found}):
        value = found.get(column)
        if column not in told or value is None or not _same(told[column], value, equal):
            shown = told.get(column, "missing")
            yield Refutation(0, f"{SUMMARY}: {column} of {name!r} is {shown} in the file, {value} by the episodes")


def _judge(batch: Batch) -> Judge:
    records = batch.rows.values()
    random, oracle = ([getattr(r, name) for r in records] for name in ("random_return", "oracle_return"))
    return judge(batch.field, Reference(np.array(random), np.array(oracle)))


def _same(told: str, found: float | str | int, equal: Tolerance) -> bool:
    if isinstance(found, str):
        return told == found
    try:
        number = float(told)
    except ValueError:
        return False
    return equal.holds(number, found) or (math.isnan(number) and math.isnan(found))


def run_validate(settings: Validate) -> None:
    """Prints what was confirmed and what was refuted; exit code 1 where something was."""
    if settings.fresh:
        os.environ[SWITCH] = "off"
    found = validate(settings)
    for each in found.refutations[:SHOWN]:
        print(each.what)
    if len(found.refutations) > SHOWN:
        print(f"and {len(found.refutations) - SHOWN} more")
    print(summed_up(found))
    if found.refutations:
        raise SystemExit(1)


def summed_up(found: Verdict) -> str:
    """One line."""
    beside = f"no {SUMMARY} beside it" if found.summaries is None else f"{found.summaries} rows of {SUMMARY} compared"
    worked = f"random and oracle of {found.references} episodes" if found.references else "no references"
    return (
        f"{'refuted' if found.refutations else 'confirmed'}: {found.rows - found.refuted} of {found.rows} rows hold, "
        f"{found.steps} steps replayed, {worked} worked out again, {beside}"
    )
