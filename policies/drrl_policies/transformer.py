"""The Transformer policy: attention over past segments, the layer and the segment's text, as an SB3 extractor.

Being a features extractor it serves every algorithm that takes one: PPO, MaskablePPO, A2C, DQN, QR-DQN and more.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from drrl_env.envs.observation import CHUNKS, COMPONENTS, WINDOW
from drrl_policies.standard import Standard

PAST, CONTEXT = ("window", "window_ranks"), ("layer", "tokens", "previous_rank")
"""Entries that tokens other than this segment's are made of."""
PRESENT = ("segment", "energy", "position")
"""Entries that this segment's token begins with; whatever else is observed follows them."""


class TransformerExtractor(BaseFeaturesExtractor):
    """Tokens: the window of past segments, this segment, the layer, the text, the previous rank.

    A token whose entries are not observed is left out. Entries of other names (a tolerance, a budget), and a text that
    is not made of chunk means alone, become further inputs of this segment's token.

    Entries are standardised first, see `Standard`; `drrl train` and `drrl imitate` fit that on the train split.

    Args:
        observation_space: the environment's Dict of 1-D boxes. `window_ranks` has `WINDOW` numbers for each head that
            has a rank of its own, slot by slot.
        features_dim: width of the tokens and of the result.
        heads: attention heads.
        blocks: encoder layers.
        second_order: whether gradients are differentiated again, as TRPO does; PyTorch's fused attention cannot be.

    Raises:
        ValueError: an entry is not one-dimensional, or a window cannot be cut into `WINDOW` slots.
    """

    def __init__(
        self,
        observation_space: spaces.Dict,
        features_dim: int = 64,
        heads: int = 4,
        blocks: int = 2,
        second_order: bool = False,
    ) -> None:
        super().__init__(observation_space, features_dim)
        self._second_order = second_order
        size = entry_sizes(observation_space)
        self.standard = Standard(size)
        convolved = size.get("tokens") == CHUNKS * COMPONENTS
        self._context = tuple(name for name in CONTEXT if name in size and (name != "tokens" or convolved))
        self._window = tuple(name for name in PAST if name in size)
        others = sorted(name for name in size if name not in (*PRESENT, *PAST, *self._context))
        self._present_inputs = (*(name for name in PRESENT if name in size), *others)
        if self._window:
            self.past = nn.Linear(sum(size[name] for name in self._window) // WINDOW, features_dim)
        self.present = nn.Linear(sum(size[name] for name in self._present_inputs), features_dim)
        if "layer" in size:
            self.layer = nn.Linear(size["layer"], features_dim)
        if convolved:
            self.text = nn.Conv1d(COMPONENTS, features_dim, kernel_size=3, padding=1)
        if "previous_rank" in size:
            self.rank = nn.Linear(size["previous_rank"], features_dim, bias=False)
        self._here = WINDOW if self._window else 0
        self.slots = nn.Parameter(0.02 * torch.randn(self._here + 1 + len(self._context), features_dim))
        block = nn.TransformerEncoderLayer(
            features_dim, heads, 2 * features_dim, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(block, blocks, nn.LayerNorm(features_dim), enable_nested_tensor=False)

    def train(self, mode: bool = True) -> TransformerExtractor:
        """Sets the mode; SB3 does before every prediction, and walking through all modules costs it .2 ms."""
        return self if mode == self.training else super().train(mode)

    def forward(self, observations: dict[str, Tensor]) -> Tensor:
        """The encoded token of this segment, (lanes, features_dim)."""
        padding, observations = self._padding(observations), self.standard(observations)
        tokens = self._present(observations)
        if self._window:
            tokens = torch.cat([self._past(observations), tokens], dim=1)
        with sdpa_kernel(SDPBackend.MATH) if self._second_order and torch.is_grad_enabled() else nullcontext():
            encoded = self.encoder(tokens + self.slots, src_key_padding_mask=padding)
        found: Tensor = encoded[:, self._here]
        return found

    def _past(self, observations: dict[str, Tensor]) -> Tensor:
        """The last segments, (lanes, WINDOW, features_dim)."""
        slots = [_slots(observations[name]) for name in self._window]
        found: Tensor = self.past(torch.cat(slots, dim=-1))
        return found

    def _present(self, observations: dict[str, Tensor]) -> Tensor:
        """This segment, the layer, its text and the previous rank, (lanes, up to 4, features_dim).

        The segment's token begins as the sum of all, so that what decides most is there before attention has learned
        where to look.
        """
        here = torch.cat([observations[name] for name in self._present_inputs], dim=-1)
        context = [self._context_token(name, observations[name]) for name in self._context]
        return torch.stack([self.present(here) + sum(context), *context], dim=1)

    def _context_token(self, name: str, rows: Tensor) -> Tensor:
        """The token of an entry, (lanes, features_dim)."""
        if name == "tokens":
            text: Tensor = self.text(rows.reshape(-1, CHUNKS, COMPONENTS).mT)
            return nn.functional.gelu(text).mean(-1)
        found: Tensor = (self.layer if name == "layer" else self.rank)(rows)
        return found

    def _padding(self, observations: dict[str, Tensor]) -> Tensor | None:
        """True where a window slot lies before the first segment, (lanes, tokens); None without a window."""
        if not self._window:
            return None
        absent = (_slots(observations[self._window[-1]]) == 0).all(-1)
        return torch.cat([absent, absent.new_zeros(len(absent), 1 + len(self._context))], dim=1)


def entry_sizes(observation_space: spaces.Dict) -> dict[str, int]:
    """Numbers in every entry, in the order of the observation.

    Raises:
        ValueError: an entry is not one-dimensional, or a window cannot be cut into `WINDOW` slots.
    """
    shapes = {name: space.shape or () for name, space in observation_space.spaces.items()}
    for name, shape in shapes.items():
        if len(shape) != 1:
            raise ValueError(f"observation_space[{name!r}]: shape {shape}; use one-dimensional boxes")
        if name in PAST and shape[0] % WINDOW:
            raise ValueError(f"observation_space[{name!r}]: {shape[0]} numbers; use a multiple of {WINDOW}")
    return {name: int(shape[0]) for name, shape in shapes.items()}


def _slots(rows: Tensor) -> Tensor:
    """A window slot by slot, (lanes, WINDOW, numbers)."""
    return rows.reshape(len(rows), WINDOW, -1)


def transformer_policy_kwargs(features_dim: int = 64, second_order: bool = False) -> dict[str, Any]:
    """`policy_kwargs` for SB3's MultiInputPolicy with the Transformer as extractor.

    Args:
        features_dim: width of the tokens and of the result.
        second_order: for TRPO, see `TransformerExtractor`.
    """
    settings: dict[str, Any] = {"features_dim": features_dim, **({"second_order": True} if second_order else {})}
    return {
        "features_extractor_class": TransformerExtractor,
        "features_extractor_kwargs": settings,
        "net_arch": [64],
    }
