"""Behaviour cloning: an SB3 policy learns what the oracle would do, before reinforcement learning goes on from it.

Teachers know what every action is worth wherever an episode may stand, so a learner is shown more than the oracle's
own way: lanes stray from it at random, and what is best is known there too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import log
from typing import cast

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor, nn
from tqdm import tqdm

from drrl_agents.teachers import Lesson, Teacher, lanes_of
from drrl_env.envs.mechanism import Integers
from drrl_env.envs.play import Observation
from drrl_env.envs.settings import one_of, positive
from drrl_policies.base import Masks, Policy, by_component
from drrl_policies.field import Field
from drrl_policies.rollout import look
from drrl_policies.standard import LEFT

WANDERING = (0.0, 0.1, 0.3, 1.0)
"""Shares of random actions: a lane has one of them for a whole episode."""
LOSSES = ("cross-entropy", "mixed", "regret", "soft")
FORBIDDEN, WORST = -1e8, -2.0
"""Score of a masked choice before the softmax; what an action loses at most in the loss."""
FAR = 1e3
"""Deviations beyond which no normal number falls."""
GRADIENT = 0.5
"""Largest norm of a gradient step's gradient, SB3's for PPO."""


@dataclass(frozen=True)
class Demonstrations:
    """States, and what is best there.

    Attributes:
        observation: (rows, size) per entry, float32.
        masks: allowed choices of every component side by side, (rows, sum of sizes), bool.
        gains: what each mix of each group loses to the best one, see `Lesson`, (rows, groups, mixes), float32.
        values: discounted return of the best way on, (rows,), float32.
        mixes: the choices of each mix, (mixes, components of a group).
        groups: components of each group, (groups, components of a group).
    """

    observation: dict[str, Tensor]
    masks: Tensor
    gains: Tensor
    values: Tensor
    mixes: Tensor
    groups: Tensor

    def __len__(self) -> int:
        return len(self.values)

    def take(self, rows: Tensor) -> Demonstrations:
        """Some of them."""
        seen = {name: values[rows] for name, values in self.observation.items()}
        return Demonstrations(seen, self.masks[rows], self.gains[rows], self.values[rows], self.mixes, self.groups)


@dataclass(frozen=True)
class Cloning:
    """How to clone.

    Attributes:
        epochs: passes over the demonstrations.
        batch: rows of a gradient step.
        learning_rate: at the start; it falls to nothing as half a cosine.
        weight_decay: of AdamW.
        loss: `cross-entropy` with the oracle's action; `soft`, with a softmax of what each action loses over
            `temperature`; `regret`, the expected loss of return over `temperature`; or `mixed`, the last two added.
        temperature: in units of return.
        value_weight: weight of the critic's squared error.
        noise: standard deviation of what is added to each number of an observation, over that number's own: against
            learning texts by heart.
    """

    epochs: int = 10
    batch: int = 256
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    loss: str = "mixed"
    temperature: float = 0.02
    value_weight: float = 0.05
    noise: float = 0.0


def demonstrate(field: Field, teacher: Teacher, seed: int, learner: Policy | None = None) -> Demonstrations:
    """Plays every episode of a field once and writes down what would have been best at each step.

    Each lane follows the learner (the teacher if None) but for a share of random actions from `WANDERING`.

    Args:
        field: the episodes.
        teacher: of the same field, `teachers.teacher_of`.
        seed: of the random actions.
        learner: a policy to follow instead, so that its own mistakes are among what it is taught on (DAgger).
    """
    random, play = np.random.default_rng(seed), field.arena.play
    rows = list[tuple[Observation, Masks, Lesson]]()
    lanes = np.arange(len(field.episodes))
    rates = random.choice(WANDERING, len(lanes))
    play.begin(range(len(lanes)), field.episodes)
    for step in range(field.steps):
        situation = look(field, step)
        lesson = teacher.teach(lanes_of(field), lanes)
        rows.append((situation.observation, situation.masks, lesson))
        wanted = _best(teacher, lesson) if learner is None else learner.choose(situation)
        strays = random.random(len(lanes)) < rates
        play.step(np.where(strays[:, None], _anything(situation.masks, field.sizes, random), wanted))
    return _gathered(rows, teacher)


def _best(teacher: Teacher, lesson: Lesson) -> Integers:
    """The oracle's action, (lanes, components)."""
    found = np.zeros((len(lesson.values), teacher.groups.size), np.int64)
    found[:, teacher.groups.ravel()] = teacher.mixes[lesson.gains.argmax(-1)].reshape(len(found), -1)
    return found


