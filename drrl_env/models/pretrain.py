"""Trains the bundled language model: `python -m drrl_env.models.pretrain --corpus FOLDER --out FOLDER`.

A Llama-style model (RoPE, 4 layers, 4 heads x 64) on public-domain books and the source of the Python
standard library, at 2048 tokens and finished at 4096. Muon moves the matrices, AdamW the embedding
and the norms. A checkpoint is written every few minutes and a second call of the same command goes on from it.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from drrl_env.data.corpus import Document, books, is_held_out, standard_library

END_OF_TEXT = "<|endoftext|>"


@dataclass(frozen=True)
class Recipe:
    """How the bundled LM is trained.

    Attributes:
        corpus: folder of public-domain books, one .txt each.
        out: folder that receives checkpoint and model.
        steps: optimiser steps in all.
        long_steps: how many of them, at the end, see `2 * context` tokens at a time.
        tokens_per_step: tokens of one step.
        context: tokens of one sequence.
        prose_share: share of the sequences that are prose; the rest is code.
        muon_lr: peak learning rate of the matrices.
        adam_lr: peak learning rate of the embedding and the norms.
        decay_from: share of the steps after which the rates fall linearly to zero.
        seed: seed of the weights and of the order of the text.
        threads: torch threads.
        checkpoint_every: steps between checkpoints.
    """

    corpus: Path
    out: Path
    steps: int = 2000
    long_steps: int = 200
    tokens_per_step: int = 8192
    context: int = 2048
    prose_share: float = 0.72
    muon_lr: float = 0.02
    adam_lr: float = 3e-3
    decay_from: float = 0.5
    seed: int = 0
    threads: int = 2
    checkpoint_every: int = 100


def architecture(vocabulary: int) -> LlamaConfig:
    """The bundled LM's architecture: 4 layers, 4 heads x 64, RoPE, tied embedding."""
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
    )


def train_tokenizer(texts: Sequence[str], vocabulary: int = 4096) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer fitted to `texts`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT)


def encode_stream(tokenizer: PreTrainedTokenizerFast, documents: Sequence[Document]) -> NDArray[np.int64]:
    """All documents one after the other, an end-of-text token before each."""
    rows = tokenizer([document.text for document in documents], verbose=False)["input_ids"]
    return np.concatenate([np.array([tokenizer.bos_token_id, *row], dtype=np.int64) for row in rows])


def training_documents(corpus: Path) -> dict[str, list[Document]]:
    """What the LM may see, by kind."""
    everything = {"prose": books(corpus), "code": list(standard_library())}
    return {kind: [d for d in documents if not is_held_out(d)] for kind, documents in everything.items()}


