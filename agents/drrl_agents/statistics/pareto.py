"""Which policies pay best: the Pareto front of fidelity against FLOPs, and the hypervolume it covers.

Points are (FLOPs ratio, fidelity), (policies, 2): fewer FLOPs and more fidelity are better. The default reference
point is (1, 0), the FLOPs of full attention with nothing of its output kept. It does not depend on which policies are
compared, so a hypervolume keeps its meaning when one joins; it is the area, 0 to 1, of what is saved times what is
kept. A policy as dear as full attention saves nothing and adds nothing, whatever its fidelity.

Source: hypervolume, Zitzler & Thiele 1998; computed by `moocore`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import moocore
import numpy as np
from numpy.typing import NDArray

from drrl_env.envs.mechanism import Doubles

REFERENCE = (1.0, 0.0)
_MAXIMISE = (False, True)
Booleans = NDArray[np.bool_]


@dataclass(frozen=True)
class Front:
    """Policies by what they cost and keep.

    Attributes:
        names: of the policies.
        points: (FLOPs ratio, fidelity) of each, (policies, 2).
        on_front: whether no other is at least as good in both and better in one; equal points stand together.
        contributions: hypervolume that would be lost without this policy; 0 off the front, and for one of two equals.
        hypervolume: of all of them.
        reference: the worst point that still counts, (FLOPs ratio, fidelity).
    """

    names: tuple[str, ...]
    points: Doubles
    on_front: Booleans
    contributions: Doubles
    hypervolume: float
    reference: tuple[float, float]

    def hypervolume_of(self, names: Iterable[str]) -> float:
        """Hypervolume of some of the policies, a family of fixed ranks for example; 0 for none.

        Raises:
            ValueError: a name is none of these policies.
        """
        return hypervolume(self.points[self._numbers(names)], self.reference)

    def gain(self, names: Iterable[str], over: Iterable[str]) -> float:
        """Hypervolume that these policies add to a family; 0 where the family is nowhere worse than they are.

        Raises:
            ValueError: a name is none of these policies.
        """
        family = list(over)
        return self.hypervolume_of([*family, *names]) - self.hypervolume_of(family)

    def _numbers(self, names: Iterable[str]) -> list[int]:
        wanted = list(names)
        for name in wanted:
            if name not in self.names:
                raise ValueError(f"policy {name!r} is not on this front; use one of {', '.join(self.names)}")
        return [self.names.index(name) for name in wanted]


def pareto_front(
    names: Sequence[str], flops: Doubles, fidelity: Doubles, reference: tuple[float, float] = REFERENCE
) -> Front:
    """The front of these policies.

    Args:
        names: of the policies, all different.
        flops: FLOPs over full attention's, (policies,).
        fidelity: what is kept of the output, 1 for all of it, (policies,).
        reference: the worst point that still counts.

    Raises:
        ValueError: two policies have one name, or a point is not finite.
    """
    if len(set(names)) != len(names):
        raise ValueError(f"names={tuple(names)}: two policies share one; tell them apart")
    points = np.column_stack([flops, fidelity]).astype(float)
    return Front(
        tuple(names),
        points,
        nondominated(points),
        contributions(points, reference),
        hypervolume(points, reference),
        reference,
    )


def nondominated(points: Doubles) -> Booleans:
    """Whether no other point is at least as good in both respects and better in one; equal points stand together.

    Args:
        points: (policies, 2).

    Returns:
        (policies,).

    Raises:
        ValueError: a point is not finite, or they are not pairs.
    """
    found: Booleans = moocore.is_nondominated(_checked(points), maximise=_MAXIMISE, keep_weakly=True)
    return found


def hypervolume(points: Doubles, reference: tuple[float, float] = REFERENCE) -> float:
    """Area between the points and the reference; points beyond it count nothing.

    Args:
        points: (policies, 2); may be none.
        reference: the worst point that still counts.

    Raises:
        ValueError: a point is not finite, or they are not pairs.
    """
    return float(moocore.hypervolume(_checked(points), ref=reference, maximise=_MAXIMISE))


def contributions(points: Doubles, reference: tuple[float, float] = REFERENCE) -> Doubles:
    """Hypervolume lost without each point, the others all staying, dominated ones included.

    Args:
        points: (policies, 2).
        reference: the worst point that still counts.

    Returns:
        (policies,), at least 0.

    Raises:
        ValueError: a point is not finite, or they are not pairs.
    """
    lost = moocore.hv_contributions(_checked(points), ref=reference, maximise=_MAXIMISE, ignore_dominated=False)
    return np.asarray(lost, float)


def _checked(points: Doubles) -> Doubles:
    if points.ndim != 2 or points.shape[1] != 2 or not np.isfinite(points).all():
        raise ValueError(f"points: of shape {points.shape}; give finite (FLOPs ratio, fidelity) per policy")
    return points
