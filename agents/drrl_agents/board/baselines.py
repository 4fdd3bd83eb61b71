"""Baselines on the validation episodes that a training run is validated on: flat lines beside its curves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from drrl_agents.board.curves import flat_margins
from drrl_agents.board.runs import BASELINES, CURVES, clear, flat, run_writer
from drrl_agents.board.sessions import Value, write_about, write_session
from drrl_agents.callback import METRICS, validation_values
from drrl_policies.field import Field
from drrl_policies.fitting import best_layer_table, best_of_family, full, oracle_policy
from drrl_policies.rollout import Rollout, reference, rollout
from drrl_policies.rules import Table

SHOWN = ("normalised_score", "total_flops_ratio", "relative_error", "return")
"""Metrics whose columns come first in the HParams tab."""
RULE, ORACLE = "rule", "oracle"
RANDOM = "random"
"""Scores about 0 wherever it is; left out of the charts of means, whose lines it would press together."""


def write_baselines(
    train: Field, validation: Field, folder: Path, steps: int, hyperparameters: Mapping[str, Value] | None = None
) -> list[str]:
    """Writes rules that are quick to fit, and the oracle, as flat runs beside a task's training runs.

    What an earlier run of the task or a comparison wrote of validation is replaced.

    Args:
        train: episodes that rules are fitted on.
        validation: those that training is validated on.
        folder: the task's folder, `logdir/TASK`.
        steps: last step of the lines.
        hyperparameters: those of the run about to begin, for the columns of the HParams tab.

    Returns:
        The policies' names.
    """
    clear(folder / BASELINES, CURVES)
    task, rules, oracle = train.arena.task.id, quick_rules(train), oracle_policy(validation)
    for policy, kind in [*((rule, RULE) for rule in rules), (oracle, ORACLE)]:
        write_flat(folder / BASELINES / policy.name, task, kind, rollout(policy, validation), validation, steps)
    write_about(folder.parent, metric_tags("validation", "test"), hyperparameters)
    return [policy.name for policy in (*rules, oracle)]


def quick_rules(train: Field) -> list[Table]:
    """Full attention; and the best fixed rank and the layer table, where every rank has been measured beforehand.

    DRRL-Layers-v0 computes live what it plays, and DRRL-Basis-v0 measures it then, which takes minutes.
    """
    is_measured = not train.live and len(train.sizes) == train.rank_components
    return [full(train), *best_of_family(train).values(), best_layer_table(train)] if is_measured else [full(train)]


def write_flat(folder: Path, task: str, kind: str, found: Rollout, validation: Field, steps: int) -> None:
    """Writes a policy's lines on the validation episodes, with the tags that training runs have."""
    values = validation_values(found, reference(validation), validation)
    with run_writer(folder, CURVES) as writer:
        write_session(writer, session(task, found.policy, kind))
        flat(writer, {f"validation/{name}": value for name, value in values.items()}, steps)
        if found.policy != RANDOM:
            flat(writer, flat_margins(task, values), steps)


def session(task: str, name: str, kind: str) -> dict[str, Value]:
    """Row of the HParams tab of what does not train, in the columns of what does."""
    return {"env": task, "algo": name, "policy": kind}


def metric_tags(first: str, second: str) -> list[str]:
    """Tags of the final metrics in the HParams tab; it shows the first five columns unless told otherwise."""
    shown = [*(f"{first}/{name}" for name in SHOWN), f"{second}/{SHOWN[0]}"]
    return list(dict.fromkeys([*shown, *(f"{prefix}/{name}" for prefix in (first, second) for name in METRICS)]))