def _anything(masks: Masks, sizes: tuple[int, ...], random: np.random.Generator) -> Integers:
    """A random allowed action of every lane."""
    parts = by_component(masks, sizes)
    return np.stack([np.where(part, random.random(part.shape), -1.0).argmax(-1) for part in parts], axis=-1)


def _gathered(rows: Sequence[tuple[Observation, Masks, Lesson]], teacher: Teacher) -> Demonstrations:
    names = rows[0][0]
    return Demonstrations(
        {name: torch.from_numpy(np.concatenate([seen[name] for seen, _, _ in rows])) for name in names},
        torch.from_numpy(np.concatenate([masks for _, masks, _ in rows])),
        torch.from_numpy(np.concatenate([lesson.gains for _, _, lesson in rows]).astype(np.float32)),
        torch.from_numpy(np.concatenate([lesson.values for _, _, lesson in rows]).astype(np.float32)),
        torch.from_numpy(teacher.mixes),
        torch.from_numpy(teacher.groups),
    )


def joined(found: Sequence[Demonstrations]) -> Demonstrations:
    """Several demonstrations of one task as one."""
    seen = {name: torch.cat([each.observation[name] for each in found]) for name in found[0].observation}
    masks, gains, values = (torch.cat([getattr(each, n) for each in found]) for n in ("masks", "gains", "values"))
    return Demonstrations(seen, masks, gains, values, found[0].mixes, found[0].groups)


def clone(
    model: BaseAlgorithm,
    known: Demonstrations,
    settings: Cloning,
    seed: int,
    progress: bool = True,
    on_epoch: Callable[[int, float], None] | None = None,
) -> list[float]:
    """Trains the actor on what is best and the critic on what it returns, in place.

    An actor over one number in [-1, 1] begins with a deviation as wide as a rank's part of it: with SB3's own of 1 it
    learns the mean of ranks that are good, and not one of them.

    Args:
        model: an SB3 algorithm with an actor over indices, or over one number in [-1, 1], and a critic (PPO,
            MaskablePPO, A2C, TRPO); its own optimiser is left as it is.
        known: demonstrations of its task.
        settings: how.
        seed: of the order of the rows; the weights are the model's own.
        progress: whether to show a progress bar.
        on_epoch: called with the number of every epoch, from 0, and its mean loss.

    Returns:
        Mean loss of every epoch.

    Raises:
        ValueError: a model without such an actor, or a setting out of range; one line.
    """
    policy, losses = _checked(model, settings), list[float]()
    if isinstance(policy.action_space, spaces.Box):
        nn.init.constant_(policy.log_std, log(2 / len(known.mixes)))
    optimiser = torch.optim.AdamW(policy.parameters(), settings.learning_rate, weight_decay=settings.weight_decay)
    updates = -(-len(known) // settings.batch) * settings.epochs
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda update: _rate(update / updates))
    generator = torch.Generator().manual_seed(seed)
    spread = {name: settings.noise * rows.std(0) for name, rows in known.observation.items() if name not in LEFT}
    for epoch in tqdm(range(settings.epochs), desc="cloning", unit="epoch", leave=False, disable=not progress):
        policy.set_training_mode(True)
        total = 0.0
        for rows in torch.randperm(len(known), generator=generator).split(settings.batch):
            seen = _noisy(known.take(rows), spread if settings.noise else {}, generator)
            total += _update(policy, seen, settings, optimiser) * len(rows)
            schedule.step()
        policy.set_training_mode(False)
        losses.append(total / len(known))
        if on_epoch is not None:
            on_epoch(epoch, losses[-1])
    return losses


def _checked(model: BaseAlgorithm, settings: Cloning) -> ActorCriticPolicy:
    """The policy, known to have what cloning trains."""
    one_of("loss", settings.loss, LOSSES)
    for name in ("epochs", "batch"):
        positive(name, getattr(settings, name))
    for name in ("learning_rate", "temperature"):
        if not 0 < getattr(settings, name) < float("inf"):
            raise ValueError(f"{name}={getattr(settings, name)}: must be above 0; use for example 0.001")
    policy = model.policy
    if not isinstance(getattr(policy, "action_net", None), nn.Linear) or getattr(model, "use_sde", False):
        name = type(model).__name__
        raise ValueError(
            f"algo={name!r}: has no actor over choices to clone into; use maskable-ppo, ppo, a2c or trpo, without gSDE"
        )
    return cast("ActorCriticPolicy", policy)


