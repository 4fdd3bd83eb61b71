"""Makes the shipped text and its splits: `python -m drrl_env.data.build --corpus FOLDER --tokenizer FOLDER`.

A maintainer's script. Only text that the bundled LM never sees is shipped; a document that shares a run of 200
characters with what it was trained on, or with a more important split, is left out.
"""

from __future__ import annotations

import itertools
import json
import lzma
import platform
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tyro
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from drrl_env.data.corpus import UNSEEN_BOOK, Document, articles, books, is_held_out, standard_library, unit_hash
from drrl_env.data.instances import KINDS, SPLITS, Instance, Piece, cut, sha256
from drrl_env.data.overlap import shared, union, windows

SHARES = {
    "prose": {"train": 0.50, "validation": 0.25, "test": 0.25},
    "code": {"train": 0.50, "validation": 0.25, "test": 0.25},
    "wikitext-2-valid": {"train": 0.7, "validation": 0.3},
    "wikitext-2-test": {"test": 1.0},
}
"""Where documents go, by kind or, for the encyclopedia, by file."""

COUNTS = {"train": 64, "validation": 16, "test": 16}
"""Instances of a kind in each split; mixtures are a fourth kind."""

SPAN_TOKENS = 2048
PIECE_TOKENS = 516
"""A quarter of a span and a little more: joining pieces may merge a token at each seam."""

PIECES = 4

_TRAILER = re.compile(r"\s*End of (?:the )?Project Gutenberg.*", re.DOTALL)
_SPLIT_SIGNS = re.compile(r" @([-,.])@ ")


@dataclass(frozen=True)
class Options:
    """What the script is told.

    Attributes:
        corpus: folder of the books, with WikiText-2 in `wikitext-2/`.
        tokenizer: folder of the bundled tokenizer, which measures spans.
        out: folder that receives `text/` and `splits.json`.
    """

    corpus: Path
    tokenizer: Path
    out: Path = Path(__file__).parent


@dataclass(frozen=True)
class Stream:
    """The documents of one split and kind, joined.

    Attributes:
        text: their characters.
        index: (name, first character, characters) of each.
    """

    text: str
    index: tuple[tuple[str, int, int], ...]


def held_out(corpus: Path) -> list[Document]:
    """What may ship: held-out chapters (none of the unseen book), source files and articles, without duplicates."""
    wikitext = corpus / "wikitext-2"
    found = [d for d in books(corpus) if not d.name.startswith(f"{UNSEEN_BOOK}/")]
    found += [*standard_library(), *articles(wikitext / "valid.txt"), *articles(wikitext / "test.txt")]
    tidied = [replace(d, text=tidy(d.text, d.kind)) for d in found if is_held_out(d)]
    return list({d.text: d for d in tidied}.values())


def tidy(text: str, kind: str) -> str:
    """Takes off a book's trailer and rejoins the numbers and hyphens that WikiText takes apart."""
    if kind == "prose":
        return _TRAILER.sub("", text)
    return _SPLIT_SIGNS.sub(r"\1", text) if kind == "encyclopedia" else text


def split_of(document: Document) -> str:
    """The split of a document, by the hash of its name."""
    shares = SHARES.get(document.kind) or SHARES[document.name.split("/")[0]]
    edges = zip(shares, itertools.accumulate(shares.values()), strict=True)
    return next(split for split, edge in edges if unit_hash(f"split:{document.name}") < edge)


def training_text(corpus: Path) -> Iterator[str]:
    """Every document that the bundled LM is trained on."""
    yield from (d.text for d in itertools.chain(books(corpus), standard_library()) if not is_held_out(d))


def without_shared_text(found: Sequence[Document], trained: Iterator[str]) -> list[Document]:
    """Leaves out documents that share text with the LM's training text or with another split, test first."""
    taken, kept = union(windows(text) for text in trained), list[Document]()
    for split in reversed(SPLITS):
        hashes = {d: windows(d.text) for d in found if split_of(d) == split}
        clean = [d for d, own in hashes.items() if not shared(own, taken)]
        taken = union([taken, *(hashes[d] for d in clean)])
        kept += clean
    return kept


def join(documents: Sequence[Document]) -> Stream:
    """Joins documents, an empty line between them."""
    starts = itertools.accumulate((len(d.text) + 2 for d in documents), initial=0)
    index = tuple((d.name, start, len(d.text)) for d, start in zip(documents, starts, strict=False))
    return Stream("\n\n".join(d.text for d in documents), index)


def pieces_within(name: str, text: str, bounds: tuple[int, int], tokens: int, tokenizer: Any) -> list[Piece]:
    """Consecutive pieces of `tokens` tokens between two characters of a stream."""
    first, last = bounds
    return [Piece(name, first + start, length) for start, length in cut(text[first:last], tokens, tokenizer)]


