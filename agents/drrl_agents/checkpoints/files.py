"""Checkpoint files: written whole or not at all, checked when read, the latest few kept.

A file is in the safetensors format (https://huggingface.co/docs/safetensors): arrays, and in its metadata the tree that
they belong to as JSON and a digest of both. It is written here piece by piece, so that a replay buffer is not copied
and a full disk is an `OSError`; it is read by the safetensors library.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from drrl_agents.checkpoints.tree import Arrays, pack, unpack

KEPT = 3
"""Checkpoints that are kept; older ones are deleted."""

PARTIAL = ".partial"
_DTYPES = {
    "bool": "BOOL", "uint8": "U8", "int8": "I8", "uint16": "U16", "int16": "I16", "float16": "F16", "uint32": "U32",
    "int32": "I32", "float32": "F32", "uint64": "U64", "int64": "I64", "float64": "F64",
}  # fmt: skip
"""NumPy's names of the types to the format's."""


class DamagedError(ValueError):
    """A checkpoint file is not whole."""


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint file holds.

    Attributes:
        step: environment steps done.
        tree: the state, see `drrl_agents.checkpoints.state`.
    """

    step: int
    tree: dict[str, Any]


def write_checkpoint(folder: Path, found: Checkpoint) -> Path:
    """Writes a checkpoint, then deletes what is older than the latest `KEPT`, and what is of later steps.

    Later steps are of files that could not be read: the run went on from one before them.

    A reader, and who is killed in the middle, finds the old state of the folder or the new one.

    Args:
        folder: the checkpoints' folder; made where it is missing.
        found: the checkpoint.

    Returns:
        Its file.

    Raises:
        OSError: it could not be written (a full disk); those before are as they were.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{found.step:09d}.safetensors"
    partial = path.with_name(path.name + PARTIAL)
    try:
        _write_through(partial, found.tree)
        os.replace(partial, path)
        _sync(folder)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    left = [each for each in _newest_first(folder) if _step(each) > found.step]
    done = [each for each in _newest_first(folder) if _step(each) <= found.step]
    for old in [*left, *done[KEPT:], *folder.glob("*" + PARTIAL)]:
        old.unlink(missing_ok=True)
    return path


def _write_through(path: Path, tree: dict[str, Any]) -> None:
    with path.open("wb") as file:
        for piece in _pieces(tree):
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    """Makes the folder's entries survive a power failure, where the system can."""
    if os.name == "posix":
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def _pieces(tree: dict[str, Any]) -> Iterator[bytes | memoryview]:
    """The bytes of a safetensors file: length of the header, header, arrays."""
    plain, arrays = pack(tree)
    text = json.dumps(plain)
    header: dict[str, Any] = {"__metadata__": {"tree": text, "digest": _digest(text, arrays)}}
    end = 0
    for name, array in arrays.items():
        begin, end = end, end + array.nbytes
        header[name] = {"dtype": _DTYPES[array.dtype.name], "shape": array.shape, "data_offsets": [begin, end]}
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    yield len(encoded).to_bytes(8, "little")
    yield encoded
    yield from (_bytes(array) for array in arrays.values())


def _bytes(array: NDArray[Any]) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


def _digest(text: str, arrays: Arrays) -> str:
    found = hashlib.sha256(text.encode())
    for name in sorted(arrays, key=int):
        found.update(_bytes(arrays[name]))
    return found.hexdigest()


def read_checkpoint(path: Path) -> Checkpoint:
    """Reads a checkpoint; runs no code of the file's.

    Raises:
        DamagedError: it is cut off, altered, or not a checkpoint.
        OSError: it cannot be read.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            metadata: dict[str, str] = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
        if _digest(metadata["tree"], arrays) != metadata["digest"]:
            raise DamagedError("its digest does not fit")
        return Checkpoint(_step(path), unpack(json.loads(metadata["tree"]), arrays))
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise DamagedError(str(error).splitlines()[0]) from error


def newest_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest checkpoint that is whole; a message on stderr names each that is not. None where there is none."""
    return next((found for path in _newest_first(folder) if (found := _read_or_tell(path)) is not None), None)


def _read_or_tell(path: Path) -> Checkpoint | None:
    try:
        return read_checkpoint(path)
    except (DamagedError, OSError) as error:
        print(f"checkpoint {path.name} cannot be read ({error}); going back to the one before", file=sys.stderr)
        return None


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*.safetensors"), key=_step, reverse=True)


def _step(path: Path) -> int:
    return int(path.stem.removeprefix("step-"))
