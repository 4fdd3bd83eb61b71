"""Who takes part in a comparison: trained agents over their seeds, rule policies, offline bases, the oracle."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from drrl_agents.agent import load_agent, read_config
from drrl_agents.tasks import Task
from drrl_env.envs.tasks import TASKS
from drrl_policies.base import Policy
from drrl_policies.field import Field
from drrl_policies.fitting import candidates, oracle_policy, rule_policies
from drrl_policies.rollout import Rollout, rollout
from drrl_policies.rules import Table
from drrl_policies.trained import TrainedPolicy

OFFLINE = {"kq-svd": "calibrated", "keys-pca": "keys-pca", "separate-svd": "separate-svd"}
"""Offline bases of the literature by name, and the `basis=` that is each."""
AGENT, RULE, BASIS, ORACLE = "agent", "rule", "offline basis", "oracle"
"""Kinds of entrants."""
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
        ValueError: a folder is no finished run, was trained on other observations than the task's, or is one of two
            runs with the same seed.
    """
    groups: dict[str, list[Member]] = {}
    space = task.make("train", 1).observation_space if folders else None
    for folder in folders:
        config, agent = read_config(folder, "runs"), load_agent(folder, "runs")
        if agent.entries != space:
            raise ValueError(f"runs={str(folder)!r}: trained on another task; give the task's arguments that it had")
        members = groups.setdefault(group_name(folder, config["algo"], config["policy"]), [])
        if int(config["seed"]) in [seed for seed, *_ in members]:
            raise ValueError(f"runs={str(folder)!r}: seed {config['seed']} is there already; give one run per seed")
        members.append((int(config["seed"]), agent, folder))
    return [_agents(name, sorted(members, key=lambda each: each[0]), task) for name, members in groups.items()]


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
    """Each offline basis at matched cost: of the ranks below full, the one for everything whose FLOPs come closest.

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
        fixed = [rule.table for rule in candidates(field)][:-1]  # at full rank no basis is used
        spent = [_flops(table, field) for table in fixed]
        chosen = fixed[int(np.argmin(np.abs(np.array(spent) - flops)))]
        table = Table(chosen.name.replace("fixed", name), chosen.sizes, chosen.choices)
        yield single(table, BASIS, own)


def _flops(table: Table, field: Field) -> float:
    return float(rollout(table, field).total_ratio(field.mean_full).mean())


def play(entrant: Entrant, field: Field) -> tuple[Rollout, ...]:
    """What every seed of an entrant does on the episodes, played in the entrant's own basis."""
    return tuple(rollout(policy, field) for policy in entrant.policies)
