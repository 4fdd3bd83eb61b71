"""Predicts the relative output error of every rank of a segment from what a deployed guard could afford to know.

Ridge regression of the log error, one per (layer, reduced rank), in float64 and in closed form: fitted twice on the
same documents it gives the same bits. How far off it is goes into the conformal quantile, never into a promise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from drrl_env.lowrank.flops import AttentionShape
from drrl_env.lowrank.segment import Segment

RIDGE = 0.03
"""Penalty on standardised coefficients; chosen with the columns by leaving documents of the predictor's part out."""
SMALLEST_ERROR = 1e-6
"""Errors are taken to be at least this large before their logarithm: float32 outputs resolve no less."""
SMALLEST_SPREAD = 0.01
"""The least relative scale of a rank's error."""
LEAST_SHARE = 1e-12
"""Shares of energy are taken to be at least this large before their logarithm."""

Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class Record:
    """What was measured on one document.

    Attributes:
        name: the document's name.
        kind: its kind.
        numbers: arrays (layers, segments, ...), float64: `errors` (..., reduced), the relative output error of every
            reduced rank, and `evidence` (..., evidence), see `segment_evidence`; a benchmark adds others.
    """

    name: str
    kind: str
    numbers: dict[str, Doubles]


def segment_evidence(segment: Segment) -> Tensor:
    """What the predictor reads of a segment, known before a rank is chosen.

    Per key head: log10 ‖S − S_r‖²/‖S‖² of every reduced rank, log10 of the mean squared score, and
    log10 ‖mean v‖²/mean ‖v‖² of the values so far: attention that averages values that cancel leaves a small output,
    of which the same absolute error is a larger share.

    Returns:
        (evidence,), float64; see `evidence_size`.
    """
    shape, reduced = segment.settings.shape, len(segment.settings.ranks) - 1
    total = segment.products.total[:, None]
    lost = segment.lost[:, :reduced] / total.clamp_min(torch.finfo(total.dtype).tiny)
    scores = shape.groups * shape.segment * segment.keys.shape[-2]
    values = segment.values.double()
    power = values.square().sum(-1).mean(-1)[:, None]
    mean = values.mean(1).square().sum(-1)[:, None] / power.clamp_min(torch.finfo(power.dtype).tiny)
    found = torch.cat([lost, total / (shape.dim * scores), mean], -1)
    return found.clamp_min(LEAST_SHARE).log10().flatten()


def evidence_size(shape: AttentionShape, ranks: int) -> int:
    """Numbers in the evidence of a segment with `ranks` candidates, full rank among them."""
    return shape.kv_heads * (ranks - 1 + 2)


def evidence_flops(shape: AttentionShape) -> float:
    """FLOPs per segment of the evidence beyond the energies of the basis: sums of the new values and their squares."""
    return shape.kv_heads * 3.0 * shape.segment * shape.value_dim


def design(positions: Doubles, evidence: Doubles, reduced: int) -> Doubles:
    """The regression's columns: 1, log(t + 1), 1/(t + 1), then of every key head energy, mean value and lost energy.

    Args:
        positions: segment numbers from 0, broadcastable to the leading axes of `evidence`.
        evidence: (..., evidence).
        reduced: ranks below full.

    Returns:
        (..., reduced, columns).
    """
    heads = evidence.reshape(*evidence.shape[:-1], -1, reduced + 2)
    lost = np.moveaxis(heads[..., :reduced], -1, -2)
    rest = np.concatenate([heads[..., reduced], heads[..., reduced + 1]], -1)[..., None, :]
    clock = np.broadcast_to(positions, evidence.shape[:-1])[..., None] + 1.0
    timed = np.concatenate([np.ones_like(clock), np.log(clock), 1 / clock], -1)[..., None, :]
    shared = np.concatenate([timed, rest], -1)
    repeated = np.broadcast_to(shared, (*lost.shape[:-1], shared.shape[-1]))
    found: Doubles = np.concatenate([repeated, lost], -1)
    return found


