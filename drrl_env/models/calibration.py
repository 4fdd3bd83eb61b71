"""Calibration: what is fitted once per model on text of the train split, hashed, and fixed at run time.

Per layer the score bases, the value basis, the value rank that balances each rank, and weight statistics;
per model the principal components of its embeddings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from drrl_env.lowrank.bases import cold, value_basis
from drrl_env.lowrank.flops import BASES, AttentionShape, RankCost, segment_flops
from drrl_env.lowrank.grams import Grams, gram, group_queries
from drrl_env.lowrank.stream import LayerBases, LayerStream, Segment, StreamSettings, run_stream
from drrl_env.lowrank.weights import weight_statistics
from drrl_env.models.artefact import load_artefact, save_artefact, tensors_digest
from drrl_env.models.capture import Capture, capture
from drrl_env.models.language_model import LanguageModel, projection_weights

EMBEDDING_COMPONENTS = 16
"""Principal components of the token embeddings that an observation shows."""
BALANCE_SPANS = 4
"""Spans of calibration text on which the value ranks are balanced."""
BALANCE_STEP = 4
"""Ranks between two measured points of an error curve."""


@dataclass(frozen=True)
class Calibration:
    """The fitted artefact of one model.

    Attributes:
        layers: calibrated bases per layer, float32.
        value_ranks: per basis kind, (layers, dim + 1), int64: the value rank that goes with each rank.
        weights: weight statistics per layer, (layers, 9); see `lowrank.weights.WEIGHT_STATISTICS`, Q, K, V.
        embedding_mean: (hidden,).
        embedding_components: (hidden, 16), scaled so that a token's coordinates have unit variance.
        model_digest: digest of the weights it was fitted to; see `LanguageModel.digest`.
    """

    layers: tuple[LayerBases, ...]
    value_ranks: dict[str, Tensor]
    weights: Tensor
    embedding_mean: Tensor
    embedding_components: Tensor
    model_digest: str

    def digest(self) -> str:
        """SHA-256 of every tensor, first 16 hex digits."""
        return tensors_digest(_to_tensors(self))


def calibrate(model: LanguageModel, texts: Sequence[Tensor], segment: int, progress: bool = True) -> Calibration:
    """Fits the bases of a model.

    Args:
        model: the model.
        texts: token ids of calibration spans, each (tokens,), of the train split.
        segment: tokens of a segment, for the balance of ranks and value ranks.
        progress: whether to show a progress bar.

    Returns:
        The artefact.
    """
    shape, sums = model.shape(segment), Moments()
    for ids in tqdm(texts, desc="calibrating", disable=not progress):
        sums.add(capture(model.network, ids), shape)
    bases = sums.bases()
    spans = [capture(model.network, ids) for ids in texts[:BALANCE_SPANS]]
    kinds = {kind: [_balanced(spans, i, layer, shape, kind) for i, layer in enumerate(bases)] for kind in BASES}
    weights = [weight_statistics(projection_weights(model.network, index)) for index in range(len(bases))]
    mean, components = sums.embedding_components()
    ranks = {kind: torch.stack(rows) for kind, rows in kinds.items()}
    return Calibration(bases, ranks, torch.stack(weights).float(), mean, components, model.digest)


class Moments:
    """Second moments over the calibration text."""

    def __init__(self) -> None:
        self._layers: list[tuple[Tensor, Tensor, Tensor]] = []
        self._embedding: tuple[int, Tensor, Tensor] | None = None

    def add(self, found: Capture, shape: AttentionShape) -> None:
        """Adds the Grams of q, k, v of each layer, and those of the embeddings."""
        rows = [(gram(group_queries(q, shape.kv_heads)), gram(k), gram(v)) for q, k, v in found.layers]
        old = self._layers or [(torch.zeros(()),) * 3] * len(rows)
        self._layers = [(a + x, b + y, c + z) for (a, b, c), (x, y, z) in zip(old, rows, strict=True)]
        exact = found.embeddings.double()
        count, total, square = self._embedding or (0, torch.zeros(()), torch.zeros(()))
        self._embedding = (count + len(exact), total + exact.sum(0), square + exact.mT @ exact)

    def grams(self) -> tuple[Grams, ...]:
        """Summed Grams of queries and keys, per layer."""
        return tuple(Grams(query, key) for query, key, _ in self._layers)

    def bases(self) -> tuple[LayerBases, ...]:
        """Product SVD of the summed Grams, and the eigenvectors of the values."""
        found = []
        for grams, (_, key, value) in zip(self.grams(), self._layers, strict=True):
            basis = cold(grams, int(key.shape[-1]))
            found.append(LayerBases(basis.query.float(), basis.key.float(), value_basis(value).float()))
        return tuple(found)

    def embedding_components(self) -> tuple[Tensor, Tensor]:
        """Mean and whitened leading components of the embeddings."""
        assert self._embedding is not None
        count, total, square = self._embedding
        mean = total / count
        values, vectors = torch.linalg.eigh(square / count - mean[:, None] * mean)
        leading = vectors.flip(-1)[:, :EMBEDDING_COMPONENTS]
        scale = values.flip(-1)[:EMBEDDING_COMPONENTS].clamp_min(1e-12).sqrt()
        return mean.float(), (leading / scale).float()


def _balanced(spans: Sequence[Capture], index: int, bases: LayerBases, shape: AttentionShape, kind: str) -> Tensor:
    """The value rank for each rank 0..dim at which the marginal error per FLOP is equal (design §2, values)."""
    grid = [*range(BALANCE_STEP, shape.dim, BALANCE_STEP), shape.dim]
    costs = tuple(RankCost(rank, shape.value_dim) for rank in grid)
    settings = StreamSettings(shape, costs, kind)
    segments = [segment for span in spans for segment in _some_segments(settings, bases, span.layers[index])]
    score = _marginal(_curve([_score_errors(s, len(grid)) for s in segments], grid, shape.dim))
    value = _marginal(_curve([_value_errors(s) for s in segments], list(range(1, shape.value_dim + 1)), shape.dim))
    position = segments[-1].position // 2
    score, value = score / _column_cost(shape, position, kind, True), value / _column_cost(shape, position, kind, False)
    return _match(score, value, shape)


def _some_segments(
    settings: StreamSettings, bases: LayerBases, tensors: tuple[Tensor, Tensor, Tensor]
) -> list[Segment]:
    tokens = tensors[0].shape[-2]
    segments = run_stream(LayerStream(settings, bases, tokens), tensors, tokens // settings.shape.segment)
    return segments[3::4] or segments[-1:]


def _score_errors(segment: Segment, choices: int) -> Tensor:
    """Relative squared output error at each choice with full values, (choices,)."""
    rows = [segment.moments(choice).sum(0) for choice in range(choices)]
    return torch.stack([row[3] / row[0] for row in rows])


def _value_errors(segment: Segment) -> Tensor:
    """Relative squared output error at each value rank with full scores: A v P Pᵀ = O P Pᵀ, (value_dim,)."""
    energy = (segment.full_output @ segment.bases.value).double().square().sum((0, 1))
    return (energy.sum() - energy.cumsum(-1)).clamp_min(0) / energy.sum()


def _curve(errors: Sequence[Tensor], grid: Sequence[int], dim: int) -> Tensor:
    """Mean error at every rank 0..dim, linear between the points of the grid; rank 0 loses everything."""
    mean = torch.stack(list(errors)).mean(0)
    xs, ys = torch.tensor([0, *grid]), torch.cat([torch.ones(1, dtype=mean.dtype), mean])
    ranks = torch.arange(dim + 1)
    right = torch.searchsorted(xs, ranks).clamp(1, len(xs) - 1)
    share = (ranks - xs[right - 1]) / (xs[right] - xs[right - 1])
    return ys[right - 1] + share * (ys[right] - ys[right - 1])


def _marginal(curve: Tensor) -> Tensor:
    """Error that one more column takes away, made non-increasing in the rank, (dim,)."""
    return (-curve.diff()).clamp_min(0).flip(-1).cummax(-1).values.flip(-1)


def _column_cost(shape: AttentionShape, position: int, kind: str, score: bool) -> float:
    """FLOPs of one more score or value column in the middle of a sequence."""
    low = RankCost(8, 8) if shape.dim > 9 else RankCost(1, 1)
    high = RankCost(low.rank + score, low.value_rank + (not score))
    costs = [segment_flops(shape, position, c, c, kind, shape.dim) for c in (low, high)]
    return costs[1] - costs[0]


def _match(score: Tensor, value: Tensor, shape: AttentionShape) -> Tensor:
    """For each rank the first value rank whose next column is worth no more than the rank's next column."""
    found = [1]
    for rank in range(1, shape.dim):
        worth = score[rank]
        enough = int((value > worth).sum())
        found.append(min(shape.value_dim, max(found[-1], enough, 1)))
    return torch.tensor([*found, shape.value_dim])


