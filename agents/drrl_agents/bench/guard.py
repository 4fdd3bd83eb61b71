"""`drrl bench guard`: on test documents, what each guard passes as safe, how often that is wrong, and what it costs.

Nothing is fitted or chosen here: the conformal guard is the one that ships, every threshold is the tolerance itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from drrl_agents.bench.report import Row
from drrl_env.data.instances import documents
from drrl_env.envs.conformal import ConformalGuard, exceedances, open_guard
from drrl_env.envs.costs import FlopsCost
from drrl_env.envs.documents import GUARD_PROBE, Probe, measure_documents, parts
from drrl_env.envs.predictor import Doubles, Record, evidence_flops
from drrl_env.envs.settings import Guard, Measurement
from drrl_env.envs.world import World, open_world
from drrl_env.lowrank.bounds import output_bound, value_term
from drrl_env.lowrank.flops import BASES, basis_flops, energy_flops
from drrl_env.lowrank.segment import Segment

DELTAS = (0.05, 0.1, 0.2)
TOLERANCES = (0.1, 0.2, 0.4)
"""Half the default tolerance, the default, and twice it: from nearly always full rank to nearly never."""
LEVEL = 0.05
"""Below this probability under the promise a number of violating documents counts against it."""

Bools = NDArray[np.bool_]
Integers = NDArray[np.int64]


def run(threads: int = 1) -> list[Row]:
    """Measures the test documents under both bases: some minutes the first time, then they are remembered."""
    torch.set_num_threads(threads)
    return [row for basis in BASES for row in basis_rows(basis)]


def basis_rows(basis: str, count: int | None = None) -> list[Row]:
    """All rows of one basis, on the first `count` test documents; None for all."""
    world = open_world(Measurement(basis=basis))
    records = measure_documents(world, documents("test")[:count], BENCH_PROBE)
    trial = Trial(world, tuple(records))
    return [*_conformal_rows(trial), *_other_rows(trial), *_unit_rows(trial)]


def _bench_numbers(segment: Segment) -> dict[str, Tensor]:
    """What the guard is given, and what the guards beside it would be."""
    total = segment.products.total.sum() / segment.settings.shape.dim
    changes = (segment.changes.sum(0) / total.clamp_min(torch.finfo(total.dtype).tiny)).sqrt()
    return {**GUARD_PROBE.function(segment), "changes": changes, "certified": certified_bound(segment)}


def certified_bound(segment: Segment) -> Tensor:
    """Bound (b) over ‖O‖ of all heads, per candidate rank, 0 at full rank, (ranks,)."""
    settings = segment.settings
    shape, rows = settings.shape, settings.shape.groups * settings.shape.segment
    # The bound is linear in the score change, and its spectral norm the same at every rank.
    nothing_reduced = torch.eye(shape.value_dim).expand(shape.kv_heads, -1, -1)
    slope = output_bound(torch.ones(shape.kv_heads), segment.values, nothing_reduced, rows).double()
    found = torch.zeros(len(settings.costs), dtype=torch.float64)
    for choice, cost in enumerate(settings.costs[:-1]):
        columns = segment.bases.value[..., : cost.value_rank]
        reduced = rows**0.5 * value_term(segment.values, columns).double()
        heads = slope * segment.changes[:, choice, -1].sqrt() + reduced
        found[choice] = torch.linalg.vector_norm(heads)
    exact: Tensor = torch.linalg.vector_norm(segment.full_output.double())
    return found / exact


BENCH_PROBE = Probe("bench", _bench_numbers)
"""The guard's numbers, ‖ΔS‖/‖S‖ between all ranks, and the certified bound."""


@dataclass(frozen=True)
class Trial:
    """Where guards are tried.

    Attributes:
        world: model and settings.
        records: measured documents.
    """

    world: World
    records: tuple[Record, ...]


Passes = Callable[[Record], Bools]
"""A guard: of a document, what it passes as safe, (layers, segments, ranks); full rank always."""


