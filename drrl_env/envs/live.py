"""Live computation: an instance captured once, its layers streamed segment by segment on demand."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property

from drrl_env.data.instances import Instance
from drrl_env.envs.observation import Floats, token_rows
from drrl_env.envs.world import World
from drrl_env.lowrank.bases import ScoreBasis
from drrl_env.lowrank.segment import calibrated_basis
from drrl_env.lowrank.stream import LayerStream, Segment
from drrl_env.models.capture import Capture, capture

LIVE_BYTES = 1_000_000_000
"""Memory for captured instances; the one used longest ago is dropped first."""


class LiveLayer:
    """One layer of a captured instance, advanced as far as somebody asked.

    Args:
        world: the world.
        found: the captured instance.
        layer: its number.
        basis: `refreshed` or `calibrated`.
    """

    def __init__(self, world: World, found: Capture, layer: int, basis: str) -> None:
        self._tensors = found.layers[layer]
        self._calibrated = world.streams_of("calibrated")[layer]
        settings = world.streams_of(basis)[layer]
        self._stream = LayerStream(settings, world.calibration.layers[layer], world.measurement.context)
        self._segments: list[Segment] = []
        self._last = 0
        self._variant: tuple[tuple[int, int], Segment] | None = None

    def segment(self, position: int) -> Segment:
        """The segment at `position`; those before it are streamed first.

        Only the one asked for last keeps the projections it worked out; another works them out again, to the same bits.
        """
        if self._segments and position != self._last:
            self._segments[self._last] = replace(self._segments[self._last])
            self._variant = None
        self._advance_to(position)
        self._last = position
        return self._segments[position]

    def source(self, position: int, source: int) -> Segment:
        """The segment at `position` answered in another basis: 0 the calibrated one, 1 + s that of segment s.

        Its basis is that of a `refreshed` layer; it shares full attention with the segment as streamed.
        """
        if source == position + 1:
            return self.segment(position)
        if self._variant is None or self._variant[0] != (position, source):
            segment = self.segment(position)
            # Worked out here, or every variant would work it out by itself.
            _ = segment.full_output
            settings = segment.settings if source else self._calibrated
            variant = segment.with_basis(self.basis(source - 1) if source else None, settings)
            self._variant = (position, source), variant
        return self._variant[1]

    def basis(self, position: int) -> ScoreBasis:
        """The basis of a segment, or the calibrated one where `position` is -1."""
        if position < 0:
            return calibrated_basis(self._stream.bases, self._calibrated.width)
        self._advance_to(position)
        return self._segments[position].basis

    def _advance_to(self, position: int) -> None:
        while len(self._segments) <= position:
            self._segments.append(self._advance())

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
        self._layers: dict[tuple[int, str], LiveLayer] = {}

    def layer(self, layer: int, basis: str | None = None) -> LiveLayer:
        """One of its layers, streamed in the measurement's basis or another."""
        key = layer, basis or self._world.measurement.basis
        if key not in self._layers:
            self._layers[key] = LiveLayer(self._world, self.capture, *key)
        return self._layers[key]

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
        leaving: called with the URI of an instance that is being freed.
    """

    def __init__(self, world: World, leaving: Callable[[str], None]) -> None:
        self._world, self._leaving = world, leaving
        self._held: OrderedDict[str, LiveInstance] = OrderedDict()
        self._seen: set[str] = set()

    def get(self, instance: Instance) -> LiveInstance:
        """The captured instance; captured now if it is not at hand."""
        if instance.uri not in self._held:
            self._held[instance.uri] = LiveInstance(self._world, instance)
            self._seen.add(instance.uri)
        self._held.move_to_end(instance.uri)
        while len(self._held) > 1 and sum(live.bytes for live in self._held.values()) > LIVE_BYTES:
            self._free(next(iter(self._held)))
        return self._held[instance.uri]

    def returns(self, instance: Instance) -> bool:
        """Whether asking for the instance would capture it a second time."""
        return instance.uri in self._seen and instance.uri not in self._held

    def forget(self, instance: Instance) -> None:
        """Treats the next capture of the instance as its first."""
        self._seen.discard(instance.uri)

    def drop(self, instance: Instance) -> None:
        """Frees the instance's memory."""
        if instance.uri in self._held:
            self._free(instance.uri)

    def clear(self) -> None:
        """Frees everything and forgets what was seen."""
        for uri in tuple(self._held):
            self._free(uri)
        self._seen.clear()

    def _free(self, uri: str) -> None:
        self._leaving(uri)
        del self._held[uri]
