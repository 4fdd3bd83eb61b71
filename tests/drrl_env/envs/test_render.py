"""Pictures of an episode show what happened, at any time, and change nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.wrappers import RenderCollection
from numpy.typing import NDArray

import drrl_env  # noqa: F401  (registers the environments)
from drrl_env.envs.picture import picture
from drrl_env.envs.render import COLUMNS
from drrl_env.envs.settings import Guard
from drrl_env.envs.tasks import TASKS

SHORT = {"context": 512, "instances": 2, "split": "validation"}
SHAPE = (640, 800, 3)
RED, GREEN, CYAN = (214, 39, 40), (149, 207, 149), (23, 190, 207)
"""matplotlib's tab:red, tab:green half transparent on white, and tab:cyan, the fourth head's."""


def made(task: str, mode: str | None, **arguments: Any) -> Any:
    """The environment on short spans, without wrappers."""
    return gymnasium.make(task, render_mode=mode, disable_env_checker=True, **{**SHORT, **arguments}).unwrapped


def sampled(env: Any, seed: int) -> list[Any]:
    """Random actions for a whole episode, and some to spare."""
    env.action_space.seed(seed)
    return [env.action_space.sample() for _ in range(64)]


def played(env: Any, actions: Sequence[Any], steps: int = 99) -> list[dict[str, Any]]:
    """Infos of the steps of an episode of the same seed."""
    env.reset(seed=5)
    infos = []
    for action in actions[:steps]:
        _, _, ended, _, info = env.step(action)
        infos.append(info)
        if ended:
            break
    return infos


def pixels(frame: NDArray[np.uint8], colour: tuple[int, int, int]) -> int:
    """How many pixels of a frame have a colour, up to rounding."""
    return int((np.abs(frame.astype(int) - colour).max(-1) <= 2).sum())


@pytest.mark.parametrize("task", TASKS)
def test_every_task_can_be_looked_at_at_any_time(task: str) -> None:
    """Before the first reset, after it, in the middle and at the end: text, and uint8 pictures of one size."""
    for mode in ("ansi", "rgb_array"):
        env = made(task, mode)
        looks = [env.render()]
        env.reset(seed=1)
        looks.append(env.render())
        ended, actions = False, iter(sampled(env, 0))
        while not ended:
            ended = env.step(next(actions))[2]
            looks += [env.render()] if len(looks) == 2 or ended else []
        if mode == "ansi":
            assert all(isinstance(look, str) and task in look for look in looks)
            assert "no episode begun" in looks[0]
            assert max(len(line) for look in looks for line in look.splitlines()) <= 120
        else:
            assert all(look.shape == SHAPE and look.dtype == np.uint8 for look in looks)
        assert all(np.any(a != b) for a, b in pairwise(looks))


@pytest.mark.parametrize("mode", ["ansi", "rgb_array"])
@pytest.mark.parametrize("task", ["DRRL-Attention-v0", "DRRL-Basis-v0"])
def test_looking_changes_nothing(task: str, mode: str) -> None:
    """An episode watched at every step gives the same bits as one nobody looked at, and so does the next episode."""
    watched, alone = (made(task, shown, context=256) for shown in (mode, None))
    actions = sampled(alone, 2)
    for seed in (3, None):
        starts = [env.reset(seed=seed)[0] for env in (watched, alone)]
        watched.render()
        ended = False
        for action in actions:
            (seen, reward, ended, _, _), (other, wanted, *_) = watched.step(action), alone.step(action)
            frame = watched.render()
            assert reward == wanted
            assert all(np.array_equal(seen[name], other[name]) for name in seen)
            assert np.all(watched.render() == frame)
            if ended:
                break
        assert all(np.array_equal(starts[0][name], starts[1][name]) for name in starts[0])
        assert watched.get_state() == alone.get_state()


def cells(text: str, rank: int) -> str:
    """The marks of a rank's row, one character per segment."""
    row = next(line for line in text.splitlines() if line.startswith(f"{f'rank {rank}':>8} "))
    return row[9:][2::4]


def test_text_marks_every_executed_rank_in_its_segment() -> None:
    """One ring per segment done, in the row of the rank that info reported; none elsewhere."""
    env = made("DRRL-Attention-v0", "ansi")
    infos = played(env, sampled(env, 4), 3)
    rings = {(t, rank) for rank in env.ranks for t, mark in enumerate(cells(env.render(), rank)) if mark == "●"}
    assert rings == {(t, info["rank"]) for t, info in enumerate(infos)}


def test_text_counts_the_heads_at_each_rank() -> None:
    """The digits of a segment's column add up to the number of heads, each in the row of the heads' rank."""
    env = made("DRRL-Heads-v0", "ansi")
    infos = played(env, sampled(env, 4))
    text = env.render()
    for t, info in enumerate(infos):
        shown = {rank: cells(text, rank)[t] for rank in env.ranks}
        assert {rank: int(mark) for rank, mark in shown.items() if mark.isdigit()} == {
            rank: info["rank"].count(rank) for rank in info["rank"]
        }


def test_text_names_the_basis_of_each_segment() -> None:
    """c, k and r in the row of the executed rank, as info says."""
    env = made("DRRL-Basis-v0", "ansi")
    infos = played(env, [(0, 0), (1, 2), (2, 1), (3, 1)])
    marks = [cells(env.render(), info["rank"])[t] for t, info in enumerate(infos)]
    assert "".join(marks) == "crkk"


