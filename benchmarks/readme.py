"""Writes what the benchmarks measured into the README: `python benchmarks/readme.py`, after `make measure`.

Reads benchmarks/*.json (what `drrl bench NAME --json` printed, and what policies.py wrote) and
benchmarks/comparison.csv. A file that is not there leaves its section out.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
BENCHES = {
    "decide": "A decision of the Transformer policy (`drrl bench decide`)",
    "update": "The incremental update (`drrl bench update`)",
    "env": "The environment (`drrl bench env`)",
    "policy": "DRRL-Attention-v0 without cloning, three seeds on the test split (`drrl bench policy`)",
}
TARGETS = {
    "DRRL-Tolerance-v0": 0.98,
    "DRRL-Attention-v0": 0.99,
    "DRRL-Heads-v0": 0.90,
    "DRRL-Budget-v0": 0.90,
    "DRRL-Basis-v0": 0.95,
}
"""Normalised score that an agent was to reach on the test split, set before any was trained."""
ABLATION = {
    "untrained": "neither",
    "maskable-ppo-transformer-cloned": "cloning only",
    "maskable-ppo-transformer": "reinforcement learning only",
    "maskable-ppo-transformer-cloned-rl": "cloning, then reinforcement learning",
}
MARKED = re.compile(r"(<!-- measured: begin -->\n).*?(<!-- measured: end -->)", re.DOTALL)
Row = dict[str, Any]


LONG = 20
"""Rows from which on those without a target are folded away."""


def bench_tables(report: dict[str, Any]) -> str:
    """Rows of one benchmark as Markdown; of a long one only those with a target are open."""
    rows = report["rows"]
    if len(rows) < LONG:
        return _bench_table(rows)
    judged = _bench_table([r for r in rows if r["target"]])
    return f"{judged}\n\n{_folded('Everything else it measured', _bench_table([r for r in rows if not r['target']]))}"


def _bench_table(rows: Sequence[Row]) -> str:
    cells = [(r["name"], _number(r["value"]), r["unit"], r["target"] or "", _verdict(r["meets"])) for r in rows]
    return _table(("", "value", "unit", "target", "met"), cells)


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join("| " + " | ".join(line) + " |" if line[0] != "---" else "|---" * len(line) + "|" for line in lines)


def _folded(title: str, text: str) -> str:
    return f"<details><summary>{title}</summary>\n\n{text}\n\n</details>"


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
    titles = ("policy", "score", "95 % interval", "cosine", "relative error", "FLOPs", "all FLOPs", "mean rank")
    short = ("cosine", "relative_error", "flops_ratio", "total_flops_ratio")
    cells = [
        (r["policy"], f"{float(r['normalised_score']):.3f}", _ends(r), *(f"{float(r[name]):.3f}" for name in short),
         f"{float(r['mean_rank']):.1f}")
        for r in rows
    ]  # fmt: skip
    return _table(titles, cells)


def suite_table(report: dict[str, Any]) -> str:
    """Per task the best rule policy, and what the oracle does."""
    titles = ("task", "random", "full attention", "best rule", "its score", "oracle", "its FLOPs over full")
    tasks = _by_task(report["rows"])
    cells = [_suite_cells(task, rows) for task, rows in tasks.items() if rows[0]["mean_return"] is not None]
    return _table(titles, cells)


def _suite_cells(task: str, rows: Sequence[Row]) -> tuple[str, ...]:
    named = {row["baseline"]: row for row in rows}
    best = named["oracle"]
    rule = max((r for r in rows if r["baseline"] not in ("random", "oracle")), key=lambda r: float(r["mean_return"]))
    return (
        f"[{task}](docs/{task}.md)",
        f"{named['random']['mean_return']:.3f}",
        f"{named.get('full', named.get('full attention', best))['mean_return']:.3f}",
        f"{rule['mean_return']:.3f}, {rule['baseline']}",
        f"{rule['normalised_score']:.3f}",
        f"{best['mean_return']:.3f}, {best['note']}",
        f"{best['flops_ratio']:.3f}",
    )


def _by_task(rows: Sequence[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row["task"], []).append(row)
    return found


def agents_section(report: dict[str, Any]) -> str:
    """Per task the agent beside its target and the best rule; then every policy of every task, folded away.

    The first agent of a task is judged, so that none is picked by what it reached here.
    """
    titles = ("task", "agent", "seeds", "score", "95 % interval", "target", "reached", "best rule", "its score",
              "agent less it", "all FLOPs", "relative error")  # fmt: skip
    tasks, contrasts = _by_task(report["rows"]), report["contrasts"]
    judged = _table(titles, [_agent_cells(task, rows, contrasts) for task, rows in tasks.items()])
    every = [f"**{task}**\n\n{_policies_table(task, rows, contrasts)}" for task, rows in tasks.items()]
    return judged + "\n\n" + _folded("Every policy of every task", "\n\n".join(every))


def _agent_cells(task: str, rows: Sequence[Row], contrasts: Sequence[Row]) -> tuple[str, ...]:
    agent, rule = _first_agent(rows), _best_rule(rows)
    score, target = float(agent["normalised_score"]), TARGETS.get(task)
    return (
        f"[{task}](docs/{task}.md)",
        str(agent["policy"]),
        str(agent["seeds"]),
        f"{score:.3f}",
        _ends(agent),
        "" if target is None else f"{target:.2f}",
        _verdict(None if target is None else score >= target),
        str(rule["policy"]),
        f"{rule['normalised_score']:.3f}",
        _less(task, agent, rule, contrasts),
        f"{agent['total_flops_ratio']:.3f}",
        f"{agent['relative_error']:.3f}",
    )


def _first_agent(rows: Sequence[Row]) -> Row:
    return next(row for row in rows if row["kind"] == "agent")


def _best_rule(rows: Sequence[Row]) -> Row:
    rules = [row for row in rows if row["kind"] == "rule" and row["policy"] != "random"]
    return max(rules, key=lambda row: float(row["mean_return"]))


def _less(task: str, agent: Row, other: Row, contrasts: Sequence[Row]) -> str:
    """The agent's score less another's, paired by instance, and whether the interval leaves zero out."""
    pair = {"task": task, "first": agent["policy"], "second": other["policy"]}
    found = next((each["score"] for each in contrasts if pair.items() <= each.items()), None)
    if found is None or None in found:
        return ""
    value, low, high = map(float, found)
    said = "above" if low > 0 else "below" if high < 0 else "level"
    return f"{value:+.3f} [{low:+.3f}, {high:+.3f}], {said}"


def _policies_table(task: str, rows: Sequence[Row], contrasts: Sequence[Row]) -> str:
    """Every policy of a task, best return first."""
    agent = _first_agent(rows)
    titles = ("policy", "kind", "seeds", "score", "95 % interval", "IQM", "return", f"{agent['policy']} less it",
              "all FLOPs", "relative error")  # fmt: skip
    cells = [
        (str(r["policy"]), str(r["kind"]), str(r["seeds"]), f"{r['normalised_score']:.3f}", _ends(r),
         f"{r['interquartile_mean']:.3f}", f"{r['mean_return']:.3f}", _less(task, agent, r, contrasts),
         f"{r['total_flops_ratio']:.3f}", f"{r['relative_error']:.3f}")
        for r in sorted(rows, key=lambda row: -float(row["mean_return"]))
    ]  # fmt: skip
    return _table(titles, cells)


def ablation_table(report: dict[str, Any]) -> str:
    """What cloning and reinforcement learning each add."""
    rows = {row["policy"]: row for row in report["rows"]}
    titles = ("trained by", "policy", "seeds", "score", "95 % interval", "IQM", "all FLOPs", "relative error")
    cells = [
        (said, name, str(rows[name]["seeds"]), f"{rows[name]['normalised_score']:.3f}", _ends(rows[name]),
         f"{rows[name]['interquartile_mean']:.3f}", f"{rows[name]['total_flops_ratio']:.3f}",
         f"{rows[name]['relative_error']:.3f}")
        for name, said in ABLATION.items()
        if name in rows
    ]  # fmt: skip
    return _table(titles, cells)


def _ends(row: Row) -> str:
    """The interval of a score; of a single instance there is none."""
    if row["low"] is None:
        return ""
    return f"{float(row['low']):.3f} to {float(row['high']):.3f}"


def measured() -> str:
    """The whole section."""
    return "\n\n".join(_parts(ROOT / "benchmarks"))


def _parts(folder: Path) -> Iterator[str]:
    if (found := _read(folder, "policies")) is not None:
        yield "### Trained agents on the test split (`python benchmarks/policies.py compare`)"
        yield from (agents_section(found), machine_line(found["machine"]))
    if (found := _read(folder, "ablation")) is not None:
        yield "### DRRL-Tolerance-v0: what cloning and reinforcement learning each add (by the same command)"
        yield from (ablation_table(found), machine_line(found["machine"]))
    if (found := _read(folder, "tasks")) is not None:
        yield "### The suite: mean returns on the test split (`drrl bench tasks`)"
        yield from (suite_table(found), machine_line(found["machine"]))
    yield from ("### The demo: one seed on the test split (`make demo`)", comparison_table(folder / "comparison.csv"))
    for name, title in BENCHES.items():
        if (found := _read(folder, name)) is not None:
            yield from (f"### {title}", bench_tables(found), machine_line(found["machine"]))


def _read(folder: Path, name: str) -> dict[str, Any] | None:
    """A report, None where it has not been made."""
    path = folder / f"{name}.json"
    found: dict[str, Any] | None = json.loads(path.read_text()) if path.is_file() else None
    return found


def main() -> None:
    """Rewrites the section between the marks."""
    readme = ROOT / "README.md"
    text = MARKED.sub(lambda match: f"{match[1]}{measured()}\n{match[2]}", readme.read_text())
    readme.write_text(text)


if __name__ == "__main__":
    main()
