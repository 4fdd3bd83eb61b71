"""The environments, registered in one table."""

from __future__ import annotations

import gymnasium

TASKS = {"DRRL-Attention-v0": "drrl_env.envs.attention_env:AttentionEnv"}
"""Environment id to entry point."""


def register_all() -> None:
    """Registers every task with Gymnasium; safe to call twice."""
    for name, entry_point in TASKS.items():
        if name not in gymnasium.registry:
            gymnasium.register(id=name, entry_point=entry_point)
