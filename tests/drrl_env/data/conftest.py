"""What the tests of the bundled text share."""

import os
from importlib import resources
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerBase:
    """The bundled tokenizer."""
    folder = resources.files("drrl_env.models") / "bundled"
    found: PreTrainedTokenizerBase = PreTrainedTokenizerFast.from_pretrained(str(folder))
    return found


@pytest.fixture(scope="session")
def corpus() -> Path:
    """The maintainer's corpus, which does not ship."""
    folder = os.environ.get("DRRL_CORPUS", "")
    if not folder or not Path(folder).is_dir():
        pytest.skip("DRRL_CORPUS names no folder: the raw corpus does not ship")
    return Path(folder)
