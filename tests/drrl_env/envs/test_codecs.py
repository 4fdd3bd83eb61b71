"""An agent's action becomes choices, one per component, or a one-line error; for one lane and for many alike."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st

from drrl_env.envs.arena import open_arena
from drrl_env.envs.codecs import BoxCodec, DiscreteCodec, MultiDiscreteCodec
from drrl_env.envs.tasks import TASKS

CODECS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "Discrete": (DiscreteCodec(), (8,)),
    "MultiDiscrete": (MultiDiscreteCodec(), (8, 3, 5)),
    "Box": (BoxCodec(), (8,)),
}


@pytest.mark.parametrize("name", CODECS)
@given(seed=st.integers(0, 2**31), lanes=st.integers(1, 9))
def test_every_action_of_the_space_is_a_choice_in_each_component(name: str, seed: int, lanes: int) -> None:
    """(lanes, components), within the sizes, and a lane's choices do not depend on the others."""
    codec, sizes = CODECS[name]
    space = codec.space(sizes)
    space.seed(seed)
    actions = np.stack([space.sample() for _ in range(lanes)])
    found = codec.decode(actions, sizes)
    assert found.shape == (lanes, len(sizes))
    assert found.dtype == np.int64
    assert ((found >= 0) & (found < sizes)).all()
    assert all((codec.decode(actions[lane][None], sizes)[0] == found[lane]).all() for lane in range(lanes))


def test_spaces_are_what_their_names_say() -> None:
    """Of the sizes that a mechanism has."""
    assert DiscreteCodec().space((8,)) == spaces.Discrete(8)
    assert MultiDiscreteCodec().space((8, 3)) == spaces.MultiDiscrete([8, 3])
    assert BoxCodec().space((8,)) == spaces.Box(-1.0, 1.0, (1,), np.float32)
    assert {task.codec.name for task in TASKS.values()} == set(CODECS)


@pytest.mark.parametrize("ranks", [2, 3, 7, 8])
def test_a_box_is_cut_into_equal_parts_that_reach_every_rank(ranks: int) -> None:
    """The middle of each part is its rank, -1 the lowest, 1 the highest; beyond the ends counts as the end."""
    middles = (2 * np.arange(ranks) + 1) / ranks - 1
    assert BoxCodec().decode(middles, (ranks,))[:, 0].tolist() == list(range(ranks))
    ends = BoxCodec().decode(np.array([-5.0, -1.0, 1.0, 5.0]), (ranks,))[:, 0]
    assert ends.tolist() == [0, 0, ranks - 1, ranks - 1]
    dense = BoxCodec().decode(np.linspace(-1, 1, 10 * ranks + 1, dtype=np.float32), (ranks,))[:, 0]
    assert (np.diff(dense) >= 0).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_none_is_refused(value: float) -> None:
    """An agent whose network has burst says so here, not in a wrong rank."""
    with pytest.raises(ValueError, match=f"action={value}: must be a finite number"):
        BoxCodec().decode(np.array([[0.0], [value]]), (8,))


WRONG: list[tuple[str, Any, str]] = [
    ("Discrete", [-1], "action=-1: .* use 0 to 7"),
    ("Discrete", [0, 8], "action=8: .* use 0 to 7"),
    ("Discrete", [2.5], r"action=\[2.5\]: chosen by index; use a whole number"),
    ("Discrete", [float("nan")], r"action=\[nan\]: chosen by index"),
    ("Discrete", [True], r"action=\[True\]: chosen by index"),
    ("Discrete", ["8"], r"action=\['8'\]: chosen by index"),
    ("MultiDiscrete", [[0, 3, 0]], "action=3 in component 1: .* use 0 to 2"),
    ("MultiDiscrete", [[7, 2, 4], [0, 0, -1]], "action=-1 in component 2: .* use 0 to 4"),
    ("MultiDiscrete", [[0, 0]], r"action=\[\[0, 0\]\]: chosen by index; use 3 whole numbers for a lane"),
    ("MultiDiscrete", [[0.0, 0.0, 0.0]], "use 3 whole numbers for a lane"),
]


