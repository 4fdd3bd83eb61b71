"""ARS that counts and shows its steps as the other algorithms do."""

from __future__ import annotations

from typing import Any

from sb3_contrib import ARS
from stable_baselines3.common.callbacks import BaseCallback


class CountedARS(ARS):
    """ARS plays its candidates lane by lane; each call of the callback is one step of one lane.

    The library counts a step of every lane each time, and shows the callback no `infos`.
    """

    def _trigger_callback(
        self, _locals: dict[str, Any], _globals: dict[str, Any], callback: BaseCallback, n_envs: int
    ) -> None:
        """Counts one step, with the lane's info."""
        self.num_timesteps += 1
        callback.update_locals({"infos": [_locals["info"]]})
        callback.on_step()
