"""The one-lane Gymnasium face of the simulator."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from pathlib import Path
from typing import Any, cast

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from drrl_env.data.instances import SPLITS, Instance, instance, instances, instances_from_text
from drrl_env.envs.observation import Layout
from drrl_env.envs.settings import Guard, Measurement, Reward, one_of, positive, resolve_guard, resolve_reward
from drrl_env.envs.simulator import Observation, Simulator
from drrl_env.envs.transitions import Rules, open_transitions
from drrl_env.envs.world import World, open_world


def observation_space(layout: Layout) -> spaces.Dict:
    """The flat Dict of 1-D boxes."""
    return spaces.Dict({e.name: spaces.Box(e.low, e.high, (e.size,), np.float32) for e in layout.entries})


class AttentionEnv(gymnasium.Env[Observation, np.int64]):
    """Choose the rank of a real attention layer, segment by segment: `DRRL-Attention-v0`.

    An episode is one (instance, layer): a span of text under a trained language model, cut into segments. At
    each step the incremental update takes in the segment's keys, and the chosen rank is applied to its queries,
    keys and (its share) values.

    Observation: a Dict of 1-D float32 boxes, see `drrl_env.envs.observation.entries`.
    Action: Discrete(ranks), an index into `ranks`; the last is plain full attention.
    Reward: α·fidelity − β·FLOPs ratio − γ·‖ΔS‖/‖S‖, see `drrl_env.envs.settings.Reward`.
    Start: a random (instance, layer) of the pool at its first segment, previous rank full.
    End: `terminated` after context/segment steps; it never truncates, a wrapper may.

    Args:
        model: `bundled`, a folder, or a Hugging Face name.
        layer: layer to play on; None for a random one each episode.
        segment: tokens of a segment.
        context: tokens of an instance.
        ranks: candidate ranks, ascending, the last full; None for shares of the head dimension.
        value_rank: `balanced`, `same`, a number, or None for full values.
        basis: `refreshed` or `calibrated`.
        split: `train`, `validation` or `test`; None for train, or for all spans of a user's own `text`.
        instances: how many of the split, or a list of their URIs; None for all.
        text: a user's own text file instead of the bundled text; of every four of its spans a split gets
            two (train) or one (validation, test).
        reward: `default`, `paper` or a `Reward`.
        guard: `off`, `paper` or a `Guard`.

    Raises:
        ValueError: an argument is wrong; one line that names it, its value and the remedy.
    """

    metadata = {"render_modes": []}  # noqa: RUF012  (Gymnasium's own declaration)

    def __init__(
        self,
        model: str = "bundled",
        layer: int | None = None,
        segment: int = 128,
        context: int = 2048,
        ranks: Sequence[int] | None = None,
        value_rank: str | int | None = "balanced",
        basis: str = "refreshed",
        split: str | None = None,
        instances: int | Sequence[str] | None = None,
        text: str | Path | None = None,
        reward: str | Reward = "default",
        guard: str | Guard = "off",
    ) -> None:
        weights, allowed = resolve_reward(reward), resolve_guard(guard)
        if split is not None:
            one_of("split", split, SPLITS)
        chosen = None if ranks is None else tuple(ranks)
        measurement = Measurement(str(model), segment, context, chosen, value_rank, basis)
        world = open_world(measurement)
        self.transitions = open_transitions(Rules(world.measurement, weights, allowed))
        self.pool = instance_pool(world, split, instances, text)
        self.layers = _layers(world, layer)
        self._simulator = Simulator(self.transitions, lanes=1)
        self._choice, self._actions = np.zeros(1, np.int64), len(world.ranks)
        self._uri = ""
        self.observation_space = cast("spaces.Space[Observation]", observation_space(world.layout))
        self.action_space = spaces.Discrete(len(world.ranks))

    @property
    def ranks(self) -> tuple[int, ...]:
        """Candidate ranks, in the order of the actions."""
        return self.transitions.world.ranks

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begins an episode.

        Args:
            seed: seed of the choice of instance and layer.
            options: `instance` (a URI of the pool) and `layer` to begin with instead of random ones.
        """
        super().reset(seed=seed)
        found = self.pool[int(self.np_random.integers(len(self.pool)))]
        layer = self.layers[int(self.np_random.integers(len(self.layers)))]
        wanted = options or {}
        if "instance" in wanted:
            found = self._named(str(wanted["instance"]))
        layer = _layers(self.transitions.world, wanted.get("layer", layer))[0]
        self._simulator.start(0, found, layer)
        self._uri = found.uri
        return self._observe(), {"instance": found.uri, "layer": layer, "action_mask": self.action_masks()}

    def _named(self, uri: str) -> Instance:
        for found in self.pool:
            if found.uri == uri:
                return found
        raise ValueError(f"options['instance']={uri!r}: not among the {len(self.pool)} instances of this environment")

    def _observe(self) -> Observation:
        return {name: rows[0] for name, rows in self._simulator.observe().items()}

    def step(self, action: np.int64 | int) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Applies a rank to the current segment; `info` says what it cost and what it did."""
        choice = int(action)
        if not 0 <= choice < self._actions:
            raise ValueError(f"action={choice}: ranks are chosen by index; use 0 to {self._actions - 1}")
        self._choice[0] = choice
        batch = self._simulator.step(self._choice)
        info = self._simulator.info(0, batch, choice, self.action_masks())
        info["instance"], info["layer"] = self._uri, self._simulator.layer(0)
        return self._observe(), float(batch.numbers[0, 0]), bool(batch.terminated[0]), False, info

    def action_masks(self) -> NDArray[np.bool_]:
        """Which actions are allowed now, (ranks,), never empty; the same as `info["action_mask"]`."""
        mask: NDArray[np.bool_] = self._simulator.masks()[0]
        return mask


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


def _layers(world: World, layer: int | None) -> tuple[int, ...]:
    if layer is None:
        return tuple(range(world.layers))
    if not isinstance(layer, Integral) or not 0 <= layer < world.layers:
        raise ValueError(
            f"layer={layer}: model {world.measurement.model!r} has layers 0 to {world.layers - 1}; use one of them"
        )
    return (int(layer),)
