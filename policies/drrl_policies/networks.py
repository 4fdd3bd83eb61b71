"""The networks of trained policies: described in plain values, and built again from them without an environment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from gymnasium import spaces
from sb3_contrib import ARS, QRDQN, TQC, TRPO, CrossQ, MaskablePPO, RecurrentPPO
from stable_baselines3 import A2C, DDPG, DQN, PPO, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn

from drrl_env.envs.settings import one_of
from drrl_policies.card import Card
from drrl_policies.extractors import FlatTransformerExtractor
from drrl_policies.transformer import TransformerExtractor

DEFAULT = "default"
"""The extractor that SB3 takes where none is given: it joins the entries."""
EXTRACTORS: dict[str, type[BaseFeaturesExtractor]] = {
    "transformer": TransformerExtractor,
    "flat-transformer": FlatTransformerExtractor,
}
"""Features extractors that a card can name; put your own in before you save or load a policy that has it."""
ACTIVATIONS = {
    each.__name__: each for each in (nn.ReLU, nn.Tanh, nn.ELU, nn.GELU, nn.SiLU, nn.LeakyReLU, nn.Sigmoid, nn.Mish)
}
"""Activation functions that a card can name."""
LARGEST = 100_000
"""No whole number of a network is above it: a damaged card must not fill the memory."""
TRAINED_BY = ("optimizer_class", "optimizer_kwargs")
"""Arguments of a policy that only training needs."""


@dataclass(frozen=True)
class Family:
    """An algorithm, as far as its policies are concerned.

    Attributes:
        algorithm: its class.
        alias: SB3's name of its policy class.
        masks: whether it honours action masks.
        flat: whether it observes flattened rows.
        scheduled: whether its policy class takes a schedule of the learning rate.
    """

    algorithm: type[BaseAlgorithm]
    alias: str = "MultiInputPolicy"
    masks: bool = False
    flat: bool = False
    scheduled: bool = True

    @property
    def policy(self) -> type[BasePolicy]:
        """The class of its policies."""
        return self.algorithm.policy_aliases[self.alias]


FAMILIES = {
    "maskable-ppo": Family(MaskablePPO, masks=True),
    "ppo": Family(PPO),
    "a2c": Family(A2C),
    "trpo": Family(TRPO),
    "recurrent-ppo": Family(RecurrentPPO, "MultiInputLstmPolicy"),
    "dqn": Family(DQN),
    "qr-dqn": Family(QRDQN),
    "sac": Family(SAC),
    "tqc": Family(TQC),
    "td3": Family(TD3),
    "ddpg": Family(DDPG),
    "crossq": Family(CrossQ, "MlpPolicy", flat=True),
    "ars": Family(ARS, "MlpPolicy", flat=True, scheduled=False),
}
"""Name of an algorithm to what its policies are."""


def describe(model: BaseAlgorithm, algorithm: str) -> tuple[str, dict[str, Any]]:
    """The network of a live agent in plain values.

    Args:
        model: the agent.
        algorithm: its name in `FAMILIES`.

    Returns:
        Name of its extractor, and `policy_kwargs` that JSON can hold.

    Raises:
        ValueError: it has parts that no table here names.
    """
    one_of("algorithm", algorithm, tuple(FAMILIES))
    if type(model.policy) is not FAMILIES[algorithm].policy:
        raise ValueError(f"model: its policy is a {type(model.policy).__name__}, which no {algorithm} here has")
    given = {name: value for name, value in model.policy_kwargs.items() if name not in TRAINED_BY}
    if getattr(model, "use_sde", False):
        given["use_sde"] = True
    extractor = given.pop("features_extractor_class", None)
    if "activation_fn" in given:
        given["activation_fn"] = _name_of(given["activation_fn"], ACTIVATIONS, "activation_fn")
    named = DEFAULT if extractor is None else _name_of(extractor, EXTRACTORS, "features_extractor_class")
    return named, {name: _plain(name, value) for name, value in given.items()}


def _name_of(found: type[Any], table: Mapping[str, type[Any]], argument: str) -> str:
    for name, known in table.items():
        if found is known:
            return name
    raise ValueError(f"{argument}={found.__name__}: has no name; put it into drrl_policies.networks under one")


def _plain(name: str, value: Any) -> Any:
    """A copy in dicts, lists, numbers and text.

    Raises:
        ValueError: there is something else in it, or a number that no network has.
    """
    if isinstance(value, Mapping):
        return {str(key): _plain(name, each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(name, each) for each in value]
    if value is not None and not isinstance(value, (bool, int, float, str)):
        raise ValueError(f"{name}={value!r}: cannot be written down; use numbers, text, lists and mappings")
    if isinstance(value, int) and abs(value) > LARGEST:
        raise ValueError(f"{name}={value}: no network is so large; use at most {LARGEST}")
    return value


def build(card: Card) -> BasePolicy:
    """The network that a card describes, its weights not yet put in; the state of torch's generator stays.

    Raises:
        ValueError: the card describes none.
    """
    one_of("algorithm", card.algorithm, tuple(FAMILIES))
    one_of("extractor", card.extractor, (DEFAULT, *EXTRACTORS))
    family = FAMILIES[card.algorithm]
    arguments = {name: _plain(name, value) for name, value in card.network.items()}
    if card.extractor != DEFAULT:
        arguments["features_extractor_class"] = EXTRACTORS[card.extractor]
    if "activation_fn" in arguments:
        one_of("activation_fn", arguments["activation_fn"], tuple(ACTIVATIONS))
        arguments["activation_fn"] = ACTIVATIONS[arguments["activation_fn"]]
    if family.scheduled:
        arguments["lr_schedule"] = _no_learning
    observed = card.observation_space
    arguments["observation_space"] = spaces.flatten_space(observed) if family.flat else observed
    try:
        with torch.random.fork_rng(devices=[]):
            return family.policy(action_space=card.action_space, **arguments)
    except Exception as error:  # a damaged card makes constructors fail in every way there is
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"no {card.algorithm} network: {reason}") from error


def _no_learning(progress: float) -> float:
    """The learning rate of a network that is only used."""
    del progress
    return 0.0


def distinct_weights(policy: BasePolicy) -> dict[str, Tensor]:
    """Every tensor of a policy once: SB3 lists a shared extractor three times."""
    own = policy.state_dict(keep_vars=True)
    return {names[0]: own[names[0]].detach() for names in _shared_names(policy)}


def put_weights(policy: BasePolicy, weights: Mapping[str, Tensor]) -> None:
    """Copies `distinct_weights` of an equal network into a policy.

    Raises:
        ValueError: one is missing, too many, of another shape or type, or not finite.
    """
    groups, own = _shared_names(policy), policy.state_dict()
    wrong = sorted({names[0] for names in groups}.symmetric_difference(weights))
    if wrong:
        raise ValueError(f"it {'has an unknown' if wrong[0] in weights else 'lacks'} {wrong[0]}")
    for name, tensor in weights.items():
        if (tensor.shape, tensor.dtype) != (own[name].shape, own[name].dtype):
            there, here = (f"{each.dtype} {tuple(each.shape)}" for each in (tensor, own[name]))
            raise ValueError(f"{name} is {there} and the network's {here}")
        if not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{name} holds NaN or infinity")
    policy.load_state_dict({name: weights[names[0]] for names in groups for name in names})


def _shared_names(policy: BasePolicy) -> list[list[str]]:
    """Names of the tensors, those of one tensor together."""
    found: dict[int, list[str]] = {}
    for name, tensor in policy.state_dict(keep_vars=True).items():
        found.setdefault(id(tensor), []).append(name)
    return list(found.values())
