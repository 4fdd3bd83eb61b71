"""Rank selection for low-rank attention, as Gymnasium environments on a real language model.

Importing this package registers them: `import gymnasium as gym, drrl_env; gym.make("DRRL-Attention-v0")`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from drrl_env.envs.registration import register_all

if TYPE_CHECKING:
    from drrl_env.checking import check_env
    from drrl_env.envs.optima import oracle, pareto

__version__ = "0.1.0"
__all__ = ["__version__", "check_env", "oracle", "pareto", "register_all"]

_LAZY = {"check_env": "drrl_env.checking", "oracle": "drrl_env.envs.optima", "pareto": "drrl_env.envs.optima"}


def __getattr__(name: str) -> Any:
    """Loads what needs torch when it is first asked for: importing the package stays fast."""
    if name not in _LAZY:
        raise AttributeError(f"module 'drrl_env' has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)


register_all()
