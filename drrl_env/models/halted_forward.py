"""One segment's forward pass through any causal LM, halted at every attention until somebody gives its output.

The network's own code runs, whatever lies between its layers. Each time it starts from the embeddings: layers that
are done answer from memory, the next one runs, and at the attention after it a private exception unwinds the pass.
So a pass needs no thread and knows no architecture, and between two steps the network is as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from threading import RLock
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from drrl_env.lowrank.attention import full_attention
from drrl_env.lowrank.grams import group_queries
from drrl_env.models.capture import attention_modules, driving

CHECKED_SEGMENT = 8
CHECKED_SEGMENTS = 3
CHECKED_ERROR = 1e-4
"""Share of the logits' norm that may change when a network is taken segment by segment: rounding is 1e-6 of it."""


@dataclass(frozen=True)
class HaltedForward:
    """A forward pass of one segment that waits for the output of one attention, or is at its end.

    Attributes:
        network: the model.
        layers: its decoder layers; see `decoder_layers`.
        token_ids: of the segment, (segment,), int64.
        start: position of its first token in the sequence.
        done: what each layer below returned, as the network has it.
        waiting: (queries, keys, values) of the attention that waits, (heads, segment, dim) and
            (kv_heads, segment, dim), of this segment alone; None at the end.
        logits: (segment, vocabulary) at the end; None before.
    """

    network: PreTrainedModel
    layers: tuple[nn.Module, ...]
    token_ids: Tensor
    start: int
    done: tuple[Any, ...] = ()
    waiting: tuple[Tensor, Tensor, Tensor] | None = None
    logits: Tensor | None = None

    def resume(self, output: Tensor) -> HaltedForward:
        """The pass at the next attention, or at its end; this one stays as it is and may be resumed again.

        Args:
            output: of the attention that waits, (heads, segment, value_dim).
        """
        return _run(self, output)


def begin_forward(network: PreTrainedModel, token_ids: Tensor, start: int) -> HaltedForward:
    """The pass of a segment at its first attention.

    Args:
        network: a model loaded by `load_language_model`.
        token_ids: of the segment, (segment,), int64.
        start: position of its first token in the sequence.
    """
    return _run(HaltedForward(network, decoder_layers(network), token_ids, start), None)


def decoder_layers(network: PreTrainedModel) -> tuple[nn.Module, ...]:
    """For each attention module the largest module known to hold no other: its decoder layer where there is one."""
    owners: dict[nn.Module, nn.Module] = {}
    for listed in network.modules():
        # Outer lists come first, so that an item of an inner list takes over.
        items = listed if isinstance(listed, nn.ModuleList) else ()
        owners.update((inner, item) for item in items for inner in item.modules())
    attentions = tuple(attention_modules(network))
    layers = tuple(owners.get(module, module) for module in attentions)
    return layers if len(set(layers)) == len(layers) else attentions


class _Halt(BaseException):
    """Unwinds a forward pass; not an Exception, so that no `except Exception` on its way takes it for an error."""


