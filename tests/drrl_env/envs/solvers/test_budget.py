"""Plans within a budget are what an exhaustive search finds, and bounds bound it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drrl_env.envs.solvers.budget import (
    BudgetTables,
    budget_plan,
    budget_tables,
    cheapest_to_go,
    payable,
    random_budget_value,
)
from drrl_env.envs.solvers.decision import plan, rank_process

Draw = Callable[..., Any]
"""Draws an instance, see `conftest.chain`."""
SIZES = {"seed": st.integers(0, 10**6), "steps": st.integers(1, 4), "ranks": st.integers(2, 4)}


def opened(found: Any, cells: int = 64) -> BudgetTables:
    """Tables of an instance; its first objective is what is maximised."""
    return budget_tables(found.rewards[..., 0], found.flops, found.allowed, cells)


def searched(found: Any, budget: float) -> float:
    """The best return of all paths within the budget."""
    paths = found.paths()
    affordable = found.total(found.flops, paths) <= budget * (1 + 1e-12)
    return float(found.total(found.rewards[..., 0], paths)[affordable].max())


def budgets(found: Any, count: int = 7) -> Any:
    """From the cheapest path to above the dearest."""
    costs = found.total(found.flops, found.paths())
    return np.linspace(costs.min(), costs.max() * 1.1, count)


def check_feasible(found: Any, choices: Any, value: float, budget: float) -> None:
    """Choices are allowed, within the budget, and return the value."""
    path = choices[None]
    assert found.total(found.allowed, path)[0] == len(choices)
    assert found.total(found.flops, path)[0] <= budget * (1 + 1e-12)
    assert found.total(found.rewards[..., 0], path)[0] == pytest.approx(value, abs=1e-12)


@given(**SIZES, grid=st.sampled_from((0, 5)))
def test_a_plan_within_a_budget_is_the_best_of_all_paths(
    draw: Draw, seed: int, steps: int, ranks: int, grid: int
) -> None:
    """Seven budgets from one table: the optimum to 1e-12, proved (gap 0), with choices that are feasible."""
    found = draw(seed, steps, ranks, grid)
    tables = opened(found)
    for budget in budgets(found):
        best = budget_plan(tables, budget)
        check_feasible(found, best.choices, best.value, budget)
        assert best.value == pytest.approx(searched(found, budget), abs=1e-12)
        assert best.gap == 0


@given(**SIZES, cells=st.integers(2, 40), labels=st.integers(1, 3))
def test_bounds_hold_where_plans_are_given_up(
    draw: Draw, seed: int, steps: int, ranks: int, cells: int, labels: int
) -> None:
    """With coarse grids and one to three partial plans the optimum lies in [value, bound]; gap 0 means it is found."""
    found = draw(seed, steps, ranks)
    tables = opened(found, cells)
    for budget in budgets(found):
        rough, best = budget_plan(tables, budget, labels=labels), searched(found, budget)
        check_feasible(found, rough.choices, rough.value, budget)
        assert rough.value - 1e-12 <= best <= rough.bound + 1e-12


def test_giving_up_plans_costs_something_and_says_so(draw: Draw) -> None:
    """Over 50 instances with one partial plan and two cells: some plans miss the optimum, and these state a gap."""
    missed = 0
    for seed in range(50):
        found = draw(seed, 4, 3)
        budget = budgets(found)[3]
        rough, best = budget_plan(opened(found, 2), budget, labels=1), searched(found, budget)
        missed += rough.value < best - 1e-9
        assert rough.gap > 0 or rough.value == pytest.approx(best, abs=1e-12)
    assert missed > 0


@given(**SIZES, cells=st.integers(2, 200))
def test_the_optimum_lies_between_the_tables(draw: Draw, seed: int, steps: int, ranks: int, cells: int) -> None:
    """At the FLOPs of every cell, from every previous rank at the first step: lower ≤ optimum ≤ upper."""
    found = draw(seed, steps, ranks)
    tables = opened(found, cells)
    for cell in range(0, cells, 7):
        budget = tables.cheapest[0, -1] + cell * tables.widths[0]
        best = searched(found, budget)
        assert tables.lower[0, -1, cell] - 1e-12 <= best <= tables.upper[0, -1, cell] + 1e-12


def test_more_cells_close_the_tables(draw: Draw) -> None:
    """The mean distance between the tables falls more than tenfold from 32 cells to 2048."""
    found = draw(3, 4, 4)
    rough, fine = (opened(found, cells) for cells in (32, 2048))
    apart = [float((tables.upper[0, -1] - tables.lower[0, -1]).mean()) for tables in (rough, fine)]
    assert apart[1] * 10 < apart[0]


@given(**SIZES)
def test_a_plan_continues_best_from_anywhere(draw: Draw, seed: int, steps: int, ranks: int) -> None:
    """What is left of a best plan after its first steps is a best plan for what is left of the budget."""
    found = draw(seed, steps, ranks)
    tables, budget = opened(found), budgets(found)[3]
    best = budget_plan(tables, budget)
    spent, value, previous = 0.0, 0.0, ranks - 1
    for step, choice in enumerate(best.choices):
        rest = budget_plan(tables, budget - spent, step, previous)
        assert value + rest.value == pytest.approx(best.value, abs=1e-12)
        spent, value = spent + found.flops[step, previous, choice], value + found.rewards[step, previous, choice, 0]
        previous = int(choice)


@given(**SIZES)
def test_an_unlimited_budget_changes_nothing(draw: Draw, seed: int, steps: int, ranks: int) -> None:
    """The plan returns what the plan without a budget does, and the last cell of the upper table says so."""
    found = draw(seed, steps, ranks)
    tables, best = opened(found), plan(rank_process(found.rewards[..., 0], found.allowed)).value
    assert budget_plan(tables, 1e9).value == pytest.approx(best, abs=1e-12)
    assert tables.upper[0, -1, -1] == pytest.approx(best, abs=1e-12)


@given(**SIZES)
def test_the_cheapest_way_is_the_cheapest_of_all(draw: Draw, seed: int, steps: int, ranks: int) -> None:
    """With and without masks, to 1e-12; nothing is left to pay after the last step."""
    found = draw(seed, steps, ranks)
    masked = found.total(found.flops, found.paths()).min()
    assert cheapest_to_go(found.flops, found.allowed)[0, -1] == pytest.approx(masked, abs=1e-12)
    found.allowed[:] = True
    anything = found.total(found.flops, found.paths()).min()
    assert cheapest_to_go(found.flops)[0, -1] == pytest.approx(anything, abs=1e-12)
    assert (cheapest_to_go(found.flops)[-1] == 0).all()


@given(**SIZES, share=st.floats(0, 1))
def test_whoever_takes_payable_choices_gets_to_the_end(
    draw: Draw, seed: int, steps: int, ranks: int, share: float
) -> None:
    """64 random walks: never an empty mask, never beyond the budget; and every affordable path is open to them."""
    found = draw(seed, steps, ranks)
    tables, low, high = opened(found), budgets(found)[0], budgets(found)[-1]
    budget, random = low + share * (high - low), np.random.default_rng(seed)
    previous, spent = np.full(64, ranks - 1), np.zeros(64)
    for step in range(steps):
        open_ = payable(tables, step, previous, budget - spent)
        assert open_.any(-1).all()
        choice = np.where(open_, random.random(open_.shape), -1).argmax(-1)
        spent, previous = spent + found.flops[step, previous, choice], choice
    assert (spent <= budget * (1 + 1e-12)).all()
    paths = found.paths()
    for path in paths[found.total(found.flops, paths) <= budget * (1 - 1e-12)]:
        spent, previous = np.zeros(1), np.array([ranks - 1])
        for step, choice in enumerate(path):
            assert payable(tables, step, previous, budget - spent)[0, choice]
            spent, previous = spent + found.flops[step, previous, choice], np.array([choice])


def enumerated(tables: BudgetTables, budget: float, step: int = 0, previous: int = -1) -> float:
    """Expected return of choosing uniformly among payable choices, by recursion."""
    if step == len(tables.flops):
        return 0.0
    previous %= tables.flops.shape[1]
    open_ = np.flatnonzero(payable(tables, step, np.array([previous]), np.array([budget]))[0])
    later = [enumerated(tables, budget - tables.flops[step, previous, a], step + 1, int(a)) for a in open_]
    return float(np.mean(tables.fidelity[step, previous, open_] + later))


def test_random_spending_is_sampled_without_bias(draw: Draw) -> None:
    """Within five standard errors of the enumerated expectation on 20 instances; the same seed gives the same."""
    for seed in range(20):
        found = draw(seed, 4, 4)
        tables, budget = opened(found), budgets(found)[3]
        mean, error = random_budget_value(tables, budget)
        assert abs(mean - enumerated(tables, budget)) <= 5 * error + 1e-12
        assert error < 0.02
        assert random_budget_value(tables, budget) == (mean, error)


def test_what_no_episode_reaches_may_be_missing(draw: Draw) -> None:
    """NaN before full rank was left, and after a rank that nothing allows, leave the plan as it was."""
    found = draw(1, 4, 3)
    found.allowed[1, :, 0] = False
    budget = budgets(found)[3]
    clean = budget_plan(opened(found), budget)
    for numbers in (found.rewards, found.flops):
        numbers[0, :-1] = numbers[2, 0] = np.nan
        numbers[~found.allowed] = np.nan
    found.allowed[2, 0] = False
    spoilt = budget_plan(opened(found), budget)
    assert (spoilt.value, spoilt.choices.tolist()) == (clean.value, clean.choices.tolist())


def test_faults_are_named(draw: Draw) -> None:
    """Budgets below the cheapest way, empty masks, missing or negative FLOPs, and grids of one cell."""
    found = draw(0, 3, 3)
    tables = opened(found)
    for budget in (float(tables.cheapest[0, -1]) * 0.99, float("nan")):
        with pytest.raises(ValueError, match="the cheapest way to the end costs"):
            budget_plan(tables, budget)
    with pytest.raises(ValueError, match="cells=1"):
        opened(found, 1)
    for value in (-1.0, np.nan, np.inf):
        found.flops[1, 2, 2] = value
        with pytest.raises(ValueError, match=rf"flops\[1, 2, 2\]={value}"):
            opened(found)
    found.rewards[1, 2, 2] = np.nan
    with pytest.raises(ValueError, match=r"rewards\[1, 2, 2\]=nan"):
        opened(found)
    found.allowed[2, 2] = False
    found.rewards[1, 2, 2] = 0
    with pytest.raises(ValueError, match=r"allowed\[2, 2\]"):
        opened(found)
    with pytest.raises(ValueError, match=r"use \(steps, ranks, ranks\)"):
        budget_tables(found.rewards[..., 0], found.flops[:, 0], None)


def test_budgets_of_a_real_layer_are_spent_best(real: Any) -> None:
    """A layer of the bundled model, 1024 paths, 21 budgets: the optimum of the exhaustive search, gap 0."""
    tables = opened(real, 512)
    for budget in budgets(real, 21):
        best = budget_plan(tables, budget)
        check_feasible(real, best.choices, best.value, budget)
        assert best.value == pytest.approx(searched(real, budget), abs=1e-12)
        assert best.gap == 0
