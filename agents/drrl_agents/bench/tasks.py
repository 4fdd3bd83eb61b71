"""`drrl bench tasks`: what random, full attention, every rule policy and the oracle reach in every task.

Rules are those of `drrl compare`, fitted on the train split and played on the test split. What a rule reads while it
runs is in its FLOPs; most read nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from drrl_agents.bench.report import machine
from drrl_agents.tasks import FIELD_SEEDS, REPEATS, Task
from drrl_env.envs.basis import KINDS
from drrl_env.envs.optima import pareto
from drrl_env.envs.tasks import TASKS
from drrl_policies.base import Policy
from drrl_policies.field import Field, open_field
from drrl_policies.fitting import candidates, oracle_policy, rule_policies
from drrl_policies.rollout import Rollout, reference, rollout
from drrl_policies.rules import Random

SPANS = 8
"""Spans of each split, all layers of each."""
FEWER = {"DRRL-Basis-v0": 4, "DRRL-Layers-v0": 2}
"""Where an episode has many bases to measure, or is computed live."""
CONTEXT = 2048
WIDTH = 160


@dataclass(frozen=True)
class TaskRow:
    """What a baseline reached in a task.

    Attributes:
        task: the environment id.
        baseline: name of the policy, as `drrl compare` calls it.
        mean_return: mean return of the test episodes; None where the reward is a vector.
        normalised_score: (R − random)/(oracle − random); None where the reward is a vector.
        flops_ratio: mean FLOPs over full attention's, those of what it reads included.
        relative_error: mean ‖ΔO‖/‖O‖ over steps; None where nothing was played.
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
    """All rows of a task: random, full attention, the rules, the oracle."""
    train, test = (open_episodes(task, split) for split in ("train", "test"))
    if test.arena.play.vector:
        return _vector_rows(test)
    return [_scored_row(policy, test) for policy in (*rule_policies(train), oracle_policy(test))]


def open_episodes(task: str, split: str) -> Field:
    """The first spans of a split on all layers; a tolerance or budget is drawn as every command draws it."""
    spans = min(SPANS, FEWER.get(task, SPANS))
    return open_field(task, Task(task, context=CONTEXT).arguments(), split, spans, FIELD_SEEDS[split], REPEATS)


def _scored_row(policy: Policy, test: Field) -> TaskRow:
    """What a policy reaches; of random the exact expectation where it is known, what was executed being sampled."""
    known, played = reference(test), rollout(policy, test)
    returns = known.random if policy.name == Random.name else played.returns
    return _row(played, test, _note(policy, played, test), float(returns.mean()), known.score(returns))


def _row(
    played: Rollout, test: Field, note: str, mean_return: float | None = None, score: float | None = None
) -> TaskRow:
    """The row of a rollout."""
    terms = {term: float(values.sum(-1).mean()) for term, values in played.terms.items()}
    flops, error = played.total_ratio(test.mean_full).mean(), played.columns["relative_error"].mean()
    values = (mean_return, score, float(flops), float(error))
    return TaskRow(test.arena.task.id, played.policy, *values, terms, len(test.episodes), note)


def _note(policy: Policy, played: Rollout, test: Field) -> str:
    """How a policy was chosen, or how its return was worked out."""
    if policy.name == Random.name:
        error = float(np.sqrt(np.mean([found.random_error**2 for found in test.optima]) / len(test.optima)))
        return "return exact, the rest sampled" if error == 0 else f"return sampled, standard error {error:.1g}"
    if policy.privileged:
        return _oracle_note(test) + _kinds_note(played, test)
    if policy.name == "full":
        return "where masks allow it, else the nearest" if test.arena.task.parameter == "budget" else ""
    return "fitted on train"


def _oracle_note(test: Field) -> str:
    """What kind of optimum it is, and how much a better one could gain at most."""
    gap = float(np.mean([found.gap for found in test.optima]))
    kinds = " or ".join(sorted({found.kind for found in test.optima}))
    return kinds + (f", mean gap to the bound {gap:.2g}" if 1e-9 < gap < np.inf else "")


def _kinds_note(played: Rollout, test: Field) -> str:
    """How often each kind of basis is run, where it is chosen."""
    if test.sizes[1:] != (len(KINDS),):
        return ""
    full = played.executed[..., 0] == len(test.arena.world.ranks) - 1
    shares = [f"{name} {np.mean((played.executed[..., 1] == kind) & ~full):.0%}" for kind, name in enumerate(KINDS)]
    return f"; of its segments {', '.join(shares)}, full attention {np.mean(full):.0%}"


def _vector_rows(test: Field) -> list[TaskRow]:
    """Terms of random and of every fixed rank, and how many best trade-offs there are."""
    rows = [_row(rollout(Random(test.sizes), test), test, "sampled")]
    rows += [_row(rollout(rule.table, test), test, "") for rule in candidates(test)]
    task, layers = test.arena.task.id, test.arena.world.layers
    fronts = [
        pareto(task, f"{episode.instance.uri}?layer={episode.layer}", context=CONTEXT)
        for episode in tqdm(test.episodes[:layers], desc="Pareto", leave=False)
    ]
    sizes = [len(found.points) for found in fronts]
    note = f"{min(sizes)} to {max(sizes)} returns in the exact Pareto front of an episode"
    return [*rows, TaskRow(task, "Pareto front", None, None, None, None, {}, len(fronts), note)]


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
