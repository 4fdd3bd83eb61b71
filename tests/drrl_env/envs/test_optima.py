"""Every oracle is optimal, by playing every sequence of actions there is on a tiny instance."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import drrl_env
from drrl_env.envs.arena import open_arena
from drrl_env.envs.oracle import Optimum, normalised_score
from drrl_env.envs.play import Episode
from drrl_env.envs.settings import Guard, Reward

URI, LAYER = "drrl://bundled/validation/0001", 1
TINY: dict[str, Any] = {"context": 384, "ranks": (8, 24, 64)}
"""Three segments, three ranks."""
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "attention": ("DRRL-Attention-v0", {"reward": Reward(beta=0.6)}),
    "attention, cheap": ("DRRL-Attention-v0", {"reward": Reward(beta=2.0)}),
    "attention, guard": ("DRRL-Attention-v0", {"reward": Reward(beta=2.0), "guard": Guard("paper", 0.15, 0.1)}),
    "continuous": ("DRRL-Attention-Continuous-v0", {"reward": "paper", "basis": "calibrated"}),
    "tolerance": ("DRRL-Tolerance-v0", {"tolerance": 0.35, "basis": "calibrated"}),
    "tolerance, numbers": ("DRRL-Tolerance-v0", {"tolerance": 0.35, "basis": "calibrated", "actions": "box"}),
    "tolerance, weighed": ("DRRL-Tolerance-v0", {"tolerance": 0.5, "reward": Reward(2.0, 0.5, 0.1)}),
    "tolerance, wide": ("DRRL-Tolerance-v0", {"tolerance": 0.9}),
    "latency": ("DRRL-Latency-v0", {}),
    "budget": ("DRRL-Budget-v0", {"budget": 0.8, "basis": "calibrated"}),
    "budget, all of it": ("DRRL-Budget-v0", {"budget": 1.0}),
    "heads": ("DRRL-Heads-v0", {"context": 256, "ranks": (8, 64), "basis": "calibrated"}),
    "heads, guard": ("DRRL-Heads-v0", {"context": 256, "ranks": (8, 64), "guard": Guard("paper", 0.2, 0.0)}),
    "basis": ("DRRL-Basis-v0", {"ranks": (8, 64), "reward": Reward(beta=0.6)}),
    "basis, guard": ("DRRL-Basis-v0", {"ranks": (8, 40, 64), "guard": Guard("paper", 0.3, 0.0)}),
}


def every_sequence(task: str, arguments: dict[str, Any]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Sequences, returns (NaN where a mask forbids one), and how likely random is to play each."""
    name = {"DRRL-Tolerance-v0": "tolerance", "DRRL-Budget-v0": "budget"}.get(task)
    probe = open_arena(task, 1, arguments)
    joint = np.array(list(itertools.product(*map(range, probe.play.sizes))))
    steps = probe.world.segments
    sequences = np.array(list(itertools.product(range(len(joint)), repeat=steps)))
    arena = open_arena(task, len(sequences), arguments)
    parameter = arena.play.check(LAYER, arguments[name]) if name else 0.0
    span = next(found for found in arena.pool if found.uri == URI)
    arena.play.begin(range(len(sequences)), [Episode(span, LAYER, parameter)] * len(sequences))
    returns, chances = np.zeros(len(sequences)), np.ones(len(sequences))
    offsets = np.cumsum([0, *arena.play.sizes[:-1]])
    for step in range(steps):
        masks, wanted = arena.play.masks(), joint[sequences[:, step]]
        asked = np.take_along_axis(masks, wanted + offsets, axis=1).all(-1)
        counts = [part.sum(-1) for part in np.split(masks, np.cumsum(arena.play.sizes)[:-1], axis=1)]
        chances *= asked / np.prod(counts, axis=0)
        batch = arena.play.step(wanted)
        returns += np.where(batch.changed, np.nan, 0) + batch.rewards
    return sequences, returns, chances


@pytest.mark.parametrize("case", CASES)
def test_no_sequence_returns_more(case: str) -> None:
    """Of all there are, the best one that masks allow returns what the oracle says, to 1e-9."""
    task, own = CASES[case]
    arguments = {**TINY, **own, "instances": [URI]}
    found = drrl_env.oracle(task, f"{URI}?layer={LAYER}", **{**TINY, **own})
    _, returns, _ = every_sequence(task, arguments)
    best = float(np.nanmax(returns))
    assert found.value == pytest.approx(best, abs=1e-9)
    assert found.bound >= best - 1e-9
    assert found.kind == "exact"
    assert np.nanmin(returns) < best - 1e-3  # there is something to choose


@pytest.mark.parametrize("case", [case for case in CASES if "basis, guard" not in case])
def test_random_is_what_all_sequences_average(case: str) -> None:
    """The exact expectation to 1e-9, or within four standard errors where it is sampled."""
    task, own = CASES[case]
    found = drrl_env.oracle(task, f"{URI}?layer={LAYER}", **{**TINY, **own})
    _, returns, chances = every_sequence(task, {**TINY, **own, "instances": [URI]})
    possible = chances > 0
    assert chances.sum() == pytest.approx(1)
    expected = float((returns[possible] * chances[possible]).sum())
    assert found.random == pytest.approx(expected, abs=1e-9 + 4 * found.random_error)


