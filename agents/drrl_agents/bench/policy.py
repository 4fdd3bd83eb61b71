"""`drrl bench policy`: three seeds of the agent on the test split, against rules chosen without it."""

from __future__ import annotations

import tempfile
from pathlib import Path

from drrl_agents.bench.report import Row
from drrl_agents.comparison import Comparison, entry, outcome
from drrl_agents.entrants import group_runs, oracle_entrant, rule_entrants
from drrl_agents.scoring import judge
from drrl_agents.tables import print_table
from drrl_agents.tasks import Task
from drrl_agents.training import Train, train
from drrl_policies.rollout import reference

SEEDS = (0, 1, 2)
TRAIN_SPANS, TEST_SPANS, STEPS = 64, 32, 100_000
BEATEN = {"fixed-": True, "energy-threshold": True, "layer-table": False, "layer-segment-table": False}
"""Rules, by how their names begin, and whether the agent has to be clear of them."""


def run(threads: int = 1) -> list[Row]:
    """Trains three seeds, plays them and the rules on the test split."""
    found = seeds_on_test(Task(guard="paper"), threads)
    print_table(found.rows, "bench policy: test split", stderr=True)
    rows = [Row(f"score of {r.policy}", r.normalised_score, "normalised score", None, None) for r in found.rows]
    return rows + [_difference(found, name, required) for name, required in BEATEN.items()]


def seeds_on_test(task: Task, threads: int) -> Comparison:
    """The agent over its seeds beside every rule, on the test split."""
    with tempfile.TemporaryDirectory() as folder:
        trains = [
            Train(task, steps=STEPS, seed=seed, instances=TRAIN_SPANS, logdir=Path(folder), threads=threads)
            for seed in SEEDS
        ]
        agents = group_runs([train(settings) for settings in trains], task)
    test = task.field("test", TEST_SPANS)
    entrants = [*agents, *rule_entrants(task.field("train", TRAIN_SPANS), task), oracle_entrant(test, task)]
    made = judge(test, reference(test))
    return outcome(task, "test", [entry(each, test, made) for each in entrants], made)


def _difference(found: Comparison, name: str, required: bool) -> Row:
    """Mean return of the agent (over seeds) less a rule's, paired by instance, as its interval's lower end."""
    pair = next(each for each in found.contrasts if each.second.startswith(name))
    gap = pair.mean_return
    text = f"agent less {pair.second}, return per episode: {gap.value:.4f} [{gap.low:.4f}, {gap.high:.4f}], lower end"
    return Row(text, gap.low, "return", "> 0" if required else None, gap.above() if required else None)
