"""Baselines' scores on a page, from benchmarks/tasks.json: what `drrl bench tasks --json` printed, never typed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from drrl_env.envs.pages.markdown import table

SCORES = Path(__file__).resolve().parents[3] / "benchmarks" / "tasks.json"
NUMBERS = ("mean_return", "normalised_score", "flops_ratio", "relative_error")


def measured() -> dict[str, Any]:
    """What `drrl bench tasks --json` printed; no rows where it never ran."""
    found: dict[str, Any] = json.loads(SCORES.read_text()) if SCORES.is_file() else {"machine": {}, "rows": []}
    return found


def scores_table(task: str) -> str:
    """Return, score, FLOPs and error of every baseline on the test split."""
    report = measured()
    rows = [row for row in report["rows"] if row["task"] == task]
    if not rows:
        return "Not measured yet: run `make measure`."
    shown = [(row["baseline"], *(_number(row[name]) for name in NUMBERS), row["note"]) for row in rows]
    titles = ("baseline", "return", "normalised score", "FLOPs over full", "relative error", "")
    machine = ", ".join(f"{name} {value}" for name, value in report["machine"].items())
    return (
        f"Means over {rows[0]['episodes']} episodes of the test split; every rule was chosen on the train split. "
        f"Written by `drrl bench tasks --json`.\n\n{table(titles, shown)}\n\n{_terms_table(rows)}Machine: {machine}."
    )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _terms_table(rows: list[dict[str, Any]]) -> str:
    """Mean totals of the terms, where the reward is their vector."""
    if any(row["mean_return"] is not None for row in rows):
        return ""
    names = list(rows[0]["terms"])
    shown = [(row["baseline"], *(_number(row["terms"][name]) for name in names)) for row in rows if row["terms"]]
    return table(("mean total of", *names), shown) + "\n\n"
