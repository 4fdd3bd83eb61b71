"""`drrl compare`: agents beside the rules they must beat, on the same episodes, with everything counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from drrl_agents.agent import CONFIG
from drrl_agents.entrants import (
    AGENT,
    BASIS,
    ORACLE,
    RULE,
    Entrant,
    basis_entrants,
    group_runs,
    oracle_entrant,
    play,
    rule_entrants,
    single,
)
from drrl_agents.inputs import LIVE_INSTANCES
from drrl_agents.scoring import Judge, Row, judge
from drrl_agents.statistics import Contrast, Front, contrast, pareto_front
from drrl_agents.tables import print_contrasts, print_table
from drrl_agents.tasks import Task, Tasks, open_fields
from drrl_agents.training import Train, check_writable, train
from drrl_env.envs.settings import positive
from drrl_policies.field import Field
from drrl_policies.rollout import Rollout, reference

SHIPPED = "shipped"
"""Word for the policy that ships with the task."""


@dataclass(frozen=True)
class Compare:
    """Compare agents with rule policies, offline bases and the oracle on the same episodes of one split.

    Example: drrl compare DRRL-Tolerance-v0 --policies maskable-ppo-transformer maskable-ppo-mlp --seeds 5

    Attributes:
        task: the environment and its arguments.
        policies: what was trained, by name (`maskable-ppo-transformer`: its runs are looked for in the logdir), a run
            folder, or `shipped`.
        seeds: runs of each name, seeds 0 to N - 1.
        steps: train runs that are missing for so many steps; None refuses instead.
        runs: further run folders; those of one algorithm and policy are its seeds.
        split: split to compare on.
        instances: spans of it; None for all.
        train_instances: spans of the train split on which rules are fitted; None for all; 2 for DRRL-Layers-v0, which
            is computed live (an oracle takes it half a minute a span: give few --instances too).
        logdir: folder of the runs, and of what is written.
        threads: torch threads.
        progress: show progress bars.
    """

    task: Tasks = field(default_factory=Task)
    policies: tuple[str, ...] = ()
    seeds: int = 5
    steps: int | None = None
    runs: tuple[Path, ...] = ()
    split: str = "test"
    instances: int | None = 32
    train_instances: int | None = 64
    logdir: Path = Path("runs")
    threads: int = 1
    progress: bool = True


@dataclass(frozen=True)
class Entry:
    """What an entrant did.

    Attributes:
        entrant: who.
        rollouts: one per seed.
        row: what the comparison says of it.
    """

    entrant: Entrant
    rollouts: tuple[Rollout, ...]
    row: Row


@dataclass(frozen=True)
class Comparison:
    """The outcome.

    Attributes:
        task: the task.
        split: the split.
        entries: one per policy: agents, rules, offline bases, the oracle last.
        judge: episodes, references and resamples.
        contrasts: every agent less every other policy but random and the oracle, paired by instance.
        front: fidelity against all FLOPs counted, of all policies but the oracle.
    """

    task: Task
    split: str
    entries: tuple[Entry, ...]
    judge: Judge
    contrasts: tuple[Contrast, ...]
    front: Front

    @property
    def rows(self) -> tuple[Row, ...]:
        """A row per policy."""
        return tuple(each.row for each in self.entries)

    @property
    def field(self) -> Field:
        """The episodes."""
        return self.judge.field

    @property
    def rollouts(self) -> tuple[Rollout, ...]:
        """The first seed's rollout of every policy."""
        return tuple(entry.rollouts[0] for entry in self.entries)


def compare(settings: Compare) -> Comparison:
    """Plays every policy on the same episodes.

    Raises:
        ValueError: an argument is wrong; one line with its name, value and remedy.
    """
    check(settings)
    torch.set_num_threads(settings.threads)
    agents = find_agents(settings)
    few = settings.task.env == "DRRL-Layers-v0"
    wanted = [("train", LIVE_INSTANCES if few else settings.train_instances), (settings.split, settings.instances)]
    fitted, found = open_fields(settings.task, wanted, settings.progress)
    rules = rule_entrants(fitted, settings.task)
    made = judge(found, reference(found))
    entries = [entry(each, found, made) for each in [*agents, *rules]]
    matched = _matched_flops(entries)
    entries += [entry(each, _own_field(each, found, settings), made) for each in basis_entrants(settings.task, matched)]
    return outcome(
        settings.task, settings.split, [*entries, entry(oracle_entrant(found, settings.task), found, made)], made
    )


def check(settings: Compare) -> None:
    """Raises a one-line ValueError for the first argument that is wrong, before any work."""
    for name in ("threads", "seeds"):
        positive(name, getattr(settings, name))
    check_writable(settings.logdir)


