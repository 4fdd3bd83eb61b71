"""Policies that choose ranks: the rules an agent must beat, and the Transformer an agent may use."""

from drrl_policies.base import Policy, Situation
from drrl_policies.field import Field, open_field
from drrl_policies.rules import EnergyThreshold, Oracle, Random, Table, ToleranceThreshold, constant
from drrl_policies.trained import TrainedPolicy, load, save_trained, shipped

__all__ = [
    "EnergyThreshold",
    "Field",
    "Oracle",
    "Policy",
    "Random",
    "Situation",
    "Table",
    "ToleranceThreshold",
    "TrainedPolicy",
    "constant",
    "load",
    "open_field",
    "save_trained",
    "shipped",
]
