"""The card of a trained policy: everything beside its weights that is needed to use it, and where it comes from."""

from __future__ import annotations

import json
import math
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, NoReturn

import numpy as np
from gymnasium import spaces

from drrl_env.envs.codecs import BoxCodec, Codec, DiscreteCodec, MultiDiscreteCodec
from drrl_env.envs.settings import one_of, positive
from drrl_env.lowrank.version import ENGINE_VERSION

FORMAT = 1
"""Raise it when a card changes so that what was written before cannot be read."""
CODECS: dict[str, Codec] = {codec.name: codec for codec in (DiscreteCodec(), MultiDiscreteCodec(), BoxCodec())}
"""Kinds of actions by name."""


@dataclass(frozen=True)
class Entry:
    """An entry of the observation.

    Attributes:
        name: its name.
        size: how many numbers it has.
        low: the least each of them can be.
        high: the most.
    """

    name: str
    size: int
    low: float
    high: float


@dataclass(frozen=True)
class Score:
    """What a policy reached on episodes it was not trained on.

    Attributes:
        split: the split.
        instances: spans of text played on.
        episodes: episodes played on.
        score: normalised score, random 0 and oracle 1.
        low: lower end of its 95 % interval over instances.
        high: upper end.
        mean_return: mean return of an episode.
        random: the same of random choices, expected.
        oracle: the same of the oracle.
    """

    split: str
    instances: int
    episodes: int
    score: float
    low: float
    high: float
    mean_return: float
    random: float
    oracle: float


@dataclass(frozen=True)
class Card:
    """What a trained policy is, as `card.json` says it.

    Attributes:
        task: environment id.
        arguments: keyword arguments of the environment it was trained in, but for split and instances.
        name: its name in tables.
        algorithm: name of the algorithm, of `drrl_policies.networks.FAMILIES`.
        extractor: name of the features extractor, of `drrl_policies.networks.EXTRACTORS`.
        network: its numbers and those of the layers behind it, by their names in `policy_kwargs`.
        observation: entries in their order.
        actions: `Discrete`, `MultiDiscrete` or `Box`.
        sizes: number of choices in each component of an action.
        ranks: candidate ranks, which the first choices stand for.
        deciding_flops: FLOPs of one decision.
        command: the command that trained it.
        versions: package to the version it was trained with.
        score: what it reached; None where it has not been evaluated.
        weights: SHA-256 of the file of weights; empty before there is one.
        engine: version of the numbers it observed, see `drrl_env.lowrank.version`.
        format: version of the card.
    """

    task: str
    arguments: dict[str, Any]
    name: str
    algorithm: str
    extractor: str
    network: dict[str, Any]
    observation: tuple[Entry, ...]
    actions: str
    sizes: tuple[int, ...]
    ranks: tuple[int, ...]
    deciding_flops: float
    command: str
    versions: dict[str, str] = field(default_factory=dict)
    score: Score | None = None
    weights: str = ""
    engine: int = ENGINE_VERSION
    format: int = FORMAT

    @property
    def codec(self) -> Codec:
        """How actions become choices."""
        return CODECS[self.actions]

    @property
    def observation_space(self) -> spaces.Dict:
        """The observation, before it is flattened for an algorithm that wants that."""
        # Ordered: gymnasium sorts the names of a plain mapping.
        return spaces.Dict(
            OrderedDict((e.name, spaces.Box(e.low, e.high, (e.size,), np.float32)) for e in self.observation)
        )

    @property
    def action_space(self) -> spaces.Space[Any]:
        """The action space."""
        return self.codec.space(self.sizes)

    def text(self) -> str:
        """The card as JSON."""
        return json.dumps(asdict(self), indent=1, allow_nan=False) + "\n"


def entries_of(observation_space: spaces.Dict) -> tuple[Entry, ...]:
    """The entries of an observation.

    Raises:
        ValueError: an entry is not a one-dimensional box with one low and one high for all its numbers.
    """
    return tuple(_entry(name, space) for name, space in observation_space.spaces.items())


def _entry(name: str, space: spaces.Space[Any]) -> Entry:
    if not isinstance(space, spaces.Box) or len(space.shape) != 1 or np.ptp(space.low) or np.ptp(space.high):
        raise ValueError(f"observation_space[{name!r}]: {space}; use a one-dimensional box with one low and one high")
    return Entry(name, space.shape[0], float(space.low[0]), float(space.high[0]))


def read_card(text: str) -> Card:
    """A card from its JSON.

    Raises:
        ValueError: it is damaged, or of another version of the format or of the numbers observed.
    """
    values = json.loads(text, parse_constant=_refuse)
    if not isinstance(values, dict):
        raise ValueError("it is no mapping")
    for name, known in (("format", FORMAT), ("engine", ENGINE_VERSION)):
        if values.get(name) != known:
            raise ValueError(f"it is of {name} {values.get(name)!r} and this version has {known}")
    _check_names(values)
    try:
        card = _card(values)
        _check_values(card)
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error
    return card


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"it holds {constant}")


def _check_names(values: Mapping[str, Any]) -> None:
    known = {each.name for each in fields(Card)}
    wrong = sorted(known.symmetric_difference(values))
    if wrong:
        raise ValueError(f"it {'lacks' if wrong[0] in known else 'has an unknown'} {wrong[0]!r}")


def _card(values: Mapping[str, Any]) -> Card:
    """The card, its lists as the tuples that they were."""
    score = values["score"]
    made = {
        "arguments": {name: _tuples(value) for name, value in values["arguments"].items()},
        "observation": tuple(Entry(**each) for each in values["observation"]),
        "sizes": tuple(values["sizes"]),
        "ranks": tuple(values["ranks"]),
        "score": None if score is None else Score(**score),
    }
    return Card(**{**values, **made})


def _tuples(value: Any) -> Any:
    return tuple(_tuples(each) for each in value) if isinstance(value, list) else value


def _check_values(card: Card) -> None:
    """Raises a ValueError for the first value of a wrong kind."""
    for name in ("task", "name", "algorithm", "extractor", "command", "weights"):
        if not isinstance(getattr(card, name), str):
            raise ValueError(f"{name}={getattr(card, name)!r}: must be text")
    for name in ("network", "versions"):
        if not isinstance(getattr(card, name), dict):
            raise ValueError(f"{name}={getattr(card, name)!r}: must be a mapping")
    one_of("actions", card.actions, tuple(CODECS))
    for name, numbers in (("sizes", card.sizes), ("ranks", card.ranks)):
        for number in numbers:
            positive(name, number)
    if not card.sizes or not card.observation:
        raise ValueError("it has no observation or no actions")
    for entry in card.observation:
        positive(f"observation {entry.name!r}", entry.size)
        if not entry.low <= entry.high:
            raise ValueError(f"observation {entry.name!r}: low {entry.low} is above high {entry.high}")
    if not math.isfinite(card.deciding_flops) or card.deciding_flops < 0:
        raise ValueError(f"deciding_flops={card.deciding_flops}: must be a number of at least 0")
