"""Traces: what was measured, kept on disk and shared by processes.

A file holds what of one (instance, layer) is measured, whole or in part, under the hash of everything the numbers
depend on, so nothing is ever invalid: another model, setting or engine has other names. A file is replaced, never
changed: a reader sees the old one or the new one. Writers take turns, and each adds to what the others wrote.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load, save

from drrl_env.data.instances import Instance, manifest
from drrl_env.envs.arrays import Array, ArraySpec, Entries, fits, merged
from drrl_env.envs.settings import one_of
from drrl_env.envs.world import World, cache_folder
from drrl_env.lowrank.version import ENGINE_VERSION

try:
    import fcntl
except ImportError:  # no such locks on Windows: two writers may then lose, never spoil, what one of them measured
    fcntl = None  # type: ignore[assignment]

FOLDER, SWITCH = "traces", "DRRL_TRACES"
"""Below the cache folder; the environment variable that turns traces off."""
FORMAT = 1
"""Of a file; one of another format is not looked for."""
STALE = 3600.0
"""Seconds after which a partial file is what a crash left behind."""
PATIENCE = 10.0
"""Seconds to wait for other writers; a writer that was stopped holds nobody up for longer."""

Specs = Mapping[str, Sequence[ArraySpec]]

_LOG = logging.getLogger(__name__)


class Traces:
    """The files of one world.

    Args:
        facts: what every number of the world depends on, JSON.
        specs: per table the arrays it is made of.
        folder: where worlds have their folders.
    """

    def __init__(self, facts: Mapping[str, Any], specs: Specs, folder: Path) -> None:
        self.facts, self._specs = dict(facts), specs
        self.folder = folder / _hash(self.facts)[:16]
        self._tidied = False

    def path(self, instance: Instance, layer: int, table: str) -> Path:
        """The file of a table's block."""
        return self.folder / f"{_hash(self._key(instance, layer, table))[:32]}.safetensors"

    def load(self, instance: Instance, layer: int, table: str) -> Entries | None:
        """What is known of a table's block; None where nothing is, or where its file is damaged: that is deleted."""
        path = self.path(instance, layer, table)
        try:
            raw = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            _complain(self.folder.parent, error.strerror or type(error).__name__)
            return None
        try:
            return _unpacked(raw, self._key(instance, layer, table), self._specs[table])
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            _LOG.warning("trace %s: damaged (%s); deleted, it is measured anew", path, error)
            with suppress(OSError):
                path.unlink()
            return None

    def save(self, instance: Instance, layer: int, table: str, found: Entries) -> None:
        """Adds what was measured to what is known of a block; complains once where it cannot be written."""
        path = self.path(instance, layer, table)
        try:
            self._tidy()
            with _turn(self.folder / "lock"):
                known = self.load(instance, layer, table)
                whole = merged(found, known) if known else found
                _replace(path, _packed(whole, self._key(instance, layer, table), instance.uri))
        except OSError as error:
            _complain(self.folder.parent, error.strerror or type(error).__name__)

    def _key(self, instance: Instance, layer: int, table: str) -> dict[str, Any]:
        arrays = [(spec.name, spec.shape, spec.axes, str(np.dtype(spec.dtype))) for spec in self._specs[table]]
        return {**self.facts, "text": text_of(instance), "layer": layer, "table": table, "arrays": arrays}

    def _tidy(self) -> None:
        """Makes the folder, and deletes what crashes left in it, once."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if self._tidied:
            return
        self._tidied = True
        for path in self.folder.glob("*.partial"):
            with suppress(OSError):
                if time.time() - path.stat().st_mtime > STALE:
                    path.unlink()


@lru_cache
def _complain(folder: Path, reason: str) -> None:
    """Says once that traces cannot be kept."""
    remedy = f"set DRRL_CACHE to a folder with room that you can write to, or {SWITCH}=off"
    _LOG.warning("traces in %s cannot be kept (%s); going on without: %s", folder, reason, remedy)


def open_traces(world: World, specs: Specs) -> Traces | None:
    """The traces of a world; None if they are turned off, or if it shows statistics from outside this package.

    Args:
        world: the world.
        specs: per table the arrays it is made of.

    Raises:
        ValueError: DRRL_TRACES is neither `on` nor `off`.
    """
    if not switched_on() or not _versioned(world):
        return None
    return Traces(world_facts(world), specs, cache_folder() / FOLDER)


def switched_on() -> bool:
    """Whether what is measured is kept on disk: unless DRRL_TRACES is `off`.

    Raises:
        ValueError: it is neither `on` nor `off`.
    """
    wanted = os.environ.get(SWITCH) or "on"
    one_of(SWITCH, wanted, ("on", "off"))
    return wanted == "on"


def _versioned(world: World) -> bool:
    """Whether `ENGINE_VERSION` covers all that is shown: a user's own statistic may change without it."""
    parts = [part for entry in world.layout.entries for part in entry.parts]
    return all(part.statistic.function.__module__.split(".")[0] == "drrl_env" for part in parts)


