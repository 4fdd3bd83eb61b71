"""Capture: q, k, v after the positional encoding, of every layer, from any causal LM.

One door for capture and for patching: an attention function registered with transformers, which every
architecture that supports the interface calls with q, k and v as its attention will see them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

ATTENTION_NAME = "drrl"


@dataclass
class Recording:
    """What a forward pass showed, layer by layer.

    Attributes:
        layers: layer number to (queries, keys, values): (heads, tokens, dim) and (kv_heads, tokens, dim).
    """

    layers: dict[int, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict)


Driver = Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor]
"""Computes attention in the model's stead: of an attention module, queries (heads, tokens, dim) whose scores are
q kᵀ/√dim, keys (kv_heads, tokens, dim) and values (kv_heads, tokens, value_dim), to (heads, tokens, value_dim)."""

# Context variables, not globals: what one thread records or drives is none of another's business.
_RECORDING: ContextVar[Recording | None] = ContextVar("drrl_recording", default=None)
_DRIVER: ContextVar[Driver | None] = ContextVar("drrl_driver", default=None)


def _attention(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
    """SDPA that shows its inputs to the recording in force, if there is one, and gives way to a driver."""
    recording, driver = _RECORDING.get(), _DRIVER.get()
    if recording is None and driver is None:
        return sdpa_attention_forward(module, query, key, value, *args, **kwargs)
    shown = _as_plain_scores(query[0], kwargs).contiguous(), key[0].contiguous(), value[0].contiguous()
    if recording is not None:
        recording.layers[int(module.layer_idx)] = shown  # type: ignore[arg-type]
    if driver is None:
        return sdpa_attention_forward(module, query, key, value, *args, **kwargs)
    return driver(module, *shown).transpose(0, 1)[None].contiguous(), None


def _as_plain_scores(query: Tensor, kwargs: dict[str, Any]) -> Tensor:
    """Queries for which the layer's scores are q kᵀ/√dim, whatever factor the layer has of its own (GPT-2 has two).

    Raises:
        ValueError: its scores are more than a product of q and k.
    """
    extra = [name for name in ("position_bias", "softcap", "s_aux") if kwargs.get(name) is not None]
    if extra:
        raise ValueError(f"model: its attention adds {extra[0]} to q kᵀ, which no rank of q and k gives; use another")
    plain = query.shape[-1] ** -0.5
    factor = kwargs.get("scaling") or plain
    return query if math.isclose(factor, plain, rel_tol=1e-6) else query * (factor / plain)


# Without a mask function of the same name transformers would silently mask nothing, padding included.
AttentionInterface.register(ATTENTION_NAME, _attention)
AttentionMaskInterface.register(ATTENTION_NAME, sdpa_mask)


@contextmanager
def recording() -> Iterator[Recording]:
    """While open, every forward pass of a batch of one leaves its q, k, v in the recording."""
    found = Recording()
    token = _RECORDING.set(found)
    try:
        yield found
    finally:
        _RECORDING.reset(token)


@contextmanager
def driving(driver: Driver) -> Iterator[None]:
    """While open, the attention of every forward pass of a batch of one is computed by `driver`.

    The mask that transformers makes is not passed on: a driver knows which keys its queries may see.
    """
    token = _DRIVER.set(driver)
    try:
        yield
    finally:
        _DRIVER.reset(token)


def attention_modules(network: PreTrainedModel) -> list[nn.Module]:
    """The attention modules in the order of their layers."""
    found = {int(m.layer_idx): m for m in network.modules() if _is_attention(m)}  # type: ignore[arg-type]
    return [found[index] for index in sorted(found)]


def _is_attention(module: nn.Module) -> bool:
    """Decoder layers carry a layer_idx too; an attention module is one that scales scores or says it is causal."""
    has_index = getattr(module, "layer_idx", None) is not None
    return has_index and (hasattr(module, "scaling") or hasattr(module, "is_causal"))


@dataclass(frozen=True)
class Capture:
    """One sequence under a model.

    Attributes:
        layers: per layer (queries, keys, values): (heads, tokens, dim) and (kv_heads, tokens, dim), float32.
        embeddings: input embeddings, (tokens, hidden).
        log_likelihood: of each next token under the full model, nats, (tokens - 1,).
    """

    layers: tuple[tuple[Tensor, Tensor, Tensor], ...]
    embeddings: Tensor
    log_likelihood: Tensor

    @cached_property
    def bytes(self) -> int:
        """Memory the tensors take."""
        tensors = [tensor for layer in self.layers for tensor in layer] + [self.embeddings]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@torch.no_grad()
def capture(network: PreTrainedModel, token_ids: Tensor) -> Capture:
    """Runs the model once over a sequence and keeps what its attention saw.

    Args:
        network: a model loaded by `load_language_model`.
        token_ids: (tokens,), int64.

    Raises:
        ValueError: the architecture does not use transformers' attention interface.
    """
    with recording() as found:
        logits = network(input_ids=token_ids[None], use_cache=False).logits[0]
    if not found.layers:
        raise ValueError("model: this architecture does not call transformers' AttentionInterface; use another")
    scores = token_log_likelihood(logits[:-1], token_ids[1:])
    embeddings: Tensor = network.get_input_embeddings()(token_ids)
    return Capture(tuple(found.layers[index] for index in sorted(found.layers)), embeddings, scores)


def token_log_likelihood(logits: Tensor, targets: Tensor) -> Tensor:
    """Log-likelihood of each target, nats, (tokens,), from logits (tokens, vocabulary) in float32."""
    found: Tensor = torch.log_softmax(logits.float(), dim=-1).gather(-1, targets[:, None])[:, 0]
    return found
