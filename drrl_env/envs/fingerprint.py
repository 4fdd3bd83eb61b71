"""What a lane's state depends on beside its own numbers, as plain JSON: a state fits only where all of it is equal."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from drrl_env.data.instances import Instance
from drrl_env.envs.game import Rules
from drrl_env.envs.world import World


def fingerprint(rules: Rules, world: World, pool: Sequence[Instance], layers: Sequence[int]) -> dict[str, Any]:
    """Weights, measurement, reward, guard, cost, limits, layers and instances, each under its argument's name.

    The model is named by the digest of its weights, so that a folder may move; the instances by that of their URIs.
    """
    measured = {name: _plain(value) for name, value in asdict(rules.measurement).items()}
    uris = hashlib.sha256("\n".join(found.uri for found in pool).encode()).hexdigest()[:16]
    return {
        **measured,
        "model": world.model.digest,
        "reward": asdict(rules.reward),
        "guard": asdict(rules.guard),
        "cost": rules.cost,
        "limits": _plain(rules.limits),
        "layer": list(layers),
        "instances": f"{len(pool)} ({uris})",
    }


def _plain(value: Any) -> Any:
    """What JSON makes of it."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(part) for part in value]
    return value


def check_fingerprint(own: Mapping[str, Any], found: object) -> None:
    """Raises a one-line ValueError naming the first argument in which a state's fingerprint differs."""
    if not isinstance(found, Mapping):
        raise ValueError("state: it does not say what it was taken with; give what get_state returned")
    for name, value in own.items():
        if found.get(name) != value:
            raise ValueError(
                f"state: it was taken with {name}={found.get(name)}, this environment has {name}={value}; "
                "use one of the same arguments"
            )
