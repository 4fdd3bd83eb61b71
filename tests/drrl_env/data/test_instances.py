"""Reading instances: bundled ones and a user's own."""

import pickle
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from drrl_env.data.instances import (
    SPLITS,
    Instance,
    documents,
    instance,
    instance_text,
    instances,
    instances_from_text,
    stream_text,
    token_ids,
)

SENTENCE = "The quick brown fox jumps over the lazy dog, and line {} goes on.\n"


def written(folder: Path, lines: int) -> Path:
    path = folder / "my own text.txt"
    path.write_text("".join(SENTENCE.format(n) for n in range(lines)), encoding="utf-8")
    return path


@pytest.mark.parametrize("length", [1, 2, 128, 2048, 5000])
@pytest.mark.parametrize("number", range(4))
def test_tokens_have_exactly_the_length_asked_for(number: int, length: int, tokenizer: PreTrainedTokenizerBase) -> None:
    """Any length, every kind: (length,) int64, bos first, and the same twice."""
    found = instances("test")[number]
    ids = token_ids(found, tokenizer, length)
    assert (ids.shape, ids.dtype) == ((length,), torch.int64)
    assert ids[0] == tokenizer.bos_token_id
    assert torch.equal(ids, token_ids(found, tokenizer, length))


@pytest.mark.parametrize("number", range(8))
def test_reading_longer_never_changes_what_came_first(number: int, tokenizer: PreTrainedTokenizerBase) -> None:
    """The first 300 or 1000 of 4096 tokens are the 300 or 1000 tokens."""
    found = instances("validation")[number]
    long = token_ids(found, tokenizer, 4096)
    for length in (300, 1000):
        assert torch.equal(token_ids(found, tokenizer, length), long[:length])


def test_a_tokenizer_without_bos_gets_none(tokenizer: PreTrainedTokenizerBase) -> None:
    """Then the first token is text."""
    bare = pickle.loads(pickle.dumps(tokenizer))
    bare.bos_token = None
    found = instances("test")[0]
    assert torch.equal(token_ids(found, bare, 63), token_ids(found, tokenizer, 64)[1:])


def test_a_single_kind_reads_onward_and_wraps_at_the_end_of_its_stream() -> None:
    """Past its piece comes what follows in the stream; past the stream's end its beginning."""
    found = instances("test")[0]
    piece, stream = found.pieces[0], stream_text(found.pieces[0].stream)
    text = instance_text(found, len(stream) + 100)
    assert text == (stream + stream)[piece.start : piece.start + len(stream) + 100]


def test_a_mixture_goes_on_by_turns() -> None:
    """Past its pieces comes what follows the first, as long as the first was."""
    found = instances("test")[3]
    length = sum(piece.length for piece in found.pieces)
    first = found.pieces[0]
    after = first.start + first.length
    assert instance_text(found, length + 200)[length:] == stream_text(first.stream)[after : after + 200]


def test_every_uri_leads_back_to_its_instance() -> None:
    """All 384 of them."""
    assert all(instance(found.uri) == found for split in SPLITS for found in instances(split))


@pytest.mark.parametrize("read", [instances, documents])
def test_an_unknown_split_is_told_the_ones_there_are(read: object) -> None:
    """One line: argument, value, remedy."""
    assert callable(read)
    with pytest.raises(ValueError, match=r"^split='dev': unknown split; use one of train, validation, test$"):
        read("dev")


def test_an_unknown_uri_is_told_the_ones_there_are() -> None:
    """One line: argument, value, remedy."""
    with pytest.raises(ValueError, match=r"^uri='drrl://bundled/test/9999': .*drrl://bundled/test/0000 to 0063"):
        instance("drrl://bundled/test/9999")


def test_length_below_one_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    """One line: argument, value, remedy."""
    with pytest.raises(ValueError, match=r"^length=0: .*at least 1$"):
        token_ids(instances("test")[0], tokenizer, 0)


def test_own_text_is_cut_into_consecutive_spans(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Spans follow one another from the first character, begin with a line, and each holds its tokens."""
    path = written(tmp_path, lines=200)
    found = instances_from_text(path, tokenizer, length=256)
    pieces = [i.pieces[0] for i in found]
    assert [piece.start for piece in pieces] == [0, *(piece.start + piece.length for piece in pieces)][:-1]
    for i in found:
        assert instance_text(i, 9) == "The quick"
        assert len(tokenizer(instance_text(i, i.pieces[0].length))["input_ids"]) >= 256
        assert token_ids(i, tokenizer, 256).shape == (256,)
    assert found[0].uri.startswith("drrl://text/my-own-text-")
    assert found[1].uri.endswith("/0001")
    assert instances_from_text(path, tokenizer, length=256, count=2) == found[:2]


def test_own_instances_travel_to_other_processes(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """A pickled instance is the same value and reads the same tokens."""
    found = instances_from_text(written(tmp_path, lines=100), tokenizer, length=64)[3]
    copy: Instance = pickle.loads(pickle.dumps(found))
    assert copy == found
    assert torch.equal(token_ids(copy, tokenizer, 64), token_ids(found, tokenizer, 64))


def test_own_text_that_changed_is_noticed(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Never other tokens under the same name."""
    path = written(tmp_path, lines=60)
    found = instances_from_text(path, tokenizer, length=64)[0]
    path.write_text("something else entirely", encoding="utf-8")
    with pytest.raises(ValueError, match="its text has changed; make its instances again"):
        instance_text(found, 10)


def test_own_text_shorter_than_a_span_names_its_tokens_and_the_way_out(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    """One line: path, tokens it has, length asked for, remedy."""
    path = written(tmp_path, lines=2)
    tokens = len(tokenizer(path.read_text())["input_ids"])
    with pytest.raises(ValueError, match=rf"^text=.*: its {tokens} tokens make 0 spans of length=512 .*longer text"):
        instances_from_text(path, tokenizer, length=512)


def test_more_spans_than_own_text_holds_are_refused(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """No silent shortage."""
    with pytest.raises(ValueError, match=r"make \d spans of length=64 where 1000 are needed"):
        instances_from_text(written(tmp_path, lines=20), tokenizer, length=64, count=1000)


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00caf\xe9", b""])
def test_own_text_that_cannot_be_read_is_named(
    content: bytes | None, tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    """A missing file, one that is not UTF-8 and an empty one: one line that begins with the path."""
    path = tmp_path / "broken.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"^text=.*broken\.txt: [^\n]+; [^\n]+$"):
        instances_from_text(path, tokenizer, length=8)
