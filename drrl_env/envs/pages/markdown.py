"""Markdown from docstrings and rows."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import cache
from inspect import cleandoc
from itertools import groupby
from textwrap import fill


def table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows]
    return "\n".join([f"| {' | '.join(titles)} |", "|---" * len(titles) + "|", *lines])


def filled(text: str) -> str:
    """Paragraphs broken at 120 columns; code, tables, lists and headings as they are."""
    parts = re.split(r"(```.*?```)", text, flags=re.DOTALL)
    return "".join(part if part.startswith("```") else _filled(part) for part in parts)


def _filled(text: str) -> str:
    groups = groupby(text.split("\n"), lambda line: line[:1] not in ("", "|", "-", "#"))
    return "\n".join(
        fill(" ".join(lines), 120, break_long_words=False, break_on_hyphens=False) if running else "\n".join(lines)
        for running, lines in groups
    )


def sentence(text: str) -> str:
    """With a capital letter and a full stop."""
    return text[:1].upper() + text[1:].rstrip(".") + "."


def prose(documented: object) -> str:
    """A docstring up to its first section."""
    return re.split(r"\n+\w+:\n", cleandoc(documented.__doc__ or ""))[0].strip()


@cache
def attributes(documented: type) -> dict[str, str]:
    """Name to meaning of a docstring's `Attributes`."""
    section = cleandoc(documented.__doc__ or "").partition("Attributes:\n")[2].split("\n\n")[0]
    found = re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", section, re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in found}
