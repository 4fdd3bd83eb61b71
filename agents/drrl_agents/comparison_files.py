"""What a comparison leaves behind: a table, a picture, episodes that can be replayed, a page, TensorBoard events."""

from __future__ import annotations

import csv
from pathlib import Path

from drrl_agents.board.comparison import write_board
from drrl_agents.comparison import Comparison
from drrl_agents.episodes import FILE, write_episodes
from drrl_agents.figures import comparison_figure
from drrl_agents.page import invoked, write_page


def write(found: Comparison, folder: Path) -> list[Path]:
    """Writes everything into `logdir/TASK/compare-SPLIT`, TensorBoard events into the logdir's runs, and says what."""
    folder.mkdir(parents=True, exist_ok=True)
    write_board(found, folder.parent.parent)
    return [
        write_summary(found, folder / "comparison.csv"),
        write_picture(found, folder / "comparison.png"),
        write_episodes(found, folder / FILE),
        write_page(found, folder / "comparison.html", invoked()),
    ]


def write_summary(found: Comparison, path: Path) -> Path:
    """A row per policy."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, found.rows[0].values())
        writer.writeheader()
        writer.writerows(each.values() for each in found.rows)
    return path


def write_picture(found: Comparison, path: Path) -> Path:
    """Scores with intervals, and fidelity against FLOPs."""
    title = f"{found.task.env}, {found.split} split"
    comparison_figure(found.rows, found.front, title).savefig(path, dpi=110)
    return path
