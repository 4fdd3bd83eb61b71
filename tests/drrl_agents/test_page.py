"""The page of a comparison says what was found, needs nothing from anywhere, and can be read by anyone."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from drrl_agents.comparison import Comparison, entry, outcome
from drrl_agents.entrants import AGENT, RULE, Entrant
from drrl_agents.page import page, verdict, write_page
from drrl_agents.page.pictures import Axis, axis, heatmap
from drrl_agents.page.sections import mean_ranks
from drrl_agents.statistics import Interval
from drrl_agents.tasks import Task
from drrl_policies.accounts import step_layers, step_positions

VOID = {"meta", "link", "img", "br", "hr", "input"}
ODD = '<b>"bold" & co</b>'


class Reader(HTMLParser):
    """Collects tags, attributes and text; fails on tags that do not close each other."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes another"

    def handle_data(self, data):
        self.text.append(data)


def read(found: str) -> Reader:
    """The page, parsed."""
    reader = Reader()
    reader.feed(found)
    reader.close()
    assert reader.open == []
    return reader


def named(found: Comparison, name: str) -> Comparison:
    """The agent under another name."""
    first = found.entries[0]
    entrant = Entrant(name, AGENT, first.entrant.policies, first.entrant.seeds, found.task)
    own = replace(first, entrant=entrant, row=found.judge.row(name, AGENT, first.rollouts))
    return outcome(found.task, found.split, [own, *found.entries[1:]], found.judge)


def between(found: Comparison, low: float, high: float) -> Comparison:
    """The same with this interval of every difference in score."""
    score = Interval((low + high) / 2, low, high)
    return replace(found, contrasts=tuple(replace(each, score=score) for each in found.contrasts))


def with_agent(found: Comparison, **values: float) -> Comparison:
    """The same with other numbers in the agent's row."""
    first = found.entries[0]
    return replace(found, entries=(replace(first, row=replace(first.row, **values)), *found.entries[1:]))


def test_every_policy_and_its_score_is_on_the_page(compared_small):
    """In the text of a document whose tags close each other."""
    reader = read(page(compared_small))
    shown = " ".join(reader.text)
    for row in compared_small.rows:
        assert row.policy in shown
        assert f"{row.normalised_score:.3f}".replace("-", "−") in shown
    tables = page(compared_small).split("<table>")[1:]
    counts = [table.count("<tr>") - 1 for table in tables]
    policies = len(compared_small.rows)
    assert counts == [policies, len(compared_small.contrasts), policies, policies]
    assert sum(tag == "figure" for tag, _ in reader.tags) == policies


def test_the_page_asks_for_nothing(compared_small):
    """No script, link, frame, picture file, font or style from anywhere; nothing that starts http."""
    text = page(compared_small)
    reader = read(text)
    assert not {tag for tag, _ in reader.tags} & {"script", "link", "iframe", "img", "object", "embed", "base", "form"}
    assert not [attrs for _, attrs in reader.tags if {"src", "href", "srcset", "data", "xlink:href"} & set(attrs)]
    assert not re.search(r"https?://|url\(|@import", text)
    assert not [name for _, attrs in reader.tags for name in attrs if name.startswith("on")]


def test_names_are_text_and_never_tags(compared_small):
    """A policy called `<b>` adds no tag, and reads as it is called."""
    odd, plain = page(named(compared_small, ODD), ODD), page(named(compared_small, "plain"), "plain")
    assert ODD not in odd
    assert [tag for tag, _ in read(odd).tags] == [tag for tag, _ in read(plain).tags]
    assert ODD in "".join(read(odd).text)


def test_pictures_are_told_in_words(compared_small):
    """Every SVG has a label; tables have captions and heads with a scope; the language is named."""
    reader = read(page(compared_small))
    pictures = [attrs for tag, attrs in reader.tags if tag == "svg"]
    assert len(pictures) == 2 + len(compared_small.rows)
    assert all(attrs["role"] == "img" and attrs["aria-label"] for attrs in pictures)
    tags = [tag for tag, _ in reader.tags]
    assert tags.count("caption") == tags.count("table")
    assert all(attrs.get("scope") in ("row", "col") for tag, attrs in reader.tags if tag == "th")
    assert ("html", {"lang": "en"}) in reader.tags


def test_the_page_is_small_and_the_same_every_time(compared_small, tmp_path):
    """Below a megabyte, and no date in it: same comparison, same bytes."""
    first, second = (write_page(compared_small, tmp_path / name) for name in ("a.html", "b.html"))
    assert first.read_bytes() == second.read_bytes()
    assert first.stat().st_size < 1_000_000


def test_it_says_what_was_played_and_how_to_replay_it(compared_small):
    """Command, task with its arguments, split, counts, digests, versions."""
    shown = "".join(read(page(compared_small, "drrl compare X --seeds 2")).text)
    asked = (
        "drrl compare X --seeds 2",
        "context=512",
        "guard='paper'",
        "4 instances of the test split",
        "drrl validate",
    )
    for part in (*asked, compared_small.field.arena.world.model.digest):
        assert part in shown


