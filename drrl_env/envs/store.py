"""The store: everything measured in a world, remembered and replayed bit for bit.

A *block* is an (instance, layer); its rows are segments. What is not there yet is computed when it is asked
for, by calls of the same shapes whoever asks, so a number does not depend on when it was computed. What was computed
once persists on disk (see `traces`), unless DRRL_TRACES is `off`.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from functools import lru_cache
from weakref import finalize

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from drrl_env.data.instances import Instance
from drrl_env.envs.arrays import Array
from drrl_env.envs.ledger import Ledger, save_all
from drrl_env.envs.live import LiveCache, LiveLayer
from drrl_env.envs.observation import WINDOW, entry_row, view_of
from drrl_env.envs.predictor import segment_evidence
from drrl_env.envs.settings import Measurement
from drrl_env.envs.sources import source_changes
from drrl_env.envs.tables import BASE, SOURCES, tables
from drrl_env.envs.traces import open_traces
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
        head_changes: ‖S_r − S_r'‖² of every query head over the layer's ‖S‖², (blocks, segments, heads, ranks, ranks).
        outcomes: cosine and relative error per rank, (blocks, segments, ranks, 2); NaN where not measured.
        moments: per head, (blocks, segments, ranks, heads, 4); see `lowrank.attention.output_moments`.
        ready: segments streamed so far, (blocks,).
        evidence: what a conformal guard reads of a segment, (blocks, segments, evidence); NaN where nobody asked.
        source_outcomes: `outcomes` in another basis, (blocks, segments, segments + 1, ranks, 2): source 0 is the
            calibrated basis, 1 + s that refreshed at segment s, at most the own; NaN where not measured.
        source_changes: ‖S_new − S_previous‖ / ‖S‖ between bases, (blocks, segments, segments + 1, 2, ranks, 3, ranks):
            slot (0: nothing refreshed before; 1 + s: last refreshed at s, an earlier segment), previous basis
            (calibrated, the slot's), previous rank, new basis (calibrated, the slot's, refreshed here), new rank; NaN
            where not measured, and where the slot has no basis.
        derived: what others worked out from these numbers, by its rules; forgotten with them.

    The source arrays take memory from when they are first looked at.
    """

    static: NDArray[np.float32]
    changes: Doubles
    head_changes: Doubles
    outcomes: Doubles
    moments: Doubles
    evidence: Doubles
    ready: NDArray[np.int64]
    source_outcomes: Doubles
    source_changes: Doubles

    def __init__(self, world: World) -> None:
        self.world = world
        specs = tables(world)
        self._ledger = Ledger(specs, open_traces(world, specs))
        self._live = LiveCache(world, self._ledger.save_instance)
        self.derived: dict[Hashable, object] = {}
        self._bind(BASE)
        finalize(self, self._ledger.save)

    def _bind(self, table: str) -> None:
        """Makes a table's arrays attributes: a lane's gather should cost no more than that."""
        arrays: dict[str, Array] = dict(self._ledger.table(table).arrays)
        if table == BASE:
            arrays["static"] = arrays["static"].reshape(-1, self.world.layout.width)
        vars(self).update(arrays)

    def __getattr__(self, name: str) -> Array:
        """The source arrays, the first time that one is looked at."""
        if name not in ("source_outcomes", "source_changes"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        self._bind(SOURCES)
        found: Array = vars(self)[name]
        return found

    def block(self, instance: Instance, layer: int) -> int:
        """Number of the block of an (instance, layer), a new one if it was never asked for."""
        found = self._ledger.numbers.get((instance.uri, layer))
        return self._add(instance, layer) if found is None else found

    def _add(self, instance: Instance, layer: int) -> int:
        """A new block, with what is on disk of it."""
        number = self._ledger.add(instance, layer)
        self._bind(BASE)
        if "source_changes" in vars(self):
            self._bind(SOURCES)
        self._ledger.load(BASE, number)
        streamed = ~np.isnan(self.changes[number, :, 0, 0])
        self.ready[number] = streamed.cumprod().sum()
        return number

    def origin(self, block: int) -> tuple[Instance, int]:
        """The (instance, layer) of a block."""
        return self._ledger.origin[block]

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

    @torch.inference_mode()
    def ensure_evidence(self, block: int, position: int) -> None:
        """Makes what a conformal guard reads of a segment be there; only under such a guard does anybody ask."""
        self.ensure_segment(block, position)
        if np.isnan(self.evidence[block, position, 0]):
            self.evidence[block, position] = segment_evidence(self._segment(block, position)).numpy()
            self._ledger.measured(BASE, block)

    def _lacks(self, block: int, position: int, choice: int) -> bool:
        return bool(np.isnan(self.outcomes[block, position, choice, 0]))

    def _fill_on_return(self, block: int) -> None:
        """Measures an instance that would be captured a second time whole, so that there is no third."""
        instance, _ = self._ledger.origin[block]
        if self._live.returns(instance):
            self.fill([instance], progress=False)

    def _segment(self, block: int, position: int) -> Segment:
        instance, layer = self._ledger.origin[block]
        return self._live.get(instance).layer(layer).segment(position)

    @torch.inference_mode()
    def _stream(self, block: int, position: int) -> None:
        """Writes the static row and the changes of the block's next segment."""
        segment = self._segment(block, position)
        instance, layer = self._ledger.origin[block]
        self._write_static(block, position, segment, layer, instance)
        total = segment.products.total.sum().item() / self.world.shape.dim
        squared = segment.changes.sum(0).numpy()
        self.changes[block, position] = np.sqrt(squared / total) if total > 0 else 0.0
        self.head_changes[block, position] = segment.head_changes.numpy() / total if total > 0 else 0.0
        self.ready[block] = position + 1
        self._ledger.measured(BASE, block)

    def _write_static(self, block: int, position: int, segment: Segment, layer: int, instance: Instance) -> None:
        layout, row = self.world.layout, self.static[block * self.world.segments + position]
        view = view_of(segment, self.world.calibration.weights[layer], self._live.get(instance).tokens[position])
        for entry in layout.entries:
            past = entry.name == "window"
            row[layout.slices[entry.name]] = self._window(block, position) if past else entry_row(entry, view, layer)

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
        self._ledger.measured(BASE, block)
        if not np.isnan(self.outcomes[block]).any():
            self._ledger.save_block(block)

    def ensure_source_outcome(self, block: int, position: int, source: int, choice: int) -> None:
        """Makes cosine and error of a rank in another basis be there; sources as in `source_outcomes`."""
        self._ready_sources(block)
        if np.isnan(self.source_outcomes[block, position, source, choice, 0]):
            self._fill_sources_on_return(block)
        if np.isnan(self.source_outcomes[block, position, source, choice, 0]):
            self._measure_source(block, position, source, choice)

    @torch.inference_mode()
    def _measure_source(self, block: int, position: int, source: int, choice: int) -> None:
        moments = self._refreshed(block).source(position, source).moments(choice)
        self.source_outcomes[block, position, source, choice] = cosine(moments), relative_error(moments)
        self._ledger.measured(SOURCES, block)

    def ensure_source_changes(self, block: int, position: int, slot: int) -> None:
        """Makes the changes between the bases in hand at a segment be there; slots as in `source_changes`."""
        self._ready_sources(block)
        if np.isnan(self.source_changes[block, position, slot]).all():
            self._fill_sources_on_return(block)
        if np.isnan(self.source_changes[block, position, slot]).all():
            self._measure_source_changes(block, position, slot)

    @torch.inference_mode()
    def _measure_source_changes(self, block: int, position: int, slot: int) -> None:
        self.source_changes[block, position, slot] = source_changes(self._refreshed(block), position, slot)
        self._ledger.measured(SOURCES, block)

    def _ready_sources(self, block: int) -> None:
        """Allocates the source arrays, and reads what is on disk of a block's."""
        if "source_changes" not in vars(self):
            self._bind(SOURCES)
        self._ledger.load(SOURCES, block)

    def _refreshed(self, block: int) -> LiveLayer:
        instance, layer = self._ledger.origin[block]
        return self._live.get(instance).layer(layer, "refreshed")

    def _fill_sources_on_return(self, block: int) -> None:
        """Measures all of a block in every basis, if its instance would be captured a second time."""
        instance, _ = self._ledger.origin[block]
        if self._live.returns(instance):
            self._live.forget(instance)
            self.fill_sources(block)
            self._live.drop(instance)

    def fill_sources(self, block: int) -> None:
        """Measures every rank in every basis at every segment of a block, a few seconds."""
        for position in range(self.world.segments):
            for source in range(position + 2):
                for choice in range(len(self.world.ranks)):
                    self.ensure_source_outcome(block, position, source, choice)
            for slot in range(position + 1):
                self.ensure_source_changes(block, position, slot)
        self._ledger.save_block(block)

    def is_filled(self, instance: Instance, layers: Iterable[int]) -> bool:
        """Whether every rank of every segment of these layers is measured."""
        blocks = [self.block(instance, layer) for layer in layers]
        return not np.isnan(self.outcomes[blocks]).any()

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

    def save(self) -> None:
        """Writes to disk what was measured since; blocks that are complete or no longer live are there already."""
        self._ledger.save()

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
    """Forgets everything measured in this process, once it is on disk.

    An environment made from now on reads it there; with DRRL_TRACES=off it computes anew.
    """
    save_all()
    _shared_store.cache_clear()
