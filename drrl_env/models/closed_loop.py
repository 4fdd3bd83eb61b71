"""The closed loop: approximated attention that flows on through a whole LM, each layer's rank chosen on the way.

Every layer has a `LayerStream` of its own, fed with the q, k and v that arrive there, so an error made in one layer
is in the keys of those above, now and in every later segment.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from numbers import Integral

import torch
from torch import Tensor
from transformers import PreTrainedModel

from drrl_env.lowrank.stream import LayerBases, LayerStream, Segment, StreamSettings
from drrl_env.models.capture import attention_modules, token_log_likelihood
from drrl_env.models.halted_forward import HaltedForward, begin_forward, check_segmentable


class ClosedLoop:
    """One sequence through a whole LM, segment by segment and layer by layer; at each layer somebody chooses the rank.

    Args:
        network: a model loaded by `load_language_model`; it is shared, and left as it was after every call.
        settings: stream settings per layer, all of one segment size.
        bases: calibrated bases per layer.
        token_ids: (tokens,), int64; a multiple of the segment size.

    Attributes:
        position: segment the next choice is for; the number of segments at the end.
        layer: layer the next choice is for; 0 at the end.

    Raises:
        ValueError: the arguments do not fit one another, or the network cannot be taken segment by segment.
    """

    def __init__(
        self,
        network: PreTrainedModel,
        settings: Sequence[StreamSettings],
        bases: Sequence[LayerBases],
        token_ids: Tensor,
    ) -> None:
        _check(network, settings, bases, token_ids)
        check_segmentable(network)
        self._network, self._token_ids = network, token_ids
        self._size = settings[0].shape.segment
        self.position, self.layer = 0, 0
        self._log_likelihoods: tuple[Tensor, ...] = ()
        self._halted: HaltedForward | None = None
        self._segment: Segment | None = None
        with torch.inference_mode(False), torch.no_grad():
            self._streams = [LayerStream(*given, len(token_ids)) for given in zip(settings, bases, strict=True)]
            self._owned = [True] * len(self._streams)
            self._wait_at(self._begin(0))

    @property
    def segments(self) -> int:
        """Segments of the sequence."""
        return len(self._token_ids) // self._size

    @property
    def ended(self) -> bool:
        """Whether every layer of every segment is done."""
        return self.position == self.segments

    @property
    def segment(self) -> Segment:
        """The attention that waits for a choice: its statistics are known, its output at any rank can be asked for.

        Raises:
            ValueError: the sequence is at its end.
        """
        if self._segment is None:
            raise ValueError(f"position={self.position}: the sequence has ended; start a new ClosedLoop")
        return self._segment

    @property
    def log_likelihood(self) -> Tensor:
        """Of each next token of the segments done so far, nats, (segments · segment,); one less at the end."""
        return torch.cat([torch.empty(0), *self._log_likelihoods])

    @property
    def embeddings(self) -> Tensor:
        """Input embeddings of the segment that waits, (segment, hidden); of the last one at the end."""
        with torch.inference_mode(False), torch.no_grad():
            found: Tensor = self._network.get_input_embeddings()(self._ids(min(self.position, self.segments - 1)))
        return found

    def choose(self, choice: int) -> None:
        """Executes the waiting attention at a candidate rank; its output flows on to the next layer's attention.

        An exception from within the network, an interrupt too, leaves the loop where it was.

        Args:
            choice: number of the candidate rank, from 0.

        Raises:
            ValueError: no such candidate, or the sequence is at its end.
        """
        segment = self.segment
        assert self._halted is not None
        count = len(segment.settings.costs)
        if not isinstance(choice, Integral) or not 0 <= choice < count:
            raise ValueError(f"choice={choice!r}: there are {count} candidate ranks; use 0 to {count - 1}")
        with torch.inference_mode(False), torch.no_grad():
            output = segment.output(int(choice)).reshape(segment.settings.shape.heads, self._size, -1)
            self._go_on(self._halted.resume(output))

    def fork(self) -> ClosedLoop:
        """An independent loop at the same point; buffers are copied layer by layer, when one of the two writes."""
        twin = copy(self)
        twin._streams = list(self._streams)
        self._owned, twin._owned = [False] * len(self._streams), [False] * len(self._streams)
        return twin

    def _go_on(self, halted: HaltedForward) -> None:
        """To the next layer, or over the end of the segment to the next one."""
        if halted.logits is None:
            self._wait_at(halted)
            return
        following = self.position + 1
        targets = self._token_ids[self.position * self._size + 1 : following * self._size + 1]
        found = token_log_likelihood(halted.logits[: len(targets)], targets)
        begun = self._begin(following) if following < self.segments else None
        self._log_likelihoods, self.position = (*self._log_likelihoods, found), following
        self._wait_at(begun)

    def _begin(self, position: int) -> HaltedForward:
        return begin_forward(self._network, self._ids(position), position * self._size)

    def _ids(self, position: int) -> Tensor:
        return self._token_ids[position * self._size : (position + 1) * self._size]

    def _wait_at(self, halted: HaltedForward | None) -> None:
        """Feeds the layer's stream with what arrived at its attention."""
        self._halted, self._segment = halted, None
        self.layer = len(halted.done) if halted is not None else 0
        if halted is not None and halted.waiting is not None:
            self._segment = self._stream(self.layer).advance(*halted.waiting)

    def _stream(self, layer: int) -> LayerStream:
        """The layer's stream, this loop's alone."""
        if not self._owned[layer]:
            self._streams[layer], self._owned[layer] = self._streams[layer].copy(), True
        return self._streams[layer]


def _check(
    network: PreTrainedModel, settings: Sequence[StreamSettings], bases: Sequence[LayerBases], token_ids: Tensor
) -> None:
    """Raises where the arguments do not fit one another."""
    layers = len(attention_modules(network))
    for name, given in (("settings", settings), ("bases", bases)):
        if len(given) != layers:
            raise ValueError(f"{name}: for {len(given)} layers, the network has {layers}; give one for each")
    sizes = {setting.shape.segment for setting in settings}
    if len(sizes) > 1:
        raise ValueError(f"settings: segments of {sorted(sizes)} tokens; all layers need the same")
    size = sizes.pop()
    if token_ids.ndim != 1 or len(token_ids) < size or len(token_ids) % size:
        raise ValueError(
            f"token_ids: shape {tuple(token_ids.shape)} is no multiple of segment={size} tokens; cut or lengthen it"
        )