@dataclass(frozen=True)
class Predictor:
    """A fitted predictor of the relative output error.

    Attributes:
        coefficients: of the log error, (layers, reduced, columns), float64.
        spread: the error's scale as a share of the predicted error, (layers, reduced), float64.
    """

    coefficients: Doubles
    spread: Doubles

    def predict(self, layer: int | slice, position: Doubles | int, evidence: Doubles) -> Doubles:
        """Predicted relative error of the reduced ranks, (..., reduced), above 0.

        Args:
            layer: the layer; a whole slice for evidence (layers, segments, evidence).
            position: segment number from 0, or one per segment.
            evidence: (..., evidence), of `segment_evidence`.
        """
        chosen = self.coefficients[layer] if isinstance(layer, int) else self.coefficients[layer, None]
        columns = design(np.asarray(position, float), evidence, self.coefficients.shape[1])
        found: Doubles = np.exp((columns * chosen).sum(-1))
        return found

    def record(self, record: Record) -> Doubles:
        """Predicted errors of a document, (layers, segments, reduced)."""
        evidence = record.numbers["evidence"]
        return self.predict(slice(None), np.arange(evidence.shape[1], dtype=float), evidence)

    def scores(self, record: Record) -> Doubles:
        """(error − predicted error) / scale, (layers, segments, reduced)."""
        predicted = self.record(record)
        found: Doubles = (record.numbers["errors"] - predicted) / (predicted * self.spread[:, None])
        return found


def fit_predictor(records: Sequence[Record]) -> Predictor:
    """Fits the coefficients on all documents, and the spread on how wrong each document's prediction without it is.

    Args:
        records: at least two documents, none of which the quantile is taken on.

    Raises:
        ValueError: there are too few documents.
    """
    if len(records) < 2:
        raise ValueError(f"documents={len(records)}: too few to fit a predictor on; give at least 2")
    moments = np.stack([_moments(record) for record in records])
    total = moments.sum(0)
    excess = [_worst_excess(_coefficients(total - own), record) for own, record in zip(moments, records, strict=True)]
    spread = np.maximum(np.mean(excess, axis=0), SMALLEST_SPREAD)
    return Predictor(_coefficients(total), spread)


def _moments(record: Record) -> Doubles:
    """Second moments of (columns, log error) over a document, (layers, reduced, columns + 1, columns + 1)."""
    errors, evidence = record.numbers["errors"], record.numbers["evidence"]
    columns = design(np.arange(evidence.shape[1], dtype=float), evidence, errors.shape[-1])
    target = np.log(np.maximum(errors, SMALLEST_ERROR))[..., None]
    rows = np.moveaxis(np.concatenate([columns, target], -1), 1, 2)
    found: Doubles = np.swapaxes(rows, -1, -2) @ rows
    return found


def _coefficients(moments: Doubles) -> Doubles:
    """Ridge regression on standardised columns, the first (the constant) unpenalised, (..., columns)."""
    mean = moments[..., 0, :] / moments[..., :1, 0]
    covariance = moments / moments[..., :1, :1] - mean[..., :, None] * mean[..., None, :]
    deviation = _deviations(covariance, mean)
    inputs = slice(1, -1)
    scale = deviation[..., inputs]
    correlation = covariance[..., inputs, inputs] / (scale[..., :, None] * scale[..., None, :])
    penalised = correlation + RIDGE * np.eye(correlation.shape[-1])
    slopes = np.linalg.solve(penalised, (covariance[..., inputs, -1] / scale)[..., None])[..., 0] / scale
    constant = mean[..., -1] - (slopes * mean[..., inputs]).sum(-1)
    found: Doubles = np.concatenate([constant[..., None], slopes], -1)
    return found


def _deviations(covariance: Doubles, mean: Doubles) -> Doubles:
    """Standard deviations; 1 for a column that does not vary beyond rounding, which then gets next to no slope."""
    variance = np.diagonal(covariance, axis1=-2, axis2=-1)
    varies = variance > 1e-12 * (1 + mean**2)
    found: Doubles = np.sqrt(np.where(varies, variance, 1.0))
    return found


def _worst_excess(coefficients: Doubles, record: Record) -> Doubles:
    """The largest error over its prediction, less 1, of every (layer, rank) in a document, (layers, reduced)."""
    predicted = Predictor(coefficients, np.ones(coefficients.shape[:-1])).record(record)
    found: Doubles = (record.numbers["errors"] / predicted - 1).max(1)
    return found
