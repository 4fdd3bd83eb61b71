"""Action spaces: how an agent's action becomes choices, one per component of the mechanism."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from drrl_env.envs.mechanism import Integers
from drrl_env.envs.settings import one_of

ACTIONS = ("discrete", "box")
"""Values of `actions=`: choices by index, or one number."""


class Codec(Protocol):
    """An action space.

    Attributes:
        name: its name in the docs.
    """

    name: str

    def space(self, sizes: tuple[int, ...]) -> spaces.Space[Any]:
        """The action space of a mechanism with components of these sizes."""

    def decode(self, actions: NDArray[Any], sizes: tuple[int, ...]) -> Integers:
        """Choices of every lane from its action, (lanes, components).

        Raises:
            ValueError: an action outside its space.
        """

    def encode(self, choices: Integers, sizes: tuple[int, ...]) -> list[Any]:
        """An action for each row of choices, (rows, components)."""


class DiscreteCodec:
    """An index into the candidate ranks."""

    name = "Discrete"

    def space(self, sizes: tuple[int, ...]) -> spaces.Space[Any]:
        """Discrete(ranks)."""
        return spaces.Discrete(sizes[0])

    def decode(self, actions: NDArray[Any], sizes: tuple[int, ...]) -> Integers:
        """The index itself."""
        return within(indices(actions, 1), sizes)

    def encode(self, choices: Integers, sizes: tuple[int, ...]) -> list[Any]:
        """The indices."""
        found: list[Any] = choices[:, 0].tolist()
        return found


class MultiDiscreteCodec:
    """An index per component."""

    name = "MultiDiscrete"

    def space(self, sizes: tuple[int, ...]) -> spaces.Space[Any]:
        """MultiDiscrete(sizes)."""
        return spaces.MultiDiscrete(np.array(sizes, np.int64))

    def decode(self, actions: NDArray[Any], sizes: tuple[int, ...]) -> Integers:
        """The indices themselves."""
        return within(indices(actions, len(sizes)), sizes)

    def encode(self, choices: Integers, sizes: tuple[int, ...]) -> list[Any]:
        """The rows themselves."""
        return list(choices)


class BoxCodec:
    """One number in [-1, 1], cut into as many equal parts as there are candidate ranks, the lowest rank first."""

    name = "Box"

    def space(self, sizes: tuple[int, ...]) -> spaces.Space[Any]:
        """Box(-1, 1, (1,))."""
        return spaces.Box(-1.0, 1.0, (1,), np.float32)

    def decode(self, actions: NDArray[Any], sizes: tuple[int, ...]) -> Integers:
        """The part the number lies in; a number beyond the ends counts as the end."""
        values = np.asarray(actions, np.float64).reshape(-1, 1)
        if not np.isfinite(values).all():
            raise ValueError(f"action={np.ravel(actions)[~np.isfinite(np.ravel(actions))][0]}: must be a finite number")
        found: Integers = ((values.clip(-1, 1) + 1) * (sizes[0] / 2)).astype(np.int64)
        return np.minimum(found, sizes[0] - 1)

    def encode(self, choices: Integers, sizes: tuple[int, ...]) -> list[Any]:
        """The middle of each part."""
        middles = (2 * choices[:, :1] + 1) / sizes[0] - 1
        return list(middles.astype(np.float32))


def resolve_codec(actions: str | None, own: Codec, task: str) -> Codec:
    """The action space that `actions=` asks for.

    Args:
        actions: of `ACTIONS`, or None for the task's own.
        own: the task's own.
        task: its id.

    Raises:
        ValueError: an unknown name, or one number for a task of several choices a step; one line with the remedy.
    """
    if actions is None:
        return own
    one_of("actions", actions, ACTIONS)
    if not isinstance(own, MultiDiscreteCodec):
        return DiscreteCodec() if actions == "discrete" else BoxCodec()
    if actions == "box":
        raise ValueError(f"actions='box': {task} makes several choices a step; use actions='discrete'")
    return own


def indices(actions: NDArray[Any], components: int) -> Integers:
    """The actions as whole numbers, (lanes, components)."""
    found = np.asarray(actions)
    if found.dtype.kind not in "iu" or found.size % components:
        each = "a whole number" if components == 1 else f"{components} whole numbers"
        raise ValueError(f"action={found.tolist()}: chosen by index; use {each} for a lane")
    return found.astype(np.int64).reshape(-1, components)


def within(choices: Integers, sizes: tuple[int, ...]) -> Integers:
    """The choices, if each lies within its component."""
    if ((choices < 0) | (choices >= sizes)).any():
        lane, part = np.argwhere((choices < 0) | (choices >= sizes))[0]
        where = f" in component {part}" if len(sizes) > 1 else ""
        raise ValueError(f"action={choices[lane, part]}{where}: chosen by index; use 0 to {sizes[part] - 1}")
    return choices
