"""Rows of a benchmark, and the machine they were measured on, as a table or as one JSON object."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Row:
    """One measured number.

    Attributes:
        name: what was measured.
        value: the number.
        unit: its unit; `ratio` for one time over another.
        target: the bar as text, for example `>= 40`; None where there is none.
        meets: whether the bar is met; None where there is none.
    """

    name: str
    value: float
    unit: str
    target: str | None = None
    meets: bool | None = None


def machine() -> dict[str, str | int]:
    """What the numbers depend on, without the name of the host or any path on it."""
    return {
        "processor": processor_name(),
        "cores": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "platform": f"{platform.system()} {platform.machine()}",
    }


def processor_name() -> str:
    """The processor's own name; Linux keeps it where `platform` does not look."""
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text().splitlines() if listing.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"


def render(rows: Sequence[Row]) -> None:
    """Prints the machine and a table of the rows."""
    facts = machine()
    table = Table(caption=", ".join(f"{name} {value}" for name, value in facts.items()))
    table.add_column("measurement")
    for column in ("value", "unit", "target", "meets"):
        table.add_column(column, justify="right" if column == "value" else "left")
    for row in rows:
        table.add_row(row.name, f"{row.value:.4g}", row.unit, row.target or "", _yes_or_no(row.meets))
    Console().print(table)


def _yes_or_no(meets: bool | None) -> str:
    return "" if meets is None else "yes" if meets else "no"


def to_json(rows: Sequence[Row]) -> None:
    """Prints exactly one JSON object, `machine` and `rows`."""
    print(json.dumps({"machine": machine(), "rows": [asdict(row) for row in rows]}, allow_nan=False))
