"""What TensorBoard shows of a training run, its checkpoints and its progress bar."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Figure, HParam
from tqdm import tqdm

from drrl_agents.agent import AgentPolicy, save_agent
from drrl_agents.figures import rank_heatmap
from drrl_agents.scoring import row
from drrl_agents.tasks import Field
from drrl_policies.rollout import Reference, Rollout, rollout

SCALARS = ("cosine", "relative_error", "flops_ratio", "score_change")
LATENCY = "latency_ratio"
"""Shown beside them where the reward charges milliseconds."""
METRICS = ("normalised_score", "return", "regret", "cosine", "relative_error", "flops_ratio", "total_flops_ratio")
"""Final metrics of a run, under `validation/`, in the HParams tab too."""


class RunCallback(BaseCallback):
    """Logs what happens in the rollouts, validates, saves checkpoints, and lets the entropy bonus fall to zero.

    Args:
        folder: the run's folder.
        validation: episodes to validate on.
        reference: random and oracle on them.
        hyperparameters: what the HParams tab shows.
        total_steps: step at which training ends.
        validate_every: steps between validations.
        masks: whether the algorithm honours masks.
        progress: whether to show a progress bar.
    """

    def __init__(
        self,
        folder: Path,
        validation: Field,
        reference: Reference,
        hyperparameters: dict[str, Any],
        total_steps: int,
        validate_every: int,
        masks: bool,
        progress: bool,
    ) -> None:
        super().__init__()
        self._folder, self._validation, self._reference = folder, validation, reference
        self._hyperparameters, self._total, self._every = hyperparameters, total_steps, validate_every
        self._masks, self._progress = masks, progress
        self._entropy = hyperparameters.get("ent_coef")
        self._ranks: list[int] = []
        self._due = 0
        self._bar: Any = None

    def _on_training_start(self) -> None:
        self._bar = tqdm(total=self._total, initial=self.num_timesteps, desc="training", disable=not self._progress)
        self._due = self.num_timesteps
        plain = {name: _plain(value) for name, value in self._hyperparameters.items()}
        found = HParam(plain, {f"validation/{name}": 0.0 for name in METRICS})
        self.logger.record("hparams", found, exclude=("stdout", "log", "json", "csv"))
        self._validate()

    def _on_rollout_start(self) -> None:
        if self._entropy is not None:
            self.model.ent_coef = self._entropy * self.model._current_progress_remaining  # type: ignore[attr-defined]

    def _on_step(self) -> bool:
        for info in self.locals["infos"]:
            self._record_step(info)
        self._bar.update(len(self.locals["infos"]))
        if self.num_timesteps - self._due >= self._every:
            self._due = self.num_timesteps
            self._validate()
            self._checkpoint()
        return True

    def _record_step(self, info: dict[str, Any]) -> None:
        self._ranks.append(info["rank"])
        for name in (*SCALARS, *([LATENCY] if LATENCY in info else [])):
            self.logger.record_mean(f"rollout/{name}", info[name])
        for name, value in info["reward_terms"].items():
            self.logger.record_mean(f"rollout/reward_terms/{name}", value)
        self.logger.record_mean("rollout/masked_action", float(info["masked_action"]))
        if "episode" in info:
            self.logger.record_mean("rollout/return", float(info["episode"]["r"]))

    def _on_rollout_end(self) -> None:
        # Off-policy algorithms end a rollout every few steps; a histogram of so few ranks says nothing.
        if len(self._ranks) >= 256:
            self.logger.record("rollout/rank", np.array(self._ranks))
            self._ranks = []

    def _on_training_end(self) -> None:
        self._validate()
        self._checkpoint()
        save_agent(self.model, self._folder)
        self._bar.close()

    def _validate(self) -> None:
        """Plays the validation episodes with the agent as it is and writes what came of it."""
        policy = AgentPolicy(self.model, "agent", self._masks)
        found = rollout(policy, self._validation.game, self._validation.pairs)
        for name, value in validation_values(found, self._reference, self._validation).items():
            self.logger.record(f"validation/{name}", value)
        world = self._validation.game.world
        self.logger.record("validation/rank", np.array(world.ranks)[found.executed].ravel())
        picture = rank_heatmap(found, world.ranks, world.layers, f"after {self.num_timesteps} steps")
        self.logger.record("validation/rank_by_layer_and_segment", Figure(picture, close=True), exclude="stdout")
        self.logger.dump(self.num_timesteps)

    def _checkpoint(self) -> None:
        """Saves the whole agent, atomically: a reader never sees half a file."""
        folder = self._folder / "checkpoints"
        folder.mkdir(exist_ok=True)
        target = folder / f"step-{self.num_timesteps:09d}.zip"
        self.model.save(folder / "partial.zip")
        os.replace(folder / "partial.zip", target)


def validation_values(found: Rollout, reference: Reference, field: Field) -> dict[str, float]:
    """Tag to value of one validation."""
    values = row(found, reference, field.game).values()
    named = {"return": float(values["mean_return"]), **{k: float(values[k]) for k in METRICS if k != "return"}}
    if LATENCY in values:
        named[LATENCY] = float(values[LATENCY])
    for name, steps in found.terms.items():
        named[f"reward_terms/{name}"] = float(steps.mean())
    return named


def _plain(value: Any) -> float | int | str | bool:
    return value if isinstance(value, (bool, int, float, str)) else str(value)
