"""Policies that choose ranks: the rules an agent must beat, and the Transformer an agent may use."""

from drrl_policies.base import Policy, Situation
from drrl_policies.rules import EnergyThreshold, Fixed, Full, LayerSegmentTable, LayerTable, Oracle, Random

__all__ = [
    "EnergyThreshold",
    "Fixed",
    "Full",
    "LayerSegmentTable",
    "LayerTable",
    "Oracle",
    "Policy",
    "Random",
    "Situation",
]
