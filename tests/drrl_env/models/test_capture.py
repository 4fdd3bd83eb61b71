"""What capture shows is what the attention of the model works on."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AutoModelForCausalLM, GPT2Config, GPTNeoXConfig, OPTConfig

from drrl_env.lowrank.attention import full_attention
from drrl_env.lowrank.grams import group_queries
from drrl_env.models.capture import attention_modules, capture, driving, recording
from drrl_env.models.language_model import LanguageModel, bundled_folder, load_language_model, projection_weights

TINY = {"vocab_size": 4096, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
ODD_CONFIGS = {
    "gpt2-other-factors": GPT2Config(
        vocab_size=4096, n_embd=64, n_layer=2, n_head=4, n_positions=256, bos_token_id=0, eos_token_id=0,
        scale_attn_by_inverse_layer_idx=True, initializer_range=0.1,
    ),
    "opt-scaled-queries": OPTConfig(**TINY, ffn_dim=96, word_embed_proj_dim=64, max_position_embeddings=256),
    "neox-fused-by-head": GPTNeoXConfig(**TINY, intermediate_size=96, max_position_embeddings=256),
}  # fmt: skip


def hooked(model: LanguageModel, ids: Tensor) -> list[tuple[Tensor, Tensor]]:
    """(input, output) of every attention module, (tokens, hidden) each, from the model's own forward pass."""
    seen: list[tuple[Tensor, Tensor]] = []

    def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: tuple[Tensor, ...]) -> None:
        given = args[0] if args else kwargs["hidden_states"]
        seen.append((given[0], output[0].reshape(len(ids), -1)))

    with ExitStack() as hooks, torch.no_grad():
        for module in attention_modules(model.network):
            hooks.callback(module.register_forward_hook(keep, with_kwargs=True).remove)
        model.network(input_ids=ids[None], use_cache=False)
    return seen


def output_projection(module: nn.Module) -> nn.Module:
    """What a module does after its heads."""
    names = ("o_proj", "c_proj", "out_proj", "dense")
    return next(getattr(module, name) for name in names if hasattr(module, name))


def attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Causal attention, heads side by side, (tokens, heads · dim)."""
    groups = len(queries) // len(keys)
    wide = (tensor.repeat_interleave(groups, 0)[None] for tensor in (keys, values))
    return scaled_dot_product_attention(queries[None], *wide, is_causal=True)[0].transpose(0, 1).flatten(1)


def relative(found: Tensor, wanted: Tensor) -> float:
    """‖found − wanted‖ / ‖wanted‖."""
    return float((found - wanted).norm() / wanted.norm())


def check_rebuilds(model: LanguageModel, ids: Tensor) -> None:
    """Every layer's hooked output follows from what was captured."""
    layers = capture(model.network, ids).layers
    for tensors, module, (_, wanted) in zip(layers, attention_modules(model.network), hooked(model, ids), strict=True):
        rebuilt = output_projection(module)(attend(*tensors))
        assert relative(rebuilt, wanted) < 1e-5


def test_captured_tensors_rebuild_the_attention_output_of_every_layer(model: LanguageModel, ids: Tensor) -> None:
    """Relative error below 1e-5; with queries and keys before RoPE it is 0.16 to 0.97."""
    check_rebuilds(model, ids)


@pytest.mark.parametrize("name", ODD_CONFIGS)
def test_scores_of_other_factors_than_the_root_of_dim_are_captured_as_such(
    name: str, save_tiny: Any, ids: Tensor
) -> None:
    """GPT-2's layer factor and OPT's pre-scaled queries: below 1e-5; taking q as it comes is off by .008 to .1."""
    model = load_language_model(str(save_tiny(name, ODD_CONFIGS[name])))
    check_rebuilds(model, ids)


def test_a_segment_of_captured_tensors_attends_as_the_whole_layer_does(model: LanguageModel, ids: Tensor) -> None:
    """Full attention of the last 64 tokens over all keys: 1e-5; mixing up the heads of the groups is off by .15."""
    queries, keys, values = capture(model.network, ids).layers[-1]
    shape = model.shape(64)
    grouped = group_queries(queries[:, -64:], shape.kv_heads)
    out = full_attention(grouped, keys, values, 64)
    found = out.reshape(shape.heads, 64, -1).transpose(0, 1).flatten(1)
    assert relative(found, attend(queries, keys, values)[-64:]) < 1e-5