@pytest.mark.parametrize(("name", "actions", "said"), WRONG, ids=str)
def test_an_action_outside_the_space_is_refused_in_one_line(name: str, actions: Any, said: str) -> None:
    """It would be another lane's choice, or the neighbouring transition's numbers."""
    codec, sizes = CODECS[name]
    with pytest.raises(ValueError, match=said) as error:
        codec.decode(np.array(actions), sizes)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", [np.int32, np.uint8, np.int64])
def test_whole_numbers_of_any_width_are_indices(kind: Any) -> None:
    """Agents hand over what their framework has."""
    assert DiscreteCodec().decode(np.array([3, 7], kind), (8,)).tolist() == [[3], [7]]
    assert MultiDiscreteCodec().decode(np.array([[3, 2, 1]], kind), (8, 3, 5)).tolist() == [[3, 2, 1]]


SEVERAL = ("DRRL-Heads-v0", "DRRL-Basis-v0")
"""Tasks of several choices a step."""


@pytest.mark.parametrize("task", [task for task in TASKS if task not in SEVERAL])
def test_every_task_of_one_rank_has_either_action_space(task: str) -> None:
    """`actions=` chooses it; what a number decodes to is what the index of its part does."""
    short = {"context": 256, "instances": 1}
    box, discrete = (open_arena(task, 2, {**short, "actions": actions}) for actions in ("box", "discrete"))
    assert box.action_space == spaces.Box(-1.0, 1.0, (1,), np.float32)
    assert discrete.action_space == spaces.Discrete(8)
    assert box.decode(np.array([[-1.0], [0.3]], np.float32)).tolist() == discrete.decode(np.array([0, 5])).tolist()
    assert open_arena(task, 2, short).codec is TASKS[task].codec


@pytest.mark.parametrize("task", SEVERAL)
def test_a_box_is_refused_where_a_step_makes_several_choices(task: str) -> None:
    """In one line, with the remedy; which then gives the task's own space."""
    short = {"context": 256, "instances": 1}
    with pytest.raises(ValueError, match=f"^actions='box': {task} makes several .* use actions='discrete'$"):
        open_arena(task, 1, {**short, "actions": "box"})
    assert open_arena(task, 1, {**short, "actions": "discrete"}).action_space == open_arena(task, 1, short).action_space
    with pytest.raises(ValueError, match="actions='continuous': unknown; use one of 'discrete', 'box'"):
        open_arena(task, 1, {**short, "actions": "continuous"})


def test_a_state_fits_whatever_the_action_space(make: Any) -> None:
    """A lane's state is of choices, not of actions: box and discrete lanes may be exchanged in mid-episode."""
    one, two = make("DRRL-Tolerance-v0"), make("DRRL-Tolerance-v0", actions="box")
    one.reset(seed=3)
    one.step(2)
    two.set_state(one.get_state())
    first, second = one.step(5), two.step(np.array([(2 * 5 + 1) / 8 - 1], np.float32))
    assert first[1:4] == second[1:4]
    assert all(np.array_equal(first[0][name], second[0][name]) for name in first[0])


def test_continuous_and_discrete_tasks_are_one_task(make: Any) -> None:
    """The middle of a part earns what its rank earns, bit for bit."""
    one, two = make("DRRL-Attention-v0"), make("DRRL-Attention-Continuous-v0")
    one.reset(seed=3)
    two.reset(seed=3)
    for choice in (0, 6, 3, 7):
        first, second = one.step(choice), two.step(np.array([(2 * choice + 1) / 8 - 1], np.float32))
        assert first[1:4] == second[1:4]
        assert first[4]["reward_terms"] == second[4]["reward_terms"]
        assert all(np.array_equal(first[0][name], second[0][name]) for name in first[0])
