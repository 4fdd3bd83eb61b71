"""The streaming engine: a layer's attention, fed segment by segment, answered at any rank.

Environments, benchmarks and patched models all drive this one object; there is no second implementation.
A refreshed basis starts each segment from the calibrated one and never from the chosen rank, so what is
computed for (segment, basis, rank) does not depend on what was chosen before and can be remembered.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy

import torch
from torch import Tensor

from drrl_env.lowrank.attention import project
from drrl_env.lowrank.bases import ScoreBasis, refresh
from drrl_env.lowrank.flops import decomposition_method
from drrl_env.lowrank.grams import Grams, empty_key_gram, group_queries, update_grams
from drrl_env.lowrank.segment import LayerBases, Segment, StreamSettings, calibrated_basis

__all__ = ["LayerBases", "LayerStream", "Segment", "StreamSettings", "run_stream"]


class LayerStream:
    """One layer's attention over one sequence, fed a segment at a time.

    Args:
        settings: sizes, candidate ranks and basis.
        bases: the layer's calibrated bases.
        capacity: tokens to make room for.
    """

    def __init__(self, settings: StreamSettings, bases: LayerBases, capacity: int) -> None:
        shape = settings.shape
        self.settings, self.bases, self.position = settings, bases, 0
        self._key_gram = empty_key_gram(shape.kv_heads, shape.dim)
        self._keys = torch.empty(shape.kv_heads, capacity, shape.dim)
        self._values = torch.empty(shape.kv_heads, capacity, shape.value_dim)
        self._reduced_values = torch.empty(shape.kv_heads, capacity, settings.value_width)
        self._kept_keys = torch.empty(shape.kv_heads, capacity, settings.width if settings.basis == "calibrated" else 0)
        self._calibrated = calibrated_basis(bases, settings.width)
        self._power = self._calibrated.key[..., 0]
        self._previous: ScoreBasis | None = None

    def advance(self, queries: Tensor, keys: Tensor, values: Tensor) -> Segment:
        """Takes in the next segment: its keys update the Grams, and the basis is refreshed.

        Args:
            queries: (heads, segment, dim), after the positional encoding.
            keys: (kv_heads, segment, dim), after the positional encoding.
            values: (kv_heads, segment, value_dim).

        Returns:
            The segment, ready to be answered at any candidate rank.

        Raises:
            ValueError: the segment is not of the settings' size, or the stream is full.
        """
        grouped = group_queries(queries, self.settings.shape.kv_heads)
        self._append(keys, values)
        grams = update_grams(self._key_gram, grouped, keys)
        self._key_gram, self._power = grams.key, _power_step(grams, self._power)
        segment = self._segment(grouped, grams)
        self._previous, self.position = segment.basis, self.position + 1
        return segment

    def copy(self) -> LayerStream:
        """An independent stream at the same position: what one takes in does not show in the other."""
        twin = copy(self)
        vars(twin).update({name: held.clone() for name, held in vars(self).items() if isinstance(held, Tensor)})
        return twin

    def _append(self, keys: Tensor, values: Tensor) -> None:
        """Stores the new rows and their projections into the fixed bases."""
        size = self.settings.shape.segment
        if keys.shape[-2] != size:
            raise ValueError(f"keys: {keys.shape[-2]} tokens; this stream takes segments of {size}")
        rows = slice(self.position * size, (self.position + 1) * size)
        if rows.stop > self._keys.shape[-2]:
            raise ValueError(f"segment {self.position}: capacity={self._keys.shape[-2]} is used up; give a larger one")
        self._keys[:, rows], self._values[:, rows] = keys, values
        self._reduced_values[:, rows] = project(values, self.bases.value[..., : self.settings.value_width])
        if self.settings.basis == "calibrated":
            self._kept_keys[:, rows] = project(keys, self._calibrated.key)

    def _segment(self, queries: Tensor, grams: Grams) -> Segment:
        held = self.settings.shape.keys(self.position)
        calibrated = self.settings.basis == "calibrated"
        return Segment(
            settings=self.settings,
            bases=self.bases,
            position=self.position,
            queries=queries,
            keys=self._keys[:, :held],
            values=self._values[:, :held],
            reduced_values=self._reduced_values[:, :held],
            kept_keys=self._kept_keys[:, :held] if calibrated else None,
            grams=grams,
            basis=self._calibrated if calibrated else self._refresh(grams),
            power=self._power,
            previous=self._previous,
        )

    def _refresh(self, grams: Grams) -> ScoreBasis:
        method = decomposition_method(self.settings.shape.dim, self.settings.width)
        return refresh(grams, self._calibrated.key, method)


def _power_step(grams: Grams, vector: Tensor) -> Tensor:
    """One step of streaming power iteration on G_q G_k, unit length (the paper's Eq. 18)."""
    image = (grams.query @ (grams.key @ vector[..., None]))[..., 0]
    length: Tensor = torch.linalg.vector_norm(image, dim=-1, keepdim=True)
    return image / length.clamp_min(torch.finfo(image.dtype).tiny)


def run_stream(stream: LayerStream, tensors: Sequence[Tensor], segments: int) -> list[Segment]:
    """Feeds the first `segments` segments of whole-sequence (queries, keys, values), each (heads, tokens, dim)."""
    size = stream.settings.shape.segment
    found = []
    for position in range(segments):
        rows = slice(position * size, (position + 1) * size)
        found.append(stream.advance(*(tensor[:, rows] for tensor in tensors)))
    return found