def test_sizes_of_the_capture_are_the_shape_the_model_promises(model: LanguageModel, ids: Tensor) -> None:
    """Per layer (heads, tokens, dim) and (kv_heads, tokens, dim), float32; a log-likelihood for all tokens but one."""
    found, shape = capture(model.network, ids), model.shape(64)
    assert len(found.layers) == model.layers
    for queries, keys, values in found.layers:
        assert queries.shape == (shape.heads, len(ids), shape.dim)
        assert keys.shape == values.shape == (shape.kv_heads, len(ids), shape.dim)
        assert queries.dtype == keys.dtype == values.dtype == torch.float32
    assert found.embeddings.shape[0] == len(ids)
    assert found.log_likelihood.shape == (len(ids) - 1,)
    assert bool((found.log_likelihood < 0).all())


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_the_door_does_not_change_the_logits(model: LanguageModel, ids: Tensor, implementation: str) -> None:
    """Logits within 1e-5 (relative) of transformers' own attention; a forgotten factor or mask shows."""
    folder = bundled_folder() if model.name == "bundled" else Path(model.name)
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation=implementation)
    with torch.no_grad(), recording():
        found, wanted = (network(input_ids=ids[None]).logits for network in (model.network, plain.eval()))
    assert relative(found, wanted) < 1e-5


def test_padding_is_masked(model: LanguageModel, ids: Tensor) -> None:
    """Left padding leaves the logits of the text alone (1e-5); a door without a mask function moves them by .3 to 1."""
    text, pad = ids[:48], 16
    padded = torch.cat([torch.zeros(pad, dtype=torch.int64), text])[None]
    mask = torch.cat([torch.zeros(pad, dtype=torch.int64), torch.ones(48, dtype=torch.int64)])[None]
    positions = (mask.cumsum(-1) - 1).clamp_min(0)
    with torch.no_grad():
        alone = model.network(input_ids=text[None]).logits[0]
        masked = model.network(input_ids=padded, attention_mask=mask, position_ids=positions).logits[0, pad:]
        unmasked = model.network(input_ids=padded, position_ids=positions).logits[0, pad:]
    assert relative(masked, alone) < 1e-5
    assert relative(unmasked, alone) > 0.1


@pytest.mark.parametrize("name", ["bundled", "llama"])
def test_queries_and_keys_are_taken_after_rope(name: str, ids: Tensor, request: pytest.FixtureRequest) -> None:
    """Shifted positions turn the keys (before RoPE they would not move) and leave q kᵀ as it is."""
    network = request.getfixturevalue(name).network
    with torch.no_grad(), recording() as found:
        network(input_ids=ids[None, :64], use_cache=False)
        queries, keys, values = found.layers[0]
        network(input_ids=ids[None, :64], position_ids=torch.arange(7, 71)[None], use_cache=False)
        moved_queries, moved_keys, moved_values = found.layers[0]
    assert relative(moved_keys, keys) > 1e-2
    assert torch.equal(moved_values, values)
    groups = len(queries) // len(keys)
    scores = [q @ k.repeat_interleave(groups, 0).mT for q, k in ((queries, keys), (moved_queries, moved_keys))]
    assert relative(scores[1], scores[0]) < 1e-4


def test_nothing_is_recorded_outside_the_context(bundled: LanguageModel, ids: Tensor) -> None:
    """A forward pass after the context leaves its recording as it was, and one before it does not show up."""
    with torch.no_grad():
        bundled.network(input_ids=ids[None, :16])
        with recording() as found:
            assert not found.layers
            bundled.network(input_ids=ids[None, :32])
        bundled.network(input_ids=ids[None, :48])
    assert {layer[0].shape[1] for layer in found.layers.values()} == {32}


def test_a_context_within_another_keeps_its_own_recording(bundled: LanguageModel, ids: Tensor) -> None:
    """The inner one takes over and gives back."""
    with torch.no_grad(), recording() as outer:
        with recording() as inner:
            bundled.network(input_ids=ids[None, :16])
        assert inner.layers
        assert not outer.layers
        bundled.network(input_ids=ids[None, :32])
    assert outer.layers[0][0].shape[1] == 32


