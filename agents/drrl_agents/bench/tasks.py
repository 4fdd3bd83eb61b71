"""`drrl bench tasks`: what random, full attention, the best static rules and the oracle reach in every task.

Static rules are chosen on the train split and played on the test split. They observe nothing, so nothing is added to
the FLOPs of their attention.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from drrl_agents.bench.report import machine
from drrl_agents.bench.static_rules import Choose, Rule, rules_of
from drrl_env.envs.arena import Arena, open_arena
from drrl_env.envs.basis import KINDS
from drrl_env.envs.optima import SOLVERS, Question, pareto, solve
from drrl_env.envs.oracle import Optimum, normalised_score
from drrl_env.envs.play import Batch, Episode
from drrl_env.envs.processes import process
from drrl_env.envs.simulator import Simulator
from drrl_env.envs.solvers.decision import plan
from drrl_env.envs.tasks import TASKS

SPANS = 8
"""Spans of each split, all layers of each."""
FEWER = {"DRRL-Basis-v0": 4, "DRRL-Layers-v0": 2}
"""Where an episode has many bases to measure, or is computed live."""
CONTEXT = 2048
WIDTH = 160

Integers = NDArray[np.int64]
Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class TaskRow:
    """What a baseline reached in a task.

    Attributes:
        task: the environment id.
        baseline: its name.
        mean_return: mean return of the test episodes; None where the reward is a vector.
        normalised_score: (R − random)/(oracle − random); None where the reward is a vector.
        flops_ratio: mean FLOPs over full attention's.
        relative_error: mean ‖ΔO‖/‖O‖ over steps; None where it is not reported.
        terms: mean total of every term of the reward.
        episodes: test episodes.
        note: how it was worked out or chosen.
    """

    task: str
    baseline: str
    mean_return: float | None
    normalised_score: float | None
    flops_ratio: float | None
    relative_error: float | None
    terms: dict[str, float]
    episodes: int
    note: str


@dataclass(frozen=True)
class Field:
    """Episodes of a task.

    Attributes:
        arena: a lane for each.
        single: one lane, for the oracle.
        episodes: the episodes.
    """

    arena: Arena
    single: Arena
    episodes: tuple[Episode, ...]

    @property
    def layers(self) -> Integers:
        """Layer of every episode."""
        return np.array([episode.layer for episode in self.episodes])


@dataclass(frozen=True)
class Played:
    """What a rule did: return (nan for a vector), terms, FLOPs ratio and error, (episodes,) each."""

    returns: Doubles
    terms: dict[str, Doubles]
    flops: Doubles
    errors: Doubles


def run(threads: int = 1) -> list[TaskRow]:
    """Measures every task: minutes, most of them on what was never measured before."""
    torch.set_num_threads(threads)
    tasks = tqdm(TASKS, desc="bench tasks")
    found = []
    for task in tasks:
        tasks.set_postfix_str(task)
        found += task_rows(task)
    return found


def task_rows(task: str) -> list[TaskRow]:
    """All rows of a task."""
    train, test = open_field(task, "train", 0), open_field(task, "test", 1)
    if test.arena.play.vector:
        return _vector_rows(train, test)
    optima = [solve(_question(test, episode)) for episode in tqdm(test.episodes, desc=f"{task}: oracle", leave=False)]
    rows = [_random_row(test, optima), *_static_rows(train, test), _oracle_row(test, optima)]
    return [_scored(row, optima) for row in rows]


def open_field(task: str, split: str, seed: int) -> Field:
    """The first spans of a split on all layers; tolerance or budget is drawn from the seed."""
    given = {"split": split, "instances": min(SPANS, FEWER.get(task, SPANS)), "context": CONTEXT}
    one = open_arena(task, 1, given)
    if isinstance(one.play, Simulator):
        one.play.game.store.fill(one.pool)
    pairs = list(product(one.pool, one.layers))
    arena, layers = open_arena(task, len(pairs), given), np.array([layer for _, layer in pairs])
    drawn = arena.play.draw(layers, np.random.default_rng(seed).random(len(pairs)))
    return Field(arena, one, tuple(Episode(*pair, value) for pair, value in zip(pairs, drawn.tolist(), strict=True)))


def _question(field: Field, episode: Episode) -> Question:
    return Question(field.single, episode.instance, episode.layer, episode.parameter)


def play(field: Field, choose: Choose) -> Played:
    """Plays every episode to its end."""
    lanes, ended = field.arena.play, False
    batches: list[Batch] = []
    lanes.begin(range(len(field.episodes)), field.episodes)
    while not ended:
        batch = lanes.step(choose(len(batches), field.arena))
        batches.append(batch)
        ended = bool(batch.terminated.all())
    rewards = np.stack([batch.rewards for batch in batches])
    terms = {name: np.sum([batch.terms[name] for batch in batches], axis=0) for name in batches[0].terms}
    columns = {name: np.mean([b.columns[name] for b in batches], axis=0) for name in ("flops_ratio", "relative_error")}
    returns = np.full(len(field.episodes), np.nan) if lanes.vector else rewards.sum(0)
    return Played(returns, terms, columns["flops_ratio"], columns["relative_error"])


def random_choose(seed: int = 0) -> Choose:
    """Uniformly among what the masks allow, each component on its own."""
    generator = np.random.default_rng(seed)

    def choose(step: int, arena: Arena) -> Integers:
        masks = arena.play.masks()
        noise = np.where(masks, generator.random(masks.shape), -1.0)
        parts = np.split(noise, np.cumsum(arena.play.sizes)[:-1], axis=1)
        return np.stack([part.argmax(-1) for part in parts], axis=-1)

    return choose


def _static_rows(train: Field, test: Field) -> Iterator[TaskRow]:
    """Full attention, the best rule of each family, the best rule per layer, the best table per layer and segment."""
    rules = rules_of(train.arena)
    masked = "where masks allow it, else the nearest" if test.arena.task.parameter == "budget" else ""
    yield _row(test, "full attention", play(test, rules[-1].choose), masked)
    gained = np.stack([play(train, rule.choose).returns for rule in rules])
    for family in dict.fromkeys(rule.family for rule in rules):
        mine = [place for place, rule in enumerate(rules) if rule.family == family]
        best = rules[max(mine, key=lambda place: gained[place].mean())]
        yield _row(test, f"best {family}", play(test, best.choose), f"{best.name}, chosen on train")
    if len(set(train.layers)) > 1:
        yield _row(test, "best static rule per layer", play(test, _per_layer(rules, gained, train, test)), _TRAIN)
    if test.arena.task.id not in SOLVERS:
        yield _row(test, "best table per layer and segment", play(test, _table_choose(train, test)), _TRAIN)


_TRAIN = "chosen on train"


def _per_layer(rules: Sequence[Rule], gained: Doubles, train: Field, test: Field) -> Choose:
    """Each layer by the rule that was best on it."""
    chosen = [rules[int(gained[:, train.layers == layer].mean(-1).argmax())] for layer in test.layers]
    return lambda step, arena: np.array([rule.choices(step) for rule in chosen], np.int64)


def _table_choose(train: Field, test: Field) -> Choose:
    """Layer by layer the sequence with the highest mean return on train: the mean reward is a decision process too."""
    plans = {layer: _mean_plan(train, int(layer)) for layer in np.unique(test.layers)}
    return lambda step, arena: np.stack([plans[layer][step] for layer in test.layers])


def _mean_plan(train: Field, layer: int) -> Integers:
    """The best open-loop choices of a layer, (steps, components)."""
    mine = [episode for episode in train.episodes if episode.layer == layer]
    asked = [_question(train, episode) for episode in mine]
    bar = tqdm(asked, desc=f"table of layer {layer}", leave=False)
    known = [process(each.game, each.block, each.parameter) for each in bar]
    mean = np.mean([found.decision.rewards for found in known], axis=0)
    choices = plan(replace(known[0].decision, rewards=mean)).choices
    found: Integers = known[0].actions[choices]
    return found


def _random_row(test: Field, optima: Sequence[Optimum]) -> TaskRow:
    """The exact expectation where it is known; what was executed is sampled."""
    error = float(np.sqrt(np.mean([optimum.random_error**2 for optimum in optima]) / len(optima)))
    note = "return exact, the rest sampled" if error == 0 else f"return sampled, standard error {error:.1g}"
    row = _row(test, "random", play(test, random_choose()), note)
    return replace(row, mean_return=float(np.mean([optimum.random for optimum in optima])))


def _oracle_row(test: Field, optima: Sequence[Optimum]) -> TaskRow:
    """What the oracle's plans give when they are played."""
    plans = np.stack([optimum.choices for optimum in optima])
    kinds = sorted({optimum.kind for optimum in optima})
    gap = float(np.mean([optimum.gap for optimum in optima]))
    note = " or ".join(kinds) + (f", mean gap to the bound {gap:.2g}" if 1e-9 < gap < np.inf else "")
    return _row(test, "oracle", play(test, lambda step, arena: plans[:, step]), note + _kinds_note(test, plans))