class _Pass:
    """One run of the network: known layers from memory, at most one attention answered, then a halt."""

    def __init__(self, known: tuple[Any, ...], answer: Tensor | None) -> None:
        self.done, self._known, self._answer = list(known), len(known), answer
        self.waiting: tuple[Tensor, Tensor, Tensor] | None = None

    def layer(self, index: int, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """In the place of a decoder layer's forward."""
        if index < self._known:
            return self.done[index]
        output = forward(*args, **kwargs)
        self.done.append(output)
        return output

    def attend(self, module: nn.Module, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """In the place of attention: a `capture.Driver`."""
        if self._answer is None:
            self.waiting = (queries, keys, values)
            raise _Halt
        answer, self._answer = self._answer, None
        return answer


_PASS: ContextVar[_Pass | None] = ContextVar("drrl_pass", default=None)
_PATCHING = RLock()
"""Forward methods are attributes of the network that all threads see: two passes must not replace them at once."""


def _run(halted: HaltedForward, answer: Tensor | None) -> HaltedForward:
    """Runs the network up to the attention after the one that is answered."""
    current, ids = _Pass(halted.done, answer), halted.token_ids[None]
    positions = torch.arange(halted.start, halted.start + ids.shape[-1])[None]
    with torch.inference_mode(False), torch.no_grad(), _patched(halted.layers, current), driving(current.attend):
        try:
            logits = halted.network(input_ids=ids, position_ids=positions, use_cache=False).logits[0]
        except _Halt:
            logits = None
    return replace(halted, done=tuple(current.done), waiting=current.waiting, logits=logits)


@contextmanager
def _patched(layers: tuple[nn.Module, ...], current: _Pass) -> Iterator[None]:
    """While open, the decoder layers ask the pass; their attributes are as before afterwards."""
    with _PATCHING:
        before = [vars(layer).get("forward") for layer in layers]
        token = _PASS.set(current)
        try:
            for index, layer in enumerate(layers):
                vars(layer)["forward"] = _asking(index, layer.forward)
            yield
        finally:
            _PASS.reset(token)
            for layer, forward in zip(layers, before, strict=True):
                _restore(layer, forward)


def _asking(index: int, forward: Callable[..., Any]) -> Callable[..., Any]:
    """A forward method that asks the pass of its own thread, if there is one."""

    def asking(*args: Any, **kwargs: Any) -> Any:
        current = _PASS.get()
        return forward(*args, **kwargs) if current is None else current.layer(index, forward, *args, **kwargs)

    return asking


def _restore(layer: nn.Module, forward: Callable[..., Any] | None) -> None:
    if forward is None:
        vars(layer).pop("forward", None)
    else:
        vars(layer)["forward"] = forward


_CHECKED: WeakSet[PreTrainedModel] = WeakSet()


def check_segmentable(network: PreTrainedModel) -> None:
    """Raises where a network taken segment by segment is another network; looked at once per network.

    Raises:
        ValueError: something besides attention mixes tokens (a recurrence, a convolution), positions are not taken
            from `position_ids`, or it is not in evaluation mode.
    """
    if network.training:
        raise ValueError("network: is in training mode, where its output is random; call network.eval() first")
    if network in _CHECKED:
        return
    ids = torch.arange(CHECKED_SEGMENT * CHECKED_SEGMENTS)
    with torch.inference_mode(False), torch.no_grad():
        wanted = network(input_ids=ids[None], use_cache=False).logits[0]
        error = float((_segmented_logits(network, ids) - wanted).norm() / wanted.norm())
    if not error <= CHECKED_ERROR:
        raise ValueError(
            f"model: taken segment by segment its logits change by {error:.2g} of their norm, so more than "
            "attention mixes its tokens; use another"
        )
    _CHECKED.add(network)


def _segmented_logits(network: PreTrainedModel, ids: Tensor) -> Tensor:
    """With full attention, segment by segment, (tokens, vocabulary)."""
    held: dict[int, list[Tensor]] = {}
    found = []
    for start in range(0, len(ids), CHECKED_SEGMENT):
        halted = begin_forward(network, ids[start : start + CHECKED_SEGMENT], start)
        while halted.waiting is not None:
            halted = halted.resume(_attend(halted.waiting, held.setdefault(len(halted.done), [])))
        assert halted.logits is not None
        found.append(halted.logits)
    return torch.cat(found)


def _attend(waiting: tuple[Tensor, Tensor, Tensor], held: list[Tensor]) -> Tensor:
    """Full attention over the keys and values held, this segment's included, (heads, segment, value_dim)."""
    queries, keys, values = waiting
    held[:] = [torch.cat(pair, 1) for pair in zip(held, (keys, values), strict=True)] if held else [keys, values]
    out = full_attention(group_queries(queries, len(keys)), held[0], held[1], queries.shape[1])
    return out.reshape(*queries.shape[:2], -1)
