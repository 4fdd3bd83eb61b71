"""Examples on the pages of the environments, one per face; a test runs them all."""

from __future__ import annotations

from drrl_env.envs.tasks import TASKS

GYM = """One lane, through Gymnasium:
```python
import gymnasium as gym, drrl_env

env = gym.make("{id}", split="train", instances=16, render_mode="ansi")
observation, info = env.reset(seed=0)
ended = False
while not ended:
    action = env.action_space.sample({mask})
    observation, reward, ended, truncated, info = env.step(action)
print(env.render())
```"""
MULTI = """One lane, through [MO-Gymnasium](https://mo-gymnasium.farama.org); `reward_space` is the space of the vector:
```python
import mo_gymnasium, drrl_env

env = mo_gymnasium.make("{id}", split="train", instances=16, render_mode="ansi")
observation, info = env.reset(seed=0)
ended = False
while not ended:
    observation, reward, ended, truncated, info = env.step(env.action_space.sample())
print(env.render())
```"""
VECTOR = """Many lanes, in one batch:
```python
import gymnasium as gym, drrl_env

envs = gym.make_vec("{id}", 8, vectorization_mode="vector_entry_point", instances=16)
observations, infos = envs.reset(seed=0)
observations, rewards, terminated, truncated, infos = envs.step(envs.action_space.sample())
```"""
SB3 = """Many lanes, for stable-baselines3:
```python
from {package} import {algorithm}

from drrl_env.sb3 import make_vec_env

env = make_vec_env("{id}", 8, instances=16)
{algorithm}("MultiInputPolicy", env, {settings}).learn(10_000)
```"""
NO_SB3 = "The stable-baselines3 face refuses it: SB3 knows no vector rewards."


def usage(task: str) -> str:
    """How to play an environment through each of its faces, Markdown."""
    action = TASKS[task].codec.name
    if task == "DRRL-Attention-MO-v0":
        return "\n\n".join([MULTI.format(id=task), VECTOR.format(id=task), NO_SB3])
    mask = {"Discrete": 'info["action_mask"].astype("int8")'}.get(action, "")
    return "\n\n".join([GYM.format(id=task, mask=mask), VECTOR.format(id=task), _sb3(task, action)])


def _sb3(task: str, action: str) -> str:
    """With masks where actions are chosen from lists; SAC where they are numbers."""
    if action == "Box":
        return SB3.format(id=task, package="stable_baselines3", algorithm="SAC", settings="learning_starts=256")
    return SB3.format(id=task, package="sb3_contrib", algorithm="MaskablePPO", settings="n_steps=128")
