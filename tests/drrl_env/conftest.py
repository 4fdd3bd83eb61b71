"""Models to test on: the bundled one, and tiny ones of other architectures in a folder as a user would have them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PreTrainedConfig

from drrl_env.models.language_model import bundled_folder

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
TINY_CONTEXT = 256

SaveTiny = Callable[[str, PreTrainedConfig], Path]
"""Saves a randomly initialised model of a config under a name, with the bundled tokenizer; gives its folder."""


@pytest.fixture(scope="session")
def save_tiny(tmp_path_factory: pytest.TempPathFactory) -> SaveTiny:
    """See `SaveTiny`."""
    root = tmp_path_factory.mktemp("models")

    def save(name: str, config: PreTrainedConfig) -> Path:
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(root / name)
        for file in TOKENIZER_FILES:
            shutil.copy(bundled_folder() / file, root / name)
        return root / name

    return save


@pytest.fixture(scope="session")
def gpt2_folder(save_tiny: SaveTiny) -> Path:
    """A tiny GPT-2: learned positions, q, k, v in one transposed matrix."""
    sizes = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": TINY_CONTEXT, "initializer_range": 0.1}
    return save_tiny("gpt2", GPT2Config(vocab_size=4096, bos_token_id=0, eos_token_id=0, **sizes))


@pytest.fixture(scope="session")
def llama_folder(save_tiny: SaveTiny) -> Path:
    """A tiny Llama with two key heads for four query heads."""
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    limits = {"num_key_value_heads": 2, "max_position_embeddings": TINY_CONTEXT, "initializer_range": 0.1}
    return save_tiny("llama", LlamaConfig(vocab_size=4096, bos_token_id=0, eos_token_id=0, **sizes, **limits))
