"""Observations on one scale: each number less its mean, over its standard deviation, both kept with the weights.

Some statistics vary by hundredths and others by units; networks that normalise whole tokens cannot tell the former
apart. The means and deviations are measured once, before training, and ship with the policy.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from drrl_env.envs.observation import LIMIT, WINDOW

LEFT = ("previous_rank", "window_ranks", "layers_ranks")
"""Entries that are shares or one-hot already, and tell by zeros where the episode began."""
LEAST = 1e-4
"""Standard deviation below which a number counts as constant and is shown as zero."""
TOKENS_SCALE = 0.05
"""Factor on `tokens`, whose 128 numbers are whitened: at their own scale agents learnt the train texts by heart."""


class Standard(nn.Module):
    """Shifts and scales every entry; the identity until `fit` was called.

    Args:
        sizes: numbers in every entry.
    """

    def __init__(self, sizes: Mapping[str, int]) -> None:
        super().__init__()
        self._names = tuple(name for name in sizes if name not in LEFT)
        for name in self._names:
            self.register_buffer(f"{name}_mean", torch.zeros(sizes[name]))
            self.register_buffer(f"{name}_scale", torch.ones(sizes[name]))

    @torch.no_grad()
    def fit(self, observations: Mapping[str, Tensor]) -> None:
        """Takes means and deviations from rows of observations; the window shows what `segment` showed before.

        Args:
            observations: (rows, numbers) per entry, at least two rows.
        """
        for name in self._names:
            rows = observations["segment" if name == "window" else name]
            mean, deviation = rows.mean(0), rows.std(0)
            scale = torch.where(deviation > LEAST, 1 / deviation.clamp_min(LEAST), torch.zeros_like(deviation))
            if name == "tokens":
                mean, scale = torch.zeros_like(mean), torch.full_like(scale, TOKENS_SCALE)
            times = WINDOW if name == "window" else 1
            getattr(self, f"{name}_mean").copy_(mean.repeat(times))
            getattr(self, f"{name}_scale").copy_(scale.repeat(times))

    def forward(self, observations: dict[str, Tensor]) -> dict[str, Tensor]:
        """The same entries, standardised and within ±LIMIT."""
        found = dict(observations)
        for name in self._names:
            shifted = (observations[name] - getattr(self, f"{name}_mean")) * getattr(self, f"{name}_scale")
            found[name] = shifted.clamp(-LIMIT, LIMIT)
        return found
