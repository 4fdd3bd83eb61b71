"""A tree of plain values as JSON and arrays beside it: everything a checkpoint holds, without pickle."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]
"""Name to array."""


def pack(tree: Any) -> tuple[Any, Arrays]:
    """Splits a tree.

    Args:
        tree: None, bool, int, float, str, NumPy scalars and arrays, tensors, and lists, tuples and dicts of those.

    Returns:
        Plain JSON, in which every object is `{kind: content}`, and the arrays it names.

    Raises:
        TypeError: something else is in it.
    """
    arrays: Arrays = {}
    return _plain(tree, arrays), arrays


def _plain(value: Any, arrays: Arrays) -> Any:
    if isinstance(value, np.generic):  # first: np.float64 is a float too, and would come back as one
        return {"scalar": _named(np.asarray(value), arrays)}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, torch.Tensor):
        return {"tensor": _named(value.detach().cpu().numpy(), arrays)}
    if isinstance(value, np.ndarray):
        return {"array": _named(value, arrays)}
    if isinstance(value, dict):
        return {"dict": [[_plain(key, arrays), _plain(each, arrays)] for key, each in value.items()]}
    if isinstance(value, (list, tuple)):
        found = [_plain(each, arrays) for each in value]
        return {"tuple": found} if isinstance(value, tuple) else found
    raise TypeError(f"a checkpoint cannot hold a {type(value).__name__}")


def _named(array: NDArray[Any], arrays: Arrays) -> str:
    name = str(len(arrays))
    arrays[name] = np.asarray(array, order="C")
    return name


def unpack(plain: Any, arrays: Arrays) -> Any:
    """The tree that `pack` split.

    Raises:
        KeyError: it names an array that is not there.
        ValueError: it is not what `pack` gives.
    """
    if isinstance(plain, list):
        return [unpack(each, arrays) for each in plain]
    if not isinstance(plain, dict):
        return plain
    ((kind, content),) = plain.items()
    if kind == "dict":
        return {unpack(key, arrays): unpack(each, arrays) for key, each in content}
    if kind == "tuple":
        return tuple(unpack(each, arrays) for each in content)
    array = arrays[content]
    if kind == "tensor":
        return torch.from_numpy(array.copy())
    return array[()] if kind == "scalar" else array
