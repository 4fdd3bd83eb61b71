"""Loaded models, once per session."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from drrl_env.data.instances import instances, token_ids
from drrl_env.models.language_model import LanguageModel, load_language_model

TOKENS = 192


@pytest.fixture(scope="session")
def bundled() -> LanguageModel:
    """The model in the package."""
    return load_language_model("bundled")


@pytest.fixture(scope="session")
def gpt2(gpt2_folder: Path) -> LanguageModel:
    """The tiny GPT-2."""
    return load_language_model(str(gpt2_folder))


@pytest.fixture(scope="session")
def llama(llama_folder: Path) -> LanguageModel:
    """The tiny Llama with grouped queries."""
    return load_language_model(str(llama_folder))


@pytest.fixture(params=["bundled", "gpt2", "llama"])
def model(request: pytest.FixtureRequest) -> LanguageModel:
    """Each of the models in turn."""
    found: LanguageModel = request.getfixturevalue(request.param)
    return found


@pytest.fixture(scope="session")
def ids(bundled: LanguageModel) -> Tensor:
    """Token ids of real text, (192,), read by the tokenizer that all three models share."""
    return torch.as_tensor(token_ids(instances("validation")[0], bundled.tokenizer, TOKENS))
