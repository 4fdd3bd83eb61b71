"""Loading a causal language model: the bundled one, a folder, or a Hugging Face name.

Weights are read from safetensors only, nothing is downloaded and no code of a model is run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from importlib import resources
from logging import CRITICAL
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from drrl_env.lowrank.flops import AttentionShape
from drrl_env.models.capture import ATTENTION_NAME, attention_modules, capture

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
        """Longest sequence its positional encoding was made for and every layer sees whole, in tokens."""
        config: Any = self.network.config
        limits = (getattr(config, name, None) for name in ("max_position_embeddings", "sliding_window"))
        return min((int(limit) for limit in limits if limit), default=2**31)

    def shape(self, segment: int) -> AttentionShape:
        """Sizes of its attention layers (all alike) for segments of `segment` tokens."""
        heads, kv_heads, dim = _head_sizes(self.network.config)
        return AttentionShape(kv_heads, heads // kv_heads, dim, dim, segment)


def _head_sizes(config: Any) -> tuple[int, int, int]:
    """(query heads, key heads, head dimension) by a transformers config."""
    heads = int(config.num_attention_heads)
    kv_heads = int(getattr(config, "num_key_value_heads", None) or heads)
    return heads, kv_heads, int(getattr(config, "head_dim", None) or config.hidden_size // heads)


def load_language_model(name: str) -> LanguageModel:
    """Loads a causal LM by name.

    Args:
        name: `bundled`, a folder with config.json, safetensors and tokenizer, or a Hugging Face name
            whose files were downloaded before.

    Raises:
        ValueError: no such model, damaged or non-finite weights, or no tokenizer; one line with the remedy.
    """
    source = str(bundled_folder() if name == BUNDLED else Path(name).expanduser()) if name else name
    network = _load_network(name, source)
    _check_finite(name, network)
    _check_capture(name, network)
    tokenizer = _load_tokenizer(name, source)
    return LanguageModel(name, network, tokenizer, weights_digest(network))


def bundled_folder() -> Path:
    """The folder of the bundled LM inside the package."""
    return Path(str(resources.files("drrl_env.models") / "bundled"))


def _load_network(name: str, source: str) -> PreTrainedModel:
    _check_folder(name, source)
    try:
        network, missing = _read_network(source)
    except SafetensorError as error:
        raise ValueError(f"model={name!r}: its safetensors file is damaged ({error}); copy it again") from error
    except KeyError as error:
        raise ValueError(
            f"model={name!r}: its architecture has no AttentionInterface ({error}); use another"
        ) from error
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(f"model={name!r}: cannot be loaded ({_first_line(error)}); {_REMEDY}") from error
    _check_complete(name, missing)
    frozen: PreTrainedModel = network.eval().requires_grad_(False)
    return frozen


def _read_network(source: str) -> tuple[PreTrainedModel, Collection[str]]:
    """The network, and the names of weights that the file lacks; transformers' own reports are kept quiet."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(CRITICAL)
    logging.disable_progress_bar()
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source,
            dtype=torch.float32,
            attn_implementation=ATTENTION_NAME,
            use_safetensors=True,
            output_loading_info=True,
            **_SAFE,
        )
    finally:
        logging.set_verbosity(verbosity)
    return loaded[0], loaded[1]["missing_keys"]


_SAFE = {"local_files_only": True, "trust_remote_code": False}
"""Nothing is fetched and no code of the folder is run: a typo fails at once instead of asking a hub for a while."""
_REMEDY = (
    "give 'bundled', a folder with config.json and *.safetensors that save_pretrained wrote, "
    "or a Hugging Face name that `hf download NAME` fetched before"
)


def _check_folder(name: str, source: str) -> None:
    """Raises where a name that can only mean a folder is none with a model in it."""
    path = Path(source)
    looks_local = path.is_absolute() or path.exists() or name.startswith((".", "~"))
    if looks_local and not (path / "config.json").is_file():
        raise ValueError(f"model={name!r}: no folder with a config.json is there; {_REMEDY}")


def _check_complete(name: str, missing: Collection[str]) -> None:
    """Raises where transformers filled weights that the file lacks with random numbers."""
    if missing:
        raise ValueError(
            f"model={name!r}: its safetensors file lacks {len(missing)} weights, {min(missing)!r} among them; "
            "save the whole model into the folder again"
        )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _load_tokenizer(name: str, source: str) -> PreTrainedTokenizerBase:
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source, **_SAFE)
    except Exception as error:
        raise ValueError(f"model={name!r}: has no tokenizer it can load; save one into its folder") from error
    return tokenizer


def _check_finite(name: str, network: nn.Module) -> None:
    for key, weight in network.named_parameters():
        if not bool(torch.isfinite(weight).all()):
            raise ValueError(f"model={name!r}: weight {key!r} holds NaN or infinity; the file cannot be used")


def _check_capture(name: str, network: PreTrainedModel) -> None:
    """Raises where the architecture hides its attention, before anything is computed with it."""
    try:
        shown = len(capture(network, torch.zeros(2, dtype=torch.int64)).layers)
    except Exception as error:
        reason = _first_line(error).removeprefix("model: ")
        raise ValueError(f"model={name!r}: its attention cannot be captured ({reason})") from error
    if shown != len(attention_modules(network)):
        raise ValueError(
            f"model={name!r}: {shown} attention layers can be captured of {len(attention_modules(network))}"
        )


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
    return _split_fused(weight, network.config, by_head=key.startswith("query_key_value"))


_FUSED = ("c_attn", "qkv_proj", "query_key_value", "Wqkv", "qkv")


def _split_fused(weight: Tensor, config: Any, by_head: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Q, K, V out of one matrix: one after the other, or (NeoX, BLOOM) head by head."""
    heads, kv_heads, dim = _head_sizes(config)
    sizes = [heads * dim, kv_heads * dim, kv_heads * dim]
    # GPT-2 keeps its weight as (inputs, outputs).
    oriented = weight if weight.shape[0] == sum(sizes) else weight.mT
    if by_head and kv_heads == heads:
        queries, keys, values = oriented.reshape(heads, 3, dim, -1).transpose(0, 1).flatten(1, 2)
    else:
        queries, keys, values = oriented.split(sizes)
    return queries, keys, values
