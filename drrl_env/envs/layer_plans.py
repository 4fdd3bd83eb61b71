"""The oracle of DRRL-Layers-v0: beam search through the closed loop, a lower bound on the optimum."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from drrl_env.data.instances import Instance
from drrl_env.envs.flow import Flow
from drrl_env.envs.layers import LayersSimulator
from drrl_env.envs.mechanism import Integers
from drrl_env.envs.solvers.beam import beam_search

WIDTH, EPISODES = 4, 8
"""Episodes kept at each step of the search (8: .0003 more in three times the time), and random ones sampled."""


@dataclass(frozen=True)
class LayersPlan:
    """The best ranks that were found.

    Attributes:
        choices: (steps, 1).
        exact: whether the search gave nothing up.
        random: mean return of sampled random episodes.
        random_error: its standard error.
    """

    choices: Integers
    exact: bool
    random: float
    random_error: float


@dataclass(frozen=True)
class Node:
    """An episode on the way, and its reward so far."""

    flow: Flow
    reward: float = 0.0


Choose = Callable[[Flow], int]
"""What an episode is asked to execute next."""


def layers_optimum(play: LayersSimulator, instance: Instance, width: int = WIDTH, progress: bool = True) -> LayersPlan:
    """The best of a beam search and of every fixed rank; about a minute for 2048 tokens of the bundled model.

    Within a segment nodes are compared by what they would earn if the rest of it ran at the best fixed rank, since
    the reward comes at its last layer only; what a choice does to later segments counts once the search is there.

    Args:
        play: lanes of the task; none of them is touched.
        instance: the span of text.
        width: episodes kept at each step; time grows with it.
        progress: whether to show a bar.
    """
    root = Node(Flow(play.shared, instance, play.layers))
    steps = play.world.segments * len(play.layers)
    fixed = [played(root, always(choice)) for choice in range(play.sizes[0])]
    rest = max(range(len(fixed)), key=lambda choice: fixed[choice].reward)
    random = [played(root, random_choice(seed)).reward for seed in range(EPISODES)]
    bar: tqdm[Any] = tqdm(total=steps, desc="beam search", unit="step", leave=False, disable=not progress)
    with bar:
        found = beam_search(root, expand, width, steps, lambda node: to_come(node, rest), progress_of(bar))
    best = max([(found.lower_bound, found.actions), (fixed[rest].reward, tuple(fixed[rest].flow.choices))])
    error = float(np.std(random, ddof=1) / np.sqrt(EPISODES))
    return LayersPlan(np.array(best[1], np.int64)[:, None], found.exhaustive, float(np.mean(random)), error)


def expand(node: Node) -> Iterator[tuple[int, Node, float]]:
    """Every allowed rank, executed."""
    for choice in np.flatnonzero(node.flow.allowed()).tolist():
        child = played(node, always(choice), 1)
        yield choice, child, child.reward


def to_come(node: Node, choice: int) -> float:
    """What the rest of the segment earns at one rank; 0 where a segment begins."""
    ahead = -node.flow.steps % len(node.flow.layers)
    return played(node, always(choice), ahead).reward - node.reward if ahead else 0.0


def played(node: Node, choose: Choose, steps: int | None = None) -> Node:
    """The node so many steps on, or at its end; what is chosen becomes the nearest allowed rank."""
    flow, reward, taken = node.flow.fork(), node.reward, 0
    while not flow.loop.ended and taken != steps:
        terms, _ = flow.execute(flow.shared.carried_out(choose(flow), flow.allowed()))
        reward, taken = reward + sum(terms), taken + 1
    return Node(flow, reward)


def always(choice: int) -> Choose:
    """One rank everywhere."""
    return lambda flow: choice


def random_choice(seed: int) -> Choose:
    """Uniformly among what is allowed."""
    generator = np.random.default_rng(seed)
    return lambda flow: int(generator.choice(np.flatnonzero(flow.allowed())))


def progress_of(bar: tqdm[Any]) -> Callable[[int, float], None]:
    """Moves the bar on, and shows the best reward so far."""

    def told(depth: int, best: float) -> None:
        bar.set_postfix_str(f"best so far {best:.3f}")
        bar.update()

    return told
