"""What TensorBoard shows of a training run, its checkpoints and its progress bar."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Figure, HParam, Logger
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from tqdm import tqdm

from drrl_agents.checkpoints import Checkpoint, capture, restore_generators, write_checkpoint
from drrl_agents.figures import rank_heatmap
from drrl_agents.interrupt import Interrupt, Stopped
from drrl_policies.base import Policy
from drrl_policies.field import Field
from drrl_policies.rollout import Reference, Rollout, rollout

SCALARS = ("cosine", "relative_error", "flops_ratio", "score_change")
LATENCY = "latency_ratio"
"""Shown beside them where the reward charges milliseconds."""
METRICS = ("normalised_score", "return", "regret", "cosine", "relative_error", "flops_ratio", "total_flops_ratio")
"""Final metrics of a run, under `validation/`, in the HParams tab too."""
CHECKPOINTS = "checkpoints"
"""Folder of a run's checkpoints."""
HISTOGRAM = 256
"""Ranks that a histogram of a rollout has at least: off-policy algorithms end one every few steps."""

OnValidation = Callable[[int, dict[str, float]], None]
"""Told the step and the values of a validation."""
_FRESH = {"ranks": (), "due": 0, "validated": -1}
"""A callback's own state: ranks since the last histogram, step of the last due validation, of the last one of all."""


@dataclass(frozen=True)
class Plan:
    """What a run's callback is to do.

    Attributes:
        folder: the run's folder.
        steps: step at which training ends.
        every: steps between validations and checkpoints.
        hyperparameters: what the HParams tab shows.
        progress: whether to show a progress bar.
    """

    folder: Path
    steps: int
    every: int
    hyperparameters: dict[str, Any]
    progress: bool


