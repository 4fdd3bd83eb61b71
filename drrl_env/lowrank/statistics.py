"""Statistics that a deployed policy could afford: one table, each with its shape, its cost and its source.

A statistic is of a segment, of the layer's weights or of the segment's text; all are functions of a `View`, scaled to
about [0, 1]. What a user may extend is the table: `register_statistic` puts one object in it, and
`statistics=(..., "mine")` shows it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from math import inf

import torch
from torch import Tensor

from drrl_env.lowrank.flops import energy_flops
from drrl_env.lowrank.views import LOWEST_RATIO, TINY, Sizes, Statistic, View
from drrl_env.lowrank.weights import WEIGHT_STATISTICS

DRIFT_RANK = 8
"""Leading columns whose turning between two segments is measured."""
HIGHEST_ALPHA = 8.0
"""Where (α − 2)/4 is cut: a spectrum without any tail has no finite exponent."""


def energy_ratio(view: View) -> Tensor:
    """1 − ‖S − S_r‖² / ‖S‖² over all heads, per candidate rank, at most 1 (below 0 if the basis is worse than none)."""
    return view.energy_ratio


def residual_level(view: View) -> Tensor:
    """log10 of ‖S − S_r‖ / ‖S‖ per rank, over 4, plus 1: 1 is everything lost, 0 is 1e-4 of the norm lost."""
    return _level(1 - view.energy_ratio)


def worst_residual_level(view: View) -> Tensor:
    """The same for the head that loses most at each rank."""
    return _level(view.head_losses.amax(0))


def head_residual_level(view: View) -> Tensor:
    """The same for every key head by itself: which head needs which rank."""
    return _level(view.head_losses)


def score_level(view: View) -> Tensor:
    """½ + log10 of the root mean square score / 4, per key head: how sharp its softmax is, whatever share is lost."""
    segment = view.segment
    scores = segment.queries.shape[-2] * segment.keys.shape[-2] * view.dim
    return (0.5 + (segment.products.total / scores).clamp_min(TINY).log10() / 8).clamp(0, 1)


def value_mean_level(view: View) -> Tensor:
    """1 + log10(‖mean v‖² / mean ‖v‖²) / 4, per key head: near 0 where values cancel and an output is small."""
    values = view.segment.values.double()
    power = values.square().sum(-1).mean(-1)
    share = values.mean(1).square().sum(-1) / power.clamp_min(TINY)
    return (1 + share.clamp_min(TINY).log10() / 4).clamp(0, 1)


def _level(lost: Tensor) -> Tensor:
    """From 1 (all of ‖S‖² lost) to 0 (1e-8 of it or less)."""
    return 1 + lost.clamp(1e-8, 1).log10() / 8


def effective_rank(view: View) -> Tensor:
    """exp(spectral entropy of the energies) / dim, mean over heads; energy outside the basis counts as spread evenly.

    Source: Roy & Vetterli 2007, on energies σ².
    """
    shares = (-view.segment.products.residuals.diff(dim=-1) / view.total[:, None]).clamp_min(0)
    outside = (1 - shares.sum(-1)).clamp_min(0)
    columns = max(1, view.dim - shares.shape[-1])
    entropy: Tensor = torch.special.entr(shares).sum(-1) + columns * torch.special.entr(outside / columns)
    return entropy.exp().clamp(1, view.dim).mean() / view.dim


def stable_rank(view: View) -> Tensor:
    """‖S‖_F² / ‖S‖₂² / dim, mean over heads, with the spectral norm from `spectral_share`."""
    return (1 / view.spectral_shares.clamp_min(1 / view.dim)).mean() / view.dim


def spectral_share(view: View) -> Tensor:
    """σ₁² / ‖S‖_F², mean over heads, in [0, 1]; σ₁ by streaming power iteration (the paper's Eq. 18).

    One step a segment: never above the truth, and on the bundled model 0 to 23 % below it.
    """
    return view.spectral_shares.mean()


def spectral_norm(view: View) -> Tensor:
    """log10(1 + ‖S‖₂ / √(Tn)) / 2, mean over heads, cut at 1: the norm as a root mean square score, 99 at most."""
    segment = view.segment
    scores = segment.queries.shape[-2] * segment.keys.shape[-2] * view.dim
    norms = (view.spectral_shares * segment.products.total / scores).sqrt()
    return (norms.log1p() / torch.log(torch.tensor(100.0, dtype=norms.dtype))).clamp(0, 1).mean()


def nuclear_share(view: View) -> Tensor:
    """L_{1,2} approximation of the nuclear norm over √dim ‖S‖_F, mean over heads, in [0, 1].

    Column norms of the triangular core R_k qᵀ, whose singular values are those of q kᵀ. Their sum is 1.3 to 1.8 times
    the nuclear norm on the bundled model, and ranks segments as it does: rank correlation .96 over layers and text,
    .68 to .96 within a layer.

    Source: Matrix Nuclear-Norm (arXiv 2410.10672), O(n²) instead of a decomposition.
    """
    grams = view.segment.grams
    ridge = 1e-12 * grams.key.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None, None]
    eye = torch.eye(view.dim, dtype=torch.float64)
    factor: Tensor = torch.linalg.cholesky_ex(grams.key + (ridge + TINY) * eye, upper=True).L
    squared = (factor * (factor @ grams.query)).sum(-1).clamp_min(0)
    bound = (squared.sum(-1) * view.dim).clamp_min(TINY)
    alive = view.segment.products.total > 0
    return (alive * squared.sqrt().sum(-1) / bound.sqrt()).mean()


def subspace_drift(view: View) -> Tensor:
    """1 − mean squared cosine between the leading key subspaces of this segment and the last, in [0, 1]."""
    segment = view.segment
    if segment.previous is None:
        return torch.zeros((), dtype=torch.float64)
    rank = min(DRIFT_RANK, segment.basis.width)
    now, before = (torch.linalg.qr(basis.key[..., :rank]).Q for basis in (segment.basis, segment.previous))
    cosines: Tensor = before.mT @ now
    return 1 - cosines.square().sum((-2, -1)).mean() / rank


def weight_mean(view: View) -> Tensor:
    """10 · mean of W_Q, W_K, W_V."""
    return view.weights[:, WEIGHT_STATISTICS.index("mean")]


def weight_deviation(view: View) -> Tensor:
    """√fan_in · standard deviation of W_Q, W_K, W_V: 1 as initialised."""
    return view.weights[:, WEIGHT_STATISTICS.index("deviation")]


def weight_alpha(view: View) -> Tensor:
    """(α − 2)/4 of W_Q, W_K, W_V, α the heavy-tail exponent of their spectra: 0 to 1 where training went well."""
    return view.weights[:, WEIGHT_STATISTICS.index("alpha")].clamp_max(HIGHEST_ALPHA)


def hidden_states(view: View) -> Tensor:
    """Chunk means of the segment's embeddings in whitened principal components, times the root of a chunk's length."""
    return view.tokens


def _per_head(cost: Callable[[int, int], float]) -> Callable[[Sizes, int], float]:
    """FLOPs from (dim, width) of each key head."""
    return lambda sizes, width: sizes.shape.kv_heads * cost(sizes.shape.dim, width)


def _once(sizes: Sizes, width: int) -> float:
    """Worked out when the model is calibrated: nothing per segment."""
    return 0.0


def _chunk_flops(sizes: Sizes, width: int) -> float:
    """Chunk means over the segment's embeddings, and their projection."""
    return sizes.shape.segment * sizes.hidden + sizes.chunks * 2 * sizes.hidden * sizes.components


def _value_flops(sizes: Sizes, width: int) -> float:
    """Running sums of the new values and of their squares."""
    return sizes.shape.kv_heads * 3.0 * sizes.shape.segment * sizes.shape.value_dim


def _of_segment(
    function: Callable[[View], Tensor], shape: tuple[str, ...], cost: Callable[[int, int], float], source: str,
    needs: tuple[str, ...] = (),
) -> Statistic:  # fmt: skip
    return Statistic(function.__name__, shape, _per_head(cost), source, function, needs=needs)


def _of_weights(function: Callable[[View], Tensor], source: str, low: float, high: float) -> Statistic:
    return Statistic(
        function.__name__, ("matrices",), _once, source, function, "weights", needs_basis=False, low=low, high=high
    )


_ENERGIES, _SPECTRAL = ("energy_ratio",), ("spectral_share",)
_TABLE = (
    Statistic(
        "energy_ratio", ("ranks",), lambda sizes, width: energy_flops(sizes.shape, width), "paper Eq. 15",
        energy_ratio, low=LOWEST_RATIO,
    ),
    _of_segment(residual_level, ("ranks",), lambda d, w: w, "log of paper Eq. 15", _ENERGIES),
    _of_segment(worst_residual_level, ("ranks",), lambda d, w: w, "as above, worst head", _ENERGIES),
    _of_segment(head_residual_level, ("kv_heads", "ranks"), lambda d, w: w, "as above, every head", _ENERGIES),
    _of_segment(score_level, ("kv_heads",), lambda d, w: 3, "as in drrl_env.envs.predictor", _ENERGIES),
    Statistic(
        "value_mean_level", ("kv_heads",), _value_flops, "as in drrl_env.envs.predictor", value_mean_level,
        needs_basis=False,
    ),
    _of_segment(effective_rank, (), lambda d, w: 4 * w, "Roy & Vetterli 2007", _ENERGIES),
    _of_segment(stable_rank, (), lambda d, w: 2, "Rudelson & Vershynin 2007", _SPECTRAL),
    _of_segment(spectral_share, (), lambda d, w: 8 * d**2, "paper Eq. 18", _ENERGIES),
    _of_segment(spectral_norm, (), lambda d, w: 4, "paper Eq. 18", _SPECTRAL),
    _of_segment(nuclear_share, (), lambda d, w: d**3 / 3 + 2 * d**3, "arXiv 2410.10672"),
    _of_segment(subspace_drift, (), lambda d, w: 10 * d * DRIFT_RANK**2, "principal angles (Björck & Golub 1973)"),
    _of_weights(weight_mean, "paper w_t", -inf, inf),
    _of_weights(weight_deviation, "paper w_t", 0.0, inf),
    _of_weights(weight_alpha, "Clauset et al. 2009; HTSR/SETOL", -0.25, HIGHEST_ALPHA),
    Statistic(
        "hidden_states", ("chunks", "components"), _chunk_flops, "paper h_t", hidden_states, "text",
        needs_basis=False, low=-inf, high=inf,
    ),
)  # fmt: skip
STATISTICS = {statistic.name: statistic for statistic in _TABLE}
"""Every statistic, by name."""
DEFAULT_STATISTICS = (
    "energy_ratio",
    "residual_level",
    "worst_residual_level",
    "effective_rank",
    "stable_rank",
    "spectral_share",
    "subspace_drift",
    "weight_mean",
    "weight_deviation",
    "weight_alpha",
    "hidden_states",
)
"""What an observation shows where nothing was asked for."""


def register_statistic(statistic: Statistic) -> Statistic:
    """Puts a statistic in the table, for `statistics=` to select.

    Worker processes that do not fork import their modules anew: register where they do, at the top of a module.

    Raises:
        ValueError: the name is another statistic's, or it needs one that is not there.
    """
    if STATISTICS.get(statistic.name, statistic) != statistic:
        raise ValueError(f"statistic {statistic.name!r}: the name is taken; use another")
    for name in statistic.needs:
        _known(f"statistic {statistic.name!r}: needs", name)
    STATISTICS[statistic.name] = statistic
    return statistic


def select_statistics(names: Sequence[str] | None) -> tuple[Statistic, ...]:
    """The statistics of these names, in their order; None for `DEFAULT_STATISTICS`.

    Raises:
        ValueError: an unknown or repeated name, or one string where names are expected.
    """
    if isinstance(names, str):
        raise ValueError(f"statistics={names!r}: give names in a tuple; use statistics=({names!r},)")
    wanted = DEFAULT_STATISTICS if names is None else tuple(names)
    for place, name in enumerate(wanted):
        _known("statistics", name)
        if name in wanted[:place]:
            raise ValueError(f"statistics={wanted}: {name!r} is there twice; give it once")
    return tuple(STATISTICS[name] for name in wanted)


def _known(argument: str, name: str) -> None:
    """Raises a one-line ValueError where no statistic has the name."""
    if name not in STATISTICS:
        close = get_close_matches(str(name), STATISTICS, 1)
        guess = f", did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"{argument}={name!r}: unknown{guess}; use some of {', '.join(map(repr, STATISTICS))}")


def with_needed(names: Iterable[str]) -> tuple[Statistic, ...]:
    """These statistics and what they are worked out from, each once: what has to be paid for."""
    found: dict[str, Statistic] = {}
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found[name] = STATISTICS[name]
            waiting += found[name].needs
    return tuple(found.values())
