"""Rank selection for low-rank attention, as Gymnasium environments on a real language model.

Importing this package registers them: `import gymnasium as gym, drrl_env; gym.make("DRRL-Attention-v0")`.
"""

from drrl_env.envs.registration import register_all

__version__ = "0.1.0"

register_all()
