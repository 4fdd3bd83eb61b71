"""Writes what the benchmarks measured into the README: `python benchmarks/readme.py`, after `make measure`.

Reads benchmarks/*.json (what `drrl bench NAME --json` printed), benchmarks/comparison.csv and the model card.
"""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
BENCHES = {
    "update": "The incremental update (`drrl bench update`)",
    "env": "The environment (`drrl bench env`)",
    "policy": "Three seeds on the test split (`drrl bench policy`)",
}
MARKED = re.compile(r"(<!-- measured: begin -->\n).*?(<!-- measured: end -->)", re.DOTALL)


LONG = 20
"""Rows from which on those without a target are folded away."""


def bench_tables(report: dict[str, Any]) -> str:
    """Rows of one benchmark as Markdown; of a long one only those with a target are open."""
    rows = report["rows"]
    if len(rows) < LONG:
        return _table(rows)
    judged = _table([r for r in rows if r["target"]])
    rest = _table([r for r in rows if not r["target"]])
    return f"{judged}\n\n<details><summary>Everything else it measured</summary>\n\n{rest}\n\n</details>"


def _table(rows: list[dict[str, Any]]) -> str:
    lines = [
        f"| {r['name']} | {_number(r['value'])} | {r['unit']} | {r['target'] or ''} | {_verdict(r['meets'])} |"
        for r in rows
    ]
    return "\n".join(["| | value | unit | target | met |", "|---|---|---|---|---|", *lines])


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _verdict(meets: bool | None) -> str:
    return "" if meets is None else ("yes" if meets else "**no**")


def machine_line(machine: dict[str, Any]) -> str:
    """The machine in words."""
    return "Machine: " + ", ".join(f"{name} {value}" for name, value in machine.items()) + "."


def comparison_table(path: Path) -> str:
    """The comparison of the demo as Markdown, best return first."""
    rows = sorted(csv.DictReader(path.open()), key=lambda row: -float(row["mean_return"]))
    titles = "| policy | score | 95 % interval | cosine | relative error | FLOPs | all FLOPs | mean rank |"
    lines = [
        f"| {r['policy']} | {float(r['normalised_score']):.3f} | {float(r['low']):.3f} to {float(r['high']):.3f} "
        f"| {float(r['cosine']):.3f} | {float(r['relative_error']):.3f} | {float(r['flops_ratio']):.3f} "
        f"| {float(r['total_flops_ratio']):.3f} | {float(r['mean_rank']):.1f} |"
        for r in rows
    ]
    return "\n".join([titles, "|---|---|---|---|---|---|---|---|", *lines])


def suite_table(report: dict[str, Any]) -> str:
    """Per task the best rule that observes nothing while it runs, and what the oracle does."""
    tasks: dict[str, list[dict[str, Any]]] = {}
    for row in report["rows"]:
        tasks.setdefault(row["task"], []).append(row)
    titles = "| task | random | full attention | best static rule | its score | oracle | its FLOPs over full |"
    lines = [_task_line(task, rows) for task, rows in tasks.items() if rows[0]["mean_return"] is not None]
    return "\n".join([titles, "|---|---|---|---|---|---|---|", *lines])


def _task_line(task: str, rows: list[dict[str, Any]]) -> str:
    named = {row["baseline"]: row for row in rows}
    best = named["oracle"]
    static = max((r for r in rows if r["baseline"] not in ("random", "oracle")), key=lambda r: float(r["mean_return"]))
    return (
        f"| [{task}](docs/{task}.md) | {named['random']['mean_return']:.3f} "
        f"| {named['full attention']['mean_return']:.3f} | {static['mean_return']:.3f}, {static['baseline']} "
        f"| {static['normalised_score']:.3f} | {best['mean_return']:.3f}, {best['note']} | {best['flops_ratio']:.3f} |"
    )


def measured() -> str:
    """The whole section."""
    folder = ROOT / "benchmarks"
    suite = json.loads((folder / "tasks.json").read_text())
    parts = ["### The suite: mean returns on the test split (`drrl bench tasks`)", suite_table(suite)]
    parts += [machine_line(suite["machine"]), "### The demo: one seed on the test split (`make demo`)"]
    parts += [comparison_table(folder / "comparison.csv")]
    for name, title in BENCHES.items():
        report = json.loads((folder / f"{name}.json").read_text())
        parts += [f"### {title}", bench_tables(report), machine_line(report["machine"])]
    return "\n\n".join(parts)


def main() -> None:
    """Rewrites the section between the marks."""
    readme = ROOT / "README.md"
    text = MARKED.sub(lambda match: f"{match[1]}{measured()}\n{match[2]}", readme.read_text())
    readme.write_text(text)


if __name__ == "__main__":
    main()
