"""Who takes part in a comparison: trained agents over their seeds, rule policies, offline bases, the oracle."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from drrl_agents.agent import load_agent, read_config, task_of
from drrl_agents.tasks import Task
from drrl_env.envs.arena import Arena
from drrl_env.envs.tasks import TASKS
from drrl_policies.base import Policy
from drrl_policies.field import Field
from drrl_policies.fitting import oracle_policy, rule_policies
from drrl_policies.rollout import Rollout, rollout
from drrl_policies.rules import Table
from drrl_policies.trained import TrainedPolicy

OFFLINE = {"kq-svd": "calibrated", "keys-pca": "keys-pca", "separate-svd": "separate-svd"}
"""Offline bases of the literature by name, and the `basis=` that is each."""
AGENT, RULE, BASIS, ORACLE = "agent", "rule", "offline basis", "oracle"
"""Kinds of entrants."""
CLOSE = 0.005
"""FLOPs over full attention's that count as equal where a cost is matched."""
EXPERIMENT = ("task", "steps", "n_envs", "instances", "imitate", "imitation", "hyperparameters")
"""What seeds of one experiment have in common, in a run's config."""
Member = tuple[int, TrainedPolicy, Path]
"""A run of a group: its seed, its agent, its folder."""


@dataclass(frozen=True)
class Entrant:
    """A policy of a comparison: an algorithm over its seeds, or one policy.

    Attributes:
        name: its name.
        kind: `agent`, `rule`, `offline basis` or `oracle`.
        policies: one per seed.
        seeds: their seeds; (0,) for what has none.
        task: the task with the arguments it is played with; an offline basis has its own.
        folders: run folders of trained agents, one per seed; () for what was not trained here.
    """

    name: str
    kind: str
    policies: tuple[Policy, ...]
    seeds: tuple[int, ...]
    task: Task
    folders: tuple[Path, ...] = ()


def group_runs(folders: Sequence[Path], task: Task) -> list[Entrant]:
    """Trained agents, runs of one algorithm and policy together.

    Raises:
        ValueError: a folder is no finished run, was trained on another task, other observations or other ranks, or is
            no further seed of the runs of its name: it has the same seed, or was trained otherwise.
    """
    if not folders:
        return []
    groups: dict[str, list[Member]] = {}
    arena = task.field("train", 1, 1, progress=False, measure=False).arena
    for folder in folders:
        config, agent = read_config(folder, "runs"), load_agent(folder, "runs")
        _check_run(folder, agent, task, arena)
        members = groups.setdefault(group_name(folder, config["algo"], config["policy"]), [])
        _check_seed(folder, config, members)
        members.append((int(config["seed"]), agent, folder))
    for members in groups.values():
        _tell_of_other_arguments(members[0][2], task)
    return [_agents(name, sorted(members, key=lambda each: each[0]), task) for name, members in groups.items()]


def _check_run(folder: Path, agent: TrainedPolicy, task: Task, arena: Arena) -> None:
    """Raises a one-line ValueError where an agent's choices would mean something else."""
    given = agent.card
    same = given.task == task.env and agent.entries == arena.observation_space
    if not same or given.ranks != tuple(int(rank) for rank in arena.world.ranks):
        raise ValueError(f"runs={str(folder)!r}: trained on another task; give the task's arguments that it had")


def _check_seed(folder: Path, config: Mapping[str, Any], members: Sequence[Member]) -> None:
    """Raises a one-line ValueError where a run is no further seed of the same experiment."""
    if not members:
        return
    if int(config["seed"]) in [seed for seed, *_ in members]:
        raise ValueError(f"runs={str(folder)!r}: seed {config['seed']} is there already; give one run per seed")
    first = members[0][2]
    other = read_config(first, "runs")
    for name in EXPERIMENT:
        if config.get(name) != other.get(name):
            raise ValueError(
                f"runs={str(folder)!r}: its {name} differs from that of {first}, so they are no seeds of one "
                "experiment; compare them one at a time"
            )


def _tell_of_other_arguments(folder: Path, task: Task) -> None:
    """Says on stderr what an agent was trained with and is not compared with."""
    then = task_of(read_config(folder, "runs"))
    names = [each.name for each in fields(Task) if each.name not in ("env", "actions")]
    told = [f"{n}={getattr(then, n)!r}" for n in names if getattr(then, n) != getattr(task, n)]
    if told:
        print(f"note: {folder} was trained with {', '.join(told)}, other than here", file=sys.stderr)


def _agents(name: str, members: Sequence[Member], task: Task) -> Entrant:
    for seed, agent, _ in members:
        agent.name = f"{name}-seed{seed}"
    seeds, agents, folders = zip(*members, strict=True)
    return Entrant(name, AGENT, agents, seeds, task, folders)


def group_name(folder: Path, algo: str, policy: str) -> str:
    """`<algorithm>-<policy>`, or the run's parent folder where that says more (`maskable-ppo-transformer-cloned`)."""
    plain, parent = f"{algo}-{policy}", folder.resolve().parent.name
    return parent if parent.startswith(plain) else plain


def rule_entrants(train: Field, task: Task) -> list[Entrant]:
    """Every rule policy, fitted on train episodes."""
    return [single(policy, RULE, task) for policy in rule_policies(train)]


def oracle_entrant(found: Field, task: Task) -> Entrant:
    """The oracle of the episodes."""
    return single(oracle_policy(found), ORACLE, task)


def single(policy: Policy, kind: str, task: Task) -> Entrant:
    """One policy without seeds."""
    return Entrant(policy.name, kind, (policy,), (0,), task)


def basis_entrants(task: Task, flops: float) -> Iterator[Entrant]:
    """Each offline basis at matched cost: a reduced rank, begun at the next higher one where that is closer.

    Early segments are those in which a reduced rank saves least. Tasks that are computed live have one rank for
    everything.

    Args:
        task: the task; one whose actions choose the basis has none of these, nor has one
            under a conformal guard.
        flops: FLOPs over full attention's to come close to, observing and deciding included.
    """
    if len(TASKS[task.env].bases) < 2 or task.guard == "conformal":  # which promises nothing about these bases
        return
    for name, basis in OFFLINE.items():
        own = replace(task, basis=basis)
        field = own.field("train", 1, progress=False, measure=False)  # what a fixed rank costs is the same on any text
        tables = list(_staged(name, field))
        gaps = [abs(_flops(table, field) - flops) for table in tables]
        # Of those that are as good as equal the simplest, which comes first.
        chosen = tables[int(np.argmin(np.maximum(gaps, CLOSE)))]
        yield single(chosen, BASIS, own)


def _staged(name: str, field: Field) -> Iterator[Table]:
    """Every reduced rank for everything; then each of them after one, two, ... segments at the next higher rank."""
    ranks, components = field.arena.world.ranks, len(field.sizes)
    for begun in range(1 if field.live else field.steps):
        for choice, rank in enumerate(ranks[:-1]):
            stages = np.full((1, field.steps, 1, components), choice)
            stages[:, :begun] = choice + 1
            label = f"{ranks[choice + 1]}then{rank}" if begun else str(rank)
            yield Table(f"{name}-{label}", field.sizes, stages if begun else stages[:, :1])


def _flops(table: Table, field: Field) -> float:
    return float(rollout(table, field).total_ratio(field.mean_full).mean())


def play(entrant: Entrant, field: Field) -> tuple[Rollout, ...]:
    """What every seed of an entrant does on the episodes, played in the entrant's own basis."""
    return tuple(rollout(policy, field) for policy in entrant.policies)
