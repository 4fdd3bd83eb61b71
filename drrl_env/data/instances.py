"""Instances at run time: spans of bundled text, or of a user's own, named by a URI and read as tokens.

An instance is defined by characters, so any tokenizer can read it. What ships is frozen by `splits.json`;
`drrl_env.data.build` made it.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import lzma
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from drrl_env.data.corpus import Document

SPLITS = ("train", "validation", "test")
KINDS = ("prose", "encyclopedia", "code")
"""The kinds of text; an instance may also be of kind `mixture`, or `text` if it is a user's own."""

_FILE = "file"
_MARGIN = 32
_BREAK = re.compile(r"[^\n]{0,160}\n|\S*\s|\S*")


@dataclass(frozen=True)
class Piece:
    """A run of characters in a stream.

    Attributes:
        stream: a bundled stream, `<split>-<kind>`, or a user's file, `file:<sha256>:<absolute path>`.
        start: its first character.
        length: characters in it.
    """

    stream: str
    start: int
    length: int


@dataclass(frozen=True)
class Instance:
    """A span of text.

    Attributes:
        uri: its name, `drrl://bundled/<split>/<number>` or `drrl://text/<stem>-<sha8>/<number>`.
        split: `train`, `validation` or `test`; `text` for a user's own.
        kind: `prose`, `encyclopedia`, `code` or `mixture`; `text` for a user's own.
        pieces: one piece, or the four of a mixture in reading order.
    """

    uri: str
    split: str
    kind: str
    pieces: tuple[Piece, ...]


