"""A comparison as tables in the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from drrl_agents.scoring import Row
from drrl_agents.statistics import Interval

if TYPE_CHECKING:
    from drrl_agents.comparison import Comparison

COLUMNS = {
    "policy": "policy",
    "seeds": "seeds",
    "normalised_score": "score",
    "low": "95 % interval",
    "interquartile_mean": "IQM",
    "optimality_gap": "gap",
    "mean_return": "return",
    "regret": "regret",
    "cosine": "cosine",
    "relative_error": "error",
    "flops_ratio": "FLOPs",
    "total_flops_ratio": "all FLOPs",
    "cache_ratio": "KV cache",
    "latency_ratio": "ms",
    "mean_rank": "rank",
}
"""Column of a row to its head in the printed table; one that no row has is left out."""
CAPTION = (
    "score: normalised, random 0 and oracle 1 · IQM: interquartile mean of the scores of seeds and instances · gap: "
    "mean amount by which those miss 1 · regret: return lost per 1000 steps · error: relative, of the output · "
    "FLOPs, KV cache, ms: over full attention's · all FLOPs: with observing and deciding"
)
WIDTH = 168


def print_table(rows: Sequence[Row], title: str, stderr: bool = False) -> None:
    """The rows as a table, best return first; on the error stream where standard output is for a program."""
    table = Table(title=title, caption=CAPTION)
    shown = [name for name in COLUMNS if name in rows[0].values()]
    for name in shown:
        table.add_column(COLUMNS[name], justify="left" if name == "policy" else "right", no_wrap=True)
    for each in sorted(rows, key=lambda row: -row.mean_return):
        table.add_row(*(_cell(each, name) for name in shown))
    _console(stderr).print(table)


def _console(stderr: bool = False) -> Console:
    return Console(width=max(WIDTH, Console().width), stderr=stderr)


def _cell(found: Row, name: str) -> str:
    value = getattr(found, name)
    if name in ("policy", "seeds"):
        return str(value)
    if name == "low":
        return f"{found.low:.3f} to {found.high:.3f}"
    if name == "regret":
        return f"{1000 * value:.1f}"
    return f"{value:.1f}" if name == "mean_rank" else f"{value:.3f}"


def print_contrasts(found: Comparison) -> None:
    """How agents differ from the others, paired by instance."""
    if not found.contrasts:
        return
    table = Table(title="paired by instance, 95 % intervals", caption="P(better): of a run of the one on an instance")
    for name in ("policy", "less", "return", "score", "P(better)"):
        table.add_column(name, justify="left" if name in ("policy", "less") else "right", no_wrap=True)
    for each in found.contrasts:
        cells = (each.mean_return, each.score, each.probability_of_improvement)
        table.add_row(each.first, each.second, *(_interval(cell) for cell in cells))
    _console().print(table)


def _interval(found: Interval) -> str:
    return f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]"
