"""The store: everything measured in a world, remembered and replayed bit for bit.

A *block* is an (instance, layer); its rows are segments. What is not there yet is computed when it is asked
for, by calls of the same shapes whoever asks, so a number does not depend on when it was computed.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from drrl_env.data.instances import Instance
from drrl_env.envs.live import LiveCache
from drrl_env.envs.observation import WINDOW, energy_row, layer_row, segment_row
from drrl_env.envs.settings import Measurement
from drrl_env.envs.world import World, open_world
from drrl_env.lowrank.attention import cosine, relative_error
from drrl_env.lowrank.stream import Segment
from drrl_env.models.capture import Capture

Doubles = NDArray[np.float64]


class Store:
    """What was measured in one world.

    Args:
        world: the world.

    Attributes:
        static: static observation rows, (blocks · segments, row), float32.
        changes: ‖S_r − S_r'‖ / ‖S‖ over all heads, (blocks, segments, ranks, ranks).
        outcomes: cosine and relative error per rank, (blocks, segments, ranks, 2); NaN where not measured.
        moments: per head, (blocks, segments, ranks, heads, 4); see `lowrank.attention.output_moments`.
        ready: segments streamed so far, (blocks,).
        derived: what others worked out from these numbers, by its rules; forgotten with them.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self._blocks: dict[tuple[str, int], int] = {}
        self._origin: list[tuple[Instance, int]] = []
        self._live = LiveCache(world)
        self.derived: dict[Hashable, object] = {}
        self._allocate(16)

    def _allocate(self, blocks: int) -> None:
        segments, ranks, heads = self.world.segments, len(self.world.ranks), self.world.shape.heads
        self.static = np.zeros((blocks * segments, self.world.layout.width), np.float32)
        self.changes = np.zeros((blocks, segments, ranks, ranks))
        self.outcomes = np.full((blocks, segments, ranks, 2), np.nan)
        self.moments = np.full((blocks, segments, ranks, heads, 4), np.nan)
        self.ready = np.zeros(blocks, np.int64)

    def _grow(self) -> None:
        names = ("static", "changes", "outcomes", "moments", "ready")
        old = [getattr(self, name) for name in names]
        self._allocate(2 * len(self.ready))
        for name, array in zip(names, old, strict=True):
            getattr(self, name)[: len(array)] = array

    def block(self, instance: Instance, layer: int) -> int:
        """Number of the block of an (instance, layer), a new one if it was never asked for."""
        key = (instance.uri, layer)
        if key not in self._blocks:
            if len(self._origin) == len(self.ready):
                self._grow()
            self._blocks[key] = len(self._origin)
            self._origin.append((instance, layer))
        return self._blocks[key]

    def origin(self, block: int) -> tuple[Instance, int]:
        """The (instance, layer) of a block."""
        return self._origin[block]

    def ensure_segment(self, block: int, position: int) -> None:
        """Makes static row and changes of a segment, and of those before it, be there."""
        if self.ready[block] <= position:
            self._fill_on_return(block)
        while self.ready[block] <= position:
            self._stream(block, int(self.ready[block]))

    def ensure_outcome(self, block: int, position: int, choice: int) -> None:
        """Makes cosine and error of a rank at a segment be there."""
        self.ensure_segment(block, position)
        if self._lacks(block, position, choice):
            self._fill_on_return(block)
        if self._lacks(block, position, choice):
            self._measure(block, position, choice, self._segment(block, position))

    def _lacks(self, block: int, position: int, choice: int) -> bool:
        return bool(np.isnan(self.outcomes[block, position, choice, 0]))

    def _fill_on_return(self, block: int) -> None:
        """Measures an instance that would be captured a second time whole, so that there is no third."""
        instance, _ = self._origin[block]
        if self._live.returns(instance):
            self.fill([instance], progress=False)

    def _segment(self, block: int, position: int) -> Segment:
        instance, layer = self._origin[block]
        return self._live.get(instance).layer(layer).segment(position)

    @torch.inference_mode()
    def _stream(self, block: int, position: int) -> None:
        """Writes the static row and the changes of the block's next segment."""
        segment = self._segment(block, position)
        instance, layer = self._origin[block]
        self._write_static(block, position, segment, layer, instance)
        total = segment.products.total.sum().item() / self.world.shape.dim
        squared = segment.changes.sum(0).numpy()
        self.changes[block, position] = np.sqrt(squared / total) if total > 0 else 0.0
        self.ready[block] = position + 1

    def _write_static(self, block: int, position: int, segment: Segment, layer: int, instance: Instance) -> None:
        slices, row = self.world.layout.slices, self.static[block * self.world.segments + position]
        row[slices["energy"]] = energy_row(segment)
        row[slices["segment"]] = segment_row(segment)
        row[slices["window"]] = self._window(block, position)
        row[slices["layer"]] = layer_row(layer, self.world.layers, self.world.calibration.weights[layer])
        row[slices["tokens"]] = self._live.get(instance).tokens[position]

    def _window(self, block: int, position: int) -> NDArray[np.float32]:
        """Statistics of the last `WINDOW` segments, zero before the first."""
        first = block * self.world.segments
        rows = self.static[first + max(0, position - WINDOW) : first + position, self.world.layout.slices["segment"]]
        missing = np.zeros((WINDOW - len(rows), rows.shape[1]), np.float32)
        return np.concatenate([missing, rows]).ravel()

    @torch.inference_mode()
    def _measure(self, block: int, position: int, choice: int, segment: Segment) -> None:
        moments = segment.moments(choice)
        self.moments[block, position, choice] = moments.numpy()
        self.outcomes[block, position, choice] = cosine(moments), relative_error(moments)

    def is_filled(self, instance: Instance, layers: Iterable[int]) -> bool:
        """Whether every rank of every segment of these layers is measured."""
        blocks = [self._blocks.get((instance.uri, layer)) for layer in layers]
        return all(block is not None and not np.isnan(self.outcomes[block]).any() for block in blocks)

    def fill(self, found: Iterable[Instance], layers: Iterable[int] | None = None, progress: bool = True) -> None:
        """Measures every rank of every segment of these instances, with a progress bar, about a second each."""
        wanted = tuple(range(self.world.layers)) if layers is None else tuple(layers)
        missing = [instance for instance in found if not self.is_filled(instance, wanted)]
        for instance in tqdm(missing, desc="measuring spans", unit="span", disable=not (progress and missing)):
            self._live.forget(instance)
            for layer in wanted:
                self._fill_block(self.block(instance, layer))
            self._live.drop(instance)

    def _fill_block(self, block: int) -> None:
        for position in range(self.world.segments):
            for choice in range(len(self.world.ranks)):
                self.ensure_outcome(block, position, choice)

    def captured(self, instance: Instance) -> Capture:
        """The captured instance; captured now if it is not at hand."""
        return self._live.get(instance).capture

    def forget_live(self) -> None:
        """Frees the captured instances; what was measured stays."""
        self._live.clear()


@lru_cache(maxsize=8)
def _shared_store(measurement: Measurement) -> Store:
    return Store(open_world(measurement))


def open_store(measurement: Measurement) -> Store:
    """The process-wide store of a measurement."""
    return _shared_store(open_world(measurement).measurement)


def clear_stores() -> None:
    """Forgets everything measured in this process; an environment made from now on computes anew."""
    _shared_store.cache_clear()