def outcome(task: Task, split: str, entries: Sequence[Entry], made: Judge) -> Comparison:
    """Puts a comparison together."""
    groups = {each.row.policy: made.group(each.row.policy, each.rollouts) for each in entries}
    shown = [each.row for each in entries if each.row.kind != ORACLE and each.row.policy != "random"]
    agents = [row.policy for row in shown if row.kind == AGENT]
    others = [row.policy for row in shown if row.kind != AGENT]
    pairs = [*((agent, other) for agent in agents for other in others), *combinations(agents, 2)]
    contrasts = tuple(contrast(groups[a], groups[b], made.scale, made.draws) for a, b in pairs)
    return Comparison(task, split, tuple(entries), made, contrasts, _front([each.row for each in entries]))


def _front(rows: Sequence[Row]) -> Front:
    """Of what somebody could deploy: the oracle knows what it plays for and observes nothing for it."""
    found = [row for row in rows if row.kind != ORACLE]
    flops, fidelity = (np.array([getattr(row, name) for row in found]) for name in ("total_flops_ratio", "fidelity"))
    return pareto_front([row.policy for row in found], flops, fidelity)


def entry(entrant: Entrant, found: Field, made: Judge) -> Entry:
    """An entrant's rollouts and row."""
    rollouts = play(entrant, found)
    return Entry(entrant, rollouts, made.row(entrant.name, entrant.kind, rollouts))


def _own_field(entrant: Entrant, found: Field, settings: Compare) -> Field:
    """The same episodes, what was drawn for them included, in the entrant's own basis."""
    own = entrant.task.field(settings.split, settings.instances, progress=settings.progress, measure=False)
    return replace(own, episodes=found.episodes)


def _matched_flops(entries: Sequence[Entry]) -> float:
    """FLOPs that offline bases should come close to: the best agent's, or without agents the best rule's."""
    rows = [each.row for each in entries]
    asked = [row for row in rows if row.kind == AGENT] or [row for row in rows if row.kind == RULE]
    return max(asked, key=lambda row: row.mean_return).total_flops_ratio


def find_agents(settings: Compare) -> list[Entrant]:
    """The agents that were asked for; missing runs are trained if `steps` says how long.

    Raises:
        ValueError: a run is missing or damaged, or of another task.
    """
    folders = [*settings.runs]
    for name in settings.policies:
        if name != SHIPPED:
            folders += [Path(name)] if Path(name).is_dir() else _named_runs(settings, name)
    entrants = group_runs(folders, settings.task)
    if SHIPPED in settings.policies:
        from drrl_policies.trained import load

        policy, arena = load(settings.task.env), settings.task.field("train", 1, 1, progress=False, measure=False).arena
        policy.check(arena.observation_space, arena.action_space)
        entrants.append(single(policy, AGENT, settings.task))
    return entrants


def _named_runs(settings: Compare, name: str) -> list[Path]:
    """The run folders of `<algo>-<policy>`, seeds 0 to N - 1."""
    parent = settings.logdir / settings.task.env / name
    found = [parent / f"seed-{seed}" for seed in range(settings.seeds)]
    missing = [seed for seed, folder in enumerate(found) if not (folder / "policy.safetensors").is_file()]
    if missing and settings.steps is None:
        raise ValueError(
            f"policies={name!r}: {parent} has no finished run of seed {missing[0]}; train it first, or give --steps "
            "to have missing runs trained"
        )
    plain = name.removesuffix("-rl").removesuffix("-cloned")
    algo, _, policy = plain.rpartition("-")
    settled = Train(
        settings.task,
        algo,
        policy,
        0 if name.endswith("-cloned") else settings.steps,
        instances=settings.train_instances,
        logdir=settings.logdir,
        imitate=plain != name,
        threads=settings.threads,
        progress=settings.progress,
    )
    for seed in missing:
        begun = (found[seed] / CONFIG).is_file()
        found[seed] = train(Train(resume=found[seed]) if begun else replace(settled, seed=seed))
    return found


def run_compare(settings: Compare) -> Comparison:
    """Compares, prints the tables, and writes files, picture, page and TensorBoard events."""
    from drrl_agents.comparison_files import write

    found = compare(settings)
    title = f"{settings.task.env} · {settings.split} · {len(found.field.episodes)} episodes"
    print_table(found.rows, title)
    print_contrasts(found)
    folder = settings.logdir / settings.task.env / f"compare-{settings.split}"
    written = write(found, folder)
    Console(stderr=True).print("wrote " + ", ".join(str(path) for path in written) + "; see also")
    print(f"tensorboard --logdir {settings.logdir}")
    return found


__all__ = ["AGENT", "BASIS", "ORACLE", "RULE", "Compare", "Comparison", "Entry", "compare", "outcome", "run_compare"]
