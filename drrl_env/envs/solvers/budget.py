"""The best return within a budget of FLOPs: dynamic programming on a grid, then exact label setting.

A path chooses one of `ranks` at every step, starts from the last (full) rank, and is paid and charged per (step,
previous, choice). What is left is counted as *excess*: what is left less the cheapest way to the end. An action lowers
the excess by its *slack*, which is 0 or more, so whoever keeps the excess at 0 or more gets to the end. The grid of
excess is finer near the end, where less can be spent. One set of tables answers every budget; rounding the excess down
makes plans that can be paid, rounding it up makes upper bounds.

Source: labels (spent, return) with dominance, pruned by completion bounds, as in constrained shortest paths.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from drrl_env.envs.solvers.decision import Bools, Doubles, Integers, rank_process, reachable

SAFETY = 1e-9
"""Share of a cell by which excess is rounded further down or up, so that rounding errors stay on the safe side."""
ROUNDING = 1e-12
"""Relative difference of returns that counts as none."""


@dataclass(frozen=True)
class BudgetTables:
    """What can be had from anywhere with any budget.

    Attributes:
        fidelity: what a transition pays, (steps, previous, choice).
        flops: what it costs, (steps, previous, choice).
        allowed: what an episode may do where it gets to, (steps, previous, choice), bool.
        cheapest: least FLOPs to the end, (steps + 1, previous).
        slack: FLOPs of an action above the cheapest way, infinite where it leads nowhere, (steps, previous, choice).
        widths: excess FLOPs per cell of the grid, (steps + 1,).
        lower: return that some plan reaches with the excess of a cell, (steps + 1, previous, cells).
        upper: return that no plan exceeds with the excess of a cell, (steps + 1, previous, cells).
    """

    fidelity: Doubles
    flops: Doubles
    allowed: Bools
    cheapest: Doubles
    slack: Doubles
    widths: Doubles
    lower: Doubles
    upper: Doubles


@dataclass(frozen=True)
class BudgetPlan:
    """A plan within a budget.

    Attributes:
        choices: from the start on, (steps,).
        value: their return, exact.
        bound: upper bound on what any plan within the budget returns; `value` where the plan is proved optimal.
    """

    choices: Integers
    value: float
    bound: float

    @property
    def gap(self) -> float:
        """What a better plan could still gain, at most; 0 where the plan is proved optimal."""
        return self.bound - self.value


@dataclass(frozen=True)
class _Labels:
    """Partial plans of equal length that may still become the best, and what each surely and at most comes to."""

    spent: Doubles
    value: Doubles
    rank: Integers
    parent: Integers
    sure: Doubles
    bound: Doubles

    def take(self, kept: Integers | Bools) -> _Labels:
        return _Labels(
            self.spent[kept], self.value[kept], self.rank[kept], self.parent[kept], self.sure[kept], self.bound[kept]
        )


def cheapest_to_go(flops: Doubles, allowed: Bools | None = None) -> Doubles:
    """Least FLOPs from before each step to the end, by previous rank.

    An action is payable if what is left after it is at least the entry of the next step and this choice.

    Args:
        flops: (steps, previous, choice).
        allowed: (steps, previous, choice); None: everything.

    Returns:
        (steps + 1, previous); infinite where nothing allowed leads to the end, 0 in the last row.
    """
    prices = flops if allowed is None else np.where(allowed, flops, np.inf)
    found = np.zeros((len(prices) + 1, prices.shape[1]))
    for step in reversed(range(len(prices))):
        found[step] = (prices[step] + found[step + 1]).min(-1)
    return found


def budget_tables(fidelity: Doubles, flops: Doubles, allowed: Bools | None = None, cells: int = 2048) -> BudgetTables:
    """Tables that answer every budget.

    Args:
        fidelity: what a transition pays, (steps, previous, choice); whatever adds up over steps.
        flops: what it costs, (steps, previous, choice), 0 or more.
        allowed: (steps, previous, choice); None: everything.
        cells: cells of the grid of excess per (step, previous); more make tighter bounds and slower tables.

    Raises:
        ValueError: shapes that do not fit; or where an episode gets to, numbers that are missing or nothing allowed.
    """
    allowed = _open(fidelity, flops, allowed, cells)
    cheapest = cheapest_to_go(flops, allowed)
    slack = _slack(flops, allowed, cheapest)
    widths = _widths(flops, np.isfinite(slack), cheapest, cells)
    lower, upper = (_returns(fidelity, slack, widths, cells, up) for up in (False, True))
    return BudgetTables(fidelity, flops, allowed, cheapest, slack, widths, lower, upper)


def _open(fidelity: Doubles, flops: Doubles, allowed: Bools | None, cells: int) -> Bools:
    """What is allowed where an episode gets to, (steps, previous, choice)."""
    if flops.ndim != 3 or flops.shape[1] != flops.shape[2] or fidelity.shape != flops.shape:
        raise ValueError(f"flops: shape {flops.shape} beside fidelity {fidelity.shape}; use (steps, ranks, ranks)")
    if cells < 2:
        raise ValueError(f"cells={cells}: a grid needs at least 2; use 2048")
    process = rank_process(fidelity, allowed)
    found: Bools = process.allowed & reachable(process)[:-1, :, None]
    bad = np.argwhere(found & ~((flops >= 0) & (flops < np.inf)))
    if len(bad):
        at = tuple(bad[0].tolist())
        raise ValueError(f"flops{list(at)}={flops[at]}: must be a number of 0 or more; measure it or disallow it")
    return found


def _slack(flops: Doubles, allowed: Bools, cheapest: Doubles) -> Doubles:
    """FLOPs of an action above the cheapest way; exactly 0 for the cheapest."""
    needs = np.where(allowed, flops, np.inf) + cheapest[1:, None, :]
    known = np.isfinite(cheapest[:-1, :, None]) & np.isfinite(needs)
    return np.where(known, needs, np.inf) - np.where(known, cheapest[:-1, :, None], 0.0)


def _widths(flops: Doubles, open_: Bools, cheapest: Doubles, cells: int) -> Doubles:
    """The last cell of every step holds more than can be spent there; 1 where nothing can, (steps + 1,)."""
    dearest, found = np.zeros(flops.shape[1]), np.ones(len(cheapest))
    for step in reversed(range(len(flops))):
        dearest = np.where(open_[step], flops[step] + dearest, -np.inf).max(-1)
        known = np.isfinite(dearest)
        spread = float((dearest[known] - cheapest[step, known]).max(initial=0.0))
        found[step] = spread * (1 + SAFETY) / (cells - 1) or 1.0
    return found


def _cells(excess: Doubles, width: float | Doubles, cells: int, up: bool) -> Integers:
    """The cell that stands for an excess: one that is no larger, or no smaller if `up`."""
    quotient = excess / width
    found: Integers = (np.ceil(quotient + SAFETY) if up else np.floor(quotient - SAFETY)).clip(0, cells - 1).astype(int)
    return found


def _returns(fidelity: Doubles, slack: Doubles, widths: Doubles, cells: int, up: bool) -> Doubles:
    """Backward induction over the grid, (steps + 1, previous, cells)."""
    steps, ranks, _ = slack.shape
    found = np.zeros((steps + 1, ranks, cells))
    least = -SAFETY if up else 0.0
    for step in reversed(range(steps)):
        open_ = np.isfinite(slack[step])
        after = np.arange(cells) * widths[step] - np.where(open_, slack[step], 0.0)[..., None]
        ahead = found[step + 1][np.arange(ranks)[:, None], _cells(after, widths[step + 1], cells, up)]
        usable = open_[..., None] & (after >= least * widths[step])
        found[step] = np.where(usable, fidelity[step][..., None] + ahead, -np.inf).max(1)
    return found


def budget_plan(
    tables: BudgetTables, budget: float, step: int = 0, previous: int = -1, labels: int = 200_000
) -> BudgetPlan:
    """The best plan that costs at most `budget`, exact unless more partial plans than `labels` compete at a step.

    Partial plans are extended step by step. One is dropped if another with the same last choice spent no more and
    returned no less, or if the upper bound on its completions is below the best plan known. If too many are left, those
    with the lowest upper bounds are given up, and the largest of these bounds is part of the stated one.

    Args:
        tables: of the block.
        budget: FLOPs that may be spent from `step` to the end.
        step: where to start.
        previous: rank index before `step`; the last by default.
        labels: partial plans kept per step at most.

    Raises:
        ValueError: a budget below the cheapest way to the end.
    """
    previous %= tables.flops.shape[1]
    least = float(tables.cheapest[step, previous])
    if not budget >= least * (1 - ROUNDING):
        raise ValueError(f"budget={budget}: the cheapest way to the end costs {least} FLOPs; use at least that")
    zero, best, missed = np.zeros(1), -np.inf, -np.inf
    layers = [_Labels(zero, zero, np.array([previous]), np.zeros(1, int), zero - np.inf, zero + np.inf)]
    for at in range(step, len(tables.flops)):
        found, best = _extend(tables, at, layers[-1], budget, best)
        found, given_up = _keep_best(found, labels)
        missed = max(missed, given_up)
        layers.append(found)
    top = int(np.lexsort((-layers[-1].spent, layers[-1].value))[-1])
    value = float(layers[-1].value[top])
    return BudgetPlan(_trace(layers, top), value, max(value, missed))


def payable(tables: BudgetTables, step: int, previous: Integers, left: Doubles) -> Bools:
    """Allowed choices after which what is left pays the cheapest way to the end, (n, ranks).

    The cheapest choice always counts as payable: its FLOPs, added up in another order, may differ in the last bit.
    `previous` rank indices and FLOPs `left` before the step are (n,).
    """
    slack = tables.slack[step, previous]
    needs = tables.flops[step, previous] + tables.cheapest[step + 1]
    found: Bools = np.isfinite(slack) & ((needs <= left[:, None]) | (slack == 0))
    return found


def _extend(tables: BudgetTables, step: int, labels: _Labels, budget: float, best: float) -> tuple[_Labels, float]:
    """Every payable extension that may be part of the best plan, and what the best plan known returns."""
    parent, choice = np.nonzero(payable(tables, step, labels.rank, budget - labels.spent))
    previous = labels.rank[parent]
    spent = labels.spent[parent] + tables.flops[step, previous, choice]
    value = labels.value[parent] + tables.fidelity[step, previous, choice]
    excess, cells = budget - spent - tables.cheapest[step + 1, choice], tables.lower.shape[-1]
    width = tables.widths[step + 1]
    bound = value + tables.upper[step + 1, choice, _cells(excess, width, cells, up=True)]
    sure = value + tables.lower[step + 1, choice, _cells(excess, width, cells, up=False)]
    best = max(best, float(sure.max()))
    found = _Labels(spent, value, choice, parent, sure, bound)
    found = found.take(bound >= best - ROUNDING * max(1.0, abs(best)))
    return found.take(_undominated(found)), best


def _undominated(labels: _Labels) -> Bools:
    """Labels that return more than every label of their rank that spent no more; of equals one stays."""
    order = np.lexsort((-labels.value, labels.spent, labels.rank))
    found = np.zeros(len(order), bool)
    for rank in np.unique(labels.rank):
        group = order[labels.rank[order] == rank]
        values = labels.value[group]
        before = np.append(-np.inf, np.maximum.accumulate(values)[:-1])
        found[group[values > before]] = True
    return found


def _keep_best(labels: _Labels, most: int) -> tuple[_Labels, float]:
    """The `most` labels of the highest bounds, the surest among them, and the highest bound given up."""
    if len(labels.bound) <= most:
        return labels, -np.inf
    # The surest carries the best plan known, against which all others are dropped: without it none may be left.
    rank_by = np.where(np.arange(len(labels.sure)) == labels.sure.argmax(), np.inf, labels.bound)
    order = np.argsort(-rank_by, kind="stable")
    return labels.take(np.sort(order[:most])), float(labels.bound[order[most]])


def _trace(layers: list[_Labels], top: int) -> Integers:
    """The choices that led to a label of the last layer."""
    found = []
    for layer in reversed(layers[1:]):
        found.append(int(layer.rank[top]))
        top = int(layer.parent[top])
    return np.array(found[::-1], np.int64)


def random_budget_value(
    tables: BudgetTables, budget: float, episodes: int = 4096, seed: int = 0
) -> tuple[float, float]:
    """Mean return of choosing uniformly among the payable choices, and its standard error.

    Sampled: what is left takes as many values as there are paths, so there is no small table to be exact on.

    Args:
        tables: of the block.
        budget: FLOPs of the whole episode.
        episodes: sampled episodes.
        seed: of the sample.
    """
    random = np.random.default_rng(seed)
    previous = np.full(episodes, tables.flops.shape[1] - 1)
    spent, value = np.zeros(episodes), np.zeros(episodes)
    for step in range(len(tables.flops)):
        open_ = payable(tables, step, previous, budget - spent)
        choice = np.where(open_, random.random(open_.shape), -1.0).argmax(-1)
        spent = spent + tables.flops[step, previous, choice]
        value = value + tables.fidelity[step, previous, choice]
        previous = choice
    return float(value.mean()), float(value.std(ddof=1) / np.sqrt(episodes))
