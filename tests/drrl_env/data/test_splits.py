"""The frozen splits: what ships is what was hashed, and no split knows another's text."""

import itertools
import json
import platform
from collections import Counter
from importlib import resources
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from drrl_env.data.build import held_out, join, split_of, training_text, without_shared_text
from drrl_env.data.corpus import UNSEEN_BOOK, Document, is_held_out
from drrl_env.data.instances import (
    KINDS,
    SPLITS,
    Piece,
    documents,
    instance_text,
    instances,
    manifest,
    sha256,
    stream_text,
    token_ids,
)
from drrl_env.data.overlap import WINDOW, shared, union, windows

EXPECTED = {"train": 256, "validation": 64, "test": 64}
FOLDER = resources.files("drrl_env.data")


def shipped(split: str) -> list[str]:
    return [stream_text(f"{split}-{kind}") for kind in KINDS]


def overlapping(pieces: list[Piece]) -> list[tuple[Piece, Piece]]:
    ordered = sorted(pieces, key=lambda piece: (piece.stream, piece.start))
    return [(a, b) for a, b in itertools.pairwise(ordered) if a.stream == b.stream and a.start + a.length > b.start]


def test_streams_are_the_text_that_was_hashed() -> None:
    """Every stream's SHA-256 and length are those of the table, and the table's rows have theirs."""
    for name, facts in manifest()["streams"].items():
        assert (sha256(stream_text(name)), len(stream_text(name))) == (facts["sha256"], facts["characters"])
    assert sha256(json.dumps(manifest()["instances"])) == manifest()["instances_sha256"]


def test_what_ships_is_small() -> None:
    """Streams and table together stay within 2 MB."""
    files = [*(FOLDER / "text").iterdir(), FOLDER / "splits.json"]
    assert sum(len(file.read_bytes()) for file in files) <= 2_000_000


@pytest.mark.parametrize(("one", "other"), list(itertools.combinations(SPLITS, 2)))
def test_no_two_splits_share_a_run_of_200_characters(one: str, other: str) -> None:
    """Not one 200-character window in common, whatever its alignment."""
    assert shared(union(map(windows, shipped(one))), union(map(windows, shipped(other)))) == 0


def test_the_search_for_shared_text_finds_one_window() -> None:
    """200 characters in common are found at any offset; 199 are not shared text."""
    run = "".join(chr(65 + i * i % 59) for i in range(WINDOW))
    here, there = windows("é" * 17 + run), windows("0" * 31 + run + "1" * 9)
    assert shared(here, there) == 1
    assert shared(windows("é" * 17 + run[1:]), there) == 0


def test_documents_are_enough_for_a_conformal_guard() -> None:
    """At least 200 documents outside test and 100 in it; each in one split, its own, and held out from the LM."""
    names = {split: [document.name for document in documents(split)] for split in SPLITS}
    assert len(names["train"]) + len(names["validation"]) >= 200
    assert len(names["test"]) >= 100
    assert len({*itertools.chain(*names.values())}) == sum(map(len, names.values()))
    for split in SPLITS:
        assert {split_of(document) for document in documents(split)} == {split}
    assert not any(name.startswith(UNSEEN_BOOK) for name in itertools.chain(*names.values()))


@pytest.mark.parametrize("split", SPLITS)
def test_kinds_take_turns_so_that_any_first_four_are_balanced(split: str) -> None:
    """256, 64 and 64 instances, a quarter of each kind, in the same order all through; mixtures hold all kinds."""
    found = instances(split)
    assert len(found) == EXPECTED[split]
    assert [i.kind for i in found] == [*KINDS, "mixture"] * (EXPECTED[split] // 4)
    assert [i.uri for i in found] == [f"drrl://bundled/{split}/{n:04d}" for n in range(len(found))]
    for mixture in found[3::4]:
        kinds = [piece.stream.removeprefix(f"{split}-") for piece in mixture.pieces]
        assert sorted(Counter(kinds).values()) == [1, 1, 2]
        assert all(a != b for a, b in itertools.pairwise(kinds))


@pytest.mark.parametrize("split", SPLITS)
def test_spans_of_2048_tokens_are_disjoint(split: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Pieces do not overlap, lie in their own split, and hold 2048 tokens without reading on past them."""
    found = instances(split)
    pieces = [piece for i in found for piece in i.pieces]
    assert overlapping(pieces) == []
    assert {piece.stream for piece in pieces} == {f"{split}-{kind}" for kind in KINDS}
    for i in found:
        within = instance_text(i, sum(piece.length for piece in i.pieces))
        assert len(tokenizer(within, verbose=False)["input_ids"]) >= 2048
        assert within.startswith(str(tokenizer.decode(token_ids(i, tokenizer, 2048)[1:-1])))


def test_the_language_model_never_saw_what_ships(corpus: Path) -> None:
    """No 200-character window of the training text is in any stream."""
    if platform.python_version() != manifest()["python"]:
        pytest.skip(f"the standard library of Python {manifest()['python']} was training text; this is another")
    trained = union(map(windows, training_text(corpus)))
    for split in SPLITS:
        assert sum(shared(windows(text), trained) for text in shipped(split)) == 0


def test_the_build_ships_only_what_is_held_out(corpus: Path) -> None:
    """Every shipped chapter and article is among the held-out documents of the corpus, character by character."""
    found = {document.name: document.text for document in held_out(corpus)}
    for document in itertools.chain.from_iterable(map(documents, SPLITS)):
        if document.kind != "code":
            assert found[document.name] == document.text
            assert is_held_out(document)


def test_a_document_that_shares_text_with_another_split_is_left_out() -> None:
    """Of twins in two splits the more important one stays, and text the LM was trained on goes altogether."""
    run, seen = "shared words " * 20, "trained upon " * 20
    found = [Document(f"book/{n}", "prose", f"{n} {run}" + "x" * n) for n in range(20)]
    kept = without_shared_text([*found, Document("book/seen", "prose", seen)], iter([seen]))
    assert kept
    assert {split_of(document) for document in kept} == {"test"}
    assert "book/seen" not in {document.name for document in kept}


def test_joined_documents_can_be_cut_out_again() -> None:
    """The index gives back every document exactly."""
    found = [Document(str(n), "prose", "word " * n) for n in range(1, 9)]
    stream = join(found)
    assert [stream.text[start : start + length] for _, start, length in stream.index] == [d.text for d in found]
