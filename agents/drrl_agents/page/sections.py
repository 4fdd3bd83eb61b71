"""Parts of the page: tables and figures of a comparison as HTML, every text escaped."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from html import escape

import numpy as np

from drrl_agents.bench.report import machine
from drrl_agents.comparison import Comparison, Entry
from drrl_agents.entrants import AGENT, BASIS
from drrl_agents.episodes import to_json
from drrl_agents.page.pictures import COLOURS, heatmap
from drrl_agents.page.verdict import best, ends, number, signed, standing
from drrl_agents.scoring import Row
from drrl_agents.statistics import Contrast, Interval
from drrl_env import __version__
from drrl_env.envs.mechanism import Doubles
from drrl_env.envs.oracle import normalised_score
from drrl_env.lowrank.version import ENGINE_VERSION
from drrl_policies.accounts import step_layers, step_positions
from drrl_policies.rules import Table

KINDS = ("prose", "encyclopedia", "code", "mixture")
"""Kinds of text in the order they are shown; others follow."""
Cell = tuple[str, Callable[[Row], str]]


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], caption: str, words: int = 1) -> str:
    """A table that scrolls sideways where it is too wide; the first `words` columns hold words."""
    head = "".join(f'<th scope="col"{_class(k, words)}>{escape(name)}</th>' for k, name in enumerate(heads))
    body = "".join(f"<tr>{''.join(_cell(k, cell, words) for k, cell in enumerate(row))}</tr>" for row in rows)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}"><table>'
        f"<caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _class(column: int, words: int) -> str:
    return ' class="words"' if column < words else ""


def _cell(column: int, cell: str, words: int) -> str:
    if column == 0:
        return f'<th scope="row" class="words">{escape(cell)}</th>'
    return f"<td{_class(column, words)}>{escape(cell)}</td>"


def _with_ends(value: float, low: float, high: float) -> str:
    return number(value) if math.isnan(low) else f"{number(value)} [{number(low)}, {number(high)}]"


SCORES: tuple[Cell, ...] = (
    ("policy", lambda row: row.policy),
    ("kind", lambda row: row.kind),
    ("seeds", lambda row: str(row.seeds)),
    ("score [95 %]", lambda row: _with_ends(row.normalised_score, row.low, row.high)),
    (
        "IQM [95 %]",
        lambda row: _with_ends(row.interquartile_mean, row.interquartile_mean_low, row.interquartile_mean_high),
    ),
    (
        "optimality gap [95 %]",
        lambda row: _with_ends(row.optimality_gap, row.optimality_gap_low, row.optimality_gap_high),
    ),
    ("return", lambda row: number(row.mean_return)),
    ("regret / 1000 steps", lambda row: number(1000 * row.regret, 1)),
)
COSTS: tuple[Cell, ...] = (
    ("policy", lambda row: row.policy),
    ("relative error", lambda row: number(row.relative_error)),
    ("cosine", lambda row: number(row.cosine)),
    ("fidelity", lambda row: number(row.fidelity)),
    ("attention FLOPs", lambda row: number(row.flops_ratio)),
    ("all FLOPs", lambda row: number(row.total_flops_ratio)),
    ("KV cache", lambda row: number(row.cache_ratio)),
    ("ms", lambda row: "–" if row.latency_ratio is None else number(row.latency_ratio)),
    ("mean rank", lambda row: number(row.mean_rank, 1)),
)


def row_table(rows: Sequence[Row], cells: Sequence[Cell], caption: str, words: int = 1) -> str:
    """A row per policy, the best return first."""
    shown = [cell for cell in cells if cell[0] != "ms" or any(row.latency_ratio is not None for row in rows)]
    ordered = sorted(rows, key=lambda row: -row.mean_return)
    return table([name for name, _ in shown], [[of(row) for _, of in shown] for row in ordered], caption, words)


def contrast_table(found: Comparison) -> str:
    """How agents differ from the others; a sentence where there are none."""
    if not found.contrasts:
        return "<p>No trained agent took part, so there is nothing to contrast.</p>"
    heads = ("policy", "against", "reading", "score", "P(better)", "return")
    caption = "Differences, paired by instance, with 95 % intervals"
    return table(heads, [_contrast(each) for each in found.contrasts], caption, words=3)


def _contrast(found: Contrast) -> list[str]:
    said = {"better": "clearly better", "worse": "clearly worse"}
    clear, better = standing(found.score), found.probability_of_improvement
    chance = _with_ends(better.value, better.low, better.high)
    gaps = _difference(found.score), _difference(found.mean_return)
    return [found.first, found.second, said.get(clear, clear), gaps[0], chance, gaps[1]]


def _difference(found: Interval) -> str:
    return signed(found.value) if math.isnan(found.low) else f"{signed(found.value)} {ends(found)}"


def kind_table(found: Comparison) -> str:
    """Scores on every kind of text alone."""
    kinds = np.array([episode.instance.kind for episode in found.field.episodes])
    shown = [kind for kind in (*KINDS, *sorted(set(kinds) - set(KINDS))) if kind in kinds]
    counts = {kind: len({e.instance.uri for e in found.field.episodes if e.instance.kind == kind}) for kind in shown}
    heads = ["policy", *(f"{kind} ({counts[kind]})" for kind in shown)]
    ordered = sorted(found.entries, key=lambda entry: -entry.row.mean_return)
    rows = [[entry.row.policy, *(number(_score(entry, found, kinds == kind)) for kind in shown)] for entry in ordered]
    return table(heads, rows, "Normalised score by kind of text (instances)")


def _score(entry: Entry, found: Comparison, among: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> float:
    """Score on some of the episodes; NaN where the oracle is not above random."""
    reference = found.judge.reference
    mean = float(np.mean([played.returns[among].mean() for played in entry.rollouts]))
    try:
        return normalised_score(mean, float(reference.random[among].mean()), float(reference.oracle[among].mean()))
    except ValueError:
        return math.nan


def front_text(found: Comparison) -> str:
    """Hypervolume of all policies but the oracle, of fixed choices alone, and what the best agent adds to those."""
    front = found.front
    fixed = [entry.row.policy for entry in found.entries if _fixed(entry)]
    on = [name for name, there in zip(front.names, front.on_front.tolist(), strict=True) if there]
    told = [
        f"Hypervolume of all policies but the oracle: {front.hypervolume:.3f}. Of fixed choices alone "
        f"({', '.join(fixed) or 'none here'}): {front.hypervolume_of(fixed):.3f}."
    ]
    agent = best(found.rows, AGENT)
    if agent:
        told.append(f"The best agent, {agent.policy}, adds {front.gain([agent.policy], fixed):.3f} to those.")
    told.append(f"On the front: {', '.join(on)}.")
    return f"<p>{escape(' '.join(told))}</p>"


def _fixed(entry: Entry) -> bool:
    """Whether it looks at no text and no layer: a fixed rank, full attention, an offline basis at its matched cost."""
    policy = entry.entrant.policies[0]
    return entry.row.kind == BASIS or (isinstance(policy, Table) and policy.choices.shape[:3] == (1, 1, 1))


def legend() -> str:
    """What the marks stand for."""
    marks = {"agent": "●", "rule": "■", "offline basis": "▲", "oracle": "◆"}
    shown = {"oracle": "oracle and random, which nobody would deploy"}
    items = [f'<li><span style="color:{COLOURS[k]}">{marks[k]}</span> {escape(shown.get(k, k))}</li>' for k in COLOURS]
    return f'<ul class="legend">{"".join(items)}</ul>'


def heatmaps(found: Comparison) -> str:
    """A figure for every policy: mean rank carried out, by layer and segment, over episodes and seeds."""
    ordered = sorted(found.entries, key=lambda entry: -entry.row.mean_return)
    return "".join(_heatmap(entry, found) for entry in ordered)


def _heatmap(entry: Entry, found: Comparison) -> str:
    layers, ranks = mean_ranks(entry, found)
    means = ", ".join(f"layer {k}: {mean:.0f}" for k, mean in zip(layers, ranks.mean(-1), strict=True))
    told = f"Mean rank of {entry.row.policy} by layer and segment; {means}"
    picture = heatmap(ranks, layers, float(found.field.arena.world.ranks[-1]), told)
    caption = escape(f"{entry.row.policy}, mean rank {entry.row.mean_rank:.1f}")
    basis = min(520, max(250, 40 + 31 * ranks.shape[1]))  # pixels that the picture takes where there is room
    shown = f'<div class="scroll">{picture}</div><figcaption>{caption}</figcaption>'
    return f'<figure style="flex-basis:{basis}px">{shown}</figure>'


def mean_ranks(entry: Entry, found: Comparison) -> tuple[list[int], Doubles]:
    """The layers, and the mean rank carried out at each by segment, (layers, segments)."""
    numbers, positions = step_layers(found.field), step_positions(found.field)
    executed = np.mean([played.executed_ranks for played in entry.rollouts], axis=0)
    layers, segments = np.unique(numbers), np.unique(positions)
    places = numbers * len(segments) + positions
    sums = np.bincount(places.ravel(), executed.ravel(), minlength=(layers[-1] + 1) * len(segments))
    counts = np.bincount(places.ravel(), minlength=len(sums))
    means = (sums / np.maximum(counts, 1)).reshape(-1, len(segments))
    return layers.tolist(), means[layers]


def about(found: Comparison, command: str) -> str:
    """What was played and with what, as a list of terms."""
    world, arguments = found.field.arena.world, json.loads(to_json(found.task))
    given = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
    episodes, instances = len(found.field.episodes), len(set(found.field.instances))
    facts = {
        "Command": command or "called from Python",
        "Task": f"{found.task.env}, {given or 'default arguments'}",
        "Episodes": f"{episodes} of {found.field.steps} steps, on {instances} instances of the {found.split} split",
        "Model": f"{world.measurement.model}, weights {world.model.digest}, calibration {world.calibration.digest()}",
        "Versions": ", ".join(_versions()),
        "Machine": ", ".join(f"{name} {value}" for name, value in machine().items() if name not in ("python", "torch")),
    }
    return "<dl>" + "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in facts.items()) + "</dl>"


def _versions() -> Iterator[str]:
    facts = machine()
    yield f"drrl-env {__version__} (numbers of engine {ENGINE_VERSION})"
    yield f"Python {facts['python']}"
    yield f"torch {facts['torch']}"
    yield f"numpy {np.__version__}"
