"""TensorBoard's event files of a run that may be killed, resumed, or meet a full disk."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from stable_baselines3.common.logger import HParam, TensorBoardOutputFormat
from torch.utils.tensorboard.writer import SummaryWriter

from drrl_agents.board.sessions import write_session


class EventFiles(TensorBoardOutputFormat):
    """SB3's TensorBoard output that takes back what a killed run wrote behind its checkpoint, and outlives a full disk.

    Args:
        folder: the run's folder.
        kept: last step whose events in earlier files count, -1 for none; None for a run that has no earlier files.
    """

    def __init__(self, folder: Path, kept: int | None = None) -> None:
        self._folder, self._told = folder, False
        if kept is not None:
            _wait_for_a_later_name(folder)
        # TensorBoard forgets what it has seen with a step of `purge_step` or above when it reads this file.
        self.writer = SummaryWriter(str(folder), purge_step=None if kept is None else kept + 1)
        self._is_closed = False

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """Writes one dump; what cannot be written is left out, with a message the first time."""
        own = {name: value for name, value in key_values.items() if isinstance(value, HParam)}
        try:
            for each in own.values():  # SB3 would name this run's columns of the HParams tab for all runs
                write_session(self.writer, each.hparam_dict)
            shown = {name: value for name, value in key_values.items() if name not in own}
            super().write(shown, {name: key_excluded[name] for name in shown}, step)
        except OSError as error:
            self._begin_anew(error)

    def _begin_anew(self, error: OSError) -> None:
        """The writer's thread has died of it, so another file has to be begun; until that works points are missing."""
        if not self._told:
            print(f"events cannot be written ({error}); training goes on without these points", file=sys.stderr)
        self._told = True
        try:
            _wait_for_a_later_name(self._folder)
            self.writer = SummaryWriter(str(self._folder))
        except OSError:
            return  # the next dump tries again

    def close(self) -> None:
        """Closes the file."""
        try:
            super().close()
        except OSError as error:
            print(f"events cannot be written ({error})", file=sys.stderr)


def _wait_for_a_later_name(folder: Path) -> None:
    """Returns when a new file's name sorts behind the others': they are read in the order of the second they name."""
    seconds = {path.name.split(".")[3] for path in folder.glob("events.out.tfevents.*")}
    while f"{int(time.time()):010d}" in seconds:
        time.sleep(0.02)
