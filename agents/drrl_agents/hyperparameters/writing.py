"""Putting tuned values into a file of hyperparameters, everything else in it left as it stands."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from drrl_agents.hyperparameters import ZOO


def write_entry(path: Path, task: str, values: Mapping[str, Any], source: str) -> None:
    """Makes an entry the file's `default` with these values in place of its own.

    What the entry says to the Zoo alone (`env_wrapper`) stays.

    Args:
        path: a file of `drrl_agents/hyperparameters`, with an anchor `&default`.
        task: environment id.
        values: by name, as plain as in the file.
        source: where they come from, one line.

    Raises:
        ValueError: the file has no `&default` anchor to build on.
    """
    check_entry_file(path)
    text = path.read_text(encoding="utf-8")
    lines = [f"# {source}", f"{task}:", "  <<: *default"]
    lines += [f"  {name}: {_written(value)}" for name, value in {**_kept(text, task), **values}.items()]
    block = "\n".join(lines) + "\n"
    entry = re.compile(rf"(?:^# [^\n]*\n)?^{re.escape(task)}:\n(?:  [^\n]*\n)*", re.MULTILINE)
    found = entry.search(text)
    changed = text[: found.start()] + block + text[found.end() :] if found else f"{text.rstrip()}\n\n{block}"
    yaml.safe_load(changed)
    partial = path.with_suffix(".partial")
    partial.write_text(changed, encoding="utf-8")
    os.replace(partial, path)


def check_entry_file(path: Path, name: str | None = None) -> None:
    """Refuses a file that `write_entry` cannot write an algorithm's values into.

    Args:
        path: the file.
        name: what the file of the algorithm is called, without `.yml`; None if it does not matter.

    Raises:
        ValueError: it is not there, is another algorithm's, or has no `&default` anchor; one line.
    """
    if not path.is_file():
        raise ValueError(f"write={str(path)!r}: no such file; copy one of drrl_agents/hyperparameters there")
    if name is not None and path.stem != name:
        raise ValueError(f"write={str(path)!r}: is not the algorithm's; give a file that is called {name}.yml")
    if "&default" not in path.read_text(encoding="utf-8"):
        raise ValueError(f"write={str(path)!r}: has no `default: &default` entry; give a file of hyperparameters")


def _kept(text: str, task: str) -> dict[str, Any]:
    """What an entry says to the Zoo other than the file's `default`."""
    entries: dict[str, dict[str, Any]] = yaml.safe_load(text)
    own, default = entries.get(task, {}), entries["default"]
    return {name: own[name] for name in ZOO if name in own and own[name] != default.get(name)}


def _written(value: Any) -> str:
    """A value on one line, as YAML reads it back: `1e-05` would be text, `1.0e-05` is a number."""
    text: str = yaml.safe_dump(value, default_flow_style=True, width=float("inf"))
    return text.removesuffix("...\n").rstrip()
