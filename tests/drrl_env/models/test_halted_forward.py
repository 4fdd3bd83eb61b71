"""A forward pass that waits at every attention is the network's own, and leaves no trace in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from threading import Thread
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPTNeoXConfig, Lfm2Config, LlamaConfig, OPTConfig, PreTrainedConfig

from drrl_env.lowrank.attention import full_attention
from drrl_env.lowrank.grams import group_queries
from drrl_env.models.capture import Capture, capture
from drrl_env.models.halted_forward import HaltedForward, begin_forward, check_segmentable, decoder_layers
from drrl_env.models.language_model import LanguageModel, load_language_model

START = {"vocab_size": 4096, "bos_token_id": 0, "eos_token_id": 0}
TINY = {**START, "hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2, "max_position_embeddings": 256}
CONFIGS = {
    "gpt2-other-factors": GPT2Config(
        **START, n_embd=64, n_layer=2, n_head=4, n_positions=256, scale_attn_by_inverse_layer_idx=True
    ),
    "opt": OPTConfig(**TINY, ffn_dim=96, word_embed_proj_dim=64),
    "neox": GPTNeoXConfig(**TINY, intermediate_size=96),
    "one-layer": LlamaConfig(**{**TINY, "num_hidden_layers": 1}, intermediate_size=96),
}
CONVOLUTIONAL = Lfm2Config(
    **TINY, intermediate_size=96, num_key_value_heads=2, layer_types=["conv", "full_attention"], initializer_range=0.1
)

Load = Callable[[str, PreTrainedConfig], LanguageModel]


@pytest.fixture
def load(save_tiny: Callable[[str, PreTrainedConfig], Any]) -> Load:
    """A randomly initialised model of a config, read from a folder."""
    return lambda name, config: load_language_model(str(save_tiny(f"halted-{name}", config)))


def attend(halted: HaltedForward) -> Tensor:
    """Full attention of what waits, as the first segment of a text."""
    assert halted.waiting is not None
    queries, keys, values = halted.waiting
    out = full_attention(group_queries(queries, len(keys)), keys, values, queries.shape[1])
    return out.reshape(*queries.shape[:2], -1)


def finish(halted: HaltedForward) -> Tensor:
    """The logits."""
    while halted.logits is None:
        halted = halted.resume(attend(halted))
    return halted.logits


def test_every_halt_shows_what_capture_shows(model: LanguageModel, ids: Tensor) -> None:
    """q, k, v of each layer and the logits within 1e-5 (relative) of a pass without halts."""
    layers, halted = capture(model.network, ids).layers, begin_forward(model.network, ids, 0)
    for tensors in layers:
        assert halted.waiting is not None
        for found, wanted in zip(halted.waiting, tensors, strict=True):
            assert (found - wanted).norm() < 1e-5 * wanted.norm()
        halted = halted.resume(attend(halted))
    assert halted.waiting is None
    assert halted.logits is not None
    with torch.no_grad():
        wanted = model.network(input_ids=ids[None]).logits[0]
    assert (halted.logits - wanted).norm() < 1e-5 * wanted.norm()


@pytest.mark.parametrize("name", CONFIGS)
def test_other_architectures_can_be_taken_by_segments(name: str, load: Load) -> None:
    """Factors of their own, positions counted by a mask, parallel residuals, a single layer: all pass the check."""
    check_segmentable(load(name, CONFIGS[name]).network)


def test_a_network_with_a_convolution_is_refused(load: Load) -> None:
    """Its conv layers would forget the tokens before the segment."""
    with pytest.raises(ValueError, match="more than attention mixes its tokens; use another"):
        check_segmentable(load("recurrent", CONVOLUTIONAL).network)


def test_a_network_in_training_mode_is_refused(load: Load) -> None:
    """Also one that was looked at before: dropout would make two runs of a layer differ."""
    network = load("opt", CONFIGS["opt"]).network
    check_segmentable(network)
    with pytest.raises(ValueError, match=r"is in training mode.*call network.eval\(\) first"):
        check_segmentable(network.train())


def test_a_halted_pass_can_be_resumed_again(model: LanguageModel, ids: Tensor) -> None:
    """It is a value: resumed twice, with something else in between, it gives the same bits."""
    halted = begin_forward(model.network, ids[:64], 0)
    first, _, again = (finish(halted.resume(factor * attend(halted))) for factor in (1, 2, 1))
    assert torch.equal(first, again)


@pytest.fixture
def calls(model: LanguageModel) -> Iterator[list[int]]:
    """The layers whose MLP ran, in order."""
    found: list[int] = []
    with ExitStack() as hooks:
        for index, layer in enumerate(decoder_layers(model.network)):
            handle = layer.mlp.register_forward_hook(lambda *_, index=index: found.append(index))
            hooks.callback(handle.remove)
        yield found


def test_a_segment_runs_every_layer_once(model: LanguageModel, ids: Tensor, calls: list[int]) -> None:
    """The layers below answer from memory: without it layer 0 of four would run four times."""
    finish(begin_forward(model.network, ids[:64], 0))
    assert calls == list(range(model.layers))


def test_decoder_layers_hold_one_attention_each(load: Load) -> None:
    """Whatever the architecture calls them; where they are not in a list, the attention modules serve."""
    for name, kind in (("opt", "OPTDecoderLayer"), ("neox", "GPTNeoXLayer"), ("gpt2-other-factors", "GPT2Block")):
        assert [type(layer).__name__ for layer in decoder_layers(load(name, CONFIGS[name]).network)] == [kind] * 2
    network = load("one-layer", CONFIGS["one-layer"]).network
    network.model.layers = nn.Sequential(*network.model.layers)
    assert [type(layer).__name__ for layer in decoder_layers(network)] == ["LlamaAttention"]
    check_segmentable(network)


def test_a_forward_that_somebody_else_replaced_stays_replaced(load: Load, ids: Tensor) -> None:
    """Libraries that place a model on devices do so; theirs is called at both visits, and is there afterwards."""
    network, called = load("neox", CONFIGS["neox"]).network, []
    layer = decoder_layers(network)[0]
    before = layer.forward

    def theirs(*args: Any, **kwargs: Any) -> Any:
        called.append(1)
        return before(*args, **kwargs)

    layer.forward = theirs
    finish(begin_forward(network, ids[:16], 0))
    assert called == [1, 1]
    assert vars(layer)["forward"] is theirs


def test_a_pass_in_another_thread_is_left_alone(llama: LanguageModel, ids: Tensor) -> None:
    """A capture that runs while a layer is being answered from memory sees the whole network, bit for bit."""
    wanted, found = capture(llama.network, ids), list[Capture]()

    def capture_elsewhere(*_: Any) -> None:
        # Once: the other thread's own pass comes by here too.
        handle.remove()
        thread = Thread(target=lambda: found.append(capture(llama.network, ids)))
        thread.start()
        thread.join()

    halted = begin_forward(llama.network, ids[:32], 0)
    halted = halted.resume(attend(halted))
    handle = decoder_layers(llama.network)[1].mlp.register_forward_pre_hook(capture_elsewhere)
    finish(halted)
    assert torch.equal(found[0].log_likelihood, wanted.log_likelihood)
