"""`drrl evaluate`: one trained agent on a split."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from drrl_agents.agent import load_agent, read_config, task_of
from drrl_agents.comparison import Comparison, entry, outcome
from drrl_agents.entrants import AGENT, RULE, oracle_entrant, single
from drrl_agents.scoring import judge
from drrl_agents.tables import print_table
from drrl_agents.training import check_writable
from drrl_env.envs.settings import positive
from drrl_policies.fitting import full
from drrl_policies.rollout import reference


@dataclass(frozen=True)
class Evaluate:
    """Evaluate a trained agent beside full attention and the oracle; reads no pickle.

    Example: drrl evaluate runs/DRRL-Attention-v0/maskable-ppo-transformer/seed-0 --split test

    Attributes:
        run: the run folder.
        split: split to evaluate on.
        instances: spans of it; None for all.
        threads: torch threads.
        progress: show progress bars.
    """

    run: tyro.conf.Positional[Path]
    split: str = "test"
    instances: int | None = 32
    threads: int = 1
    progress: bool = True


def run_evaluate(settings: Evaluate) -> Comparison:
    """Evaluates, prints the table and writes evaluation-<split>.json into the run folder."""
    positive("threads", settings.threads)
    torch.set_num_threads(settings.threads)
    task, agent = task_of(read_config(settings.run)), load_agent(settings.run)
    check_writable(settings.run, "run")
    field = task.field(settings.split, settings.instances, progress=settings.progress)
    entrants = [single(agent, AGENT, task), single(full(field), RULE, task), oracle_entrant(field, task)]
    made = judge(field, reference(field))
    found = outcome(task, settings.split, [entry(each, field, made) for each in entrants], made)
    print_table(found.rows, f"{task.env} · {settings.split} · {len(field.episodes)} episodes")
    rows = [{name: _plain(value) for name, value in row.values().items()} for row in found.rows]
    (settings.run / f"evaluation-{settings.split}.json").write_text(json.dumps(rows, indent=1, allow_nan=False))
    return found


def _plain(value: float | str) -> float | str | None:
    """JSON has no NaN; the interval over a single instance is one."""
    return None if value != value else value