def test_what_is_seen_does_not_depend_on_later_tokens(bundled: LanguageModel, ids: Tensor) -> None:
    """Bit for bit: a capture of text that changes at token 128 is the same up to there."""
    other = ids.clone()
    other[128:] = ids[128:].flip(0)
    first, second = (capture(bundled.network, tokens) for tokens in (ids, other))
    for one, two in zip(first.layers, second.layers, strict=True):
        assert all(torch.equal(a[:, :128], b[:, :128]) for a, b in zip(one, two, strict=True))


def check_projections(model: LanguageModel, ids: Tensor) -> None:
    """v = W_V x everywhere, and q = W_Q x, k = W_K x at the first position, where RoPE turns nothing."""
    for layer, (given, _) in enumerate(hooked(model, ids)):
        queries, keys, values = (rows.transpose(0, 1).flatten(1) for rows in capture(model.network, ids).layers[layer])
        w_q, w_k, w_v = projection_weights(model.network, layer)
        assert relative(given @ w_v.mT, values) < 1e-5
        assert relative(given[0] @ w_k.mT, keys[0]) < 1e-5
        direction = nn.functional.cosine_similarity(given[0] @ w_q.mT, queries[0], dim=0)
        assert direction > 1 - 1e-5


def test_projection_weights_are_the_ones_that_make_q_k_and_v(model: LanguageModel, ids: Tensor) -> None:
    """Apart (Llama) or fused and transposed (GPT-2); a wrong orientation is off by 1."""
    check_projections(model, ids)


@pytest.mark.parametrize("name", ["opt-scaled-queries", "neox-fused-by-head"])
def test_projection_weights_of_other_layouts(name: str, save_tiny: Any, ids: Tensor) -> None:
    """NeoX keeps q, k, v head by head: cutting its matrix in three gives values that are off by 1.2."""
    check_projections(load_language_model(str(save_tiny(name, ODD_CONFIGS[name]))), ids)


def test_a_driver_stands_in_for_attention(model: LanguageModel, ids: Tensor) -> None:
    """One that attends as the model does gives its logits (1e-5); heads in another order are off by .6 and more."""

    def driver(module: nn.Module, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        return attend(queries, keys, values).unflatten(1, (len(queries), -1)).transpose(0, 1)

    with torch.no_grad():
        wanted = model.network(input_ids=ids[None]).logits
        with driving(driver):
            found = model.network(input_ids=ids[None]).logits
    assert relative(found, wanted) < 1e-5


def test_a_driver_gets_queries_of_plain_scores(save_tiny: Any, ids: Tensor) -> None:
    """GPT-2's layer factor is in the queries, so that a driver needs none of its own."""
    model = load_language_model(str(save_tiny("gpt2-other-factors", ODD_CONFIGS["gpt2-other-factors"])))
    wanted = capture(model.network, ids).layers
    shown: list[tuple[Tensor, ...]] = []

    def driver(module: nn.Module, *tensors: Tensor) -> Tensor:
        shown.append(tensors)
        return attend(*tensors).unflatten(1, (len(tensors[0]), -1)).transpose(0, 1)

    with torch.no_grad(), driving(driver):
        model.network(input_ids=ids[None])
    for found, layer in zip(shown, wanted, strict=True):
        assert all(relative(one, other) < 1e-5 for one, other in zip(found, layer, strict=True))


def test_a_driver_is_seen_by_a_recording_and_gone_after_an_error(bundled: LanguageModel, ids: Tensor) -> None:
    """What a driver lets through is what layer 1 is recorded with; one that raises is in force no longer."""

    def fails(*_: Any) -> Tensor:
        raise RuntimeError("injected")

    wanted = capture(bundled.network, ids)
    with torch.no_grad(), driving(lambda *tensors: torch.zeros_like(tensors[1])), recording() as found:
        bundled.network(input_ids=ids[None])
    assert torch.equal(found.layers[0][0], wanted.layers[0][0])
    assert relative(found.layers[1][0], wanted.layers[1][0]) > 1e-2
    with pytest.raises(RuntimeError, match="injected"), driving(fails):
        bundled.network(input_ids=ids[None])
    assert torch.equal(capture(bundled.network, ids).log_likelihood, wanted.log_likelihood)
