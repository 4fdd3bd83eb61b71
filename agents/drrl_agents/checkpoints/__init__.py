"""Checkpoints from which a training run goes on bit for bit."""

from drrl_agents.checkpoints.files import (
    KEPT,
    Checkpoint,
    DamagedError,
    newest_checkpoint,
    read_checkpoint,
    write_checkpoint,
)
from drrl_agents.checkpoints.state import between_updates, capture, restore, restore_generators

__all__ = [
    "KEPT",
    "Checkpoint",
    "DamagedError",
    "between_updates",
    "capture",
    "newest_checkpoint",
    "read_checkpoint",
    "restore",
    "restore_generators",
    "write_checkpoint",
]
