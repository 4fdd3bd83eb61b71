"""Putting tuned values into a file of hyperparameters, everything else in it left as it stands."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]


def write_entry(path: Path, task: str, values: Mapping[str, Any], source: str) -> None:
    """Makes an entry the file's `default` with these values in place of its own.

    Args:
        path: a file of `drrl_agents/hyperparameters`, with an anchor `&default`.
        task: environment id.
        values: by name, as plain as in the file.
        source: where they come from, one line.

    Raises:
        ValueError: the file has no `&default` anchor to build on.
    """
    text = path.read_text(encoding="utf-8")
    if "&default" not in text:
        raise ValueError(f"write={str(path)!r}: has no `default: &default` entry; give a file of hyperparameters")
    lines = [f"# {source}", f"{task}:", "  <<: *default"]
    lines += [f"  {name}: {_written(value)}" for name, value in values.items()]
    block = "\n".join(lines) + "\n"
    entry = re.compile(rf"(?:^# [^\n]*\n)?^{re.escape(task)}:\n(?:  [^\n]*\n)*", re.MULTILINE)
    found = entry.search(text)
    changed = text[: found.start()] + block + text[found.end() :] if found else f"{text.rstrip()}\n\n{block}"
    yaml.safe_load(changed)
    partial = path.with_suffix(".partial")
    partial.write_text(changed, encoding="utf-8")
    os.replace(partial, path)


def _written(value: Any) -> str:
    """A value on one line, as YAML reads it back: `1e-05` would be text, `1.0e-05` is a number."""
    text: str = yaml.safe_dump(value, default_flow_style=True, width=float("inf"))
    return text.removesuffix("...\n").rstrip()
