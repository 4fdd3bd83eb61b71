"""`episodes.csv`: a row per policy, seed and episode of a comparison, with all that playing it again takes."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drrl_agents.tasks import Task
from drrl_env import __version__
from drrl_env.data.instances import Instance, instance_text, sha256
from drrl_env.envs.arena import Arena
from drrl_env.envs.costs import resolve_cost
from drrl_env.lowrank.version import ENGINE_VERSION
from drrl_policies.rollout import Rollout

if TYPE_CHECKING:
    from drrl_agents.comparison import Comparison, Entry

FILE = "episodes.csv"
DIGITS = 16
"""Hexadecimal digits of the digests of timings and texts."""
Actions = tuple[tuple[int, ...], ...]
Numbers = tuple[float, ...]


@dataclass(frozen=True)
class Record:
    """What a policy did in one episode; a row of the file, its columns named as here (`return_` is `return`).

    Attributes:
        task: environment id.
        arguments: environment arguments that differ from the defaults, a JSON object.
        reference_arguments: the same of the task that random and the oracle play; an offline basis is an argument of
            its policy alone.
        split: the split that the instances are of.
        version: of drrl-env, for the reader.
        engine: version of the engine's numbers.
        model: digest of the model's weights.
        calibration: digest of the bases fitted beforehand.
        cost: digest of the timing table that the reward charges; empty where it charges FLOPs.
        text: digest of the instance's text.
        policy: name of the policy.
        kind: `agent`, `rule`, `offline basis` or `oracle`.
        seed: of the run; 0 where there is none.
        reads: entries of the observation that the policy looks at.
        deciding_flops: FLOPs of one decision beyond reading.
        instance: URI.
        layer: layer the episode begins at.
        parameter: tolerance or budget that was drawn; 0 where nothing is.
        actions: choices carried out, (steps, components); `3 3 7`, components joined by `|`.
        rewards: of every step, (steps,).
        return_: their sum.
        flops_ratio: attention's FLOPs over full attention's, mean over steps.
        total_flops_ratio: the same with observing and deciding counted.
        relative_error: of the outputs, mean over steps.
        random_return: expected return of random in this episode.
        oracle_return: return of the oracle.
    """

    task: str
    arguments: str
    reference_arguments: str
    split: str
    version: str
    engine: str
    model: str
    calibration: str
    cost: str
    text: str
    policy: str
    kind: str
    seed: int
    reads: tuple[str, ...]
    deciding_flops: float
    instance: str
    layer: int
    parameter: float
    actions: Actions
    rewards: Numbers
    return_: float
    flops_ratio: float
    total_flops_ratio: float
    relative_error: float
    random_return: float
    oracle_return: float

    @property
    def episode(self) -> tuple[str, int, float]:
        """What was played: instance, layer, parameter."""
        return self.instance, self.layer, self.parameter


def write_episodes(found: Comparison, path: Path) -> Path:
    """Writes a row per policy, seed and episode; floats in full precision."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for entry in found.entries:
            writer.writerows(to_cells(record) for record in records(entry, found))
    return path


def read_episodes(path: Path) -> list[Record]:
    """The rows of a file.

    Raises:
        ValueError: it cannot be read, was cut off, or is no such file; one line that names the row and the column.
    """
    try:
        text = path.read_text(encoding="utf-8")
        rows = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"file={str(path)!r}: cannot be read ({error}); give the {FILE} of `drrl compare`") from error
    _check_header(path, rows[0] if rows else [])
    if len(rows) == 1 or not text.endswith("\n"):
        raise ValueError(f"file={str(path)!r}: cut off after row {len(rows) - 1}; copy it again")
    return [_from_cells(path, number, cells) for number, cells in enumerate(rows[1:], start=1)]


def _check_header(path: Path, names: Sequence[str]) -> None:
    """Raises a one-line ValueError unless the columns are those of `Record`, in that order."""
    missing, extra = [n for n in COLUMNS if n not in names], [n for n in names if n not in COLUMNS]
    told = [f"has no column {name!r}" for name in missing] + [f"has a column {name!r} too many" for name in extra]
    if tuple(names) != COLUMNS:
        what = [*told, "has its columns in another order, or one twice"][0]
        raise ValueError(f"file={str(path)!r}: {what}; give the {FILE} of `drrl compare` as it was written")


def _from_cells(path: Path, row: int, cells: Sequence[str]) -> Record:
    if len(cells) != len(COLUMNS):
        raise ValueError(f"file={str(path)!r}: row {row} has {len(cells)} of {len(COLUMNS)} columns; copy it again")
    place = f"file={str(path)!r}: row {row}"
    return Record(**{name: _parsed(place, name, cell) for name, cell in zip(_CODECS, cells, strict=True)})