def _kinds_note(test: Field, plans: NDArray[np.int64]) -> str:
    """How often the plans run each kind of basis, where they choose one."""
    if test.arena.play.sizes[1:] != (len(KINDS),):
        return ""
    full = plans[..., 0] == len(test.arena.world.ranks) - 1
    shares = [f"{name} {np.mean((plans[..., 1] == kind) & ~full):.0%}" for kind, name in enumerate(KINDS)]
    return f"; of its segments {', '.join(shares)}, full attention {np.mean(full):.0%}"


def _row(test: Field, name: str, played: Played, note: str) -> TaskRow:
    means = [None if np.isnan(values).all() else float(values.mean()) for values in (played.returns, played.errors)]
    terms = {term: float(values.mean()) for term, values in played.terms.items()}
    flops = float(played.flops.mean())
    return TaskRow(test.arena.task.id, name, means[0], None, flops, means[1], terms, len(test.episodes), note)


def _scored(row: TaskRow, optima: Sequence[Optimum]) -> TaskRow:
    assert row.mean_return is not None
    random, best = (float(np.mean([getattr(o, name) for o in optima])) for name in ("random", "value"))
    return replace(row, normalised_score=normalised_score(row.mean_return, random, best))


def _vector_rows(train: Field, test: Field) -> list[TaskRow]:
    """Terms of random and of every fixed rank, and how many best trade-offs there are."""
    rows = [_row(test, "random", play(test, random_choose()), "sampled")]
    rows += [_row(test, rule.name, play(test, rule.choose), "") for rule in rules_of(test.arena)]
    fronts = [
        pareto(test.arena.task.id, f"{episode.instance.uri}?layer={episode.layer}", context=CONTEXT)
        for episode in tqdm(test.episodes[: train.arena.world.layers], desc="Pareto", leave=False)
    ]
    sizes = [len(found.points) for found in fronts]
    note = f"{min(sizes)} to {max(sizes)} returns in the exact Pareto front of an episode"
    return [*rows, TaskRow(test.arena.task.id, "Pareto front", None, None, None, None, {}, len(fronts), note)]


def render(rows: Sequence[TaskRow]) -> None:
    """Prints the rows task by task."""
    table = Table(caption=", ".join(f"{name} {value}" for name, value in machine().items()))
    for name in ("task", "baseline", "return", "score", "FLOPs", "error", "note"):
        table.add_column(name, justify="right" if name in ("return", "score", "FLOPs", "error") else "left")
    for before, row in zip([None, *rows], rows, strict=False):
        if before is not None and before.task != row.task:
            table.add_section()
        numbers = (row.mean_return, row.normalised_score, row.flops_ratio, row.relative_error)
        task = "" if before is not None and before.task == row.task else row.task
        table.add_row(task, row.baseline, *("" if value is None else f"{value:.3f}" for value in numbers), row.note)
    console = Console()
    if not console.is_terminal:  # rich would squeeze a file or a pipe into 80 columns
        console = Console(width=WIDTH)
    console.print(table)
