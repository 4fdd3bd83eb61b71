"""The conformal guard: which ranks are safe to run, with a promise about documents.

A rank is passed as safe where `predicted error + quantile · scale` is at most ε_t. The unit is a document (chapter,
article, source file); the score of a document is the maximum over its segments, layers and ranks of
(error − predicted error)/scale. The predictor is fitted on documents of the train split that the calibrated bases
have seen, the quantile taken on calibration documents that neither has seen.

The promise, in these words: over calibration and a new exchangeable document, the probability that any rank passed
as safe anywhere in it exceeds ε is at most δ; it does not hold conditionally on passing, nor in closed loop. With a
schedule the error is held against ε_t at its segment. δ needs at least 1/δ − 1 documents; judge the realised rate by
the beta-binomial over documents (`exceedances`).

What it does not cover: an instance that joins pieces of several documents, or starts in the middle of one, is not
such a document; nor is text of another sort than the calibration documents exchangeable with them.

Source: split conformal prediction (Vovk et al. 2005; Papadopoulos et al. 2002); design §2, bounds.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from scipy import stats

from drrl_env.envs.documents import measure_documents, parts, world_key
from drrl_env.envs.predictor import Doubles, Predictor, Record, fit_predictor
from drrl_env.envs.settings import Guard, Measurement
from drrl_env.envs.world import World, cache_folder, open_world
from drrl_env.models.language_model import BUNDLED

SHIPPED = Path(__file__).parent / "guards"
"""Folder of the guards of the bundled model's default measurements, one for each basis."""

Bools = NDArray[np.bool_]


def order_statistic(documents: int, confidence: float) -> int:
    """Which of the sorted calibration scores is the quantile: ⌈(m + 1)(1 − δ)⌉, counted from 1.

    Args:
        documents: calibration documents, m.
        confidence: 1 − δ; read as the decimal number it is written as, so that .9 of 10 is 9 and not 10.

    Raises:
        ValueError: δ is smaller than 1/(m + 1): no score of so few documents is large enough.
    """
    found = math.ceil((documents + 1) * Fraction(repr(float(confidence))))
    if found > documents:
        raise ValueError(
            f"guard.confidence={confidence}: needs at least {_documents_needed(confidence)} calibration documents, "
            f"there are {documents}; use at most {documents / (documents + 1):.4f}"
        )
    return found


def _documents_needed(confidence: float) -> int:
    """1/δ − 1, rounded up."""
    return math.ceil(1 / (1 - Fraction(repr(float(confidence)))) - 1)


def conformal_quantile(scores: Sequence[float] | Doubles, confidence: float) -> float:
    """The finite-sample quantile of calibration scores: a new exchangeable score exceeds it with probability ≤ δ.

    Args:
        scores: one per calibration document, (m,), in any order.
        confidence: 1 − δ, in (0, 1).

    Raises:
        ValueError: there are fewer than 1/δ − 1 documents.
    """
    return float(np.sort(np.asarray(scores, float))[order_statistic(len(scores), confidence) - 1])


def exceedances(documents: int, confidence: float, calibration: int) -> stats.distributions.rv_frozen:
    """How many of `documents` new exchangeable documents exceed the quantile: a beta-binomial distribution.

    Over the draw of calibration documents the coverage is Beta(k, m + 1 − k) where k is the order statistic taken
    of m (scores without ties); a document violates ε only if it exceeds the quantile, so violations are no more.

    Source: Angelopoulos & Bates (arXiv 2107.07511), appendix C.
    """
    kept = order_statistic(calibration, confidence)
    return stats.betabinom(documents, calibration + 1 - kept, kept)


@dataclass(frozen=True)
class Fitted:
    """A guard before a confidence is chosen.

    Attributes:
        predictor: predicts the error of every reduced rank.
        scores: of every calibration document over its first 1, 2, ... segments, (documents, segments), float64: a
            shorter context needs no more than the first.
        left_out: documents shorter than a segment, on which nothing could be measured.
    """

    predictor: Predictor
    scores: Doubles
    left_out: int

    def quantile(self, confidence: float, segments: int) -> float:
        """The quantile for documents read up to `segments` segments."""
        return conformal_quantile(self.scores[:, segments - 1], confidence)


@dataclass(frozen=True)
class ConformalGuard:
    """A fitted guard at a tolerance and a confidence; a pure function of (layer, position, evidence).

    The promise: over calibration and a new exchangeable document, the probability that any rank passed as safe
    anywhere in it exceeds ε is at most δ; it does not hold conditionally on passing, nor in closed loop.

    Attributes:
        fitted: predictor and calibration scores.
        guard: tolerance ε, confidence 1 − δ and schedule.
        quantile: the calibration quantile that goes with the confidence.
    """

    fitted: Fitted
    guard: Guard
    quantile: float

    def bounds(self, layer: int, position: int, evidence: Doubles) -> Doubles:
        """Upper bound of the relative output error of every candidate rank; 0 for full rank.

        Args:
            layer: the layer, from 0.
            position: the segment's number, from 0.
            evidence: of `predictor.segment_evidence`, (evidence,).

        Returns:
            (ranks,), float64.
        """
        predicted = self.fitted.predictor.predict(layer, position, evidence)
        spread = self.fitted.predictor.spread[layer]
        return np.append(predicted * (1 + self.quantile * spread), 0.0)

    def mask(self, layer: int, position: int, evidence: Doubles) -> Bools:
        """Ranks passed as safe, (ranks,): those whose bound is at most ε_t; full rank always."""
        found: Bools = self.bounds(layer, position, evidence) <= self.guard.limit(position)
        return found

    def record_bounds(self, record: Record) -> Doubles:
        """The same bounds for a whole measured document, (layers, segments, ranks)."""
        predicted = self.fitted.predictor.record(record)
        reduced = predicted * (1 + self.quantile * self.fitted.predictor.spread[:, None])
        return np.concatenate([reduced, np.zeros((*reduced.shape[:2], 1))], -1)


