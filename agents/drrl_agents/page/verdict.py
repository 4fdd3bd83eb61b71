"""What a comparison says in plain words, drawn from its rows and contrasts, also where adaptive rank does not pay."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from drrl_agents.comparison import Comparison
from drrl_agents.entrants import AGENT, ORACLE, RULE
from drrl_agents.scoring import Row
from drrl_agents.statistics import Contrast, Interval

FEWEST_INSTANCES, FEWEST_SEEDS = 32, 5
"""Below these, intervals are too narrow; see `drrl_agents.statistics.bootstrap`."""
RANDOM = "random"


def verdict(found: Comparison) -> list[str]:
    """Sentences: is the best agent better than the best rule, what does it save at which error, what to doubt."""
    agent, rule = best(found.rows, AGENT), best(found.rows, RULE)
    if agent is None:
        return [*_rules_only(rule), *_doubts(found, rule)]
    told = [_headline(agent, rule, _between(found, agent, rule))] if rule else []
    return [*told, *_others(found, agent), _saving(agent), *_milliseconds(agent), *_dominated(found, agent),
            *_doubts(found, agent)]  # fmt: skip


def best(rows: Sequence[Row], kind: str) -> Row | None:
    """The row of a kind with the highest mean return, random aside."""
    found = [row for row in rows if row.kind == kind and row.policy != RANDOM]
    return max(found, key=lambda row: row.mean_return) if found else None


def standing(found: Interval) -> str:
    """`better`, `worse`, `equal`, `not clear`, or `no interval` of a difference."""
    if math.isnan(found.low):
        return "no interval"
    if found.low == found.high == 0:
        return "equal"
    return "better" if found.low > 0 else "worse" if found.high < 0 else "not clear"


def _between(found: Comparison, agent: Row, rule: Row | None) -> Contrast | None:
    names = agent.policy, rule.policy if rule else None
    return next((each for each in found.contrasts if (each.first, each.second) == names), None)


def _headline(agent: Row, rule: Row, between: Contrast | None) -> str:
    """Whether the best agent is better than the best rule."""
    a, b = agent.policy, rule.policy
    scores = f"score {number(agent.normalised_score)} against {number(rule.normalised_score)}"
    if between is None or (clear := standing(between.score)) == "no interval":
        return f"Whether {a} is better than the best rule, {b}, cannot be said: {scores}, without an interval."
    if clear == "equal":
        return f"{a} does as well as the best rule, {b}, on every instance: {scores}."
    gap = f"difference {signed(between.score.value)}, 95 % interval {ends(between.score)}"
    if clear == "not clear":
        return f"{a} is not clearly better than the best rule, {b}: {scores}, {gap}, which holds 0."
    return f"{a} is clearly {clear} than the best rule, {b}: {scores}, {gap}."


def number(value: float, digits: int = 3) -> str:
    """A number with a true minus; a dash for NaN."""
    return "–" if math.isnan(value) else f"{value:.{digits}f}".replace("-", "−")


def signed(value: float) -> str:
    """A difference, with its sign and a true minus."""
    return f"{value:+.3f}".replace("-", "−")


def ends(found: Interval) -> str:
    """An interval's two ends."""
    return f"[{signed(found.low)}, {signed(found.high)}]"


def _others(found: Comparison, agent: Row) -> Iterator[str]:
    """Against how many of the policies it is clearly better."""
    against = {each.second: standing(each.score) for each in found.contrasts if each.first == agent.policy}
    turned = {"better": "worse", "worse": "better"}
    for each in found.contrasts:
        if each.second == agent.policy:
            clear = standing(each.score)
            against[each.first] = turned.get(clear, clear)
    if len(against) > 1:
        worse = [name for name, clear in against.items() if clear == "worse"]
        told = f" and clearly worse than {', '.join(worse)}" if worse else ""
        better = sum(clear == "better" for clear in against.values())
        yield f"Of the {len(against)} policies it is set against below, it is clearly better than {better}{told}."


def _saving(row: Row) -> str:
    """What a policy saves of all FLOPs counted, and at which error."""
    share, error = row.total_flops_ratio, f"a mean relative error of {row.relative_error:.3f}"
    attention = f"attention alone takes {100 * row.flops_ratio:.1f} %"
    if share < 1:
        return (
            f"Counting what observing and deciding take, {row.policy} saves {100 * (1 - share):.1f} % of full "
            f"attention's FLOPs, at {error} ({attention})."
        )
    return (
        f"Adaptive rank does not pay in FLOPs here: counting what observing and deciding take, {row.policy} spends "
        f"{100 * (share - 1):.1f} % more than full attention, at {error} ({attention})."
    )


def _milliseconds(row: Row) -> Iterator[str]:
    """What a policy takes of the clock, where the reward charges that."""
    if row.latency_ratio is not None:
        yield f"In the latency model it takes {100 * row.latency_ratio:.1f} % of full attention's milliseconds."


def _dominated(found: Comparison, agent: Row) -> Iterator[str]:
    """Whether something one could deploy is as cheap and as faithful."""
    others = [row for row in found.rows if row.policy != agent.policy and row.kind != ORACLE]
    at_least = [
        row.policy
        for row in others
        if row.total_flops_ratio <= agent.total_flops_ratio and row.fidelity >= agent.fidelity
    ]
    if at_least:
        yield f"At least as cheap in all FLOPs and as faithful on average: {', '.join(at_least)}."
    else:
        yield "No other policy here, the oracle aside, is both as cheap in all FLOPs and as faithful."


def _rules_only(rule: Row | None) -> Iterator[str]:
    yield "No trained agent took part, so nothing is said of adaptive rank that is learnt."
    if rule:
        yield f"The best rule is {rule.policy}, score {number(rule.normalised_score)}."
        yield _saving(rule)


def _doubts(found: Comparison, row: Row | None) -> Iterator[str]:
    """What makes the intervals too narrow."""
    instances, seeds = len(set(found.field.instances)), row.seeds if row else 0
    few = [f"{instances} instances"] if instances < FEWEST_INSTANCES else []
    few += (
        [f"{seeds} {'seed' if seeds == 1 else 'seeds'}"] if row and row.kind == AGENT and seeds < FEWEST_SEEDS else []
    )
    if few:
        yield (
            f"Only {' and '.join(few)}: intervals are narrower than they should be; rely on no fewer than "
            f"{FEWEST_INSTANCES} instances and {FEWEST_SEEDS} seeds."
        )
    yield "Which agent and which rule are best was seen on these very episodes, which flatters them a little."
