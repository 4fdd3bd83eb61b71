"""Playing recorded episodes again through the simulator, and saying where a record does not hold."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from tqdm import tqdm

from drrl_agents.entrants import ORACLE
from drrl_agents.episodes import Record, digests_of, from_json, text_digest
from drrl_agents.tasks import Task
from drrl_env.data.instances import Instance, instance
from drrl_env.envs.arena import Arena, open_arena
from drrl_env.envs.mechanism import Doubles, Integers
from drrl_env.envs.optima import Question, solve
from drrl_env.envs.play import Episode
from drrl_env.envs.simulator import Simulator
from drrl_policies.field import Field
from drrl_policies.rollout import Rollout, rollout
from drrl_policies.rules import Oracle

DIGESTS = ("engine", "model", "calibration", "cost", "text")
"""Columns that say what the numbers were measured with."""
NUMBERS = ("return_", "flops_ratio", "total_flops_ratio", "relative_error")
"""Columns that a replay gives again, one number an episode."""
Rows = Mapping[int, Record]
"""Records by the number of their row; 1 is the first below the header."""


@dataclass(frozen=True)
class Refutation:
    """What does not hold.

    Attributes:
        row: number of the row; 0 for what concerns no single one.
        what: one line that says it.
    """

    row: int
    what: str


def refute(row: int, record: Record, what: str, step: int | None = None) -> Refutation:
    """A refutation that names policy, seed, instance, layer and step."""
    at = "" if step is None else f", step {step}"
    place = f"{record.policy} seed {record.seed}, {record.instance}?layer={record.layer}{at}"
    return Refutation(row, f"row {row} ({place}): {what}")


@dataclass(frozen=True)
class Tolerance:
    """How close is equal: bit for bit, or relative to the larger of the number and 1.

    Attributes:
        relative: the largest difference; 0 for bit for bit.
    """

    relative: float

    def holds(self, told: float, found: float) -> bool:
        """Whether the number in a file is the one that was found; never so for NaN."""
        return told == found or abs(told - found) <= self.relative * max(1.0, abs(found))


@dataclass(frozen=True)
class Arenas:
    """Arenas by task, arguments and number of lanes, each opened once."""

    opened: dict[tuple[Task, int], Arena] = field(default_factory=dict)

    def open(self, task: Task, lanes: int) -> Arena:
        """The arena.

        Raises:
            ValueError: an argument is wrong; one line with its name, value and remedy.
        """
        if (task, lanes) not in self.opened:
            self.opened[task, lanes] = open_arena(task.env, lanes, task.arguments())
        return self.opened[task, lanes]


@dataclass(frozen=True)
class Batch:
    """The episodes of one policy and seed, played again.

    Attributes:
        rows: the records that could be played, instance by instance.
        field: what they were played on.
        played: what came of it.
    """

    rows: Rows
    field: Field
    played: Rollout

    @cached_property
    def values(self) -> dict[str, list[float]]:
        """`NUMBERS` of every record, as replayed."""
        ratios = self.played.columns
        found = (
            self.played.returns,
            ratios["flops_ratio"].mean(-1),
            self.played.total_ratio(self.field.mean_full),
            ratios["relative_error"].mean(-1),
        )
        return {name: each.tolist() for name, each in zip(NUMBERS, found, strict=True)}


def batches(rows: Rows) -> list[dict[int, Record]]:
    """Rows that are played together: of one task, policy and seed; instance by instance."""
    found: dict[tuple[object, ...], dict[int, Record]] = {}
    for row, r in sorted(rows.items(), key=lambda item: (item[1].episode, item[0])):
        key = r.task, r.arguments, r.policy, r.kind, r.seed, r.reads, r.deciding_flops
        found.setdefault(key, {})[row] = r
    return sorted(found.values(), key=lambda batch: min(batch))


def check_playable(rows: Rows, arenas: Arenas) -> tuple[dict[int, Episode], list[Refutation]]:
    """The episodes of the rows that can be played, by row, and why the others cannot."""
    tried = {row: _tried(row, record, arenas) for row, record in rows.items()}
    episodes = {row: found for row, found in tried.items() if isinstance(found, Episode)}
    return episodes, [found for found in tried.values() if isinstance(found, Refutation)]


def _tried(row: int, record: Record, arenas: Arenas) -> Episode | Refutation:
    try:
        return _episode(record, arenas.open(from_json(record.task, record.arguments), 1))
    except ValueError as error:
        return refute(row, record, f"cannot be played: {error}")


def _episode(record: Record, arena: Arena) -> Episode:
    """What was played, if it can be.

    Raises:
        ValueError: no such instance or layer, another parameter than an episode can have, or not its actions.
    """
    found = _instance(record.instance, arena)
    if record.layer not in arena.layers:
        raise ValueError(f"layer={record.layer}: episodes are on {', '.join(map(str, arena.layers))}")
    if arena.play.check(record.layer, record.parameter) != record.parameter:
        raise ValueError(f"parameter={record.parameter!r}: {record.task} draws nothing")
    steps, sizes = Field(arena, (), arena).steps, arena.play.sizes
    for name, told in (("actions", record.actions), ("rewards", record.rewards)):
        if len(told) != steps:
            raise ValueError(f"{name}: {len(told)} of {steps} steps")
    for step, choices in enumerate(record.actions):
        if len(choices) != len(sizes) or any(not 0 <= c < size for c, size in zip(choices, sizes, strict=True)):
            raise ValueError(f"step {step}: action {choices} is not one of {sizes} choices")
    unknown = set(record.reads) - {entry.name for entry in arena.play.entries}
    if unknown or not 0 <= record.deciding_flops < np.inf:
        raise ValueError(f"reads={record.reads}, deciding_flops={record.deciding_flops}: not of this task")
    return Episode(found, record.layer, record.parameter)


def _instance(uri: str, arena: Arena) -> Instance:
    return arena.by_uri[uri] if uri in arena.by_uri else instance(uri)


def replay(rows: Rows, episodes: Mapping[int, Episode], arenas: Arenas) -> Batch:
    """Plays the rows of a batch again, step by step, each in a lane of its own."""
    first = next(iter(rows.values()))
    task = from_json(first.task, first.arguments)
    lanes = tuple(episodes[row] for row in rows)
    found = Field(arenas.open(task, len(lanes)), lanes, arenas.open(task, 1), progress=False)
    plans = np.array([record.actions for record in rows.values()], np.int64)
    return Batch(rows, found, rollout(Recorded(first, found.sizes, plans), found))


class Recorded(Oracle):
    """A policy that does what was recorded, and is charged for what the recorded one reads and computes."""

    def __init__(self, record: Record, sizes: tuple[int, ...], plans: Integers):
        super().__init__(sizes, plans)
        self.name, self.reads, self.deciding_flops = record.policy, frozenset(record.reads), record.deciding_flops
        self.privileged = record.kind == ORACLE


def compare(batch: Batch, equal: Tolerance) -> Iterator[Refutation]:
    """The first thing in every record that does not hold."""
    digests, wanted, done = digests_of(batch.field.arena), batch.played.wanted, batch.played.executed
    for place, (row, record) in enumerate(batch.rows.items()):
        found = dict(zip(DIGESTS, (*digests, text_digest(batch.played.episodes[place].instance)), strict=True))
        numbers = {name: values[place] for name, values in batch.values.items()}
        changed = np.flatnonzero((wanted[place] != done[place]).any(-1))
        yield from (
            _other_digest(row, record, found)
            or _masked(row, record, changed, done[place])
            or _other_reward(row, record, batch.played.rewards[place], equal)
            or _other_number(row, record, numbers, equal)
        )


def _other_digest(row: int, record: Record, found: Mapping[str, str]) -> list[Refutation]:
    for name, value in found.items():
        if getattr(record, name) != value:
            told = f"{name} is {getattr(record, name)!r} in the file, {value!r} here: measured with something else"
            return [refute(row, record, told)]
    return []


def _masked(
    row: int,
    record: Record,
    steps: Integers,
    done: Integers,
) -> list[Refutation]:
    if not len(steps):
        return []
    step = int(steps[0])
    told = f"action {_shown(record.actions[step])} is masked; {_shown(done[step].tolist())} would be carried out"
    return [refute(row, record, told, step)]


def _shown(action: Sequence[int]) -> str:
    return "|".join(map(str, action))


def _other_reward(row: int, record: Record, found: Doubles, equal: Tolerance) -> list[Refutation]:
    for step, (told, value) in enumerate(zip(record.rewards, found.tolist(), strict=True)):
        if not equal.holds(told, value):
            return [refute(row, record, f"reward is {told!r} in the file, {value!r} replayed", step)]
    return []


def _other_number(row: int, record: Record, found: Mapping[str, float], equal: Tolerance) -> list[Refutation]:
    for name, value in found.items():
        told = getattr(record, name)
        if not equal.holds(told, value):
            return [refute(row, record, f"{name.rstrip('_')} is {told!r} in the file, {value!r} replayed")]
    return []


def check_references(
    rows: Rows, episodes: Mapping[int, Episode], arenas: Arenas, equal: Tolerance, progress: bool
) -> Iterator[Refutation]:
    """Random and oracle returns that another solution of the episode does not give."""
    groups: dict[tuple[str, str], dict[Episode, list[int]]] = {}
    for row, episode in episodes.items():
        task = rows[row].task, rows[row].reference_arguments
        groups.setdefault(task, {}).setdefault(episode, []).append(row)
    for (env, arguments), asked in groups.items():
        try:
            arena = arenas.open(from_json(env, arguments), 1)
        except ValueError as error:
            told = f"reference_arguments cannot be played: {error}"
            yield from (refute(row, rows[row], told) for mine in asked.values() for row in mine)
            continue
        _measure(arena, asked, progress)
        for episode, mine in tqdm(asked.items(), "references", unit="episode", leave=False, disable=not progress):
            best = solve(Question(arena, *episode))
            found = {"random_return": best.random, "oracle_return": best.value}
            for row in mine:
                yield from _other_number(row, rows[row], found, equal)


def _measure(arena: Arena, episodes: Iterable[Episode], progress: bool) -> None:
    """Every rank of the episodes, layers of an instance together."""
    if isinstance(arena.play, Simulator):
        found = dict.fromkeys(episode.instance for episode in episodes)
        arena.play.game.store.fill(found, sorted({episode.layer for episode in episodes}), progress)
