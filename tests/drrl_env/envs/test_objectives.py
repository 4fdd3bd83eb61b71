"""What tasks pay for: tolerances, budgets and vectors, recomputed from info and from the cost tables."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from drrl_env.envs.objectives import BudgetObjective, LinearObjective, ToleranceObjective, resolve_range
from drrl_env.envs.tasks import TASKS, TOLERANCES
from drrl_env.lowrank.flops import full_flops

TOLERANCE, BUDGET = "DRRL-Tolerance-v0", "DRRL-Budget-v0"


@pytest.mark.parametrize("task", TASKS)
def test_the_terms_sum_to_the_reward(task: str, make: Any, play: Any) -> None:
    """Bit for bit, added from left to right, in every task under the guard; a vector reward is its terms."""
    for step in play(make(task, guard="paper"), seed=1)[1:]:
        terms = list(step.info["reward_terms"].values())
        if "-MO-" in task:
            assert np.array_equal(step.reward, np.array(terms, np.float32))
            continue
        total = 0.0
        for term in terms:
            total += term
        assert step.reward == total
        assert type(step.reward) is float


def test_a_tolerance_is_kept_or_costs_1(make: Any, play: Any) -> None:
    """The fraction of FLOPs saved (over the episode's mean) where the error is at most ε, else −1; both occur."""
    env, violated = make(TOLERANCE), set()
    full = np.array([full_flops(env.game.world.shape, t) for t in range(4)])
    for seed in range(4):
        for position, step in enumerate(play(env, seed=seed, tolerance=0.15)[1:]):
            info, over = step.info, step.info["relative_error"] > 0.15
            saved = (full[position] - info["flops"]) / full.mean()
            assert step.reward == (-1.0 if over else pytest.approx(saved, abs=1e-12))
            assert info["reward_terms"]["violation"] == (-1.0 if over else 0.0)
            violated.add(bool(over))
    assert violated == {True, False}


def test_an_error_of_exactly_the_tolerance_keeps_it(make: Any, play: Any) -> None:
    """≤, not <: and a last bit less violates it."""
    env = make(TOLERANCE, layer=1)
    uri = env.pool[0].uri
    error = play(env, choices=[2] * 4, instance=uri)[1].info["relative_error"]
    for tolerance, violation in ((error, 0.0), (math.nextafter(error, 0), -1.0)):
        step = play(env, choices=[2] * 4, instance=uri, tolerance=tolerance)[1]
        assert step.info["reward_terms"]["violation"] == violation


def test_tolerances_are_drawn_log_uniform_and_observed(make: Any) -> None:
    """Between the limits, half of them below their geometric mean (within .1 of 200); entry 1 + log10(ε)/4."""
    env, found = make(TOLERANCE), []
    for seed in range(200):
        observation, info = env.reset(seed=seed)
        found.append(info["tolerance"])
        assert observation["tolerance"][0] == np.float32(1 + math.log10(info["tolerance"]) / 4)
    assert TOLERANCES[0] <= min(found) < 1.2 * TOLERANCES[0]
    assert 0.85 * TOLERANCES[1] < max(found) <= TOLERANCES[1]
    assert abs(np.mean(np.array(found) < math.sqrt(TOLERANCES[0] * TOLERANCES[1])) - 0.5) < 0.1


def test_a_range_of_ones_own_is_drawn_from(make: Any) -> None:
    """One number is that number; (low, high) bounds what is drawn, for budgets above what the cheapest way costs."""
    assert [make(TOLERANCE, tolerance=0.2).reset(seed=s)[1]["tolerance"] for s in range(5)] == pytest.approx([0.2] * 5)
    narrow = make(TOLERANCE, tolerance=(0.1, 0.12))
    assert all(0.1 <= narrow.reset(seed=s)[1]["tolerance"] <= 0.12 for s in range(20))
    budgets = [make(BUDGET, budget=(0.9, 0.95), basis="calibrated").reset(seed=s)[1]["budget"] for s in range(20)]
    assert all(0.9 <= budget <= 0.95 for budget in budgets)
    least = make(BUDGET, budget=1e-6, layer=0)
    assert least.reset(seed=0)[1]["budget"] == least.game.objective.cheapest[0]


def test_options_set_what_is_drawn_and_are_checked(make: Any) -> None:
    """A tolerance above 0; a budget that pays the cheapest way; a tolerance is no option of a budget."""
    assert make(TOLERANCE).reset(options={"tolerance": 0.3})[1]["tolerance"] == 0.3
    with pytest.raises(ValueError, match=r"options\['tolerance'\]=0.0: .*use"):
        make(TOLERANCE).reset(options={"tolerance": 0.0})
    with pytest.raises(ValueError, match=r"options\['budget'\]=0.01: the cheapest way through layer 2 costs 0\.\d+"):
        make(BUDGET).reset(options={"budget": 0.01, "layer": 2})
    with pytest.raises(ValueError, match="options='tolerance'"):
        make(BUDGET).reset(options={"tolerance": 0.1})


@pytest.mark.parametrize("basis", ["refreshed", "calibrated"])
@pytest.mark.parametrize("guard", ["off", "paper"])
def test_a_budget_is_never_overdrawn(guard: str, basis: str, make: Any, play: Any) -> None:
    """Random actions, masked ones among them, from the tightest budget up: what is left never falls below 0 (1e-12)."""
    env = make(BUDGET, guard=guard, basis=basis)
    for seed in range(20):
        layer = seed % 4
        share = [1.0, 1.02, 1.2, 1.6][seed // 5] * env.game.objective.cheapest[layer]
        steps = play(env, seed=seed, layer=layer, budget=share)
        total = sum(full_flops(env.game.world.shape, t) for t in range(4))
        spent = sum(step.info["flops"] for step in steps[1:])
        assert steps[-1].info["budget_left"] == pytest.approx(share - spent / total, abs=1e-12)
        assert min(step.info["budget_left"] for step in steps[1:]) >= -1e-12


@pytest.mark.parametrize("basis", ["refreshed", "calibrated"])
def test_a_rank_is_allowed_if_and_only_if_the_cheapest_way_on_can_be_paid(basis: str, make: Any) -> None:
    """Against a search over every sequence of the remaining ranks, by the FLOPs table."""
    env = make(BUDGET, ranks=(8, 32, 64), layer=1, basis=basis)
    table, objective = env.game.mechanism.flops[1], env.game.objective
    total = sum(full_flops(env.game.world.shape, t) for t in range(4))

    def cheapest(position: int, previous: int) -> float:
        if position == 4:
            return 0.0
        return min(float(table[position, previous, a]) + cheapest(position + 1, a) for a in range(3))

    assert objective.cheapest[1] == pytest.approx(cheapest(0, 2) / total, rel=1e-12)
    forbidden = 0
    for seed in range(12):
        share = float(objective.cheapest[1]) * (1.0003 + 0.05 * seed)
        _, info = env.reset(seed=seed, options={"budget": share})
        left, previous = share * total, 2
        env.action_space.seed(seed)
        for position in range(4):
            needed = [float(table[position, previous, a]) + cheapest(position + 1, a) for a in range(3)]
            assert info["action_mask"].tolist() == [need <= left * (1 + 1e-12) for need in needed]
            forbidden += int((~info["action_mask"]).sum())
            info = env.step(env.action_space.sample())[4]
            left, previous = left - info["flops"], info["choice"]
    assert forbidden > 10


def test_what_is_left_is_observed(make: Any, play: Any) -> None:
    """Over full attention's FLOPs from here on, which begins as the budget; at most 4."""
    env = make(BUDGET, basis="calibrated")
    steps = play(env, seed=3, budget=0.9)
    full = [full_flops(env.game.world.shape, t) for t in range(4)]
    left = 0.9 * sum(full)
    assert steps[0].observation["budget"].tolist() == pytest.approx([0.9, 0.9])
    for position, step in enumerate(steps[1:-1], 1):
        left -= step.info["flops"]
        assert step.observation["budget"][1] == pytest.approx(min(4, left / sum(full[position:])), abs=1e-6)


def test_the_vector_reward_is_unweighted(make: Any, play: Any) -> None:
    """(fidelity, −FLOPs ratio, −‖ΔS‖/‖S‖) as info reports them."""
    for step in play(make("DRRL-Attention-MO-v0"), seed=2)[1:]:
        info = step.info
        assert list(step.reward) == pytest.approx([info["cosine"], -info["flops_ratio"], -info["score_change"]])
        assert step.reward.dtype == np.float32


def test_latency_is_charged_and_flops_still_told(make: Any, play: Any) -> None:
    """The cost term is −β × milliseconds over full attention's; `flops` stays what the same rank costs elsewhere."""
    one, two = (make(f"DRRL-{name}-v0", basis="calibrated") for name in ("Latency", "Attention"))
    options = {"choices": [1, 4, 4, 7], "instance": one.pool[0].uri, "layer": 2}
    for mine, other in zip(play(one, **options)[1:], play(two, **options)[1:], strict=True):
        assert mine.info["flops"] == other.info["flops"]
        assert mine.info["latency"] > 0
        assert mine.info["reward_terms"]["flops"] == pytest.approx(-0.3 * mine.info["latency_ratio"], abs=1e-12)
        assert "latency" not in other.info


def test_objectives_say_what_they_draw() -> None:
    """A budget and a tolerance are drawn, nothing else; ranges are checked in one line."""
    assert (LinearObjective.parameter, ToleranceObjective.parameter, BudgetObjective.parameter) == (
        None,
        "tolerance",
        "budget",
    )
    for wrong in (0.0, -1.0, (0.5, 0.1), float("inf"), float("nan")):
        with pytest.raises(ValueError, match=r"tolerance=.*above 0 and ascend"):
            resolve_range("tolerance", wrong)
