"""`drrl bench policy`: three seeds of the agent on the test split, against rules chosen without it."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from drrl_agents.agent import load_agent
from drrl_agents.bench.report import Row
from drrl_agents.comparison import Comparison, play, print_table
from drrl_agents.scoring import paired_difference
from drrl_agents.tasks import Task, open_field
from drrl_agents.training import Train, train
from drrl_env.envs.store import Doubles
from drrl_policies.fitting import oracle_policy, rule_policies

SEEDS = (0, 1, 2)
TRAIN_SPANS, TEST_SPANS, STEPS = 64, 32, 100_000


def run(threads: int = 1) -> list[Row]:
    """Trains three seeds, plays them and the rules on the test split."""
    found = seeds_on_test(Task(guard="paper"), threads)
    print_table(found, "bench policy: test split", stderr=True)
    rows = [Row(f"score of {r.policy}", r.normalised_score, "normalised score", None, None) for r in found.rows]
    agents = [r.returns for r in found.rollouts if "seed" in r.policy]
    rows += [_difference(found, np.mean(agents, axis=0), name, True) for name in ("fixed-", "energy-threshold")]
    rows += [_difference(found, np.mean(agents, axis=0), name, False) for name in ("layer-table", "layer-segment")]
    return rows


def seeds_on_test(task: Task, threads: int) -> Comparison:
    """The agents of three seeds beside every rule, on the test split."""
    with tempfile.TemporaryDirectory() as folder:
        trains = [
            Train(task, steps=STEPS, seed=seed, instances=TRAIN_SPANS, logdir=Path(folder), threads=threads)
            for seed in SEEDS
        ]
        agents = [load_agent(train(settings)) for settings in trains]
    field = open_field(task, "train", TRAIN_SPANS)
    test = open_field(task, "test", TEST_SPANS)
    rules = rule_policies(field.game, field.pairs)
    return play([*rules, *agents, oracle_policy(test.game, test.pairs)], test)


def _difference(found: Comparison, agent: Doubles, name: str, required: bool) -> Row:
    """Mean return of the agent (over seeds) less a rule's, paired by instance, as its interval's lower end."""
    rule = next(r for r in found.rollouts if r.policy.startswith(name))
    gap = paired_difference(agent, rule.returns, rule)
    text = f"agent less {rule.policy}, return per episode: {gap.mean:.4f} [{gap.low:.4f}, {gap.high:.4f}], lower end"
    return Row(text, gap.low, "return", "> 0" if required else None, gap.clear if required else None)
