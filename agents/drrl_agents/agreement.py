"""Whether the rows of a file of episodes agree with each other, and are what a comparison of its task plays."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from drrl_agents.entrants import BASIS
from drrl_agents.episodes import Record, from_json
from drrl_agents.replay import Refutation, Rows, refute

Key = tuple[str, int, float]
"""What was played: instance, layer, parameter."""


def check_agreement(rows: Rows) -> Iterator[Refutation]:
    """Everything in which rows contradict each other, or the task that they name."""
    for column in ("task", "reference_arguments", "split"):
        yield from _unlike(rows, column, lambda record: None)
    for column in ("random_return", "oracle_return"):
        yield from _unlike(rows, column, lambda record: record.episode)
    yield from _other_arguments(rows)
    yield from _check_same_episodes(rows)


def _unlike(rows: Rows, column: str, group: Callable[[Record], Any]) -> Iterator[Refutation]:
    """Rows whose value is another than most rows of their group have."""
    groups: dict[Any, dict[int, str]] = {}
    for row, record in rows.items():
        groups.setdefault(group(record), {})[row] = repr(getattr(record, column))
    for found in groups.values():
        usual, _ = Counter(found.values()).most_common(1)[0]
        for row, told in found.items():
            if told != usual:
                yield refute(row, rows[row], f"{column} is {told}, and {usual} in most rows")


def _other_arguments(rows: Rows) -> Iterator[Refutation]:
    """Rows whose policy played with other arguments than random and the oracle; an offline basis has its own basis."""
    for row, record in rows.items():
        own, reference = (_arguments(text) for text in (record.arguments, record.reference_arguments))
        allowed = {"basis"} if record.kind == BASIS else set()
        other = {name for name in own.keys() | reference.keys() if own.get(name) != reference.get(name)} - allowed
        if other:
            yield refute(row, record, f"arguments: {', '.join(sorted(other))} other than random and the oracle had")


def _arguments(text: str) -> dict[str, Any]:
    """An object of arguments; what is none is refuted where it is to be played."""
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _check_same_episodes(rows: Rows) -> Iterator[Refutation]:
    """What one policy and seed was played on and most others were not, or twice, and what it was not played on."""
    usual = usual_episodes(rows)
    for key, group in _by_policy(rows).items():
        yield from _odd(key, group, usual)


def _by_policy(rows: Rows) -> dict[tuple[str, int], dict[int, Record]]:
    """The rows of each policy and seed."""
    groups: dict[tuple[str, int], dict[int, Record]] = {}
    for row, record in rows.items():
        groups.setdefault((record.policy, record.seed), {})[row] = record
    return groups


def usual_episodes(rows: Rows) -> frozenset[Key]:
    """The episodes that most policies and seeds were played on."""
    played = (frozenset(record.episode for record in group.values()) for group in _by_policy(rows).values())
    found, _ = Counter(played).most_common(1)[0]
    return found


def _odd(key: tuple[str, int], group: Rows, usual: frozenset[Key]) -> Iterator[Refutation]:
    seen = set[Key]()
    for row, record in group.items():
        if record.episode not in usual or record.episode in seen:
            told = f"the other policies have no such episode (parameter {record.parameter!r}), or it is there twice"
            yield refute(row, record, told)
        seen.add(record.episode)
    for uri, layer, parameter in sorted(usual - seen):
        told = f"no row of {uri}?layer={layer}, parameter {parameter!r}, which the other policies have"
        yield Refutation(0, f"policy {key[0]} seed {key[1]}: {told}")


def check_selection(rows: Rows) -> Iterator[Refutation]:
    """Episodes that a comparison of so many instances of the split would have played, and others.

    A comparison takes the first instances of its split, every layer of them and what is drawn from a fixed seed: none
    can be left out because it went badly, not even for all policies at once.
    """
    first, played = next(iter(rows.values())), usual_episodes(rows)
    count = len({uri for uri, _, _ in played})
    repeats = max(Counter((uri, layer) for uri, layer, _ in played).values())
    try:
        task = from_json(first.task, first.reference_arguments)
        field = task.field(first.split, count, repeats, progress=False, measure=False)
    except ValueError as error:
        yield Refutation(0, f"the episodes of split {first.split!r} cannot be drawn again: {error}")
        return
    wanted = {(each.instance.uri, each.layer, float(each.parameter)) for each in field.episodes}
    for what, found in (("is missing in the file", wanted - played), ("is none of them", played - wanted)):
        for uri, layer, parameter in sorted(found):
            told = f"{uri}?layer={layer}, parameter {parameter!r}, {what}"
            yield Refutation(0, f"the first {count} instances of split {first.split!r} were to be played: {told}")
