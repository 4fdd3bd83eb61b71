"""Measures the bundled LM and writes its model card: `python -m drrl_env.models.card --corpus FOLDER`.

Every number of the card is measured here, on text the model never saw.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor
from tqdm import tqdm

from drrl_env.data.corpus import UNSEEN_BOOK, Document, articles, books, is_held_out, standard_library
from drrl_env.models.language_model import BUNDLED, LanguageModel, bundled_folder, load_language_model

WINDOW, STRIDE = 2048, 1024
"""Tokens of a window, and how far it moves: every token but a document's first window sees at least 1024 before it."""


@dataclass(frozen=True)
class Card:
    """What to measure.

    Attributes:
        corpus: folder of the books and of wikitext-2/.
        threads: torch threads.
    """

    corpus: Path
    threads: int = 2


@dataclass(frozen=True)
class Score:
    """How well the model predicts a set of documents.

    Attributes:
        text: what it is.
        documents: how many.
        tokens: tokens predicted.
        perplexity: per token.
        bits_per_byte: over the UTF-8 bytes.
        word_perplexity: per whitespace-separated word.
    """

    text: str
    documents: int
    tokens: int
    perplexity: float
    bits_per_byte: float
    word_perplexity: float


def windows(length: int) -> Iterator[tuple[int, int, int]]:
    """(start, stop, first counted target) of windows that count each target once."""
    counted = 1
    for start in range(0, max(1, length - WINDOW + STRIDE), STRIDE):
        stop = min(start + WINDOW, length)
        if counted < stop:
            yield start, stop, counted
            counted = stop


@torch.no_grad()
def negative_log_likelihood(model: LanguageModel, ids: Tensor) -> float:
    """Nats of ids[1:] given what came before, in strided windows."""
    total = 0.0
    for start, stop, counted in windows(len(ids)):
        row = ids[start:stop]
        logits = model.network(input_ids=row[None], use_cache=False).logits[0, :-1]
        nats = torch.nn.functional.cross_entropy(logits.float(), row[1:], reduction="none")
        total += float(nats[counted - start - 1 :].double().sum())
    return total


def score(model: LanguageModel, text: str, documents: Sequence[Document]) -> Score:
    """Measures one set of documents, each on its own, an end-of-text token before it."""
    nats, tokens, size, words = 0.0, 0, 0, 0
    for document in tqdm(documents, desc=text):
        bos = model.tokenizer.bos_token_id
        ids = torch.tensor([bos, *model.tokenizer(document.text, verbose=False)["input_ids"]])
        nats += negative_log_likelihood(model, ids)
        tokens += len(ids) - 1
        size += len(document.text.encode())
        words += len(document.text.split())
    per_byte = nats / math.log(2) / size
    return Score(text, len(documents), tokens, math.exp(nats / tokens), per_byte, math.exp(nats / words))


def measure(model: LanguageModel, corpus: Path) -> list[Score]:
    """The scores of the card."""
    prose = books(corpus)
    unseen = [d for d in prose if d.name.startswith(UNSEEN_BOOK + "/")]
    chapters = [d for d in prose if is_held_out(d) and d not in unseen]
    code = [d for d in standard_library() if is_held_out(d)]
    return [
        score(model, "held-out chapters of its books", chapters),
        score(model, f"a book it never saw ({UNSEEN_BOOK})", unseen),
        score(model, "held-out files of the standard library", code),
        score(model, "WikiText-2 test", articles(corpus / "wikitext-2" / "test.txt")),
    ]


def table(scores: Iterable[Score]) -> str:
    """The scores as a Markdown table."""
    head = "| text | documents | tokens | perplexity per token | bits per byte | perplexity per word |\n"
    rows = [
        f"| {s.text} | {s.documents} | {s.tokens:,} | {s.perplexity:.1f} | {s.bits_per_byte:.3f} "
        f"| {s.word_perplexity:,.0f} |\n"
        for s in scores
    ]
    return head + "|---|---|---|---|---|---|\n" + "".join(rows)


CARD = """---
license: mit
library_name: transformers
---
# The bundled language model of drrl-env

A Llama-style causal LM ({parameters:.1f} million parameters): RoPE, {layers} layers, {heads} heads x {dim}, byte-level
BPE of {vocabulary}, stored in half precision. It is small so that attention research runs on a laptop; it is trained
for real so that its attention has the structure of trained attention. It is not meant to write text for people.

## Training
`python -m drrl_env.models.pretrain --corpus FOLDER --out FOLDER --steps {steps} --long-steps {long_steps}`:
public-domain books ({prose_share:.0%} of the sequences) and the source of the Python standard library, {steps} steps
of {tokens_per_step} tokens at {context} tokens a sequence, the last {long_steps} at {long_context}; Muon for the
matrices, AdamW for the rest, float32, seed {seed}.

## What it reaches
Measured by `python -m drrl_env.models.card` on text it never saw: windows of {window} tokens moved by {stride}, every
document by itself.

{table}
WikiText is as distributed, tokenisation marks and `<unk>` included: the model never saw its style.

## Licence and attribution
Weights: MIT. Trained on books in the public domain and on the Python standard library (PSF licence); see
`drrl_env/data/LICENSES.md`. Weights digest: `{digest}`.
"""


def render(model: LanguageModel, scores: Sequence[Score], recipe: dict[str, Any]) -> str:
    """The card's text."""
    config: Any = model.network.config
    values = {
        **recipe,
        "parameters": sum(p.numel() for p in model.network.parameters()) / 1e6,
        "layers": config.num_hidden_layers,
        "heads": config.num_attention_heads,
        "dim": config.head_dim,
        "vocabulary": config.vocab_size,
        "long_context": 2 * recipe["context"],
        "window": WINDOW,
        "stride": STRIDE,
        "table": table(scores),
        "digest": model.digest,
    }
    return CARD.format(**values)


def main(settings: Card) -> None:
    """Measures and writes README.md and card.json beside the weights."""
    torch.set_num_threads(settings.threads)
    model, folder = load_language_model(BUNDLED), bundled_folder()
    recipe = json.loads((folder / "recipe.json").read_text())
    scores = measure(model, settings.corpus)
    (folder / "card.json").write_text(json.dumps([asdict(s) for s in scores], indent=1) + "\n")
    (folder / "README.md").write_text(render(model, scores, recipe))
    print(table(scores))


if __name__ == "__main__":
    main(tyro.cli(Card))