def sha256(text: str) -> str:
    """The SHA-256 of the text in UTF-8, in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


@functools.cache
def manifest() -> dict[str, Any]:
    """`splits.json`: streams and their hashes, the document index and the instance table."""
    table: dict[str, Any] = json.loads((resources.files("drrl_env.data") / "splits.json").read_text("utf-8"))
    return table


@functools.cache
def stream_text(stream: str) -> str:
    """The characters of a stream, as named in `Piece.stream`.

    Raises:
        ValueError: no such stream, or its text is not the one that the splits were made of.
    """
    if stream.startswith(_FILE + ":"):
        _, digest, path = stream.split(":", 2)
        return _checked(stream, _own_text(Path(path)), digest)
    known = manifest()["streams"]
    if stream not in known:
        raise ValueError(f"stream={stream!r}: unknown; use one of {', '.join(known)}")
    packed = (resources.files("drrl_env.data") / "text" / f"{stream}.txt.xz").read_bytes()
    return _checked(stream, lzma.decompress(packed).decode(), known[stream]["sha256"])


def instances(split: str) -> tuple[Instance, ...]:
    """The frozen instances of a split, kinds taking turns, so that the first N are balanced.

    Raises:
        ValueError: no such split.
    """
    return _bundled()[_known_split(split)]


def instance(uri: str) -> Instance:
    """The bundled instance of that name.

    Raises:
        ValueError: no bundled instance has it.
    """
    for found in itertools.chain.from_iterable(_bundled().values()):
        if found.uri == uri:
            return found
    names = ", ".join(f"{rows[0].uri} to {len(rows) - 1:04d}" for rows in _bundled().values())
    raise ValueError(f"uri={uri!r}: no such bundled instance; use {names}, or instances_from_text for your own text")


def parse_uri(uri: str) -> tuple[str, int | None]:
    """An instance's URI and the layer that `?layer=N` behind it names, None where it names none.

    Raises:
        ValueError: something else is behind the question mark.
    """
    base, mark, query = uri.partition("?")
    if not mark:
        return base, None
    name, _, value = query.partition("=")
    if name != "layer" or not value.isdigit():
        raise ValueError(f"uri={uri!r}: {query!r} is not understood; use for example {base}?layer=2")
    return base, int(value)


@functools.cache
def documents(split: str) -> tuple[Document, ...]:
    """The documents (chapters, articles, source files) that a split's streams are made of.

    Raises:
        ValueError: no such split.
    """
    streams = [f"{_known_split(split)}-{kind}" for kind in KINDS]
    return tuple(document for stream in streams for document in _documents_of(stream))


def instance_text(instance: Instance, characters: int) -> str:
    """The first `characters` characters of an instance.

    It reads on past its pieces: one piece onward in its stream, a mixture by turns through what follows each
    of its pieces; a stream that ends begins again.
    """
    parts: list[str] = []
    missing = characters
    for part in _laps(instance):
        if missing <= 0:
            break
        parts.append(part)
        missing -= len(part)
    return "".join(parts)[: max(characters, 0)]


def token_ids(instance: Instance, tokenizer: PreTrainedTokenizerBase, length: int) -> torch.Tensor:
    """The first `length` tokens of an instance, (length,), int64; the tokenizer's bos token leads if it has one.

    Reading longer never changes what comes first.

    Raises:
        ValueError: `length` is below one.
    """
    _check_length(length)
    bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    characters, ids = 3 * length + 256, list[int]()
    # The spare tokens keep the cut in the text away from the tokens that are returned.
    while len(ids) < length + _MARGIN:
        characters *= 2
        ids = _encode(instance_text(instance, characters), tokenizer)
    return torch.tensor([*bos, *ids][:length], dtype=torch.int64)


def instances_from_text(
    path: Path, tokenizer: PreTrainedTokenizerBase, length: int, count: int | None = None
) -> tuple[Instance, ...]:
    """Consecutive spans of a user's own text, each of at least `length` tokens and ended at a line or a word.

    Args:
        path: a UTF-8 text file; it is read again (and its hash checked) wherever the instances are read.
        tokenizer: a fast tokenizer, which decides where spans end.
        length: tokens of a span, at least one.
        count: how many spans, from the beginning; None for all there are.

    Raises:
        ValueError: the file cannot be read as text, or holds too little of it, or `count` is below one.
    """
    _check_length(length)
    stream, text = _own_stream(path)
    spans = list(itertools.islice(cut(text, length, tokenizer), _checked_count(count)))
    _check_enough(path, text, tokenizer, length, count, len(spans))
    book = f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', path.stem)}-{sha256(text)[:8]}"
    return tuple(
        Instance(f"drrl://text/{book}/{number:04d}", "text", "text", (Piece(stream, start, size),))
        for number, (start, size) in enumerate(spans)
    )


def cut(text: str, tokens: int, tokenizer: PreTrainedTokenizerBase) -> Iterator[tuple[int, int]]:
    """Consecutive spans (start, length in characters) of at least `tokens` tokens, ended at a line or a word."""
    start = 0
    while stop := span_stop(text, start, tokens, tokenizer):
        yield start, stop - start
        start = stop


def span_stop(text: str, start: int, tokens: int, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Where a span of `tokens` tokens from `start` may stop; None if the text ends before."""
    for window in (text[start : start + 16 * tokens], text[start:]):
        offsets = tokenizer(window, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        if len(offsets["offset_mapping"]) >= tokens:
            reached = start + int(offsets["offset_mapping"][tokens - 1][1])
            return next(_BREAK.finditer(text, reached)).end()
    return None


@functools.cache
def _bundled() -> dict[str, tuple[Instance, ...]]:
    rows = [
        Instance(uri, uri.split("/")[-2], kind, tuple(Piece(*piece) for piece in pieces))
        for uri, kind, pieces in manifest()["instances"]
    ]
    return {split: tuple(row for row in rows if row.split == split) for split in SPLITS}


def _documents_of(stream: str) -> Iterator[Document]:
    text, kind = stream_text(stream), stream.split("-", 1)[1]
    for name, start, length in manifest()["streams"][stream]["documents"]:
        yield Document(name, kind, text[start : start + length])


def _laps(instance: Instance) -> Iterator[str]:
    for lap in itertools.count():
        for piece in instance.pieces:
            yield _read(stream_text(piece.stream), piece.start + lap * piece.length, piece.length)


def _read(text: str, start: int, length: int) -> str:
    start %= len(text)
    part = text[start : start + length]
    return part if len(part) == length else part + _read(text, 0, length - len(part))


def _encode(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return ids


def _own_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"text={path}: not UTF-8 at byte {error.start}; convert the file to UTF-8") from None
    except OSError as error:
        raise ValueError(f"text={path}: {error.strerror}; give a text file that can be read") from None


def _own_stream(path: Path) -> tuple[str, str]:
    text = _own_text(path)
    return f"{_FILE}:{sha256(text)}:{path.resolve()}", text


def _checked(stream: str, text: str, digest: str) -> str:
    if sha256(text) != digest:
        remedy = "make its instances again" if stream.startswith(_FILE + ":") else "install drrl-env again"
        raise ValueError(f"stream={stream!r}: its text has changed; {remedy}")
    return text


def _known_split(split: str) -> str:
    if split not in SPLITS:
        raise ValueError(f"split={split!r}: unknown split; use one of {', '.join(SPLITS)}")
    return split


def _check_length(length: int) -> None:
    if length < 1:
        raise ValueError(f"length={length}: an instance needs tokens; use a length of at least 1")


def _checked_count(count: int | None) -> int | None:
    if count is not None and count < 1:
        raise ValueError(f"count={count}: no instances asked for; use at least 1, or None for all")
    return count


def _check_enough(
    path: Path, text: str, tokenizer: PreTrainedTokenizerBase, length: int, count: int | None, found: int
) -> None:
    if found < (count or 1):
        tokens = len(_encode(text, tokenizer))
        held = f"its {tokens} tokens make {found} spans of length={length} where {count or 1} are needed"
        raise ValueError(f"text={path}: {held}; use a longer text, a smaller length or a smaller count")
