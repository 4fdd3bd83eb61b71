"""`drrl compare`: agents beside the rules they must beat, on the same episodes, with everything counted."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from torch.utils.tensorboard import SummaryWriter

from drrl_agents.agent import AgentPolicy, load_agent
from drrl_agents.figures import comparison_figure, rank_heatmap
from drrl_agents.scoring import Row, row
from drrl_agents.tasks import Field, Task, Tasks, open_fields
from drrl_agents.training import check_writable
from drrl_env.envs.settings import positive
from drrl_policies.base import Policy
from drrl_policies.fitting import oracle_policy, reference, rule_policies
from drrl_policies.rollout import Reference, Rollout, rollout

COLUMNS = {
    "policy": "policy",
    "normalised_score": "score",
    "low": "95 % interval",
    "mean_return": "return",
    "regret": "regret",
    "cosine": "cosine",
    "relative_error": "error",
    "flops_ratio": "FLOPs",
    "total_flops_ratio": "all FLOPs",
    "cache_ratio": "KV cache",
    "latency_ratio": "ms",
    "mean_rank": "rank",
}
"""Column of a row to its head in the printed table; one that no row has is left out."""
CAPTION = (
    "score: normalised, random 0 and oracle 1 · regret: return lost per 1000 steps · error: relative, of the output · "
    "FLOPs, KV cache, ms: over full attention's · all FLOPs: with observing and deciding"
)


@dataclass(frozen=True)
class Compare:
    """Compare agents with the rule policies and the oracle on one split.

    Example: drrl compare DRRL-Attention-v0 --guard paper --runs runs/DRRL-Attention-v0/maskable-ppo-transformer/seed-0

    Attributes:
        task: the environment and its arguments.
        runs: run folders of trained agents.
        split: split to compare on.
        instances: spans of it; None for all.
        train_instances: spans of the train split on which rules are fitted; None for all.
        logdir: folder for the table, the picture and the TensorBoard events.
        threads: torch threads.
        progress: show progress bars.
    """

    task: Tasks = field(default_factory=Task)
    runs: tuple[Path, ...] = ()
    split: str = "test"
    instances: int | None = 32
    train_instances: int | None = 64
    logdir: Path = Path("runs")
    threads: int = 1
    progress: bool = True


@dataclass(frozen=True)
class Comparison:
    """The outcome: one row and one rollout per policy.

    Attributes:
        rows: rows in the order of the policies, oracle last.
        rollouts: what each did.
        reference: random and oracle on the same episodes.
        field: the episodes.
    """

    rows: tuple[Row, ...]
    rollouts: tuple[Rollout, ...]
    reference: Reference
    field: Field


def compare(settings: Compare) -> Comparison:
    """Plays every policy on the same episodes.

    Raises:
        ValueError: an argument is wrong; one line with its name, value and remedy.
    """
    positive("threads", settings.threads)
    check_writable(settings.logdir)
    torch.set_num_threads(settings.threads)
    agents = load_agents(settings)
    wanted = [("train", settings.train_instances), (settings.split, settings.instances)]
    train, found = open_fields(settings.task, wanted, settings.progress)
    rules = rule_policies(train.game, train.pairs)
    return play([*rules, *agents, oracle_policy(found.game, found.pairs)], found)


def load_agents(settings: Compare) -> list[AgentPolicy]:
    """The agents of the runs, their names told apart.

    Raises:
        ValueError: a folder is no finished run, or was trained on other observations than the task's.
    """
    space = settings.task.make(settings.split, 1).observation_space
    agents = [load_agent(folder, "runs") for folder in settings.runs]
    seen = Counter[str]()
    for folder, agent in zip(settings.runs, agents, strict=True):
        if agent.space != space:
            raise ValueError(f"runs={str(folder)!r}: trained on another task; give the task's arguments that it had")
        seen[agent.name] += 1
        agent.name += f"-{seen[agent.name]}" if seen[agent.name] > 1 else ""
    return agents


def play(policies: Sequence[Policy], found: Field) -> Comparison:
    """One rollout and one row per policy."""
    known = reference(found.game, found.pairs)
    rollouts = tuple(rollout(policy, found.game, found.pairs) for policy in policies)
    rows = tuple(row(each, known, found.game) for each in rollouts)
    return Comparison(rows, rollouts, known, found)


def run_compare(settings: Compare) -> Comparison:
    """Compares, prints the table, and writes table, picture and events."""
    found = compare(settings)
    folder = settings.logdir / settings.task.env / f"compare-{settings.split}"
    print_table(found, f"{settings.task.env} · {settings.split} · {len(found.field.pairs)} episodes")
    write(found, folder, settings.task.env, settings.split)
    Console(stderr=True).print(f"wrote {folder}/comparison.csv and comparison.png; see also")
    print(f"tensorboard --logdir {settings.logdir}")
    return found


def print_table(found: Comparison, title: str, stderr: bool = False) -> None:
    """The rows as a table, best return first; on the error stream where standard output is for a program."""
    table = Table(title=title, caption=CAPTION)
    shown = [name for name in COLUMNS if name in found.rows[0].values()]
    for name in shown:
        table.add_column(COLUMNS[name], justify="left" if name == "policy" else "right", no_wrap=True)
    for each in sorted(found.rows, key=lambda r: -r.mean_return):
        table.add_row(*(_cell(each, name) for name in shown))
    Console(width=max(156, Console().width), stderr=stderr).print(table)


def _cell(found: Row, name: str) -> str:
    value = getattr(found, name)
    if name == "policy":
        return str(value)
    if name == "low":
        return f"{found.low:.3f} to {found.high:.3f}"
    if name == "regret":
        return f"{1000 * value:.1f}"
    return f"{value:.1f}" if name == "mean_rank" else f"{value:.3f}"


def write(found: Comparison, folder: Path, env: str, split: str) -> None:
    """comparison.csv, comparison.png and one TensorBoard run per policy."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "comparison.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, found.rows[0].values())
        writer.writeheader()
        writer.writerows(each.values() for each in found.rows)
    picture(found, f"{env}, {split} split").savefig(folder / "comparison.png", dpi=110)
    for each, played in zip(found.rows, found.rollouts, strict=True):
        _log(each, played, found, folder / each.policy, split)


def picture(found: Comparison, title: str) -> Figure:
    """Scores with intervals, and error against FLOPs."""
    rows = found.rows
    return comparison_figure(
        [r.policy for r in rows],
        [r.normalised_score for r in rows],
        [(r.low, r.high) for r in rows],
        [r.total_flops_ratio for r in rows],
        [r.relative_error for r in rows],
        title,
    )


def _log(each: Row, played: Rollout, found: Comparison, folder: Path, split: str) -> None:
    """A policy's row as scalars, its ranks as a histogram and a heatmap; replaces what an earlier comparison wrote."""
    world = found.field.game.world
    for old in folder.glob("events.out.tfevents.*"):
        old.unlink()
    with SummaryWriter(str(folder)) as writer:
        for name, value in each.values().items():
            if not isinstance(value, str):
                writer.add_scalar(f"{split}/{'return' if name == 'mean_return' else name}", value, 0)
        for name, values in played.terms.items():
            writer.add_scalar(f"{split}/reward_terms/{name}", float(values.mean()), 0)
        heatmap = rank_heatmap(played, world.ranks, world.layers, each.policy)
        writer.add_figure(f"{split}/rank_by_layer_and_segment", heatmap)
        writer.add_histogram(f"{split}/rank", torch.tensor(world.ranks)[torch.from_numpy(played.executed)].ravel())