def test_text_tells_cost_and_fidelity_so_far() -> None:
    """FLOPs over full attention's of the segments done, mean error and cosine, return: worked out from the infos."""
    env, full = made("DRRL-Attention-v0", "ansi", layer=1), made("DRRL-Attention-v0", None, layer=1)
    infos = played(env, sampled(env, 6), 3)
    whole = played(full, [len(full.ranks) - 1] * 4, 3)
    text = env.render()
    spent = sum(info["flops"] for info in infos) / sum(info["flops"] for info in whole)
    assert f"so far {spent:.3f} of full attention" in text
    error, cosine = (np.mean([info[name] for info in infos]) for name in ("relative_error", "cosine"))
    assert f"mean {error:.3f}, mean cosine {cosine:.3f}" in text
    assert f"return {sum(sum(info['reward_terms'].values()) for info in infos):.3f}" in text


def test_a_budget_is_shown_with_what_is_left() -> None:
    """The text says what info says; the picture has its green field, which other tasks do not have."""
    env = made("DRRL-Budget-v0", "ansi")
    actions = sampled(env, 1)
    left = played(env, actions, 2)[-1]["budget_left"]
    assert f"{left:.3f} of full attention's FLOPs left" in env.render()
    shown, other = made("DRRL-Budget-v0", "rgb_array"), made("DRRL-Attention-v0", "rgb_array")
    assert [played(each, actions, 2) != [] and pixels(each.render(), GREEN) > 500 for each in (shown, other)] == [
        True,
        False,
    ]


def test_an_exceeded_tolerance_is_red() -> None:
    """Bars above the tolerance are red, those below are not."""
    for choice, exceeds in ((0, True), (-1, False)):
        env = made("DRRL-Tolerance-v0", "rgb_array", tolerance=0.01)
        played(env, [range(len(env.ranks))[choice]] * 4)
        assert (pixels(env.render(), RED) > 200) == exceeds


def test_a_masked_action_is_marked() -> None:
    """Red crosses where the guard changed an action; none where everything is allowed."""
    for guard, marked in ((Guard("paper", threshold=1e-6), True), ("off", False)):
        env = made("DRRL-Attention-v0", "rgb_array", guard=guard)
        infos = played(env, [0] * 4)
        assert any(info["masked_action"] for info in infos) == marked
        assert (pixels(env.render(), (255, 0, 0)) > 10) == marked


def test_many_heads_are_drawn_as_mean_and_range() -> None:
    """Thirty-two heads of another model do not overlap into a smear: one marker a segment instead of thirty-two."""
    env = made("DRRL-Heads-v0", None)
    played(env, sampled(env, 0))
    trail = env._trail
    assert pixels(picture(env.arena, 0, trail), CYAN) > 50
    for step in trail.steps:
        step["rank"] = step["rank"] * 8
    many = picture(env.arena, 0, trail)
    assert many.shape == SHAPE
    assert pixels(many, CYAN) == 0


def test_the_layers_of_the_closed_loop_are_a_grid_of_ranks() -> None:
    """A row per layer whose ranks are chosen, a column per segment, each cell what info reported; quality beside it."""
    for layer, rows in ((None, 4), (2, 1)):
        env = made("DRRL-Layers-v0", "ansi", context=256, layer=layer)
        infos = played(env, sampled(env, 8), 2 * rows - (layer is None))
        text = env.render()
        shown = dict(re.findall(r"^ *layer (\d) (.*)$", text, re.MULTILINE))
        assert len(shown) == rows
        for info in infos:
            cell = shown[str(info["layer"])][4 * info["segment"] : 4 * info["segment"] + 4]
            assert int(cell) == info["rank"]
        changes = [info["log_likelihood_change"] for info in infos if "log_likelihood_change" in info]
        assert f"{np.mean(changes):+.4f} nats per token" in text
        assert f"{len(changes)} of 2 segments done" in text


def test_full_ranks_everywhere_cost_what_full_attention_costs() -> None:
    """So far 1.000 of full attention, in every task whose actions are ranks, the closed loop among them."""
    for task in ("DRRL-Attention-v0", "DRRL-Latency-v0", "DRRL-Layers-v0"):
        env = made(task, "ansi", context=256)
        played(env, [len(env.ranks) - 1] * 64)
        assert "so far 1.000 of full attention" in env.render()


def test_a_long_text_shows_the_latest_segments() -> None:
    """Of 32 segments the last 24 are there: the lines stay short."""
    env = made("DRRL-Attention-v0", "ansi", segment=16, layer=0)
    played(env, [0] * 64)
    numbers = re.search(r"segment +((?:\d+ *)+)\n", env.render())
    assert numbers is not None
    assert [int(number) for number in numbers[1].split()] == list(range(32 - COLUMNS, 32))


def test_what_was_seen_goes_with_the_state() -> None:
    """A fork, and an environment put into the JSON of a state, draw the same picture."""
    env = made("DRRL-Basis-v0", "ansi")
    played(env, sampled(env, 3), 3)
    other = made("DRRL-Basis-v0", "ansi")
    other.set_state(json.loads(json.dumps(env.get_state())))
    assert env.fork().render() == other.render() == env.render()


def test_wrappers_that_collect_frames_get_frames() -> None:
    """Gymnasium's RenderCollection, as a video recorder would: one uint8 frame of one size per reset and step."""
    env = RenderCollection(gymnasium.make("DRRL-Attention-v0", render_mode="rgb_array", **SHORT))
    env.reset(seed=0)
    ended = False
    while not ended:
        ended = env.step(0)[2]
    frames = env.render()
    assert len(frames) == 5
    assert {frame.shape for frame in frames} == {SHAPE}


def test_an_environment_made_without_a_mode_says_how_to_get_one() -> None:
    """One line with the remedy; so does an unknown mode."""
    env = made("DRRL-Attention-v0", None)
    with pytest.raises(ValueError, match="render_mode='ansi' or 'rgb_array'"):
        env.render()
    with pytest.raises(ValueError, match="render_mode='human': unknown; use one of 'ansi', 'rgb_array'"):
        type(env)(render_mode="human")
