"""`drrl instances`: the spans of text there are, frozen in splits, and how to play on one."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from drrl_env.data.instances import KINDS, SPLITS, Instance, instance_text, instances, manifest, sha256
from drrl_env.envs.pool import instance_pool
from drrl_env.envs.settings import Measurement, one_of
from drrl_env.envs.world import open_world

ALL_KINDS = (*KINDS, "mixture")
FEWEST = {"train": 1, "validation": 3, "test": 4}
"""Spans a text of one's own must have before a split gets one."""
WIDTH = 118
"""Columns where the output is no terminal."""


@dataclass(frozen=True)
class Instances:
    """List the spans of text that environments draw from.

    Example: drrl instances --split test --kind code

    Attributes:
        split: train, validation or test; all where left out.
        kind: prose, encyclopedia, code or mixture; all where left out.
        json: print one JSON object with `instances` and `counts` instead of a table.
        text: a text file of your own, cut into spans as an environment with `text=` cuts it.
        model: whose tokens are counted when your own text is cut.
        context: tokens of a span of your own text.
    """

    split: str | None = None
    kind: str | None = None
    json: bool = False
    text: Path | None = None
    model: str = "bundled"
    context: int = 2048


@dataclass(frozen=True)
class Listing:
    """An instance as it is listed.

    Attributes:
        uri: its name.
        split: train, validation or test.
        kind: prose, encyclopedia, code, mixture, or text for a user's own.
        characters: characters in it.
        documents: names of the documents (chapters, articles, source files) it has characters of.
        sha256: of its characters.
    """

    uri: str
    split: str
    kind: str
    characters: int
    documents: tuple[str, ...]
    sha256: str


def run_instances(settings: Instances) -> None:
    """Prints the list.

    Raises:
        ValueError: an unknown split or kind, or a text that cannot be read.
    """
    found = listings(settings)
    if settings.json:
        counts = [{"split": split, "kind": kind, "instances": n} for (split, kind), n in _counts(found).items()]
        print(json.dumps({"instances": [asdict(each) for each in found], "counts": counts}))
        return
    console = Console()
    if not console.is_terminal:  # rich would squeeze a file or a pipe into 80 columns
        console = Console(width=WIDTH)
    console.print(_table(found))
    console.print(_summary(found))
    console.print(_usage(found, settings), highlight=False, markup=False, soft_wrap=True)


def listings(settings: Instances) -> tuple[Listing, ...]:
    """What is asked for, in the order environments draw from."""
    if settings.split is not None:
        one_of("split", settings.split, SPLITS)
    if settings.kind is not None:
        one_of("kind", settings.kind, ALL_KINDS if settings.text is None else ("text",))
    rows = [
        _listing(split, each) for split in SPLITS if settings.split in (None, split) for each in _of(settings, split)
    ]
    found = tuple(row for row in rows if settings.kind in (None, row.kind))
    if not found:
        raise ValueError(f"text={settings.text}: too short for a span in split {settings.split!r}; use a longer text")
    return found


def _of(settings: Instances, split: str) -> Sequence[Instance]:
    """The instances of a split; of a user's own text it may have none."""
    if settings.text is None:
        return instances(split)
    world = open_world(Measurement(settings.model, context=settings.context))
    spans = len(instance_pool(world, None, None, settings.text))
    return instance_pool(world, split, None, settings.text) if spans >= FEWEST[split] else ()


def _listing(split: str, found: Instance) -> Listing:
    length = sum(piece.length for piece in found.pieces)
    text = instance_text(found, length)
    return Listing(found.uri, split, found.kind, length, tuple(dict.fromkeys(_documents(found))), sha256(text))


def _documents(found: Instance) -> Iterator[str]:
    """Names of the documents that pieces overlap; a user's own text is one document, named by its URI."""
    for piece in found.pieces:
        known = manifest()["streams"].get(piece.stream)
        if known is None:
            yield found.uri.split("/")[-2]
            continue
        for name, start, length in known["documents"]:
            if start < piece.start + piece.length and piece.start < start + length:
                yield name


def _counts(found: Sequence[Listing]) -> Counter[tuple[str, str]]:
    return Counter((row.split, row.kind) for row in found)


def _table(found: Sequence[Listing]) -> Table:
    table = Table(caption="sha256: first 12 digits, of the characters; --json has all of them")
    for name in ("instance", "split", "kind"):
        table.add_column(name, no_wrap=True)
    table.add_column("characters", justify="right")
    table.add_column("documents", overflow="ellipsis", no_wrap=True, max_width=28)
    table.add_column("sha256", no_wrap=True)
    for row in found:
        table.add_row(row.uri, row.split, row.kind, f"{row.characters:,}", _named(row.documents), row.sha256[:12])
    return table


def _named(documents: Sequence[str]) -> str:
    """The first document, and how many more there are."""
    return documents[0] + (f" and {len(documents) - 1} more" if len(documents) > 1 else "")


def _summary(found: Sequence[Listing]) -> Table:
    """How many there are, per split and kind."""
    counts = _counts(found)
    splits = [split for split in SPLITS if any(row.split == split for row in found)]
    table = Table("split", title="instances")
    kinds = list(dict.fromkeys(row.kind for row in found))
    for name in (*kinds, "all"):
        table.add_column(name, justify="right")
    for split in splits:
        numbers = [counts[split, kind] for kind in kinds]
        table.add_row(split, *map(str, numbers), str(sum(numbers)))
    return table


def _usage(found: Sequence[Listing], settings: Instances) -> str:
    """How to begin an episode on the last one listed, on a layer of one's choice."""
    row = found[-1]
    own = f'text="{settings.text}", ' if settings.text is not None else ""
    context = f"context={settings.context}, " if settings.context != Measurement().context else ""
    model = f'model="{settings.model}", ' if settings.model != Measurement().model else ""
    return (
        "To play on one, name it and (if you like) a layer:\n"
        f'  env = gymnasium.make("DRRL-Attention-v0", {model}{context}{own}split="{row.split}")\n'
        f'  env.reset(options={{"instance": "{row.uri}?layer=2"}})'
    )
