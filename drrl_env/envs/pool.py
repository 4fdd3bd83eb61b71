"""The instances an environment draws from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from drrl_env.data.instances import Instance, instance, instances, instances_from_text
from drrl_env.envs.settings import one_of, positive
from drrl_env.envs.world import World


def instance_pool(
    world: World, split: str | None, wanted: int | Sequence[str] | None, text: str | Path | None = None
) -> tuple[Instance, ...]:
    """The instances an environment draws from.

    Raises:
        ValueError: an unknown split, more instances than there are, or an unknown URI.
    """
    if wanted is None or isinstance(wanted, (int, np.integer)):
        return _first(world, split, None if wanted is None else int(wanted), text)
    if isinstance(wanted, str) or len(wanted) == 0:
        raise ValueError(f"instances={wanted!r}: give a number, or a list with at least one URI")
    if text is None:
        return tuple(instance(uri) for uri in wanted)
    own = {found.uri: found for found in _first(world, split, None, text)}
    for uri in wanted:
        one_of("instances", uri, tuple(own))
    return tuple(own[uri] for uri in wanted)


def _first(world: World, split: str | None, count: int | None, text: str | Path | None) -> tuple[Instance, ...]:
    """The first `count` instances of a split or of a user's own text, all of them where None."""
    if count is not None:
        positive("instances", count)
    if text is None:
        found = instances(split or "train")
    else:
        found = _dealt(instances_from_text(Path(text), world.model.tokenizer, world.measurement.context), split)
    if (count or 1) > len(found):
        place = f"split {split or 'train'!r}" if text is None else f"split {split!r} of text={text}"
        remedy = f"use at most {len(found)}" if found else "use a longer text or a smaller context"
        raise ValueError(f"instances={count or 1}: {place} has {len(found)}; {remedy}")
    return found[:count]


def _dealt(spans: tuple[Instance, ...], split: str | None) -> tuple[Instance, ...]:
    """A split's share of a user's spans: of every four, two to train and one to each of the others."""
    shares = {None: (0, 1, 2, 3), "train": (0, 1), "validation": (2,), "test": (3,)}
    return tuple(span for number, span in enumerate(spans) if number % 4 in shares[split])
