"""Raw text to documents: chapters, articles and source files, and which of them the bundled LM may see.

A *document* is the unit of every split and of the conformal guarantee. Whether one is held out from the
language model depends on nothing but the hash of its name, so the choice can be replayed anywhere.
"""

from __future__ import annotations

import hashlib
import itertools
import re
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

UNSEEN_BOOK = "frankenstein"
"""The book no part of which is ever trained on; the model card reports it apart."""

HELD_OUT_SHARE = {"prose": 0.16, "code": 0.30}
"""Share of the documents of a kind that the language model never sees."""

HELD_OUT_LENGTH = (2_000, 60_000)
"""Characters: documents outside this range are training text (a part of Ulysses is a tenth of the corpus)."""

_HEADING = re.compile(
    r"(?im)^[ \t]*(?:(?:chapter|letter|adventure)\s+(?:[ivxlc]+|\d+)\b[^\n]{0,80}"
    r"|[IVXLC]+\.\s+[A-Z][^\n]{0,60}|-- [IVX]+ --)$"
)
_ARTICLE = re.compile(r"(?m)^ = [^=\n]+ = $")
_SKIPPED_FOLDERS = {
    "site-packages", "test", "tests", "idle_test", "encodings", "pydoc_data", "lib2to3", "turtledemo", "__pycache__"
}  # fmt: skip


@dataclass(frozen=True)
class Document:
    """One chapter, article or source file.

    Attributes:
        name: stable name, `<source>/<part>`, for example `moby-dick/0041`.
        kind: `prose`, `encyclopedia` or `code`.
        text: its characters, line ends normalised to a newline.
    """

    name: str
    kind: str
    text: str


def unit_hash(name: str) -> float:
    """A number in [0, 1) that depends on nothing but `name` (SHA-256)."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64


def read_text(path: Path) -> str:
    """The file's text with line ends normalised."""
    return path.read_text(encoding="utf-8").replace("\r\n", "\n")


def split_at(pattern: re.Pattern[str], text: str, shortest: int) -> list[str]:
    """Cuts `text` where `pattern` matches; pieces under `shortest` characters (tables of contents) are dropped."""
    cuts = [match.start() for match in pattern.finditer(text)] + [len(text)]
    pieces = (text[start:stop].strip() for start, stop in itertools.pairwise(cuts))
    return [piece for piece in pieces if len(piece) >= shortest]


def chapters(path: Path) -> list[Document]:
    """The chapters of one book."""
    pieces = split_at(_HEADING, read_text(path), shortest=2_000)
    return [Document(f"{path.stem}/{i:04d}", "prose", piece) for i, piece in enumerate(pieces)]


def articles(path: Path) -> list[Document]:
    """The articles of one WikiText file, each beginning at its title line."""
    pieces = split_at(_ARTICLE, read_text(path), shortest=500)
    return [Document(f"wikitext-2-{path.stem}/{i:04d}", "encyclopedia", piece) for i, piece in enumerate(pieces)]


def books(corpus: Path) -> list[Document]:
    """The chapters of every book in the folder, `UNSEEN_BOOK` included."""
    return [document for path in sorted(corpus.glob("*.txt")) for document in chapters(path)]


def standard_library() -> Iterator[Document]:
    """The source files of this Python's standard library, without its tests and its tables."""
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        folders = path.relative_to(root).parts[:-1]
        if not _SKIPPED_FOLDERS.intersection(folders):
            name = path.relative_to(root).with_suffix("").as_posix()
            yield Document(f"python/{name}", "code", path.read_text(encoding="utf-8", errors="replace"))


def is_held_out(document: Document) -> bool:
    """Whether the bundled LM must not be trained on this document (WikiText never is)."""
    if document.kind == "encyclopedia" or document.name.startswith(UNSEEN_BOOK + "/"):
        return True
    shortest, longest = HELD_OUT_LENGTH
    if not shortest <= len(document.text) <= longest:
        return False
    return unit_hash(document.name) < HELD_OUT_SHARE[document.kind]
