"""The ledger: which blocks there are, what of them is measured, and what of that is not on disk yet."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from multiprocessing import util
from weakref import WeakSet

from drrl_env.data.instances import Instance
from drrl_env.envs.arrays import ArraySpec, Table
from drrl_env.envs.traces import Traces


class Ledger:
    """Blocks of one world: an (instance, layer) each, numbered from 0 in the order they were asked for.

    Args:
        specs: per table the arrays it is made of; a table takes memory once it is asked for.
        traces: where what is measured persists; None: nowhere.

    Attributes:
        numbers: number of a block by (URI, layer).
        origin: (instance, layer) of each block.
    """

    def __init__(self, specs: Mapping[str, Sequence[ArraySpec]], traces: Traces | None) -> None:
        self.numbers: dict[tuple[str, int], int] = {}
        self.origin: list[tuple[Instance, int]] = []
        self._specs, self._traces = specs, traces
        self._tables: dict[str, Table] = {}
        self._loaded: set[tuple[str, int]] = set()
        self._unsaved: set[tuple[str, int]] = set()

    def table(self, name: str) -> Table:
        """A table, with every block in it; what is on disk of a block is there once it was loaded."""
        if name not in self._tables:
            self._tables[name] = Table(self._specs[name])
            self._tables[name].extend(len(self.origin))
        return self._tables[name]

    def add(self, instance: Instance, layer: int) -> int:
        """A new block's number."""
        number = self.numbers[instance.uri, layer] = len(self.origin)
        self.origin.append((instance, layer))
        for table in self._tables.values():
            table.extend(len(self.origin))
        return number

    def load(self, name: str, block: int) -> None:
        """Brings what is on disk of a block into a table, the first time it is asked to."""
        if (name, block) in self._loaded:
            return
        self._loaded.add((name, block))
        found = self._traces.load(*self.origin[block], name) if self._traces else None
        if found:
            self.table(name).put(block, found)

    def measured(self, name: str, block: int) -> None:
        """Notes that something of a block was measured that is not on disk."""
        if self._traces:
            self._unsaved.add((name, block))
            _save_at_exit(self)

    def save(self) -> None:
        """Writes all that is not on disk yet."""
        for name, block in sorted(self._unsaved):
            self._save(name, block)

    def save_block(self, block: int) -> None:
        """Writes what of a block is not on disk yet."""
        for name in self._tables:
            self._save(name, block)

    def save_instance(self, uri: str) -> None:
        """Writes what of an instance is not on disk yet."""
        for name, block in sorted(self._unsaved):
            if self.origin[block][0].uri == uri:
                self._save(name, block)

    def _save(self, name: str, block: int) -> None:
        if self._traces and (name, block) in self._unsaved:
            self._unsaved.discard((name, block))
            self._traces.save(*self.origin[block], name, self._tables[name].entries(block))


_OPEN: WeakSet[Ledger] = WeakSet()
_WATCHED: set[int] = set()


def _save_at_exit(ledger: Ledger) -> None:
    """Has a ledger saved when this process ends, a worker of multiprocessing too, where `atexit` is not run."""
    _OPEN.add(ledger)
    if os.getpid() not in _WATCHED:
        _WATCHED.add(os.getpid())
        util.Finalize(None, save_all, exitpriority=0)


def save_all() -> None:
    """Writes what any ledger of this process has that is not on disk yet."""
    for ledger in tuple(_OPEN):
        ledger.save()