def fit_guard(predictor: Sequence[Record], calibration: Sequence[Record], segments: int, left_out: int = 0) -> Fitted:
    """Fits the predictor on some documents and takes the scores of others.

    Args:
        predictor: documents to fit on.
        calibration: documents to take scores of, none of them among the former.
        segments: the longest document, in segments.
        left_out: documents that were too short to be measured.

    Raises:
        ValueError: a document is in both parts, which would void the promise, or there are too few.
    """
    both = {record.name for record in predictor} & {record.name for record in calibration}
    if both:
        raise ValueError(f"documents: {min(both)!r} is in the predictor's part and in calibration; keep them apart")
    if not calibration:
        raise ValueError("documents=0: nothing to calibrate on; give documents of at least one segment")
    fitted = fit_predictor(predictor)
    return Fitted(fitted, np.stack([running_scores(fitted, record, segments) for record in calibration]), left_out)


def running_scores(predictor: Predictor, record: Record, segments: int) -> Doubles:
    """A document's score over its first 1, 2, ... segments, (segments,); one that ends keeps its last."""
    worst = np.maximum.accumulate(predictor.scores(record).max((0, 2)))
    return np.pad(worst, (0, segments - len(worst)), mode="edge")


def open_guard(world: World, guard: Guard) -> ConformalGuard:
    """The conformal guard of a world: the shipped one, one kept in the cache folder, or one fitted now.

    The bundled model's default measurement, in either basis and at any context up to the default, ships with its
    guard. Any other is fitted once on about 230 documents of the bundled text, some minutes with a progress bar.

    Raises:
        ValueError: the confidence is too high for the number of documents, or a file is damaged.
    """
    fitted = _open_fitted(world.measurement)
    return ConformalGuard(fitted, guard, fitted.quantile(guard.confidence, world.segments))


@lru_cache(maxsize=8)
def _open_fitted(measurement: Measurement) -> Fitted:
    world = open_world(measurement)
    shipped = SHIPPED / f"{measurement.basis}.safetensors"
    if measurement.model == BUNDLED and _serves(shipped, world):
        return load_fitted(shipped)
    kept = cache_folder() / "guards" / f"{world_key(world)}-{world.segments}.safetensors"
    if not kept.is_file():
        save_fitted(fit_world(world), kept, world_key(world))
    return load_fitted(kept)


def fit_world(world: World, progress: bool = True) -> Fitted:
    """Measures the documents of a world and fits its guard."""
    found = parts(world)
    predictor = measure_documents(world, found.predictor, progress=progress)
    calibration = measure_documents(world, found.calibration, progress=progress)
    left_out = len(found.predictor) + len(found.calibration) - len(predictor) - len(calibration)
    return fit_guard(predictor, calibration, world.segments, left_out)


def _tensors(fitted: Fitted) -> dict[str, Doubles]:
    predictor = fitted.predictor
    found = {"coefficients": predictor.coefficients, "spread": predictor.spread, "scores": fitted.scores}
    return {name: np.ascontiguousarray(array, dtype=np.float64) for name, array in found.items()}


def _digest(tensors: dict[str, Doubles]) -> str:
    found = hashlib.sha256()
    for name, array in sorted(tensors.items()):
        found.update(f"{name}{array.shape}".encode())
        found.update(array.tobytes())
    return found.hexdigest()[:16]


def save_fitted(fitted: Fitted, path: Path, key: str) -> None:
    """Writes a fitted guard as safetensors, atomically; `key` names the world it was fitted in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = _tensors(fitted)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    facts = {"digest": _digest(tensors), "key": key, "left_out": str(fitted.left_out)}
    save_file(tensors, partial, metadata=facts)
    partial.replace(path)


def load_fitted(path: Path) -> Fitted:
    """Reads a fitted guard and compares it with the digest written beside it.

    Raises:
        ValueError: the file is damaged; one line with the remedy.
    """
    facts, tensors = _read(path)
    if _digest(tensors) != facts.get("digest") or set(tensors) != {"coefficients", "spread", "scores"}:
        raise ValueError(f"guard={str(path)!r}: the file has changed since it was written; {_remedy(path)}")
    predictor = Predictor(tensors["coefficients"], tensors["spread"])
    return Fitted(predictor, tensors["scores"], int(facts["left_out"]))


def _read(path: Path) -> tuple[dict[str, str], dict[str, Doubles]]:
    try:
        with safe_open(path, "np") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return dict(file.metadata() or {}), tensors
    except (SafetensorError, OSError) as error:
        raise ValueError(f"guard={str(path)!r}: the file is damaged ({error}); {_remedy(path)}") from error


def _remedy(path: Path) -> str:
    return "install drrl-env again" if path.parent == SHIPPED else "delete it to fit anew"


def _serves(path: Path, world: World) -> bool:
    """Whether a shipped guard was fitted in this world, to a context no shorter."""
    if not path.is_file():
        return False
    facts, tensors = _read(path)
    return facts.get("key") == world_key(world) and tensors["scores"].shape[1] >= world.segments


def main() -> None:
    """Fits the shipped guards anew: `python -m drrl_env.envs.conformal`, a maintainer's command."""
    for basis in ("refreshed", "calibrated"):
        world = open_world(Measurement(basis=basis))
        save_fitted(fit_world(world), SHIPPED / f"{basis}.safetensors", world_key(world))


if __name__ == "__main__":
    main()