@pytest.mark.parametrize(
    ("low", "high", "says"),
    [
        (0.01, 0.03, "is clearly better than the best rule"),
        (-0.03, -0.01, "is clearly worse than the best rule"),
        (-0.01, 0.03, "is not clearly better than the best rule"),
        (0.0, 0.0, "does as well as the best rule"),
        (float("nan"), float("nan"), "cannot be said"),
    ],
)
def test_the_verdict_follows_the_contrast(compared_small, low, high, says):
    """Clear where the interval does not hold 0; nothing is claimed without one."""
    best = max((row for row in compared_small.rows if row.kind == RULE and row.policy != "random"),
               key=lambda row: row.mean_return)  # fmt: skip
    first = verdict(between(compared_small, low, high))[0]
    assert says in first
    assert best.policy in first


def test_the_verdict_says_when_it_does_not_pay(compared_small):
    """All FLOPs counted below full attention's: saved; above: spent."""
    saved = " ".join(verdict(with_agent(compared_small, total_flops_ratio=0.75, relative_error=0.125)))
    assert "saves 25.0 % of full attention's FLOPs, at a mean relative error of 0.125" in saved
    spent = " ".join(verdict(with_agent(compared_small, total_flops_ratio=1.5)))
    assert "does not pay in FLOPs here" in spent
    assert "50.0 % more" in spent


def test_the_verdict_names_what_is_as_cheap_and_as_faithful(compared_small):
    """A dear and unfaithful agent is told so by name; one that nothing matches too."""
    beaten = " ".join(verdict(with_agent(compared_small, total_flops_ratio=9.0, fidelity=0.0)))
    assert "At least as cheap in all FLOPs and as faithful on average: " in beaten
    assert "full" in beaten
    alone = " ".join(verdict(with_agent(compared_small, total_flops_ratio=0.01, fidelity=0.999)))
    assert "No other policy here" in alone


def test_the_verdict_warns_of_few_instances_and_seeds(compared_small):
    """Four instances and two seeds make intervals that are too narrow."""
    assert any("Only 4 instances and 2 seeds" in sentence for sentence in verdict(compared_small))


def test_without_agents_nothing_is_claimed_of_them(compared_small):
    """The page is made all the same."""
    rules = outcome(compared_small.task, "test", compared_small.entries[1:], compared_small.judge)
    assert verdict(rules)[0].startswith("No trained agent took part")
    assert "nothing to contrast" in "".join(read(page(rules)).text)


def test_heatmaps_show_the_mean_rank_of_every_layer_and_segment(compared_small):
    """By hand, over seeds and episodes."""
    found = compared_small.entries[0]
    layers, ranks = mean_ranks(found, compared_small)
    numbers, positions = step_layers(compared_small.field), step_positions(compared_small.field)
    for row, layer in enumerate(layers):
        for segment in np.unique(positions):
            here = (numbers == layer) & (positions == segment)[None]
            wanted = np.mean([played.executed_ranks[here].mean() for played in found.rollouts])
            assert ranks[row, segment] == pytest.approx(wanted)


def test_a_large_model_and_a_long_text_make_a_small_picture():
    """Sixty layers of 600 segments: 30 kB at most, segments in bins, so that thirty policies fit a page."""
    ranks = np.random.default_rng(0).uniform(0, 128, (60, 600))
    assert len(heatmap(ranks, range(60), 128.0, "many")) < 30_000


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-0.02, 0.003), (0.97, 0.98), (5.0, 1e5), (2.0, 2.0)])
def test_axes_have_a_few_round_ticks_inside(low, high):
    """Three to ten of them, each within the axis, the numbers too."""
    found: Axis = axis([low, high], 10.0, 500.0)
    ticks = found.ticks()
    assert 3 <= len(ticks) <= 10
    assert all(10 <= found.at(value) <= 500 for value in (*ticks, low, high))


LATENCY = Task("DRRL-Latency-v0", context=512, layer=2, value_rank="none")


def test_a_single_instance_has_no_interval_and_no_nan(compare_few):
    """A dash, or nothing, where an interval would be."""
    text = "".join(read(page(compare_few(LATENCY, 1, bases=False))).text)
    assert not re.search(r"\bnan\b", text)
    assert "no interval" in text


def test_milliseconds_are_shown_where_they_are_charged(compare_few, compared_small):
    """A column and a sentence of the latency model; not in a task that charges FLOPs."""
    found = compare_few(LATENCY, 1, bases=False)
    assert any("milliseconds" in sentence for sentence in verdict(found))
    assert ">ms</th>" in page(found)
    assert ">ms</th>" not in page(compared_small)


def test_entries_of_several_seeds_count_all_of_them(compared_small):
    """The kinds' scores are means over seeds: with one seed less they are other ones."""
    first = compared_small.entries[0]
    lone = replace(first.entrant, policies=first.entrant.policies[:1], seeds=(0,))
    fewer = replace(compared_small, entries=(entry(lone, compared_small.field, compared_small.judge),
                                             *compared_small.entries[1:]))  # fmt: skip
    assert page(fewer).split("By kind of text")[1] != page(compared_small).split("By kind of text")[1]