def _to_tensors(calibration: Calibration) -> dict[str, Tensor]:
    tensors = {
        "weights": calibration.weights,
        "embedding_mean": calibration.embedding_mean,
        "embedding_components": calibration.embedding_components,
    }
    tensors |= {f"value_ranks.{kind}": table for kind, table in calibration.value_ranks.items()}
    for index, layer in enumerate(calibration.layers):
        tensors |= {f"{index}.query": layer.query, f"{index}.key": layer.key, f"{index}.value": layer.value}
        tensors |= {f"{index}.core": layer.core} if layer.core is not None else {}
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def save_calibration(calibration: Calibration, path: Path) -> None:
    """Writes the artefact as safetensors, atomically, its digest and that of the model's weights in the metadata."""
    save_artefact(_to_tensors(calibration), calibration.model_digest, path)


def load_calibration(path: Path) -> Calibration:
    """Reads an artefact and compares it with the digest written beside it; whose weights it is for, the caller checks.

    Raises:
        ValueError: the file is damaged; one line with the remedy.
    """
    return load_artefact("calibration", path, _from_tensors)


def _from_tensors(tensors: dict[str, Tensor], model_digest: str) -> Calibration:
    count = sum(name.endswith(".query") for name in tensors)
    layers = [
        LayerBases(tensors[f"{i}.query"], tensors[f"{i}.key"], tensors[f"{i}.value"], tensors.get(f"{i}.core"))
        for i in range(count)
    ]
    ranks = {kind: tensors[f"value_ranks.{kind}"] for kind in BASES}
    mean, components = tensors["embedding_mean"], tensors["embedding_components"]
    return Calibration(tuple(layers), ranks, tensors["weights"], mean, components, model_digest)
