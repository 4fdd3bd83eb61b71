"""The environments, registered in one table: `drrl_env.envs.tasks.TASKS`."""

from __future__ import annotations

import gymnasium

IDS = (
    "DRRL-Attention-v0",
    "DRRL-Attention-Continuous-v0",
    "DRRL-Attention-MO-v0",
    "DRRL-Tolerance-v0",
    "DRRL-Budget-v0",
    "DRRL-Heads-v0",
    "DRRL-Basis-v0",
    "DRRL-Layers-v0",
    "DRRL-Latency-v0",
)
"""Environment ids; importing the package must not import torch for each, so the tasks behind them are loaded later."""


def register_all() -> None:
    """Registers every task with Gymnasium, for one lane and for many; safe to call twice."""
    for name in IDS:
        if name not in gymnasium.registry:
            gymnasium.register(
                id=name,
                entry_point="drrl_env.envs.single:RankEnv",
                vector_entry_point="drrl_env.envs.vector:RankVectorEnv",
                kwargs={"task": name},
            )
