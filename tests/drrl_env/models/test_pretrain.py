"""The script that trains the bundled LM: it learns, goes on where it was stopped, and never sees held-out text."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from drrl_env.data.corpus import Document, is_held_out, standard_library
from drrl_env.models import pretrain
from drrl_env.models.pretrain import Recipe

SENTENCES = "The whale swam north. The ship sailed south. The captain slept badly, as captains do. " * 60


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    return Recipe(
        corpus=tmp_path, out=tmp_path, steps=12, long_steps=2, tokens_per_step=256, context=64, checkpoint_every=6
    )


@pytest.fixture(scope="module")
def streams() -> dict[str, np.ndarray]:
    documents = {kind: [Document(f"{kind}/0", kind, SENTENCES)] for kind in ("prose", "code")}
    tokenizer = pretrain.train_tokenizer([SENTENCES], vocabulary=300)
    return {kind: pretrain.encode_stream(tokenizer, found) for kind, found in documents.items()}


def small_model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = pretrain.architecture(300)
    config.num_hidden_layers, config.hidden_size, config.intermediate_size = 1, 64, 64
    config.num_attention_heads, config.num_key_value_heads, config.head_dim = 2, 2, 32
    return LlamaForCausalLM(config)


def loss(model: LlamaForCausalLM, stream: np.ndarray) -> float:
    ids = torch.from_numpy(stream[:64])[None]
    with torch.no_grad():
        return float(model(input_ids=ids, labels=ids).loss)


def test_a_few_steps_learn_a_repeated_text(recipe: Recipe, streams: dict[str, np.ndarray]) -> None:
    """Below 60 % of the starting loss, which is log(300) = 5.7 nats; a step with a wrong sign rises above it."""
    model = small_model()
    before = loss(model, streams["prose"])
    pretrain.fit(model, streams, replace(recipe, steps=40))
    assert loss(model, streams["prose"]) < 0.6 * before


def test_a_stopped_run_goes_on_to_the_same_weights(
    recipe: Recipe, streams: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after its checkpoint at step 6 and called again it equals the uninterrupted run bit for bit."""
    whole, stopped, resumed = small_model(), small_model(), small_model()
    (recipe.out / "whole").mkdir()
    pretrain.fit(whole, streams, replace(recipe, out=recipe.out / "whole"))
    real = pretrain.train_step

    def failing(*args: object) -> float:
        if len(calls) == 6:
            raise KeyboardInterrupt
        calls.append(1)
        return real(*args)  # type: ignore[arg-type]

    calls: list[int] = []
    monkeypatch.setattr(pretrain, "train_step", failing)
    with pytest.raises(KeyboardInterrupt):
        pretrain.fit(stopped, streams, recipe)
    monkeypatch.undo()
    pretrain.fit(resumed, streams, recipe)
    pairs = zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_the_rates_warm_up_stay_and_fall_to_zero(recipe: Recipe) -> None:
    """A rate that does not reach zero leaves a tenth of a nat on the table at the end."""
    long = replace(recipe, steps=1000)
    rates = [pretrain.rate(step, long) for step in range(1000)]
    assert rates[0] < 0.05
    assert rates[100] == rates[499] == 1
    assert rates[999] < 0.01
    assert all(a >= b for a, b in itertools.pairwise(rates[500:]))


def test_no_held_out_document_is_trained_on(tmp_path: Path) -> None:
    """What the card calls held out is never among the training documents."""
    (tmp_path / "book.txt").write_text("".join(f"CHAPTER {n}\n\n{SENTENCES}\n\n" for n in range(1, 60)))
    (tmp_path / "frankenstein.txt").write_text("".join(f"Chapter {n}\n\n{SENTENCES}\n\n" for n in range(1, 5)))
    found = pretrain.training_documents(tmp_path)
    assert 30 < len(found["prose"]) < 59
    assert not [d.name for kind in found.values() for d in kind if is_held_out(d) or "frankenstein" in d.name]
    assert len(found["code"]) < len(list(standard_library()))
