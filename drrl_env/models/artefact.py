"""Fitted artefacts on disk: tensors in a safetensors file, their digest and that of the model's weights beside them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

Fitted = TypeVar("Fitted")


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names and contents, first 16 hex digits."""
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(name.encode())
        found.update(tensor.contiguous().numpy().tobytes())
    return found.hexdigest()[:16]


def save_artefact(tensors: Mapping[str, Tensor], model_digest: str, path: Path) -> None:
    """Writes the tensors atomically, with their digest and that of the model they were fitted to."""
    # Workers that start together all fit the same artefact: each needs a partial file of its own.
    partial = path.with_suffix(f".{os.getpid()}.partial")
    metadata = {"digest": tensors_digest(tensors), "model": model_digest}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial, metadata=metadata)
    partial.replace(path)


def load_artefact(what: str, path: Path, build: Callable[[dict[str, Tensor], str], Fitted]) -> Fitted:
    """Reads an artefact and compares it with the digest written beside it; whose weights it is for, the caller checks.

    Args:
        what: its name in errors.
        path: the file.
        build: makes it of tensors and the model's digest; raises KeyError where a tensor is missing.

    Raises:
        ValueError: the file is damaged; one line with the remedy.
    """
    try:
        with safe_open(path, "pt") as file:
            facts = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        found = build(tensors, facts["model"])
    except (SafetensorError, OSError, KeyError) as error:
        raise ValueError(f"{what}={str(path)!r}: the file is damaged ({error}); delete it to fit anew") from error
    if tensors_digest(tensors) != facts.get("digest"):
        raise ValueError(f"{what}={str(path)!r}: the file has changed since it was written; delete it to fit anew")
    return found