def draw_batch(
    streams: dict[str, NDArray[np.int64]], rng: np.random.Generator, recipe: Recipe, context: int
) -> torch.Tensor:
    """`tokens_per_step / context` random windows, (sequences, context)."""
    kinds = rng.choice(["prose", "code"], size=recipe.tokens_per_step // context, p=_shares(recipe))
    starts = [int(rng.integers(len(streams[kind]) - context)) for kind in kinds]
    rows = [streams[kind][start : start + context] for kind, start in zip(kinds, starts, strict=True)]
    return torch.from_numpy(np.stack(rows))


def _shares(recipe: Recipe) -> tuple[float, float]:
    return recipe.prose_share, 1 - recipe.prose_share


def rate(step: int, recipe: Recipe) -> float:
    """Multiplier of the learning rates: a short warm-up, a plateau, a linear fall to zero."""
    warm_up = min(1.0, (step + 1) / 50)
    left = (recipe.steps - step) / (recipe.steps * (1 - recipe.decay_from))
    return warm_up * min(1.0, left)


def optimisers(model: LlamaForCausalLM, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for the tied embedding and the norms."""
    named = dict(model.named_parameters())
    matrices = [p for name, p in named.items() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in named.items() if p.ndim != 2 or "embed" in name]
    return [
        torch.optim.Muon(matrices, lr=recipe.muon_lr, weight_decay=0.01),
        torch.optim.AdamW(others, lr=recipe.adam_lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def train_step(
    model: LlamaForCausalLM, optims: Sequence[torch.optim.Optimizer], batch: torch.Tensor, multiplier: float
) -> float:
    """One step on a batch of token ids; returns the loss in nats per token."""
    loss = model(input_ids=batch, labels=batch, use_cache=False).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optim in optims:
        for group in optim.param_groups:
            group["lr"] = group.setdefault("initial_lr", group["lr"]) * multiplier
        optim.step()
        optim.zero_grad(set_to_none=True)
    return float(loss.detach())


def save_checkpoint(
    path: Path, model: LlamaForCausalLM, optims: Sequence[torch.optim.Optimizer], step: int, rng: np.random.Generator
) -> None:
    """Writes everything a later call needs to go on, atomically."""
    payload = {
        "model": model.state_dict(),
        "optims": [optim.state_dict() for optim in optims],
        "step": step,
        "rng": json.dumps(rng.bit_generator.state),
    }
    torch.save(payload, path.with_suffix(".tmp"))
    os.replace(path.with_suffix(".tmp"), path)


def load_checkpoint(
    path: Path, model: LlamaForCausalLM, optims: Sequence[torch.optim.Optimizer], rng: np.random.Generator
) -> int:
    """Restores a checkpoint (tensors only, no code is run) and returns the step to go on from."""
    if not path.exists():
        return 0
    payload = torch.load(path, weights_only=True)
    model.load_state_dict(payload["model"])
    for optim, state in zip(optims, payload["optims"], strict=True):
        optim.load_state_dict(state)
    rng.bit_generator.state = json.loads(payload["rng"])
    return int(payload["step"])


def fit(model: LlamaForCausalLM, streams: dict[str, NDArray[np.int64]], recipe: Recipe) -> None:
    """Trains `model` in place, with a progress bar, checkpoints and a log line now and then."""
    optims, rng = optimisers(model, recipe), np.random.default_rng(recipe.seed)
    checkpoint = recipe.out / "checkpoint.pt"
    first = load_checkpoint(checkpoint, model, optims, rng)
    started, smooth = time.monotonic(), math.nan
    for step in tqdm(range(first, recipe.steps), initial=first, total=recipe.steps, mininterval=10):
        context = recipe.context * (2 if step >= recipe.steps - recipe.long_steps else 1)
        loss = train_step(model, optims, draw_batch(streams, rng, recipe, context), rate(step, recipe))
        smooth = loss if math.isnan(smooth) else 0.98 * smooth + 0.02 * loss
        if (step + 1) % 20 == 0:
            print(f"step {step + 1} loss {smooth:.4f} seconds {time.monotonic() - started:.0f}", flush=True)
        if (step + 1) % recipe.checkpoint_every == 0:
            save_checkpoint(checkpoint, model, optims, step + 1, rng)


def save_model(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Writes fp16 safetensors, the configuration and the tokenizer."""
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main(recipe: Recipe) -> None:
    """Trains the bundled LM from the recipe, going on from a checkpoint in `recipe.out` if there is one."""
    torch.set_num_threads(recipe.threads)
    torch.manual_seed(recipe.seed)
    recipe.out.mkdir(parents=True, exist_ok=True)
    documents = training_documents(recipe.corpus)
    tokenizer = train_tokenizer([d.text for kind in documents.values() for d in kind])
    streams = {kind: encode_stream(tokenizer, found) for kind, found in documents.items()}
    print({kind: f"{len(documents[kind])} documents, {len(stream)} tokens" for kind, stream in streams.items()})
    model = LlamaForCausalLM(architecture(len(tokenizer)))
    fit(model, streams, recipe)
    save_model(model, tokenizer, recipe.out / "model")
    facts = asdict(replace(recipe, corpus=Path(recipe.corpus.name), out=Path(recipe.out.name)))
    (recipe.out / "recipe.json").write_text(json.dumps(facts, default=str, indent=1))


if __name__ == "__main__":
    main(tyro.cli(Recipe))
