"""Loading a causal language model: the bundled one, a folder, or a Hugging Face name.

Weights are read from safetensors only and no remote code is run.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from drrl_env.lowrank.flops import AttentionShape
from drrl_env.models.capture import ATTENTION_NAME, attention_modules

BUNDLED = "bundled"


@dataclass(frozen=True)
class LanguageModel:
    """A causal LM with everything the simulator asks of it.

    Attributes:
        name: `bundled`, a folder or a Hugging Face name, as the user gave it.
        network: the model in float32, in evaluation mode, its attention reachable by `capture`.
        tokenizer: its tokenizer.
        digest: SHA-256 of its weights, 16 hex digits; names its results in the store.
    """

    name: str
    network: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    digest: str

    @property
    def layers(self) -> int:
        """Number of attention layers."""
        return len(attention_modules(self.network))

    @property
    def context(self) -> int:
        """Longest sequence its positional encoding was made for, in tokens."""
        return int(getattr(self.network.config, "max_position_embeddings", 2**31))

    def shape(self, segment: int) -> AttentionShape:
        """Sizes of its attention layers (all alike) for segments of `segment` tokens."""
        config: Any = self.network.config
        heads = int(config.num_attention_heads)
        kv_heads = int(getattr(config, "num_key_value_heads", None) or heads)
        dim = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
        return AttentionShape(kv_heads, heads // kv_heads, dim, dim, segment)


def load_language_model(name: str) -> LanguageModel:
    """Loads a causal LM by name.

    Args:
        name: `bundled`, a folder with config.json, safetensors and tokenizer, or a Hugging Face name.

    Raises:
        ValueError: no such model, damaged or non-finite weights, or no tokenizer; one line with the remedy.
    """
    source = str(bundled_folder()) if name == BUNDLED else name
    network = _load_network(name, source)
    _check_finite(name, network)
    tokenizer = _load_tokenizer(name, source)
    return LanguageModel(name, network, tokenizer, weights_digest(network))


def bundled_folder() -> Path:
    """The folder of the bundled LM inside the package."""
    return Path(str(resources.files("drrl_env.models") / "bundled"))


def _load_network(name: str, source: str) -> PreTrainedModel:
    looks_local = name == BUNDLED or ("/" in name.strip("/") and Path(source).parent.exists()) or Path(source).exists()
    if looks_local and not (Path(source) / "config.json").is_file():
        raise ValueError(
            f"model={name!r}: no folder with a config.json is there; give 'bundled', a folder that "
            "save_pretrained wrote, or a Hugging Face name"
        )
    logging.disable_progress_bar()
    try:
        network: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            source, dtype=torch.float32, use_safetensors=True, attn_implementation=ATTENTION_NAME
        )
    except SafetensorError as error:
        raise ValueError(f"model={name!r}: its safetensors file is damaged ({error}); copy it again") from error
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"model={name!r}: cannot be loaded ({reason}); give 'bundled' or a folder") from error
    return network.eval().requires_grad_(False)


def _load_tokenizer(name: str, source: str) -> PreTrainedTokenizerBase:
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source)
    except Exception as error:
        raise ValueError(f"model={name!r}: has no tokenizer it can load; save one into its folder") from error
    return tokenizer


def _check_finite(name: str, network: nn.Module) -> None:
    for key, weight in network.named_parameters():
        if not bool(torch.isfinite(weight).all()):
            raise ValueError(f"model={name!r}: weight {key!r} holds NaN or infinity; the file cannot be used")


def weights_digest(network: nn.Module) -> str:
    """SHA-256 over names and float32 bytes of all weights, first 16 hex digits."""
    digest = hashlib.sha256()
    for key, weight in sorted(network.state_dict().items()):
        digest.update(key.encode())
        digest.update(weight.detach().to(torch.float32).contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def projection_weights(network: PreTrainedModel, layer: int) -> tuple[Tensor, Tensor, Tensor]:
    """W_Q, W_K, W_V of one layer, each (outputs, inputs), whatever the architecture calls them.

    Raises:
        ValueError: the architecture keeps them under names not known here.
    """
    named = {key: value for key, value in attention_modules(network)[layer].named_parameters() if value.ndim == 2}
    apart = [[value for key, value in named.items() if key.startswith(prefix)] for prefix in ("q_", "k_", "v_")]
    if all(apart):
        return apart[0][0], apart[1][0], apart[2][0]
    fused = [(key, value) for key, value in named.items() if key.split(".")[0] in _FUSED]
    if not fused:
        raise ValueError(f"model: no query, key and value weights among {sorted(named)}; this architecture is unknown")
    key, weight = fused[0]
    oriented = weight.mT if key.startswith("c_attn") else weight
    return _split_fused(oriented, network.config)


_FUSED = ("c_attn", "qkv_proj", "query_key_value", "Wqkv", "qkv")


def _split_fused(weight: Tensor, config: Any) -> tuple[Tensor, Tensor, Tensor]:
    heads = int(config.num_attention_heads)
    kv_heads = int(getattr(config, "num_key_value_heads", None) or heads)
    dim = weight.shape[0] // (heads + 2 * kv_heads)
    queries, keys, values = weight.split([heads * dim, kv_heads * dim, kv_heads * dim])
    return queries, keys, values
