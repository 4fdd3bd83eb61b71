"""Live computation: an instance captured once, its layers streamed segment by segment on demand."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from functools import cached_property

from drrl_env.data.instances import Instance
from drrl_env.envs.observation import Floats, token_rows
from drrl_env.envs.world import World
from drrl_env.lowrank.stream import LayerStream, Segment
from drrl_env.models.capture import Capture, capture

LIVE_BYTES = 1_000_000_000
"""Memory for captured instances; the one used longest ago is dropped first."""


class LiveLayer:
    """One layer of a captured instance, advanced as far as somebody asked.

    Args:
        world: the world.
        tensors: the layer's whole-sequence (queries, keys, values).
        layer: its number.
    """

    def __init__(self, world: World, found: Capture, layer: int) -> None:
        self._tensors = found.layers[layer]
        self._stream = LayerStream(world.streams[layer], world.calibration.layers[layer], world.measurement.context)
        self._segments: list[Segment] = []
        self._last = 0

    def segment(self, position: int) -> Segment:
        """The segment at `position`; those before it are streamed first.

        Only the one asked for last keeps the projections it worked out; another works them out again, to the same bits.
        """
        if self._segments and position != self._last:
            self._segments[self._last] = replace(self._segments[self._last])
        while len(self._segments) <= position:
            self._segments.append(self._advance())
        self._last = position
        return self._segments[position]

    def _advance(self) -> Segment:
        start = self._stream.position * self._stream.settings.shape.segment
        rows = slice(start, start + self._stream.settings.shape.segment)
        return self._stream.advance(*(tensor[:, rows] for tensor in self._tensors))


class LiveInstance:
    """A captured instance.

    Args:
        world: the world.
        instance: the span of text.
    """

    def __init__(self, world: World, instance: Instance) -> None:
        self._world = world
        self.capture = capture(world.model.network, world.token_ids(instance))
        self._layers: dict[int, LiveLayer] = {}

    def layer(self, layer: int) -> LiveLayer:
        """One of its layers."""
        if layer not in self._layers:
            self._layers[layer] = LiveLayer(self._world, self.capture, layer)
        return self._layers[layer]

    @cached_property
    def tokens(self) -> Floats:
        """The `tokens` entry of every segment."""
        calibration, segment = self._world.calibration, self._world.measurement.segment
        return token_rows(
            self.capture.embeddings, calibration.embedding_mean, calibration.embedding_components, segment
        )

    @property
    def bytes(self) -> int:
        """Estimate of the memory held: the capture, and about as much again for each layer's stream."""
        return int(self.capture.bytes * (1 + 1.5 * len(self._layers) / max(1, self._world.layers)))


class LiveCache:
    """The captured instances at hand, least recently used dropped first.

    Args:
        world: the world they are captured in.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._held: OrderedDict[str, LiveInstance] = OrderedDict()
        self._seen: set[str] = set()

    def get(self, instance: Instance) -> LiveInstance:
        """The captured instance; captured now if it is not at hand."""
        if instance.uri not in self._held:
            self._held[instance.uri] = LiveInstance(self._world, instance)
            self._seen.add(instance.uri)
        self._held.move_to_end(instance.uri)
        while len(self._held) > 1 and sum(live.bytes for live in self._held.values()) > LIVE_BYTES:
            self._held.popitem(last=False)
        return self._held[instance.uri]

    def returns(self, instance: Instance) -> bool:
        """Whether asking for the instance would capture it a second time."""
        return instance.uri in self._seen and instance.uri not in self._held

    def forget(self, instance: Instance) -> None:
        """Treats the next capture of the instance as its first."""
        self._seen.discard(instance.uri)

    def drop(self, instance: Instance) -> None:
        """Frees the instance's memory."""
        self._held.pop(instance.uri, None)

    def clear(self) -> None:
        """Frees everything and forgets what was seen."""
        self._held.clear()
        self._seen.clear()
