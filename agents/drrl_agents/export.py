"""`drrl export`: a run's policy in a folder of its own, with what it reaches on episodes it never saw on its card."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
import tyro

from drrl_agents.agent import load_agent, read_config, task_of
from drrl_agents.entrants import AGENT
from drrl_agents.scoring import judge
from drrl_agents.training import check_writable
from drrl_env.envs.settings import positive
from drrl_policies.card import Card, Score
from drrl_policies.field import Field
from drrl_policies.rollout import reference, rollout
from drrl_policies.trained import TrainedPolicy, save_trained

OWN_PLACES = ("--logdir", "--resume")
"""Options of a command that name folders of one machine; a card leaves them out."""


@dataclass(frozen=True)
class Export:
    """Evaluate a trained agent and write its policy, with its score on the card; reads no pickle.

    Example: drrl export runs/DRRL-Tolerance-v0/maskable-ppo-transformer/seed-0 --to tolerance

    Attributes:
        run: the run folder.
        to: folder for policy.safetensors and card.json; `drrl_policies.load` takes it.
        split: split to evaluate on.
        instances: spans of it, at least two; None for all.
        command: what trained it, for the card; None for the run's own command.
        threads: torch threads.
        progress: show progress bars.
    """

    run: tyro.conf.Positional[Path]
    to: Path
    split: str = "test"
    instances: int | None = None
    command: str | None = None
    threads: int = 1
    progress: bool = True


def run_export(settings: Export) -> Card:
    """Evaluates and writes; prints what the card says.

    Returns:
        The card.

    Raises:
        ValueError: an argument is wrong, or the run is not finished or damaged; one line.
    """
    positive("threads", settings.threads)
    torch.set_num_threads(settings.threads)
    task, agent = task_of(read_config(settings.run)), load_agent(settings.run)
    check_writable(settings.to, "to")
    if settings.instances == 1:
        raise ValueError("instances=1: an interval needs more than one; use at least 2")
    field = task.field(settings.split, settings.instances, progress=settings.progress)
    agent.check(field.arena.observation_space, field.arena.action_space)
    score = score_of(agent, field, settings.split)
    command = shareable(agent.card.command) if settings.command is None else settings.command
    card = save_trained(agent.network, settings.to, replace(agent.card, score=score, command=command))
    print(f"{card.task} {card.name}: {score.score:.4f} [{score.low:.4f}, {score.high:.4f}] on {score.split}")
    return card


def score_of(agent: TrainedPolicy, field: Field, split: str) -> Score:
    """What a policy reaches on a field: its normalised score with a 95 % interval, between random and the oracle.

    Args:
        agent: the policy.
        field: the episodes, of two instances or more.
        split: the split they are from.
    """
    known = reference(field)
    row = judge(field, known).row(agent.name, AGENT, [rollout(agent, field)])
    return Score(
        split,
        len(set(field.instances)),
        len(field.episodes),
        float(row.normalised_score),
        float(row.low),
        float(row.high),
        float(row.mean_return),
        float(known.random.mean()),
        float(known.oracle.mean()),
    )


def shareable(command: str) -> str:
    """A command without the folders of the machine it was given on."""
    words, kept = command.split(), list[str]()
    for before, word in zip(["", *words], words, strict=False):
        if before not in OWN_PLACES and word.partition("=")[0] not in OWN_PLACES:
            kept.append(word)
    return " ".join(kept)
