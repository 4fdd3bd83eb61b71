"""The Transformer policy: attention over past segments, the layer and the segment's text, as an SB3 extractor.

Being a features extractor it serves every algorithm that takes one: PPO, MaskablePPO, A2C, DQN, QR-DQN and more.
"""

from __future__ import annotations

from typing import Any

import torch
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn

from drrl_env.envs.observation import CHUNKS, COMPONENTS, WINDOW


class TransformerExtractor(BaseFeaturesExtractor):
    """Tokens: the window of past segments, this segment, the layer, the text, the previous rank.

    Args:
        observation_space: the environment's Dict.
        features_dim: width of the tokens and of the result.
        heads: attention heads.
        blocks: encoder layers.
    """

    def __init__(self, observation_space: spaces.Dict, features_dim: int = 64, heads: int = 4, blocks: int = 2) -> None:
        super().__init__(observation_space, features_dim)
        size = {name: int(space.shape[0]) for name, space in observation_space.spaces.items() if space.shape}
        self._statistics = size["segment"]
        self.past = nn.Linear(size["segment"] + 1, features_dim)
        self.present = nn.Linear(size["segment"] + size["energy"] + 1, features_dim)
        self.layer = nn.Linear(size["layer"], features_dim)
        self.text = nn.Conv1d(COMPONENTS, features_dim, kernel_size=3, padding=1)
        self.rank = nn.Linear(size["previous_rank"], features_dim, bias=False)
        self.slots = nn.Parameter(0.02 * torch.randn(WINDOW + 4, features_dim))
        block = nn.TransformerEncoderLayer(
            features_dim, heads, 2 * features_dim, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(block, blocks, nn.LayerNorm(features_dim), enable_nested_tensor=False)

    def forward(self, observations: dict[str, Tensor]) -> Tensor:
        """The encoded token of this segment, (lanes, features_dim)."""
        tokens = torch.cat([self._past(observations), self._present(observations)], dim=1)
        encoded = self.encoder(tokens + self.slots, src_key_padding_mask=self._padding(observations))
        found: Tensor = encoded[:, WINDOW]
        return found

    def _past(self, observations: dict[str, Tensor]) -> Tensor:
        window = observations["window"].reshape(-1, WINDOW, self._statistics)
        found: Tensor = self.past(torch.cat([window, observations["window_ranks"][..., None]], dim=-1))
        return found

    def _present(self, observations: dict[str, Tensor]) -> Tensor:
        """This segment, the layer, its text and the previous rank, (lanes, 4, features_dim).

        The segment's token begins as the sum of all four, so that what decides most is there before attention has
        learned where to look.
        """
        here = torch.cat([observations["segment"], observations["energy"], observations["position"]], dim=-1)
        text = observations["tokens"].reshape(-1, CHUNKS, COMPONENTS).mT
        summary = nn.functional.gelu(self.text(text)).mean(-1)
        context = [self.layer(observations["layer"]), summary, self.rank(observations["previous_rank"])]
        return torch.stack([self.present(here) + sum(context), *context], dim=1)

    def _padding(self, observations: dict[str, Tensor]) -> Tensor:
        """True where a window slot lies before the first segment, (lanes, tokens)."""
        absent = observations["window_ranks"] == 0
        return torch.cat([absent, absent.new_zeros(len(absent), 4)], dim=1)


def transformer_policy_kwargs(features_dim: int = 64) -> dict[str, Any]:
    """`policy_kwargs` for SB3's MultiInputPolicy with the Transformer as extractor."""
    return {
        "features_extractor_class": TransformerExtractor,
        "features_extractor_kwargs": {"features_dim": features_dim},
        "net_arch": [64],
    }