def _noisy(batch: Demonstrations, spread: Mapping[str, Tensor], generator: torch.Generator) -> Demonstrations:
    """The rows with noise of these standard deviations, (numbers,) per entry."""
    drawn = {name: batch.observation[name] for name in spread}
    noise = {name: torch.randn(rows.shape, generator=generator) * spread[name] for name, rows in drawn.items()}
    return replace(batch, observation={**batch.observation, **{name: drawn[name] + noise[name] for name in spread}})


def _rate(done: float) -> float:
    """Share of the learning rate: up over the first twentieth, then down as half a cosine."""
    return float(min(done / 0.05, 0.5 * (1 + np.cos(np.pi * min(done, 1.0)))))


def _update(
    policy: ActorCriticPolicy, batch: Demonstrations, settings: Cloning, optimiser: torch.optim.Optimizer
) -> float:
    """One gradient step; its loss."""
    found = cloning_loss(policy, batch, settings)
    optimiser.zero_grad()
    found.backward()
    nn.utils.clip_grad_norm_(policy.parameters(), GRADIENT)
    optimiser.step()
    return float(found.detach())


def cloning_loss(policy: ActorCriticPolicy, batch: Demonstrations, settings: Cloning) -> Tensor:
    """The loss of some rows, see `Cloning`, ()."""
    pairs = policy.mlp_extractor(policy.extract_features(batch.observation))
    scores, values = policy.action_net(pairs[0]), policy.value_net(pairs[1])[:, 0]
    chances = _chances(policy, scores, batch)
    critic = nn.functional.mse_loss(values, batch.values)
    found: Tensor = _actor_loss(chances, batch.gains, settings) + settings.value_weight * critic
    return found


def _actor_loss(chances: Tensor, gains: Tensor, settings: Cloning) -> Tensor:
    """From log-probabilities and gains of mixes, (rows, groups, mixes), to ()."""
    if settings.loss == "cross-entropy":
        return -chances.gather(-1, gains.argmax(-1, keepdim=True)).sum((1, 2)).mean()
    target = torch.softmax(gains / settings.temperature, dim=-1)
    soft = -(target * chances.clamp(min=-50)).sum((1, 2)).mean()
    regret = (chances.exp() * -gains.clamp(min=WORST)).sum((1, 2)).mean() / settings.temperature
    return {"soft": soft, "regret": regret, "mixed": soft + regret}[settings.loss]


def _chances(policy: ActorCriticPolicy, scores: Tensor, batch: Demonstrations) -> Tensor:
    """Log-probability of each mix of each group, (rows, groups, mixes), from what the actor's last layer gives."""
    if not isinstance(policy.action_space, spaces.Box):
        return log_chances(scores, batch, policy.action_space)
    return interval_chances(scores, policy.log_std, len(batch.mixes))[:, batch.mixes.T]


def interval_chances(mean: Tensor, log_std: Tensor, parts: int) -> Tensor:
    """Log-probability that a normal number falls in each of the equal parts of [-1, 1], (rows, parts).

    What lies beyond the ends counts as the end, as `BoxCodec` reads an action. Masks do not count: the algorithms that
    choose numbers know none.

    Args:
        mean: of the number, (rows, 1).
        log_std: logarithm of its deviation, (1,).
        parts: how many.
    """
    inner = (torch.linspace(-1, 1, parts + 1)[1:-1] - mean) / log_std.exp()
    low, high = (nn.functional.pad(inner, side, value=end) for side, end in (((1, 0), -FAR), ((0, 1), FAR)))
    above = low + high > 0  # a difference of probabilities near 1 would be rounding: take those of the other tail
    low, high = torch.where(above, -high, low), torch.where(above, -low, high)
    outer: Tensor = torch.special.log_ndtr(high)
    return outer + torch.log1p(-(torch.special.log_ndtr(low) - outer).exp().clamp_max(1 - 1e-6))


def log_chances(scores: Tensor, batch: Demonstrations, space: spaces.Space[np.int64]) -> Tensor:
    """Log-probability of each mix of each group under the masks, (rows, groups, mixes).

    Args:
        scores: of every choice, all components side by side, (rows, sum of sizes).
        batch: their demonstrations.
        space: the actions.
    """
    sizes = space.nvec.tolist() if isinstance(space, spaces.MultiDiscrete) else [scores.shape[1]]
    masked = scores.masked_fill(~batch.masks, FORBIDDEN)
    parts = [part.log_softmax(-1) for part in masked.split(sizes, dim=-1)]
    joint = [
        torch.stack([parts[component][:, batch.mixes[:, place]] for place, component in enumerate(group)]).sum(0)
        for group in batch.groups.tolist()
    ]
    return torch.stack(joint, dim=1)