def spread(pieces: Sequence[Piece], count: int) -> list[Piece]:
    """`count` of the pieces, evenly spaced.

    Raises:
        ValueError: there are fewer.
    """
    if len(pieces) < count:
        raise ValueError(f"corpus: {len(pieces)} pieces where {count} are needed; add documents or lower COUNTS")
    return [pieces[i * len(pieces) // count] for i in range(count)]


def pure_spans(name: str, stream: Stream, count: int, tokenizer: PreTrainedTokenizerBase) -> list[Piece]:
    """`count` spans, each within one document."""
    bounds = [(start, start + length) for _, start, length in stream.index]
    spans = [pieces_within(name, stream.text, bound, SPAN_TOKENS, tokenizer) for bound in bounds]
    return spread(list(itertools.chain.from_iterable(spans)), count)


def small_pieces(name: str, stream: Stream, spans: Sequence[Piece], tokenizer: PreTrainedTokenizerBase) -> list[Piece]:
    """Pieces for mixtures, out of what the pure spans leave over."""
    edges = [edge for _, start, length in stream.index for edge in (start, start + length)]
    edges = sorted([*edges, *(edge for span in spans for edge in (span.start, span.start + span.length))])
    gaps = zip(edges[::2], edges[1::2], strict=True)
    found = [pieces_within(name, stream.text, gap, PIECE_TOKENS, tokenizer) for gap in gaps]
    return list(itertools.chain.from_iterable(found))


def mixtures(pools: dict[str, list[Piece]], count: int) -> list[tuple[Piece, ...]]:
    """Mixtures of four pieces, the kinds taking turns."""
    turns = [[KINDS[(number + turn) % len(KINDS)] for turn in range(PIECES)] for number in range(count)]
    needed = list(itertools.chain.from_iterable(turns))
    queues = {kind: iter(far_apart(spread(pools[kind], needed.count(kind)))) for kind in KINDS}
    return [tuple(next(queues[kind]) for kind in kinds) for kinds in turns]


def far_apart(pieces: Sequence[Piece]) -> list[Piece]:
    """Reorders pieces so that neighbours are half a stream apart: a mixture that reads on must not repeat itself."""
    half = (len(pieces) + 1) // 2
    pairs = itertools.zip_longest(pieces[:half], pieces[half:])
    return [piece for pair in pairs for piece in pair if piece is not None]


def split_instances(split: str, streams: dict[str, Stream], tokenizer: PreTrainedTokenizerBase) -> list[Instance]:
    """The instances of a split: prose, encyclopedia, code, mixture, prose, ..."""
    count, names = COUNTS[split], {kind: f"{split}-{kind}" for kind in KINDS}
    pure = {kind: pure_spans(name, streams[name], count, tokenizer) for kind, name in names.items()}
    pools = {kind: small_pieces(name, streams[name], pure[kind], tokenizer) for kind, name in names.items()}
    columns = {kind: [(span,) for span in spans] for kind, spans in pure.items()} | {"mixture": mixtures(pools, count)}
    rows = [(kind, columns[kind][number]) for number in range(count) for kind in columns]
    return [Instance(f"drrl://bundled/{split}/{i:04d}", split, kind, pieces) for i, (kind, pieces) in enumerate(rows)]


def rows_of(found: Sequence[Instance]) -> list[Any]:
    """The instance table as JSON rows: [uri, kind, [[stream, start, length], ...]]."""
    return [[i.uri, i.kind, [[p.stream, p.start, p.length] for p in i.pieces]] for i in found]


def manifest_of(streams: dict[str, Stream], rows: list[Any]) -> dict[str, Any]:
    """What `splits.json` holds."""
    described = {
        name: {"sha256": sha256(stream.text), "characters": len(stream.text), "documents": stream.index}
        for name, stream in streams.items()
    }
    return {
        "python": platform.python_version(),
        "instances_sha256": sha256(json.dumps(rows)),
        "streams": described,
        "instances": rows,
    }


def write(out: Path, streams: dict[str, Stream], rows: list[Any]) -> None:
    """Writes the compressed streams and `splits.json`."""
    (out / "text").mkdir(parents=True, exist_ok=True)
    for name, stream in streams.items():
        packed = lzma.compress(stream.text.encode(), preset=9 | lzma.PRESET_EXTREME)
        (out / "text" / f"{name}.txt.xz").write_bytes(packed)
    (out / "splits.json").write_text(json.dumps(manifest_of(streams, rows), separators=(",", ":")) + "\n")


def main(options: Options) -> None:
    """Builds everything."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(options.tokenizer)
    kept = without_shared_text(held_out(options.corpus), training_text(options.corpus))
    groups = {f"{split}-{kind}": (split, kind) for split in SPLITS for kind in KINDS}
    streams = {n: join([d for d in kept if (split_of(d), d.kind) == group]) for n, group in groups.items()}
    found = [i for split in SPLITS for i in split_instances(split, streams, tokenizer)]
    write(options.out, streams, rows_of(found))
    print({name: f"{len(s.index)} documents, {len(s.text)} characters" for name, s in streams.items()})


if __name__ == "__main__":
    main(tyro.cli(Options))
