"""A comparison in TensorBoard: final scores in the agents' own runs, baselines as flat runs, means, pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch.utils.tensorboard.writer import SummaryWriter

from drrl_agents.agent import read_config, task_of
from drrl_agents.board.baselines import metric_tags, session, write_flat
from drrl_agents.board.curves import Curve, layout, margin, read_curves, write_margins
from drrl_agents.board.runs import BASELINES, COMPARISON, CURVES, MEAN, clear, flat, run_writer
from drrl_agents.board.sessions import write_about, write_session
from drrl_agents.callback import validation_values
from drrl_agents.comparison import Comparison, Entry
from drrl_agents.entrants import BASIS, ORACLE, RULE, Entrant
from drrl_agents.figures import comparison_figure, pareto_figure, rank_heatmap
from drrl_agents.tables import COLUMNS
from drrl_agents.tasks import Task
from drrl_policies.field import Field
from drrl_policies.fitting import oracle_policy
from drrl_policies.rollout import Rollout, rollout


@dataclass(frozen=True)
class Run:
    """One seed of an entrant and the run that shows it.

    Attributes:
        folder: the run.
        entrant: whose seed it is.
        found: what it did.
        trained: whether the run is its training run, with curves of its own.
    """

    folder: Path
    entrant: Entrant
    found: Rollout
    trained: bool


def write_board(found: Comparison, logdir: Path) -> Path:
    """Writes a comparison into a logdir; what an earlier one of the task wrote there goes.

    Args:
        found: the comparison.
        logdir: the folder of the runs that TensorBoard is to show.

    Returns:
        The comparison's own run, `logdir/TASK/compare-SPLIT`.
    """
    folder = logdir / found.task.env
    runs = [run for entry in found.entries for run in _runs(entry, logdir, found.task)]
    curves = {run.folder: read_curves(run.folder) for run in runs if run.trained}
    steps = max((int(c.steps[-1]) for each in curves.values() for c in each.values()), default=1)
    validation = _validation_field(found, logdir)
    for each in {folder, *curves}:
        clear(each, COMPARISON)
    for each in sorted(folder.glob("*/")):
        if each.name != BASELINES or validation is not None:
            clear(each, CURVES)
    for run in runs:
        own = max((int(curve.steps[-1]) for curve in curves.get(run.folder, {}).values()), default=steps)
        _write_run(run, found, own)
    if validation is not None:
        _write_validation(found, folder, validation, steps)
    _write_means(found, folder, runs, curves)
    with run_writer(folder / f"compare-{found.split}", COMPARISON) as writer:
        _write_pictures(writer, found, steps)
        writer.add_custom_scalars(layout(found.task.env))
    write_about(logdir, metric_tags(prefix(found.split), "validation"))
    return folder / f"compare-{found.split}"


def prefix(split: str) -> str:
    """First word of a comparison's tags: `test`, or `compare-<split>`, since training has `train` and `validation`."""
    return split if split == "test" else f"compare-{split}"


def _runs(entry: Entry, logdir: Path, task: Task) -> Iterator[Run]:
    """The run of every seed: its training run where that lies in the logdir, or else a flat one."""
    entrant = entry.entrant
    for number, found in enumerate(entry.rollouts):
        own = entrant.folders[number] if entrant.folders else None
        if own is not None and own.resolve().is_relative_to(logdir.resolve()):
            yield Run(own, entrant, found, True)
        else:
            flat_run = logdir / task.env / BASELINES / entrant.name
            several = len(entry.rollouts) > 1
            yield Run(flat_run / f"seed-{entrant.seeds[number]}" if several else flat_run, entrant, found, False)


def _write_run(run: Run, found: Comparison, steps: int) -> None:
    """A seed's final scores, ranks and heatmap: a point at its last step, or a flat line for what did not train."""
    first, field = prefix(found.split), found.field
    values = {f"{first}/{name}": v for name, v in validation_values(run.found, found.judge.reference, field).items()}
    with run_writer(run.folder, COMPARISON) as writer:
        if run.trained:
            for tag, value in values.items():
                writer.add_scalar(tag, value, steps)
        else:
            write_session(writer, session(found.task.env, run.entrant.name, run.entrant.kind))
            flat(writer, values, steps)
        ranks = np.array(run.found.ranks)[run.found.executed[..., : run.found.rank_components]]
        writer.add_histogram(f"{first}/rank", ranks.ravel(), steps)
        picture = rank_heatmap(run.found, field, f"{run.entrant.name} on the {found.split} split")
        writer.add_figure(f"{first}/rank_by_layer_and_segment", picture, steps)


def _write_means(
    found: Comparison, folder: Path, runs: Sequence[Run], curves: Mapping[Path, Mapping[str, Curve]]
) -> None:
    """A run per group of seeds with their mean and interval over training."""
    for entry in found.entries:
        mine = [curves[run.folder] for run in runs if run.entrant is entry.entrant and curves.get(run.folder)]
        if mine:
            shared = [name for name in mine[0] if all(name in each for each in mine)]
            margins = {name: margin([each[name] for each in mine]) for name in shared}
            with run_writer(folder / entry.entrant.name / MEAN, CURVES) as writer:
                write_margins(writer, found.task.env, margins)


def _write_validation(found: Comparison, folder: Path, field: Field, steps: int) -> None:
    """Everything that does not train, on the episodes that the agents were validated on."""
    for entry in found.entries:
        entrant = entry.entrant
        if entrant.kind in (RULE, BASIS, ORACLE):
            policy = oracle_policy(field) if entrant.kind == ORACLE else entrant.policies[0]
            own = _in_its_basis(entrant, field) if entrant.kind == BASIS else field
            played = rollout(policy, own)
            write_flat(folder / BASELINES / entrant.name, found.task.env, entrant.kind, played, field, steps)


def _validation_field(found: Comparison, logdir: Path) -> Field | None:
    """The validation episodes of all agents' training runs; None if there are none, or they are not the same.

    None too for DRRL-Layers-v0, whose oracle takes a minute an episode: what training wrote of validation stays there.
    """
    if found.field.live:
        return None
    folders = [folder for entry in found.entries for folder in entry.entrant.folders]
    configs = [read_config(folder) for folder in folders if folder.resolve().is_relative_to(logdir.resolve())]
    asked = {(replace(task_of(config), actions=None), config["validation_instances"]) for config in configs}
    if len(asked) != 1:
        return None
    task, instances = asked.pop()
    if task != replace(found.task, actions=None):
        return None
    return found.task.field("validation", instances, progress=found.field.progress)


def _in_its_basis(entrant: Entrant, field: Field) -> Field:
    instances = len(set(field.instances))
    own = entrant.task.field("validation", instances, progress=field.progress, measure=False)
    return replace(own, episodes=field.episodes)


def _write_pictures(writer: SummaryWriter, found: Comparison, steps: int) -> None:
    title = f"{found.task.env}, {found.split} split"
    writer.add_figure("comparison/pareto", pareto_figure(found.rows, found.front, title), steps)
    writer.add_figure("comparison/scores", comparison_figure(found.rows, found.front, title), steps)
    writer.add_text("comparison/table", table(found), steps)


def table(found: Comparison) -> str:
    """The rows in Markdown, best return first."""
    names = [name for name in COLUMNS if name in found.rows[0].values()]
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    for row in sorted(found.rows, key=lambda each: -each.mean_return):
        values = row.values()
        lines.append("| " + " | ".join(_cell(values.get(name, "")) for name in names) + " |")
    return "\n".join(lines)


def _cell(value: float | str) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)