def world_facts(world: World) -> dict[str, Any]:
    """What every number of a world depends on, by value and not by name, JSON."""
    given = asdict(world.measurement).items()
    settings = {name: value for name, value in given if name not in ("model", "ranks", "statistics")}
    costs = {
        basis: [[(cost.rank, cost.value_rank) for cost in stream.costs] for stream in streams]
        for basis, streams in world.streams_by_basis.items()
    }
    shown = [(entry.name, entry.size, [part.statistic.name for part in entry.parts]) for entry in world.layout.entries]
    return {
        "format": FORMAT,
        "engine": [ENGINE_VERSION, torch.__version__, platform.machine(), torch.backends.cpu.get_cpu_capability()],
        "weights": world.model.digest,
        "config": _config(world),
        "tokenizer": _tokenizer(world),
        "calibration": world.calibration.digest(),
        "settings": settings,
        "ranks": list(world.ranks),
        "costs": costs,
        "observed": shown,
    }


def _config(world: World) -> str:
    """Hash of the model's configuration: equal weights under another one (rotation, scale) are another model."""
    found = world.model.network.config.to_dict()
    return _hash({name: found[name] for name in found if name not in ("_name_or_path", "transformers_version")})[:16]


def _tokenizer(world: World) -> str:
    """Hash of what decides on a text's tokens."""
    tokenizer: Any = world.model.tokenizer
    backend = getattr(tokenizer, "backend_tokenizer", None)
    found = json.loads(backend.to_str()) if backend is not None else tokenizer.get_vocab()
    # A call sets these two to what the call asked for.
    rules = {name: found[name] for name in found if name not in ("truncation", "padding")}
    return _hash({"class": type(tokenizer).__name__, "bos": tokenizer.bos_token_id, "rules": rules})[:16]


def text_of(instance: Instance) -> list[tuple[str, int, int]]:
    """What an instance's text is: hash of its stream, start and length of each piece, wherever the file lies."""
    return [(_stream_hash(piece.stream), piece.start, piece.length) for piece in instance.pieces]


def _stream_hash(stream: str) -> str:
    if stream.startswith("file:"):
        return stream.split(":", 2)[1]
    found: str = manifest()["streams"][stream]["sha256"]
    return found


def _hash(facts: Mapping[str, Any]) -> str:
    return hashlib.sha256(_text(facts).encode()).hexdigest()


def _text(facts: Mapping[str, Any]) -> str:
    return json.dumps(facts, sort_keys=True, default=str)


def _packed(found: Entries, key: Mapping[str, Any], uri: str) -> bytes:
    """A file's bytes: per array its measured entries and, under `.at`, their numbers."""
    tensors = {name: rows for name, (_, rows) in found.items()}
    tensors |= {f"{name}.at": at for name, (at, _) in found.items()}
    tensors = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    about = {"key": _text(key), "instance": uri, "sha256": _content_hash(tensors)}
    packed: bytes = save(tensors, metadata=about)
    return packed


def _unpacked(raw: bytes, key: Mapping[str, Any], specs: Sequence[ArraySpec]) -> Entries:
    """The entries in a file's bytes.

    Raises:
        SafetensorError, ValueError, KeyError, TypeError: they are not what was written for this key.
    """
    tensors = load(raw)
    about = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])["__metadata__"]
    if about["key"] != _text(key):
        raise ValueError("it is of another key")
    if about["sha256"] != _content_hash(tensors):
        raise ValueError("its content has changed since it was written")
    names = [name for name in tensors if not name.endswith(".at")]
    found = {name: (tensors[f"{name}.at"], tensors[name]) for name in names}
    if not fits(specs, found):
        raise ValueError("its arrays are not those of this table")
    return found


def _content_hash(tensors: Mapping[str, Array]) -> str:
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {tensor.shape} ".encode())
        found.update(tensor.tobytes())
    return found.hexdigest()


def _replace(path: Path, raw: bytes) -> None:
    """Writes a file so that a crash at any moment leaves the old one or the new one."""
    partial = path.with_name(f"{path.stem}.{os.getpid()}.{uuid4().hex}.partial")
    try:
        with partial.open("wb") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        with suppress(OSError):
            partial.unlink()
        raise


@contextmanager
def _turn(path: Path) -> Iterator[None]:
    """Holds a lock that ends with the process that holds it, or goes on without after `PATIENCE`."""
    with path.open("ab") as file:
        _wait(file.fileno())
        yield


def _wait(file: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while not _locked(file) and time.monotonic() < deadline:
        time.sleep(0.005)


def _locked(file: int) -> bool:
    """Whether there is no need to wait: the lock is held, or there are none on this system or in this file system."""
    try:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True
