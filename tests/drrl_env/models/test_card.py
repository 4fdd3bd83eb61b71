"""The model card's numbers: every token counted once, with the context the card says."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from drrl_env.data.corpus import Document
from drrl_env.models import card
from drrl_env.models.language_model import LanguageModel, bundled_folder, load_language_model


@given(st.integers(2, 9000))
def test_every_target_is_counted_once(length: int) -> None:
    """Windows that overlapped in what they count would weigh the middle of a document twice."""
    counted = [t for start, stop, first in card.windows(length) for t in range(first, stop) if start < t]
    assert counted == list(range(1, length))


@given(st.integers(2, 9000))
def test_every_later_token_sees_half_a_window(length: int) -> None:
    """Beyond the first window no token is judged with less than STRIDE tokens before it."""
    for start, _, first in card.windows(length):
        assert start == 0 or first - start >= card.STRIDE


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return load_language_model("bundled")


def test_windows_give_the_likelihood_of_one_pass(model: LanguageModel) -> None:
    """A text of one window is judged as the model itself judges it."""
    ids = torch.arange(5, 205)
    with torch.no_grad():
        nats = float(model.network(input_ids=ids[None], labels=ids[None]).loss) * (len(ids) - 1)
    assert card.negative_log_likelihood(model, ids) == pytest.approx(nats, rel=1e-5)


def test_bits_per_byte_do_not_depend_on_the_tokens(model: LanguageModel) -> None:
    """perplexity^tokens = 2^(bits per byte · bytes) = word perplexity^words: three faces of one likelihood."""
    text = "It is a truth universally acknowledged — that a single man must be in want of a wife."
    found = card.score(model, "one", [Document("one/0", "prose", text)])
    nats = found.tokens * math.log(found.perplexity)
    assert found.bits_per_byte * len(text.encode()) * math.log(2) == pytest.approx(nats)
    assert len(text.split()) * math.log(found.word_perplexity) == pytest.approx(nats)


def test_the_shipped_card_says_what_was_measured(model: LanguageModel) -> None:
    """README.md of the bundled model is what `card` writes from card.json, for these very weights."""
    folder = bundled_folder()
    scores = [card.Score(**row) for row in json.loads((folder / "card.json").read_text())]
    recipe = json.loads((folder / "recipe.json").read_text())
    assert (folder / "README.md").read_text() == card.render(model, scores, recipe)
    assert model.digest in (folder / "README.md").read_text()
    assert next(s for s in scores if s.text.startswith("held-out chapters")).perplexity <= 45