def _parsed(place: str, name: str, cell: str) -> Any:
    try:
        return _CODECS[name][1](cell)
    except ValueError as error:
        raise ValueError(f"{place}, column {name.rstrip('_')!r}: {error}; copy it again") from error


def to_cells(record: Record) -> list[str]:
    """A row as text."""
    return [write(getattr(record, name)) for name, (write, _) in _CODECS.items()]


def records(entry: Entry, found: Comparison) -> Iterator[Record]:
    """What every seed of a policy did, episode by episode."""
    entrant, digests = entry.entrant, digests_of(_own_arena(entry, found))
    for seed, policy, played in zip(entrant.seeds, entrant.policies, entry.rollouts, strict=True):
        account = tuple(sorted(policy.reads)), float(policy.deciding_flops)
        for number, numbers in enumerate(_numbers(played, found)):
            episode = played.episodes[number]
            yield Record(
                found.task.env,
                to_json(entrant.task),
                to_json(found.task),
                found.split,
                __version__,
                *digests,
                text_digest(episode.instance),
                entrant.name,
                entrant.kind,
                seed,
                *account,
                episode.instance.uri,
                episode.layer,
                float(episode.parameter),
                tuple(tuple(row) for row in played.executed[number].tolist()),
                numbers[0],
                numbers[1],
                numbers[2],
                numbers[3],
                numbers[4],
                float(found.judge.reference.random[number]),
                float(found.judge.reference.oracle[number]),
            )


def _numbers(played: Rollout, found: Comparison) -> Iterator[tuple[Numbers, float, float, float, float]]:
    """Rewards, return and means of every episode."""
    columns = (
        played.returns,
        played.columns["flops_ratio"].mean(-1),
        played.total_ratio(found.field.mean_full),
        played.columns["relative_error"].mean(-1),
    )
    for rewards, *values in zip(played.rewards.tolist(), *(each.tolist() for each in columns), strict=True):
        yield (tuple(rewards), *values)


def _own_arena(entry: Entry, found: Comparison) -> Arena:
    """The arena a policy was played in: another than the comparison's where it has a basis of its own."""
    own = entry.entrant.task
    if own == found.task:
        return found.field.arena
    return own.field(found.split, 1, repeats=1, progress=False, measure=False).arena


def digests_of(arena: Arena) -> tuple[str, str, str, str]:
    """Version of the engine, digests of model, calibration and timings: all that numbers depend on but the text."""
    world, cost = arena.world, resolve_cost(arena.rules.cost)
    timings = str(getattr(cost, "digest", ""))[:DIGITS]
    return str(ENGINE_VERSION), world.model.digest, world.calibration.digest(), timings


@lru_cache(maxsize=4096)
def text_digest(found: Instance) -> str:
    """Of an instance's characters."""
    return sha256(instance_text(found, sum(piece.length for piece in found.pieces)))[:DIGITS]


def to_json(task: Task) -> str:
    """The arguments of a task that are not the defaults, as one JSON object."""
    plain = Task(task.env)
    given = {each.name: getattr(task, each.name) for each in fields(Task) if each.name != "env"}
    return json.dumps({k: v for k, v in given.items() if v != getattr(plain, k)}, default=str, sort_keys=True)


def from_json(env: str, text: str) -> Task:
    """The task again.

    Raises:
        ValueError: it is no JSON object of a task's arguments; one line.
    """
    try:
        given: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in json.loads(text).items()
        }
        found = Task(env, **given)
    except (ValueError, AttributeError, TypeError) as error:
        raise ValueError(f"arguments={text!r}: not the arguments of a task ({error})") from error
    return found


def _actions(text: str) -> Actions:
    return tuple(tuple(int(choice) for choice in step.split("|")) for step in text.split())


def _write_actions(found: Actions) -> str:
    return " ".join("|".join(map(str, step)) for step in found)


_TEXT = str, str
_CODECS: dict[str, tuple[Callable[[Any], str], Callable[[str], Any]]] = {
    **{each.name: _TEXT for each in fields(Record)},
    **dict.fromkeys(("seed", "layer"), (str, int)),
    **dict.fromkeys(
        (
            "deciding_flops",
            "parameter",
            "return_",
            "flops_ratio",
            "total_flops_ratio",
            "relative_error",
            "random_return",
            "oracle_return",
        ),
        (repr, float),
    ),
    "reads": (" ".join, lambda text: tuple(text.split())),
    "actions": (_write_actions, _actions),
    "rewards": (lambda found: " ".join(map(repr, found)), lambda text: tuple(map(float, text.split()))),
}
"""Column, as `Record` names it, to what writes and what reads a cell."""
COLUMNS = tuple(name.rstrip("_") for name in _CODECS)
"""The columns of the file, in order."""
