"""Trained policies: weights in safetensors beside a JSON card, so that loading one runs no pickle.

A policy is used without its environment, language model or store: `load("DRRL-Tolerance-v0").predict(observation)`.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, overload

import torch
from gymnasium import spaces
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load as tensors_of
from safetensors.torch import save as bytes_of
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import BasePolicy

from drrl_env.envs.settings import one_of
from drrl_policies.base import Masks
from drrl_policies.card import Card, read_card
from drrl_policies.learnt import LearntPolicy
from drrl_policies.networks import FAMILIES, build, distinct_weights, put_weights

WEIGHTS, CARD = "policy.safetensors", "card.json"
SHIPPED = Path(__file__).resolve().parent / "shipped"
"""A folder for every task's policy that comes with the package."""
COMPUTING = ("torch", "stable-baselines3", "sb3-contrib", "numpy")
"""Packages whose version a decision may depend on."""


class TrainedPolicy(LearntPolicy):
    """A policy from its card and weights alone, for use only: on the CPU, in evaluation mode, without gradients.

    Args:
        card: its card.
        network: what `build` made of the card, its weights put in.

    Attributes:
        card: its card.
    """

    def __init__(self, card: Card, network: BasePolicy) -> None:
        family = FAMILIES[card.algorithm]
        network.set_training_mode(False)
        network.requires_grad_(False)
        super().__init__(
            network, card.name, family.masks, card.observation_space, card.codec, card.sizes, card.deciding_flops
        )
        self.card = card

    @torch.inference_mode()
    def predict(
        self,
        observation: Mapping[str, NDArray[Any]],
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = True,
        action_masks: Masks | None = None,
    ) -> tuple[NDArray[Any], Any]:
        """See `LearntPolicy.predict`."""
        return super().predict(observation, state, episode_start, deterministic, action_masks)

    def check(self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> None:
        """Refuses an environment whose observations or actions are not those that the policy was trained on.

        Raises:
            ValueError: one line with what differs.
        """
        found = _difference(self.entries, observation_space)
        if found is None and action_space != self.card.action_space:
            found = f"actions are {action_space} and were {self.card.action_space}"
        if found is not None:
            raise ValueError(
                f"policy={self.name!r}: {found}; use an environment as it was trained in, {self.card.task} with "
                f"{self.card.arguments}"
            )


def _difference(own: spaces.Dict, given: spaces.Space[Any]) -> str | None:
    """The first thing in which an observation is not the policy's own."""
    if not isinstance(given, spaces.Dict):
        return f"observations are {given} and were a Dict"
    for name in dict.fromkeys((*own.spaces, *given.spaces)):
        there, here = given.spaces.get(name, "not there"), own.spaces.get(name, "not there")
        if there != here:
            return f"observation {name!r} is {there} and was {here}"
    return None


def save_trained(policy: BasePolicy, folder: Path, card: Card) -> Card:
    """Writes a policy's weights and card into a folder, each file whole or not at all.

    The card holds the digest of the weights, so that files which do not belong together are found out.

    Args:
        policy: SB3's policy, as it is now.
        folder: where to; made where it is missing.
        card: its card.

    Returns:
        The card with the digest.

    Raises:
        OSError: they cannot be written; what was there stays.
    """
    data = bytes_of({name: tensor.contiguous().clone() for name, tensor in distinct_weights(policy).items()})
    signed = replace(card, weights=hashlib.sha256(data).hexdigest())
    folder.mkdir(parents=True, exist_ok=True)
    partial = [folder / (name + ".partial") for name in (CARD, WEIGHTS)]
    try:
        for path, content in zip(partial, (signed.text().encode(), data), strict=True):
            _write_through(path, content)
        for path in partial:
            os.replace(path, path.with_suffix(""))
    except OSError:
        for path in partial:
            path.unlink(missing_ok=True)
        raise
    return signed


def _write_through(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def load_trained(folder: Path, argument: str = "name") -> TrainedPolicy:
    """The policy that `save_trained` wrote; reads JSON and safetensors only.

    Args:
        folder: the folder.
        argument: what the user calls it, for errors.

    Raises:
        ValueError: a file is missing or damaged, or of another version; one line.
    """
    for name in (WEIGHTS, CARD):
        if not (folder / name).is_file():
            raise ValueError(
                f"{argument}={str(folder)!r}: no {name} is there; give a folder that drrl train (finish it with "
                "--resume) or drrl export wrote"
            )
    reading = CARD
    try:
        card = read_card((folder / CARD).read_text(encoding="utf-8"))
        network = build(card)
        reading = WEIGHTS
        data = (folder / WEIGHTS).read_bytes()
        put_weights(network, tensors_of(data))
        if hashlib.sha256(data).hexdigest() != card.weights:
            raise ValueError(f"it is not the file that {CARD} was written with")
    except (OSError, SafetensorError, ValueError, RecursionError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"{argument}={str(folder)!r}: its {reading} cannot be used ({reason}); train it again"
        ) from error
    _warn_of_versions(card)
    return TrainedPolicy(card, network)


def _warn_of_versions(card: Card) -> None:
    """One warning where packages that compute a decision are of another minor version than those of the training."""
    pairs = {name: (_installed(name), card.versions[name]) for name in COMPUTING if name in card.versions}
    other = [f"{name} {now} (was {then})" for name, (now, then) in pairs.items() if _minor(now) != _minor(then)]
    if other:
        warnings.warn(f"{card.name} decides with {', '.join(other)}: it may round otherwise", stacklevel=3)


def _installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "missing"


def _minor(text: str) -> list[str]:
    return str(text).split(".")[:2]


def shipped() -> tuple[str, ...]:
    """Environment ids for which a trained policy comes with the package."""
    return tuple(sorted(path.parent.name for path in SHIPPED.glob(f"*/{CARD}")))


@overload
def load(name: str | Path, trust: Literal[False] = False) -> TrainedPolicy: ...
@overload
def load(name: str | Path, trust: bool, algo: str | None = None) -> TrainedPolicy | BaseAlgorithm: ...


def load(name: str | Path, trust: bool = False, algo: str | None = None) -> TrainedPolicy | BaseAlgorithm:
    """A trained policy with stable-baselines3's `predict`; nothing that is read runs code unless you say so.

    Args:
        name: an environment id, for the policy that ships for it; a folder that `drrl train` or `drrl export` wrote;
            or, with `trust=True`, a zip that stable-baselines3 wrote.
        trust: whether the zip comes from somebody you trust: it holds pickles, and loading it runs their code.
        algo: the algorithm of the zip, a name in `drrl_policies.networks.FAMILIES`.

    Returns:
        The policy; for a zip stable-baselines3's own model, on the CPU, whose `predict` takes what it was trained on.

    Raises:
        ValueError: there is no such policy, it is damaged, or it is a zip and not trusted; one line.
    """
    path = Path(name)
    if path.suffix == ".zip":
        return _load_zip(path, trust, algo)
    task = str(name).removeprefix("drrl_env:")
    if task in shipped():
        return load_trained(SHIPPED / task)
    if path.is_dir():
        return load_trained(path)
    ways = [*map(repr, shipped()), "a folder that drrl train wrote"]
    raise ValueError(f"name={str(name)!r}: no trained policy ships under this name; use {' or '.join(ways)}")


def _load_zip(path: Path, trust: bool, algo: str | None) -> BaseAlgorithm:
    if not trust:
        raise ValueError(
            f"name={str(path)!r}: a zip of stable-baselines3 holds pickles, and loading it runs their code; give "
            "trust=True and algo=... if you trust who made it"
        )
    one_of("algo", algo, tuple(FAMILIES))
    if not path.is_file():
        raise ValueError(f"name={str(path)!r}: no such file; give a zip that stable-baselines3 wrote")
    return FAMILIES[str(algo)].algorithm.load(path, device="cpu")
