"""`comparison.html`: a comparison as one page that needs nothing else, to read, to print, to send."""

from __future__ import annotations

import shlex
import sys
from html import escape
from importlib import resources
from pathlib import Path
from string import Template

from drrl_agents.comparison import Comparison
from drrl_agents.page import sections
from drrl_agents.page.pictures import dot_plot, pareto_plot
from drrl_agents.page.verdict import verdict
from drrl_env.envs.tasks import TASKS

TEMPLATE = "template.html"


def write_page(found: Comparison, path: Path, command: str = "") -> Path:
    """Writes the page.

    Args:
        found: the comparison.
        path: the file.
        command: what was called, shown to the reader; see `invoked`.
    """
    path.write_text(page(found, command), encoding="utf-8")
    return path


def page(found: Comparison, command: str = "") -> str:
    """The page: HTML with its style and its pictures inside, without scripts; asks for nothing from anywhere."""
    template = Template((resources.files(__name__) / TEMPLATE).read_text("utf-8"))
    rows = found.rows
    return template.substitute(
        title=escape(f"Policies compared on {found.task.env}, {found.split} split"),
        summary=escape(TASKS[found.task.env].summary),
        verdict="".join(f"<p>{escape(sentence)}</p>" for sentence in verdict(found)),
        about=sections.about(found, command),
        scores=sections.row_table(rows, sections.SCORES, "What every policy reaches, the best return first", words=2),
        costs=sections.row_table(rows, sections.COSTS, "What it keeps and what it costs, over full attention"),
        dots=dot_plot(rows),
        legend=sections.legend(),
        contrasts=sections.contrast_table(found),
        front=sections.front_text(found),
        pareto=pareto_plot(rows, found.front),
        kinds=sections.kind_table(found),
        heatmaps=sections.heatmaps(found),
    )


def invoked() -> str:
    """The command line that called this, if it was `drrl`."""
    return "drrl " + shlex.join(sys.argv[1:]) if Path(sys.argv[0]).stem == "drrl" else ""


__all__ = ["invoked", "page", "verdict", "write_page"]