@dataclass(frozen=True)
class Outcome:
    """What a guard did on the documents.

    Attributes:
        violations: documents in which a rank passed as safe anywhere exceeds ε.
        mean_rank: mean of the smallest rank passed, over documents' segments and layers.
        flops: FLOPs of the cheapest sequence of ranks passed, with what the guard itself needs, over full attention's.
    """

    violations: int
    mean_rank: float
    flops: float


def conformal(guard: ConformalGuard) -> Passes:
    """What the conformal guard passes."""
    return lambda record: guard.record_bounds(record) <= guard.guard.tolerance


def certified(tolerance: float) -> Passes:
    """Ranks whose certified bound (b) is at most ε."""
    return lambda record: record.numbers["certified"] <= tolerance


def distance(tolerance: float) -> Passes:
    """The paper's Eq. 8 taken for a bound of the error: ‖S − S_r‖/‖S‖ at most ε."""
    return lambda record: _with_full(record.numbers["changes"][..., -1] <= tolerance)


def stepwise(tolerance: float) -> Passes:
    """The paper's guard as it is used: ‖ΔS‖/‖S‖ from the rank executed last, the smallest it allows, at most ε."""
    return lambda record: _stepwise(record.numbers["changes"], tolerance)


def _stepwise(changes: Doubles, tolerance: float) -> Bools:
    layers, segments, ranks = changes.shape[:3]
    found, last = np.ones((layers, segments, ranks), bool), np.full(layers, ranks - 1)
    for position in range(segments):
        found[:, position] = _with_full(changes[np.arange(layers), position, last] <= tolerance)
        last = found[:, position].argmax(-1)
    return found


def _with_full(passed: Bools) -> Bools:
    passed[..., -1] = True
    return passed


def knowing(tolerance: float) -> Passes:
    """What nobody can know: exactly the ranks whose error is at most ε."""
    return lambda record: np.pad(record.numbers["errors"] <= tolerance, ((0, 0), (0, 0), (0, 1)), constant_values=True)


OTHERS = {
    "certified bound (b)": certified,
    "paper's Eq. 8 from full rank": distance,
    "paper's Eq. 8-9 step by step": stepwise,
    "knowing every error": knowing,
}
"""What stands beside the conformal guard, each made from a tolerance."""


def judge(trial: Trial, passes: Passes, tolerance: float) -> Outcome:
    """Tries a guard on every document."""
    ranks, prices, full = np.array(trial.world.ranks), _prices(trial.world), FlopsCost().full(trial.world)
    violations, smallest, spent, whole = 0, [], 0.0, 0.0
    for record in trial.records:
        passed = passes(record)
        violations += bool((passed[..., :-1] & (record.numbers["errors"] > tolerance)).any())
        smallest.append(ranks[passed.argmax(-1)].ravel())
        spent += _cheapest(passed, prices)
        whole += passed.shape[0] * float(full[: passed.shape[1]].sum())
    return Outcome(violations, float(np.concatenate(smallest).mean()), spent / whole)


def _prices(world: World) -> Doubles:
    """FLOPs of every transition with what the guard needs to know first, (layers, segments, previous, choice)."""
    found = FlopsCost().table(world) + energy_flops(world.shape, world.streams[0].width) + evidence_flops(world.shape)
    basis = basis_flops(world.shape, world.streams[0].width, world.measurement.basis)
    # A reduced rank of a refreshed basis has paid for the basis already.
    paid_already = slice(-1, None) if world.measurement.basis == "refreshed" else slice(None)
    found[..., paid_already] += basis
    return found


def _cheapest(passed: Bools, prices: Doubles) -> float:
    """FLOPs of a document run along the cheapest sequence of ranks passed, by dynamic programming over the last rank.

    A greedy choice would never leave full rank in a calibrated basis: leaving costs now and pays later.
    """
    layers, segments, ranks = passed.shape
    reached = np.where(np.arange(ranks) == ranks - 1, 0.0, np.inf) + np.zeros((layers, 1))
    for position in range(segments):
        after = (reached[:, :, None] + prices[:, position]).min(1)
        reached = np.where(passed[:, position], after, np.inf)
    return float(reached.min(-1).sum())


