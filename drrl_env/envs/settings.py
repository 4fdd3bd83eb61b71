"""What an environment is made of, as values: settings are checked here, in one line each, before any work."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral

from drrl_env.envs.observation import CHUNKS
from drrl_env.lowrank.offline import EVERY_BASIS
from drrl_env.lowrank.statistics import select_statistics

GUARDS = ("off", "paper", "conformal")
FIDELITIES = ("cosine", "error")
RANK_SHARES = (1 / 8, 3 / 16, 1 / 4, 5 / 16, 3 / 8, 1 / 2, 5 / 8, 1)
"""Default candidate ranks as shares of the head dimension: 8, 12, 16, 20, 24, 32, 40, 64 of 64."""


@dataclass(frozen=True)
class Reward:
    """Weights of the reward α·fidelity − β·FLOPs ratio − γ·‖ΔS‖ (relative); every term is of order one.

    Attributes:
        alpha: weight of the fidelity of the output.
        beta: weight of the segment's FLOPs over the episode's mean full-attention FLOPs per segment.
        gamma: weight of ‖S_r − S_previous‖ / ‖S‖, both at this segment.
        fidelity: `cosine` (the paper's) or `error`, 1 − ‖ΔO‖²/‖O‖², which sees shrinkage too.

    Source: paper, reward; design §4.
    """

    alpha: float = 1.0
    beta: float = 0.3
    gamma: float = 0.05
    fidelity: str = "cosine"


REWARDS = {"default": Reward(), "paper": Reward(alpha=1.0, beta=0.05, gamma=0.1)}
"""Named reward presets; `reward=` takes a name or a `Reward`."""


@dataclass(frozen=True)
class Guard:
    """Which ranks are allowed, given the previous one.

    Attributes:
        kind: `off`; `paper`: ‖ΔS‖/‖S‖ from the previous rank at most ε_t; or `conformal`: a rank whose predicted
            upper error at confidence `confidence` is at most ε_t. Full rank is always allowed.
        threshold: ε of the paper's guard at the first segment, relative to ‖S‖.
        decay: λ of ε_t = ε exp(−λ t), per segment; None: .05 for the paper's guard, 0 (constant) for the conformal.
        tolerance: ε of the conformal guard at the first segment, relative output error ‖ΔO‖/‖O‖.
        confidence: 1 − δ of the conformal guard, in (0, 1).

    The paper's defaults forbid one rank in ten on the bundled model, mostly the lowest ranks late in a sequence.

    Source: the paper's decaying threshold, Eq. 8-10; `drrl_env.envs.conformal`.
    """

    kind: str = "off"
    threshold: float = 0.4
    decay: float | None = None
    tolerance: float = 0.2
    confidence: float = 0.9

    def limit(self, position: int) -> float:
        """ε_t at segment `position`; infinite where there is no guard."""
        if self.kind == "off":
            return math.inf
        start, decay = (self.threshold, 0.05) if self.kind == "paper" else (self.tolerance, 0.0)
        return start * math.exp(-(decay if self.decay is None else self.decay) * position)


NO_GUARD = Guard()
"""Everything is allowed."""


@dataclass(frozen=True)
class Measurement:
    """Everything a measured number depends on beyond model, span and layer; names results in the store.

    Attributes:
        model: `bundled`, a folder or a Hugging Face name.
        segment: tokens of a segment.
        context: tokens of an instance; a multiple of `segment`.
        ranks: candidate ranks, ascending; the last is the head dimension. None: shares of it, `RANK_SHARES`.
        value_rank: `balanced` (by calibration), `same` as the rank, a number, or None for full values.
        basis: `refreshed`, `calibrated`, or an offline one of the literature, see `drrl_env.lowrank.offline`.
        statistics: names of statistics that an observation shows, see `drrl_env.lowrank.statistics`; None: the default.
    """

    model: str = "bundled"
    segment: int = 128
    context: int = 2048
    ranks: tuple[int, ...] | None = None
    value_rank: str | int | None = "balanced"
    basis: str = "refreshed"
    statistics: tuple[str, ...] | None = None

    @property
    def segments(self) -> int:
        """Segments of an instance: the horizon of an episode."""
        return self.context // self.segment

    def check(self) -> None:
        """Raises a ValueError naming the first argument that is wrong, its value and the remedy."""
        one_of("basis", self.basis, EVERY_BASIS)
        positive("segment", self.segment)
        positive("context", self.context)
        if self.segment < CHUNKS:
            raise ValueError(f"segment={self.segment}: too short to be observed; use at least {CHUNKS} tokens")
        if self.context < self.segment or self.context % self.segment:
            raise ValueError(
                f"context={self.context}: must be a multiple of segment={self.segment}; "
                f"use {max(1, self.context // self.segment) * self.segment}"
            )
        if isinstance(self.value_rank, str):
            one_of("value_rank", self.value_rank, ("balanced", "same"))
        elif self.value_rank is not None:
            positive("value_rank", self.value_rank)
        select_statistics(self.statistics)


def one_of(name: str, value: object, known: Sequence[str]) -> None:
    """Raises a one-line ValueError where `value` is not among the known names."""
    if value not in known:
        raise ValueError(f"{name}={value!r}: unknown; use one of {', '.join(map(repr, known))}")


def positive(name: str, value: int) -> None:
    """Raises a one-line ValueError where `value` is not a whole number above zero."""
    if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name}={value!r}: must be a whole number of at least 1")


def check_ranks(ranks: Sequence[int] | None, dim: int, model: str) -> tuple[int, ...]:
    """The candidate ranks of a model, ascending and ending with full rank.

    Raises:
        ValueError: a rank beyond the head dimension, not ascending, or full rank missing.
    """
    if ranks is None:
        return tuple(sorted({max(1, round(share * dim)) for share in RANK_SHARES}))
    for rank in ranks:
        positive("ranks", rank)
        if rank > dim:
            raise ValueError(
                f"ranks={tuple(ranks)}: rank {rank} exceeds the head dimension {dim} of model {model!r}; "
                f"use ranks up to {dim}"
            )
    ordered = tuple(sorted({*map(int, ranks), dim}))
    if len(ordered) < 2:
        raise ValueError(f"ranks={tuple(ranks)}: there is nothing to choose; add a rank below {dim}")
    if tuple(ranks) != ordered:
        raise ValueError(f"ranks={tuple(ranks)}: must ascend and end with full rank {dim}; use ranks={ordered}")
    return ordered


def resolve_reward(reward: str | Reward) -> Reward:
    """A preset by name, or the weights themselves, checked."""
    if isinstance(reward, str):
        one_of("reward", reward, tuple(REWARDS))
        return REWARDS[reward]
    if not isinstance(reward, Reward):
        raise ValueError(f"reward={reward!r}: must be a Reward or one of {', '.join(map(repr, REWARDS))}")
    one_of("reward.fidelity", reward.fidelity, FIDELITIES)
    if not all(math.isfinite(float(x)) for x in (reward.alpha, reward.beta, reward.gamma)):
        raise ValueError(f"reward={reward}: weights must be finite numbers")
    return reward


def resolve_guard(guard: str | Guard) -> Guard:
    """A guard by name with the default threshold, or the guard itself, checked."""
    found = Guard(kind=guard) if isinstance(guard, str) else guard
    if not isinstance(found, Guard):
        raise ValueError(f"guard={guard!r}: must be a Guard or one of {', '.join(map(repr, GUARDS))}")
    one_of("guard", found.kind, GUARDS)
    if not (found.threshold > 0 and found.tolerance > 0 and (found.decay is None or found.decay >= 0)):
        raise ValueError(f"guard={found}: threshold and tolerance must be above 0 and decay at least 0")
    if not 0 < found.confidence < 1:
        raise ValueError(f"guard={found}: confidence must lie between 0 and 1; use .9 for a promise that fails in 10 %")
    return found