def play(task: str, found: Optimum, **arguments: Any) -> float:
    """Return of the oracle's actions through gym.make."""
    import gymnasium

    env = gymnasium.make(task, instances=[found.instance], disable_env_checker=True, **arguments)
    env.reset(options={"instance": f"{found.instance}?layer={found.layer}"})
    steps = [env.step(action) for action in found.actions]
    assert [step[2] for step in steps] == [False] * (len(steps) - 1) + [True]
    assert not any(step[4]["masked_action"] for step in steps)
    return sum(float(step[1]) for step in steps)


PLAYED = ("attention", "continuous", "tolerance", "tolerance, numbers", "budget", "heads", "basis", "latency")


@pytest.mark.parametrize("case", PLAYED)
def test_its_actions_can_be_played(case: str) -> None:
    """The actions, given to `step`, return the value."""
    task, own = CASES[case]
    found = drrl_env.oracle(task, f"{URI}?layer={LAYER}", **{**TINY, **own})
    assert play(task, found, **{**TINY, **own}) == pytest.approx(found.value, abs=1e-9)


@pytest.mark.parametrize("reward", ["paper", Reward(beta=0.3, gamma=0.3), Reward(gamma=0.0)])
def test_a_bound_for_heads_is_a_bound(reward: Any) -> None:
    """Where fidelity or change do not add up over heads, the optimum lies between value and bound."""
    own = {"context": 256, "ranks": (8, 64), "basis": "calibrated", "reward": reward}
    found = drrl_env.oracle("DRRL-Heads-v0", f"{URI}?layer={LAYER}", **own)
    _, returns, _ = every_sequence("DRRL-Heads-v0", {**own, "instances": [URI]})
    assert found.kind == "bound"
    assert found.value - 1e-9 <= np.nanmax(returns) <= found.bound + 1e-9
    assert found.gap < 0.1


@pytest.mark.parametrize("budget", [0.75, 0.8, 0.95])
def test_a_guarded_budget_is_bounded(budget: float) -> None:
    """What no sequence exceeds, guard and budget together."""
    own = {**TINY, "budget": budget, "basis": "calibrated", "guard": Guard("paper", 0.1, 0.0)}
    found = drrl_env.oracle("DRRL-Budget-v0", f"{URI}?layer={LAYER}", **own)
    _, returns, _ = every_sequence("DRRL-Budget-v0", {**own, "instances": [URI]})
    assert found.value <= np.nanmax(returns) + 1e-9
    assert np.nanmax(returns) <= found.bound + 1e-9
    assert found.kind == "bound"


def test_the_exact_front_dominates_every_sequence() -> None:
    """Each of the 27 vector returns is below a point of the front, and each point is one of them."""
    arguments = {**TINY, "basis": "calibrated"}
    front = drrl_env.pareto("DRRL-Attention-MO-v0", f"{URI}?layer={LAYER}", **arguments)
    arena = open_arena("DRRL-Attention-MO-v0", 27, {**arguments, "instances": [URI]})
    sequences = np.array(list(itertools.product(range(3), repeat=3)))
    arena.play.begin(range(27), [Episode(arena.pool[0], LAYER)] * 27)
    returns = sum(arena.play.step(sequences[:, [step]]).rewards for step in range(3))
    below = (returns[:, None] <= front.points[None] + 1e-12).all(-1)
    assert below.any(1).all()
    assert np.isclose(front.points[:, None], returns[None], atol=1e-12).all(-1).any(1).all()
    assert 1 < len(front.points) < 27


@pytest.mark.parametrize(
    ("task", "uri", "arguments", "named", "remedy"),
    [
        ("DRRL-Attention-v0", URI, {}, "names no layer", "?layer=0"),
        ("DRRL-Attention-v0", f"{URI}?layer=9", {}, "layer=9", "layers 0 to 3"),
        ("DRRL-Attention-v0", f"{URI}?head=1", {}, "head=1", "?layer=2"),
        ("DRRL-Tolerance-v0", f"{URI}?layer=1", {}, "tolerance=None", "info['tolerance']"),
        ("DRRL-Budget-v0", f"{URI}?layer=1", {"budget": 0.01}, "budget", "use at least"),
        ("DRRL-Attention-v1", f"{URI}?layer=1", {}, "DRRL-Attention-v1", "DRRL-Attention-v0"),
        ("DRRL-Attention-MO-v0", f"{URI}?layer=1", {}, "DRRL-Attention-MO-v0", "drrl_env.pareto"),
    ],
)
def test_a_question_that_cannot_be_answered_says_why(
    task: str, uri: str, arguments: dict[str, Any], named: str, remedy: str
) -> None:
    """One line that names the argument and the remedy."""
    with pytest.raises(ValueError) as caught:  # noqa: PT011  (what it says is asserted below)
        drrl_env.oracle(task, uri, **{**TINY, **arguments})
    assert named in str(caught.value)
    assert remedy in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_score_is_zero_at_random_and_one_at_the_oracle() -> None:
    """(R − random)/(oracle − random), and an error where nothing can be chosen."""
    assert normalised_score(2.0, 2.0, 4.0) == 0
    assert normalised_score(4.0, 2.0, 4.0) == 1
    assert normalised_score(3.0, 2.0, 4.0) == 0.5
    with pytest.raises(ValueError, match="nothing to choose"):
        normalised_score(1.0, 1.0, 1.0)
