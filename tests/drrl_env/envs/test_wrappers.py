"""A wrapper does what the argument does."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest

import drrl_env  # noqa: F401  (registers the environments)
from drrl_env.envs.wrappers import BoxActions

SMALL = {"context": 512, "instances": 1, "basis": "calibrated"}


def test_a_wrapped_environment_is_the_one_with_box_actions():
    """The same space, and the same rewards and ranks for numbers from end to end and beyond."""
    wrapped = BoxActions(gymnasium.make("DRRL-Tolerance-v0", **SMALL))
    boxed = gymnasium.make("DRRL-Tolerance-v0", **SMALL, actions="box")
    assert wrapped.action_space == boxed.action_space
    wrapped.reset(seed=3)
    boxed.reset(seed=3)
    for number in (-1.0, -0.2, 0.63, 1.0):
        one, other = (env.step(np.array([number], np.float32)) for env in (wrapped, boxed))
        assert one[1] == other[1]
        assert one[4]["rank"] == other[4]["rank"]


def test_it_can_be_made_again_from_its_specification():
    """Gymnasium's spec names the wrapper: what a worker process or a video recorder makes is wrapped too."""
    again = gymnasium.make(BoxActions(gymnasium.make("DRRL-Attention-v0", **SMALL)).spec)
    assert isinstance(again.action_space, gymnasium.spaces.Box)


def test_what_chooses_otherwise_is_refused():
    """One line with what it takes."""
    with pytest.raises(ValueError, match=r"^env: takes MultiDiscrete[^\n]*; wrap one whose action is one index$"):
        BoxActions(gymnasium.make("DRRL-Heads-v0", **SMALL))
