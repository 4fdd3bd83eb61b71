"""TensorBoard runs that can be written again: their event files say which part of the board they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from torch.utils.tensorboard.writer import SummaryWriter

COMPARISON, CURVES = "comparison", "curves"
"""Parts of the board: final scores on the compared split, and everything over training steps."""
BASELINES, MEAN = "baselines", "mean"
"""Folder of flat runs in a task's folder, and of the mean over the seeds in a group's."""


@contextmanager
def run_writer(folder: Path, part: str) -> Iterator[SummaryWriter]:
    """Writes one event file of a part of the board into a run; it may stand beside a training run's own."""
    writer = SummaryWriter(str(folder), filename_suffix=f".{part}")
    try:
        yield writer
    finally:
        writer.close()


def clear(folder: Path, *parts: str) -> None:
    """Removes the event files of some parts in a folder and below it, and folders that are empty then."""
    for part in parts:
        for path in list(folder.rglob(f"events.out.tfevents.*.{part}")):
            path.unlink(missing_ok=True)
            if path.parent != folder:
                with suppress(OSError):  # something else is in it, or another command has removed it
                    path.parent.rmdir()


def flat(writer: SummaryWriter, values: Mapping[str, float], steps: int) -> None:
    """A horizontal line per tag, from step 0 to the agents' last."""
    for tag, value in values.items():
        writer.add_scalar(tag, value, 0)
        writer.add_scalar(tag, value, steps)
