"""Small agents of every algorithm on an observation of seven entries; no environment or language model behind them."""

from __future__ import annotations

import pickle
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cloudpickle
import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm

from drrl_env.envs.observation import WINDOW
from drrl_policies.card import Card, Score, entries_of
from drrl_policies.extractors import flat_rows, flat_transformer_policy_kwargs
from drrl_policies.networks import FAMILIES, describe, distinct_weights
from drrl_policies.trained import save_trained
from drrl_policies.transformer import transformer_policy_kwargs

ENTRIES = {
    "segment": 6, "energy": 4, "window": WINDOW * 6, "window_ranks": WINDOW, "layer": 3, "previous_rank": 4,
    "position": 1,
}  # fmt: skip
SIZES = {"Discrete": (4,), "MultiDiscrete": (4, 3), "Box": (4,)}
ACTIONS = {
    "Discrete": spaces.Discrete(4),
    "MultiDiscrete": spaces.MultiDiscrete([4, 3]),
    "Box": spaces.Box(-1, 1, (1,), np.float32),
}
LANES = 6
Observations = Callable[..., dict[str, Any]]
"""Makes a random batch, of `lanes` lanes from `seed`."""


@dataclass(frozen=True)
class Agent:
    """A live SB3 model and the card of its policy.

    Attributes:
        model: the model.
        card: the card.
    """

    model: BaseAlgorithm
    card: Card

    def save(self, folder: Path) -> Card:
        """Writes policy and card."""
        return save_trained(self.model.policy, folder, self.card)

    def predict(self, batch: dict[str, Any], **known: Any) -> Any:
        """SB3's own answer."""
        seen = flat_rows(batch, observed()) if FAMILIES[self.card.algorithm].flat else batch
        return self.model.predict(seen, deterministic=True, **known)[0]


class Quiet(gymnasium.Env):
    """Spaces and nothing behind them: models are made on it."""

    def __init__(self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> None:
        self.observation_space, self.action_space = observation_space, action_space

    def reset(self, **_: Any) -> Any:
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> Any:
        return self.observation_space.sample(), 0.0, True, False, {}


def observed() -> spaces.Dict:
    """Entries in no alphabetical order, with bounds that float32 rounds."""
    return spaces.Dict([(name, spaces.Box(-8.1, 8.1, (size,), np.float32)) for name, size in ENTRIES.items()])


def make_model(algo: str, kind: str, network: str, settings: dict[str, Any], **extra: Any) -> BaseAlgorithm:
    """A small agent whose weights are all far from those of a fresh one."""
    family, entries = FAMILIES[algo], observed()
    flat = flat_transformer_policy_kwargs(entries, 16) if family.flat else transformer_policy_kwargs(16)
    given = {**(flat if network == "transformer" else {}), "net_arch": [16], **extra}
    seen = spaces.flatten_space(entries) if family.flat else entries
    buffer = {} if "ppo" in algo or algo in ("a2c", "trpo", "ars") else {"buffer_size": 10}
    model = family.algorithm(
        family.alias, Quiet(seen, ACTIONS[kind]), policy_kwargs=given, seed=0, device="cpu", **buffer, **settings
    )
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in distinct_weights(model.policy).items():
            if tensor.is_floating_point():
                moved = torch.randn(tensor.shape, generator=generator)
                tensor.add_(moved.abs() if name.endswith("ra_var") else moved)
    return model


def card_of(model: BaseAlgorithm, algo: str, kind: str) -> Card:
    """Its card; the model it names is nowhere, so that opening it would fail."""
    extractor, network = describe(model, algo)
    return Card(
        task="DRRL-Attention-v0",
        arguments={"model": "/nowhere/model", "ranks": (8, 16, 32, 64), "text": None},
        name=f"{algo}-seed0",
        algorithm=algo,
        extractor=extractor,
        network=network,
        observation=entries_of(observed()),
        actions=kind,
        sizes=SIZES[kind],
        ranks=(8, 16, 32, 64),
        deciding_flops=123.0,
        command="drrl train",
        versions={},
        score=Score("test", 2, 8, 0.9, 0.8, 0.95, 1.0, 0.5, 1.1),
    )


@pytest.fixture(scope="session")
def make_agent() -> Callable[..., Agent]:
    """Makes an agent from the names of algorithm, actions and network, settings and `policy_kwargs`."""

    def make(algo: str, kind: str, network: str, settings: Any = None, **extra: Any) -> Agent:
        model = make_model(algo, kind, network, settings or {}, **extra)
        return Agent(model, card_of(model, algo, kind))

    return make


@pytest.fixture(scope="session")
def observations() -> Observations:
    """See `Observations`."""

    def make(lanes: int = LANES, seed: int = 0) -> dict[str, Any]:
        random = np.random.default_rng(seed)
        return {name: random.normal(size=(lanes, size)).astype(np.float32) for name, size in ENTRIES.items()}

    return make


@pytest.fixture(scope="session")
def saved(make_agent: Callable[..., Agent], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A MaskablePPO with the Transformer, choosing one of four."""
    folder = tmp_path_factory.mktemp("saved")
    make_agent("maskable-ppo", "Discrete", "transformer").save(folder)
    return folder


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    """A copy of it to damage."""
    return Path(shutil.copytree(saved, tmp_path / "policy"))


@pytest.fixture
def _nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unpickling anything, and opening any zip, fails the test."""

    def refuse(*_: object, **__: object) -> None:
        pytest.fail("something was unpickled")

    for module in (pickle, cloudpickle):
        monkeypatch.setattr(module, "load", refuse)
        monkeypatch.setattr(module, "loads", refuse)
    monkeypatch.setattr(pickle, "Unpickler", refuse)
    monkeypatch.setattr(torch, "load", refuse)
    monkeypatch.setattr(zipfile, "ZipFile", refuse)