def _conformal_rows(trial: Trial) -> Iterator[Row]:
    for delta in DELTAS:
        yield from _score_rows(trial, delta)
        for tolerance in TOLERANCES:
            guard = open_guard(trial.world, Guard("conformal", tolerance=tolerance, confidence=1 - delta))
            found = judge(trial, conformal(guard), tolerance)
            name = f"{trial.world.measurement.basis}, conformal, ε={tolerance}, δ={delta}"
            yield from _judged(name, found.violations, trial, guard, delta)
            yield from _cost_rows(name, found)


def _score_rows(trial: Trial, delta: float) -> Iterator[Row]:
    """How many documents' scores exceed the quantile, whatever the tolerance: what the promise rests on."""
    guard = open_guard(trial.world, Guard("conformal", confidence=1 - delta))
    above = np.array([guard.fitted.predictor.scores(record).max() > guard.quantile for record in trial.records])
    name = f"{trial.world.measurement.basis}, score above the quantile, δ={delta}"
    yield from _judged(name, int(above.sum()), trial, guard, delta)
    fewer = float(exceedances(len(above), 1 - delta, len(guard.fitted.scores)).cdf(int(above.sum())))
    yield Row(f"{name}: beta-binomial probability of so few or fewer", fewer, "p")
    yield Row(f"{name}: were the kinds mixed as in calibration", _remixed(trial, above), "share")


def _remixed(trial: Trial, above: Bools) -> float:
    """Share of documents by kind, each kind weighing what it does among the calibration documents.

    Half of the test documents are articles of an encyclopedia, and a quarter of the calibration documents.
    """
    weights = Counter(document.kind for document in parts(trial.world).calibration)
    kinds = np.array([record.kind for record in trial.records])
    shares = {kind: float(above[kinds == kind].mean()) for kind in weights if (kinds == kind).any()}
    return sum(weights[kind] * share for kind, share in shares.items()) / sum(weights[kind] for kind in shares)


def _judged(name: str, violations: int, trial: Trial, guard: ConformalGuard, delta: float) -> Iterator[Row]:
    """The rate with the largest that the beta-binomial allows, and the probability of so many or more at exactly δ."""
    count = len(trial.records)
    law = exceedances(count, 1 - delta, len(guard.fitted.scores))
    largest, chance = float(law.isf(LEVEL)) / count, float(law.sf(violations - 1))
    rate = violations / count
    yield Row(f"{name}: violating documents", rate, "share", f"<= {largest:.3f}", rate <= largest)
    yield Row(f"{name}: beta-binomial probability of so many or more", chance, "p", f">= {LEVEL}", chance >= LEVEL)


def _cost_rows(name: str, found: Outcome) -> Iterator[Row]:
    yield Row(f"{name}: mean of the smallest rank passed", found.mean_rank, "rank")
    yield Row(f"{name}: FLOPs of the cheapest ranks passed over full attention's", found.flops, "ratio")


def _other_rows(trial: Trial) -> Iterator[Row]:
    for label, guard in OTHERS.items():
        for tolerance in TOLERANCES:
            found = judge(trial, guard(tolerance), tolerance)
            name = f"{trial.world.measurement.basis}, {label}, ε={tolerance}"
            yield Row(f"{name}: violating documents", found.violations / len(trial.records), "share")
            yield from _cost_rows(name, found)


def _unit_rows(trial: Trial) -> Iterator[Row]:
    """How many units there are of what."""
    basis, guard = trial.world.measurement.basis, open_guard(trial.world, Guard("conformal"))
    yield Row(
        f"{basis}: calibration documents",
        len(guard.fitted.scores),
        "documents",
        ">= 200",
        len(guard.fitted.scores) >= 200,
    )
    yield Row(f"{basis}: documents left out of fitting, shorter than a segment", guard.fitted.left_out, "documents")
    yield Row(f"{basis}: test documents", len(trial.records), "documents")
