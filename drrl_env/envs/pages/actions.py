"""What an environment's page says of its actions."""

from __future__ import annotations

from drrl_env.envs.arena import Arena
from drrl_env.envs.basis import KINDS, BasisMechanism
from drrl_env.envs.codecs import MultiDiscreteCodec, resolve_codec
from drrl_env.envs.pages.markdown import prose
from drrl_env.envs.simulator import Simulator


def codec_text(arena: Arena) -> str:
    """The action space in words, and what `actions=` makes of it."""
    own = prose(type(arena.codec))
    if isinstance(arena.codec, MultiDiscreteCodec):
        return own
    other = "box" if arena.codec.name == "Discrete" else "discrete"
    codec = resolve_codec(other, arena.codec, arena.task.id)
    return f'{own} With `actions="{other}"`, `{codec.space(arena.play.sizes)}`: {prose(type(codec))}'


def mechanism_text(arena: Arena) -> str:
    """What an action does, and the kinds of basis by index where the agent chooses one."""
    if not isinstance(arena.play, Simulator):
        return prose(type(arena.play))
    mechanism = arena.play.mechanism
    kinds = "\n\nKinds by index: " + ", ".join(f"{index} {kind}" for index, kind in enumerate(KINDS)) + "."
    return prose(type(mechanism)) + (kinds if isinstance(mechanism, BasisMechanism) else "")
