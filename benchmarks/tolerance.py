"""What can be known on DRRL-Tolerance-v0, and what it is worth: `python benchmarks/tolerance.py`.

Predicts the output's error at every rank from what a policy observes, plans with the predicted chances of a violation,
and plays the plan on validation episodes: about the best that an agent with these observations can do, and rather too
much, since the plan also reads segments that are yet to come. Then the same with predictions that are better than any
observation allows. Keeps the result in benchmarks/tolerance.json and writes it into docs/learning.md; with `--page` it
only writes the page.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import norm
from sklearn.ensemble import HistGradientBoostingRegressor

from drrl_agents.bench.report import machine
from drrl_agents.tasks import Task
from drrl_env.envs.processes import Process, process
from drrl_env.envs.solvers.decision import DecisionProcess, plan
from drrl_policies.field import Field
from drrl_policies.rollout import reference

ROOT = Path(__file__).resolve().parent.parent
TASK, TARGET = "DRRL-Tolerance-v0", 0.98
TRAIN_SPANS, VALIDATION_SPANS, FOLDS, RIDGE = 128, 16, 4, 0.003
SHARES = (0.75, 0.5, 0.25)
"""Of the predictions' errors that are left in the last rows."""
MARKED = re.compile(r"(<!-- tolerance: begin -->\n).*?(<!-- tolerance: end -->)", re.DOTALL)
Doubles = NDArray[np.float64]
Predict = Callable[[Doubles], Doubles]
Fit = Callable[[Doubles, Doubles], Predict]


@dataclass(frozen=True)
class Known:
    """What is known of one layer in several spans.

    Attributes:
        blocks: their numbers in the store, (spans,).
        inputs: what is observed of every segment, (spans, segments, columns).
        errors: log of the relative output error at every reduced rank, (spans, segments, reduced).
    """

    blocks: list[int]
    inputs: Doubles
    errors: Doubles


def known_of(field: Field, layer: int, past: bool) -> Known:
    """Statistics of each segment and the clock; with `past`, the true errors of the last two segments as well."""
    store, layout = field.game.store, field.game.world.layout
    blocks = sorted({store.block(e.instance, e.layer) for e in field.episodes if e.layer == layer})
    errors = np.log(np.maximum(store.outcomes[blocks][:, :, :-1, 1], 1e-6))
    rows = store.static.reshape(len(store.ready), -1, layout.width)[blocks].astype(float)
    clock = np.broadcast_to(np.arange(1.0, rows.shape[1] + 1)[:, None], (*rows.shape[:2], 1))
    parts = [np.log(clock), 1 / clock, rows[..., layout.slices["energy"]], rows[..., layout.slices["segment"]]]
    if past:
        parts += [np.pad(errors[:, :-back], ((0, 0), (back, 0), (0, 0))) for back in (1, 2)]
    return Known(blocks, np.concatenate(parts, axis=-1), errors)


def ridge(inputs: Doubles, errors: Doubles) -> Predict:
    """Linear, of standardised columns; all ranks at once."""
    centre, spread, mean = inputs.mean(0), inputs.std(0) + 1e-6, errors.mean(0)
    columns = (inputs - centre) / spread
    gram = columns.T @ columns + RIDGE * len(columns) * np.eye(columns.shape[1])
    weights = np.linalg.solve(gram, columns.T @ (errors - mean))
    return lambda rows: ((rows - centre) / spread) @ weights + mean


def boosted(inputs: Doubles, errors: Doubles) -> Predict:
    """Trees on what the linear prediction leaves, rank by rank."""
    linear = ridge(inputs, errors)
    left = errors - linear(inputs)
    settings: dict[str, Any] = {"max_iter": 150, "learning_rate": 0.05, "max_leaf_nodes": 8, "min_samples_leaf": 30}
    trees = [HistGradientBoostingRegressor(**settings, random_state=0).fit(inputs, each) for each in left.T]
    return lambda rows: linear(rows) + np.stack([tree.predict(rows) for tree in trees], axis=1)


def fitted(fit: Fit, known: Known) -> Predict:
    """A prediction of all of its rows."""
    return fit(known.inputs.reshape(-1, known.inputs.shape[-1]), known.errors.reshape(-1, known.errors.shape[-1]))


def predicted(found: Predict, known: Known) -> Doubles:
    """Log errors, (spans, segments, reduced)."""
    return found(known.inputs.reshape(-1, known.inputs.shape[-1])).reshape(known.errors.shape)


def deviations(fit: Fit, known: Known) -> Doubles:
    """Root mean square error on spans that were left out, per segment and rank, (segments, reduced)."""
    fold = np.arange(len(known.blocks)) % FOLDS
    left = np.zeros_like(known.errors)
    for out in range(FOLDS):
        kept, held = (Known([], known.inputs[rows], known.errors[rows]) for rows in (fold != out, fold == out))
        left[fold == out] = held.errors - predicted(fitted(fit, kept), held)
    spread: Doubles = np.sqrt((left**2).mean(0))
    return spread


