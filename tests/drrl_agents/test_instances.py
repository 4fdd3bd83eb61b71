"""`drrl instances` lists what environments draw from, and its instructions work."""

from __future__ import annotations

import json
import re
from pathlib import Path

import gymnasium
import pytest

import drrl_env  # noqa: F401  (registers the environments)
from drrl_agents.instances import ALL_KINDS, Instances, listings, run_instances
from drrl_env.data.instances import SPLITS, documents, instance, instance_text, instances, sha256
from drrl_env.envs.pool import instance_pool
from drrl_env.envs.settings import Measurement
from drrl_env.envs.world import open_world


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A text of one's own, long enough for a span of 256 tokens in every split."""
    path = tmp_path / "own.txt"
    path.write_text("\n".join(f"Line {n} of a text that nobody wrote, about the number {n * n}." for n in range(200)))
    return path


def test_every_instance_is_listed_once_in_the_order_environments_draw_from() -> None:
    """All 384 URIs, split by split as `instances` has them; at least 256/64/64, every kind in each."""
    found = listings(Instances())
    assert [row.uri for row in found] == [each.uri for split in SPLITS for each in instances(split)]
    for split, least in zip(SPLITS, (256, 64, 64), strict=True):
        mine = [row for row in found if row.split == split]
        assert len(mine) >= least
        assert {row.kind for row in mine} == set(ALL_KINDS)


def test_a_listing_tells_the_hash_and_the_documents_of_the_very_characters() -> None:
    """The hash is that of the text an environment reads; each piece of it lies in the named documents, and each named
    document shares characters with it."""
    texts = {document.name: document.text for document in documents("test")}
    for row in listings(Instances(split="test")):
        span = instance(row.uri)
        shown = instance_text(span, row.characters)
        assert len(shown) == row.characters
        assert row.sha256 == sha256(shown)
        assert all(
            texts[name][:40] in shown or shown[:40] in texts[name] or _shares(texts[name], shown)
            for name in row.documents
        )
        if len(span.pieces) == len(row.documents) == 1:
            assert shown.strip() in texts[row.documents[0]]


def _shares(one: str, other: str) -> bool:
    """Whether 40 characters of `other` are in `one`, looked for at every 20th."""
    return any(other[at : at + 40] in one for at in range(0, len(other) - 40, 20))


def test_splits_share_no_document() -> None:
    """No document has characters in two splits: what is learnt on one cannot be remembered on another."""
    touched = {split: {name for row in listings(Instances(split=split)) for name in row.documents} for split in SPLITS}
    assert not touched["train"] & touched["validation"]
    assert not touched["train"] & touched["test"]
    assert not touched["validation"] & touched["test"]


def test_json_is_one_object_that_counts_what_it_lists(capsys: pytest.CaptureFixture[str]) -> None:
    """`--split test --kind code --json`: only those, and the counts add up."""
    run_instances(Instances(split="test", kind="code", json=True))
    found = json.loads(capsys.readouterr().out)
    assert {(row["split"], row["kind"]) for row in found["instances"]} == {("test", "code")}
    assert sum(row["instances"] for row in found["counts"]) == len(found["instances"]) >= 16
    assert set(found["instances"][0]) == {"uri", "split", "kind", "characters", "documents", "sha256"}


def test_the_table_fits_and_ends_with_counts(capsys: pytest.CaptureFixture[str]) -> None:
    """Whole URIs in at most 118 columns, then a row of counts per split."""
    run_instances(Instances())
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 118
    assert sum("drrl://bundled/" in line for line in lines) == len(listings(Instances())) + 1
    assert any(re.search(r"train.*64.*64.*64.*64.*256", line) for line in lines)
    assert "…" not in "".join(line.split("│")[1] for line in lines if line.startswith("│"))


def test_the_instructions_work(capsys: pytest.CaptureFixture[str]) -> None:
    """What it says to type begins an episode on that very instance and layer."""
    run_instances(Instances(split="validation", kind="mixture"))
    printed = capsys.readouterr().out
    code = [line.strip() for line in printed.splitlines() if line.startswith("  env")]
    names: dict[str, object] = {"gymnasium": gymnasium}
    exec(code[0], names)
    _, info = eval(code[1].strip(), names)
    assert f"{info['instance']}?layer={info['layer']}" in code[1]


def test_a_text_of_ones_own_is_listed_as_environments_deal_it(text: Path) -> None:
    """The spans of each split are those of an environment with `text=`, every span once."""
    found = listings(Instances(text=text, context=256))
    world = open_world(Measurement(context=256))
    for split in SPLITS:
        dealt = instance_pool(world, split, None, text)
        assert [row.uri for row in found if row.split == split] == [each.uri for each in dealt]
    assert len({row.uri for row in found}) == len(found) == len(instance_pool(world, None, None, text))
    assert {row.kind for row in found} == {"text"}


def test_the_instructions_for_a_text_of_ones_own_work(text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Text, context and split are in what it says to type."""
    run_instances(Instances(text=text, context=256, split="test"))
    code = [line.strip() for line in capsys.readouterr().out.splitlines() if line.startswith("  env")]
    names: dict[str, object] = {"gymnasium": gymnasium}
    exec(code[0], names)
    _, info = eval(code[1], names)
    assert info["layer"] == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"split": "tset"}, "split='tset': unknown; use one of 'train', 'validation', 'test'"),
        ({"kind": "poem"}, "kind='poem': unknown; use one of 'prose', 'encyclopedia', 'code', 'mixture'"),
        ({"text": Path("nowhere.txt")}, "text=nowhere.txt: No such file or directory"),
    ],
)
def test_a_wrong_argument_is_named_with_its_remedy(arguments: dict[str, object], said: str) -> None:
    """One line: argument, value, what to use instead."""
    with pytest.raises(ValueError, match=re.escape(said)):
        listings(Instances(**arguments))  # type: ignore[arg-type]


def test_a_text_too_short_for_a_split_says_so(tmp_path: Path) -> None:
    """Two spans make a train split and no test split."""
    path = tmp_path / "short.txt"
    path.write_text("word " * 700)
    assert len(listings(Instances(text=path, context=256))) == 2
    with pytest.raises(ValueError, match="too short for a span in split 'test'; use a longer text"):
        listings(Instances(text=path, context=256, split="test"))