class RunCallback(BaseCallback):
    """Logs what happens in the rollouts, validates, saves checkpoints, and lets the entropy bonus fall to zero.

    `between_updates` is to be called where nothing is under way; see `drrl_agents.checkpoints.between_updates`.

    Args:
        plan: what to do.
        policy: the agent, as the validation plays it.
        validation: episodes to validate on.
        reference: random and oracle on them.
        resumed: the checkpoint that the agent has been restored from, if any.
        interrupt: whether the user wants it to stop.
        on_validation: told the step and the values of every validation.
    """

    def __init__(
        self,
        plan: Plan,
        policy: Policy,
        validation: Field,
        reference: Reference,
        resumed: Checkpoint | None,
        interrupt: Interrupt,
        on_validation: OnValidation | None = None,
    ) -> None:
        super().__init__()
        self._plan, self._policy, self._validation, self._reference = plan, policy, validation, reference
        self._resumed, self._interrupt, self._on_validation = resumed, interrupt, on_validation
        own: dict[str, Any] = _FRESH if resumed is None else resumed.tree["callback"]
        self._ranks: list[int] = list(own["ranks"])
        self._due, self._validated = own["due"], own["validated"]
        self._saved = -1 if resumed is None else resumed.step
        self._bar: Any = None

    def _on_training_start(self) -> None:
        show = not self._plan.progress
        self._bar = tqdm(total=self._plan.steps, initial=self.num_timesteps, desc="training", disable=show)
        if self._resumed is not None:
            restore_generators(self.model, self._resumed.tree)
            self._resumed = None
            return
        shown = {name: plain(value) for name, value in self._plan.hyperparameters.items()}
        self._write({"hparams": HParam(shown, {f"validation/{name}": 0.0 for name in METRICS})})
        self._validate()

    def _on_rollout_start(self) -> None:
        bonus = self._plan.hyperparameters.get("ent_coef")
        if isinstance(self.model, OnPolicyAlgorithm) and bonus is not None:
            self.model.ent_coef = bonus * self.model._current_progress_remaining

    def _on_step(self) -> bool:
        for info in self.locals.get("infos", ()):  # ARS shows none
            self._record_step(info)
        self._bar.update(self.num_timesteps - self._bar.n)
        return True

    def _record_step(self, info: dict[str, Any]) -> None:
        ranks = info["rank"]
        self._ranks.extend(ranks if isinstance(ranks, (list, tuple)) else [ranks])
        for name in (*SCALARS, *([LATENCY] if LATENCY in info else [])):
            self.logger.record_mean(f"rollout/{name}", info[name])
        for name, value in info["reward_terms"].items():
            self.logger.record_mean(f"rollout/reward_terms/{name}", value)
        self.logger.record_mean("rollout/masked_action", float(info["masked_action"]))
        if "episode" in info:
            self.logger.record_mean("rollout/return", float(info["episode"]["r"]))

    def _on_rollout_end(self) -> None:
        if len(self._ranks) >= HISTOGRAM:
            self._write({"rollout/rank": np.array(self._ranks)})
            self._ranks = []

    def between_updates(self) -> None:
        """Validates and saves where that is due, and stops where the user asked for it.

        Raises:
            Stopped: the user did; a checkpoint has been saved.
        """
        self.num_timesteps = self.model.num_timesteps
        if self.num_timesteps - self._due >= self._plan.every:
            self._due = self.num_timesteps
            self._validate()
            self._save()
        if self._interrupt.asked:
            self._save()
            raise Stopped

    def _on_training_end(self) -> None:
        self._validate()
        self._save()

    def close(self) -> None:
        """Ends the progress bar."""
        if self._bar is not None:
            self._bar.close()

    def _validate(self) -> None:
        """Plays the validation episodes with the agent as it is and writes what came of it, once a step."""
        if self._validated == self.num_timesteps:
            return
        self._validated = self.num_timesteps
        found = rollout(self._policy, self._validation)
        values = validation_values(found, self._reference, self._validation)
        picture = rank_heatmap(found, self._validation, f"after {self.num_timesteps} steps")
        shown = {
            **values,
            "rank": np.array(found.ranks)[found.executed[..., : found.rank_components]].ravel(),
            "rank_by_layer_and_segment": Figure(picture, close=True),
        }
        self._write({f"validation/{name}": value for name, value in shown.items()})
        if self._on_validation is not None:
            self._on_validation(self.num_timesteps, values)

    def _write(self, values: dict[str, Any]) -> None:
        """Writes values of this step alone: what SB3 has recorded waits for its own dump, else it would show twice."""
        own = Logger(None, self.logger.output_formats)
        for name, value in values.items():
            own.record(name, value)
        own.dump(self.num_timesteps)

    def _save(self) -> None:
        """Saves a checkpoint, once a step; where that fails those before it stay and training goes on."""
        if self._saved == self.num_timesteps:
            return
        own = dict(zip(_FRESH, (self._ranks, self._due, self._validated), strict=True))
        found = Checkpoint(self.num_timesteps, {**capture(self.model), "callback": own})
        try:
            write_checkpoint(self._plan.folder / CHECKPOINTS, found)
        except OSError as error:
            text = f"the checkpoint of step {found.step} cannot be written ({error.strerror or error})"
            goes = "" if self._interrupt.asked else ", and training goes on"
            print(f"{text}; the one before is kept{goes}", file=sys.stderr)
        else:
            self._saved = found.step


def validation_values(found: Rollout, reference: Reference, field: Field) -> dict[str, float]:
    """Tag to value of one validation."""
    returns, columns = found.returns, found.columns
    shown = (*SCALARS, *([LATENCY] if LATENCY in columns else []))
    return {
        "normalised_score": reference.score(returns),
        "return": float(returns.mean()),
        "regret": reference.regret(returns, field.steps),
        "total_flops_ratio": float(found.total_ratio(field.mean_full).mean()),
        **{name: float(columns[name].mean()) for name in shown},
        **{f"reward_terms/{name}": float(steps.mean()) for name, steps in found.terms.items()},
    }


def plain(value: Any) -> float | int | str | bool:
    """A value as the HParams tab takes it; text of what is no single value (`policy_kwargs`)."""
    return value if isinstance(value, (bool, int, float, str)) else str(value)