@dataclass(frozen=True)
class Beliefs:
    """What is believed of a layer's validation spans: log errors, (spans, segments, reduced), and how sure that is."""

    known: Known
    means: Doubles
    deviations: Doubles

    def sharper(self, share: float) -> Beliefs:
        """The same with errors that are a share of these."""
        means = self.known.errors + share * (self.means - self.known.errors)
        return Beliefs(self.known, means, share * self.deviations)


def played(field: Field, processes: list[Process], beliefs: list[Beliefs]) -> float:
    """Normalised score of the plans of highest expected return."""
    store, of_block = field.game.store, dict[int, tuple[Doubles, Doubles]]()
    for each in beliefs:
        of_block |= {
            block: (means, each.deviations) for block, means in zip(each.known.blocks, each.means, strict=True)
        }
    returns = []
    for episode, found in zip(field.episodes, processes, strict=True):
        means, spread = of_block[store.block(episode.instance, episode.layer)]
        within = np.pad(norm.cdf((np.log(episode.parameter) - means) / spread), ((0, 0), (0, 1)), constant_values=1)
        returns.append(_return(field, found, within[:, None, :]))
    return reference(field).score(np.array(returns))


def _return(field: Field, found: Process, within: Doubles) -> float:
    """Of the plan that takes these chances, (segments, 1, ranks), for true."""
    own, full = found.decision, field.game.mechanism.full_flops[:, None, None]
    expected = within * (full - found.flops) / field.game.mean_full - (1 - within)
    choices = plan(DecisionProcess(expected, own.following, own.allowed, own.start)).choices
    state, total = own.start, 0.0
    for step, choice in enumerate(choices.tolist()):
        total += float(own.rewards[step, state, choice])
        state = int(own.following[step, state, choice])
    return total


def believed(train: Field, field: Field, fit: Fit, past: bool) -> list[Beliefs]:
    """Of every layer, from train spans."""
    found = []
    for layer in train.single.layers:
        known, other = known_of(train, layer, past), known_of(field, layer, past)
        found.append(Beliefs(other, predicted(fitted(fit, known), other), deviations(fit, known)))
    return found


def rows_of(train: Field, field: Field) -> Iterator[dict[str, Any]]:
    """A row for each way to predict."""
    game = field.game
    processes = [process(game, game.store.block(e.instance, e.layer), e.parameter) for e in field.episodes]
    ways = [("what is observed, linear", ridge, False), ("what is observed, linear and boosted trees", boosted, False)]
    ways += [("and the true errors of the last two segments at every rank (nobody knows them)", ridge, True)]
    for name, fit, past in ways:
        beliefs = believed(train, field, fit, past)
        yield _row(name, beliefs, played(field, processes, beliefs))
    for share in SHARES:
        sharper = [each.sharper(share) for each in beliefs]
        name = f"the same with {share:.0%} of its error (nobody knows so much)"
        yield _row(name, sharper, played(field, processes, sharper))


def _row(name: str, beliefs: list[Beliefs], score: float) -> dict[str, Any]:
    missed = [float(np.sqrt(((each.means - each.known.errors) ** 2).mean())) for each in beliefs]
    return {"prediction": name, "errors": missed, "score": score}


def section(report: dict[str, Any]) -> str:
    """The table."""
    lines = ["| predicted from | error of the prediction, layer by layer | score of the plan |", "|---|---|---|"]
    for row in report["rows"]:
        errors = ", ".join(f"{error:.1%}" for error in row["errors"])
        lines.append(f"| {row['prediction']} | {errors} | {row['score']:.3f} |")
    spans = f"{report['train_spans']} train spans, played on {report['validation_spans']} validation spans"
    return "\n".join([*lines, "", f"Fitted on {spans}; target {TARGET}."])


def main(measure: bool, root: Path = ROOT) -> None:
    """Measures if asked to, and writes the page."""
    path, page = root / "benchmarks" / "tolerance.json", root / "docs" / "learning.md"
    if measure:
        torch.set_num_threads(1)
        train, field = Task(TASK).field("train", TRAIN_SPANS), Task(TASK).field("validation", VALIDATION_SPANS)
        sizes = {"train_spans": TRAIN_SPANS, "validation_spans": VALIDATION_SPANS}
        report = {"machine": machine(), **sizes, "rows": list(rows_of(train, field))}
        path.write_text(json.dumps(report, indent=1) + "\n")
    text = section(json.loads(path.read_text()))
    page.write_text(MARKED.sub(lambda match: f"{match[1]}{text}\n{match[2]}", page.read_text()))


if __name__ == "__main__":
    main("--page" not in sys.argv[1:])
