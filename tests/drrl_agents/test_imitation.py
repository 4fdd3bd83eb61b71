"""Behaviour cloning on a real task small enough to be learned by heart."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from sb3_contrib import QRDQN, MaskablePPO
from scipy.stats import norm
from stable_baselines3 import PPO
from stable_baselines3.common.base_class import BaseAlgorithm

from drrl_agents import imitation
from drrl_agents.agent import as_policy
from drrl_agents.imitation import Cloning, Demonstrations, clone, demonstrate, interval_chances, joined, log_chances
from drrl_agents.tasks import Task
from drrl_agents.teachers import lanes_of, teacher_of
from drrl_policies.field import Field
from drrl_policies.rollout import reference, rollout
from drrl_policies.standard import LEFT
from drrl_policies.transformer import transformer_policy_kwargs

TASKS = ("DRRL-Attention-v0", "DRRL-Tolerance-v0", "DRRL-Heads-v0", "DRRL-Basis-v0")
SETTINGS = Cloning(epochs=60, batch=16, learning_rate=2e-3, loss="cross-entropy", weight_decay=0.0)


def _field(env: str, **arguments: object) -> Field:
    return Task(env, context=512, **arguments).field("train", 1, repeats=2, progress=False)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def field() -> Field:
    """Four layers of a span of four segments, in a calibrated basis under the paper's guard: some ranks are masked."""
    return _field("DRRL-Attention-v0", basis="calibrated", guard="paper")


@pytest.fixture(scope="module")
def known(field: Field) -> Demonstrations:
    teacher = teacher_of(field)
    return joined([demonstrate(field, teacher, seed) for seed in range(3)])


def _model(field: Field, seed: int = 0) -> MaskablePPO:
    env = Task(context=512, basis="calibrated", guard="paper").make_lanes("train", 1, 1)
    return MaskablePPO("MultiInputPolicy", env, policy_kwargs=transformer_policy_kwargs(), seed=seed, device="cpu")


def _score(model: BaseAlgorithm, field: Field) -> float:
    masks = isinstance(model, MaskablePPO)
    return reference(field).score(rollout(as_policy(model, "cloned", masks, field), field).returns)


@pytest.mark.parametrize("env", TASKS)
def test_a_teacher_followed_step_by_step_returns_what_the_oracle_returns(env: str) -> None:
    """Bar: to 1e-5 in every episode, and its undiscounted value at the start is that return."""
    field = _field(env)
    teacher, play, count = teacher_of(field), field.arena.play, len(field.episodes)
    play.begin(range(count), field.episodes)
    first, total = teacher.teach(lanes_of(field), np.arange(count)), np.zeros(count)
    for _ in range(field.steps):
        lesson = teacher.teach(lanes_of(field), np.arange(count))
        wanted = np.zeros((count, len(field.sizes)), np.int64)
        wanted[:, teacher.groups.ravel()] = teacher.mixes[lesson.gains.argmax(-1)].reshape(count, -1)
        total += play.step(wanted).rewards
    oracle = reference(field).oracle
    np.testing.assert_allclose(total, oracle, atol=1e-5)
    np.testing.assert_allclose(first.values, oracle, atol=1e-5)


def test_a_budget_teacher_comes_close_to_the_oracle_and_never_overspends() -> None:
    """Bar: .98 of the way from random to the oracle, with no action masked on the way."""
    field = _field("DRRL-Budget-v0")
    teacher, play, count = teacher_of(field), field.arena.play, len(field.episodes)
    play.begin(range(count), field.episodes)
    total, changed = np.zeros(count), np.zeros(count, bool)
    for _ in range(field.steps):
        batch = play.step(teacher.mixes[teacher.teach(lanes_of(field), np.arange(count)).gains[:, 0].argmax(-1)])
        total, changed = total + batch.rewards, changed | batch.changed
    assert not changed.any()
    assert reference(field).score(total) > 0.98


def test_gains_are_what_playing_on_from_a_stray_action_loses(field: Field) -> None:
    """Bar: after a random first action and the teacher's best from there, the return is the oracle's plus the gain."""
    teacher, play, count = teacher_of(field), field.arena.play, len(field.episodes)
    play.begin(range(count), field.episodes)
    gains = teacher.teach(lanes_of(field), np.arange(count)).gains[:, 0]
    first = np.where(np.isfinite(gains), gains, np.inf).argmin(-1)  # the worst of those allowed
    assert (gains[np.arange(count), first] < 0).any()
    total = play.step(first[:, None]).rewards
    for _ in range(field.steps - 1):
        best = teacher.teach(lanes_of(field), np.arange(count)).gains[:, 0].argmax(-1)
        total = total + play.step(best[:, None]).rewards
    np.testing.assert_allclose(total, reference(field).oracle + gains[np.arange(count), first], atol=1e-5)


def test_cloning_learns_a_small_task_by_heart(field: Field, known: Demonstrations) -> None:
    """Bar: .999 of the oracle on the episodes it was taught on, from below .9; with shuffled labels it stays there."""
    model, misled = _model(field), _model(field)
    assert _score(model, field) < 0.9
    clone(model, known, SETTINGS, 0, progress=False)
    assert _score(model, field) > 0.999
    shuffled = torch.randperm(len(known), generator=torch.Generator().manual_seed(0))
    clone(misled, replace(known, gains=known.gains[shuffled]), SETTINGS, 0, progress=False)
    assert _score(misled, field) < 0.999


def test_one_number_is_cloned_like_an_index() -> None:
    """Bar: where an action is a number cut into ranks, .995 of the oracle by heart, from below .9."""
    field = _field("DRRL-Attention-Continuous-v0", basis="calibrated")
    teacher = teacher_of(field)
    known = joined([demonstrate(field, teacher, seed) for seed in range(3)])
    env = Task("DRRL-Attention-Continuous-v0", context=512, basis="calibrated").make_lanes("train", 1, 1)
    model = PPO("MultiInputPolicy", env, policy_kwargs=transformer_policy_kwargs(), seed=0, device="cpu")
    assert _score(model, field) < 0.9
    clone(model, known, SETTINGS, 0, progress=False)
    assert _score(model, field) > 0.995


@pytest.mark.parametrize("mean", [-7.0, -0.3, 0.0, 0.99, 7.0])
@pytest.mark.parametrize("log_std", [-3.0, 0.0, 1.0])
def test_chances_of_intervals_are_the_normal_distributions(mean: float, log_std: float) -> None:
    """Bar: SciPy's to 1e-4 of the logarithm where they are above 1e-12, in all 1, and finite gradients everywhere."""
    centre = torch.tensor([[mean]], requires_grad=True)
    spread = torch.tensor([log_std], requires_grad=True)
    found = interval_chances(centre, spread, 8)
    edges = np.linspace(-1, 1, 9)
    edges[[0, -1]] = -np.inf, np.inf
    tails = norm(mean, np.exp(log_std))
    exact = np.maximum(np.diff(tails.cdf(edges)), -np.diff(tails.sf(edges)))
    assert found.exp().sum().item() == pytest.approx(1, abs=1e-5)
    likely = exact > 1e-12
    np.testing.assert_allclose(found.detach().numpy()[0][likely], np.log(exact[likely]), rtol=1e-4, atol=1e-4)
    found.sum().backward()  # type: ignore[no-untyped-call]
    assert torch.isfinite(centre.grad).all()
    assert torch.isfinite(spread.grad).all()


def test_a_masked_choice_gets_no_probability(field: Field, known: Demonstrations) -> None:
    """Bar: exactly 0 for each of them, among rows that have some, and 1 in all."""
    scores = torch.randn(len(known), 8, generator=torch.Generator().manual_seed(0))
    chances = log_chances(scores, known, field.arena.action_space)[:, 0].exp()
    assert (~known.masks).any()
    assert (chances[~known.masks] == 0).all()
    torch.testing.assert_close(chances.sum(-1), torch.ones(len(known)))


def test_no_demonstration_calls_a_masked_choice_best(known: Demonstrations) -> None:
    """Bar: the best choice of every row is allowed, and what is not allowed is worth nothing."""
    best = known.gains[:, 0].argmax(-1, keepdim=True)
    assert known.masks.gather(1, best).all()
    assert torch.isneginf(known.gains[:, 0][~known.masks]).all()


@pytest.mark.parametrize("loss", ["cross-entropy", "soft", "regret", "mixed"])
def test_the_same_seed_gives_the_same_bits_and_another_does_not(field: Field, known: Demonstrations, loss: str) -> None:
    """Bar: equal weights after two epochs, and others from another order of the rows."""
    settings = Cloning(epochs=2, batch=16, loss=loss)
    found = []
    for seed in (3, 3, 4):
        model = _model(field)
        clone(model, known, settings, seed, progress=False)
        found.append(torch.cat([weights.flatten() for weights in model.policy.state_dict().values()]))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_what_cannot_be_cloned_is_refused_in_one_line(field: Field, known: Demonstrations) -> None:
    """Bar: a model without an actor, and a setting out of range, each by name."""
    env = Task(context=512).make_lanes("train", 1, 1)
    with pytest.raises(ValueError, match=r"^algo='QRDQN': .*maskable-ppo"):
        clone(QRDQN("MultiInputPolicy", env, buffer_size=10), known, SETTINGS, 0, progress=False)
    with pytest.raises(ValueError, match=r"^loss='l2'"):
        clone(_model(field), known, replace(SETTINGS, loss="l2"), 0, progress=False)


def test_noise_is_as_large_as_what_the_numbers_vary_by(field: Field, known: Demonstrations, monkeypatch) -> None:
    """Bar: per number .5 of its own deviation, to 15 %, and to 4 % on average; shares and one-hot entries stay."""
    shown: list[Demonstrations] = []
    inner = imitation.cloning_loss
    monkeypatch.setattr(imitation, "cloning_loss", lambda *given: (shown.append(given[1]), inner(*given))[1])
    settings = replace(SETTINGS, epochs=8, batch=len(known), noise=0.5)
    clone(_model(field), known, settings, 0, progress=False)
    order = torch.Generator().manual_seed(0)
    moved = []
    for batch in shown:
        rows = torch.randperm(len(known), generator=order)
        original = known.take(rows).observation
        for name in original.keys() & set(LEFT):
            assert torch.equal(batch.observation[name], original[name])
        moved.append(batch.observation["segment"] - original["segment"])
        for name in (each for each in original if each not in LEFT):
            torch.randn(original[name].shape, generator=order)
    deviation = known.observation["segment"].std(0)
    found = torch.cat(moved).std(0)
    torch.testing.assert_close(found, 0.5 * deviation, rtol=0.15, atol=1e-6)
    assert abs(float((found / deviation.clamp_min(1e-6))[deviation > 1e-6].mean()) - 0.5) < 0.02


def test_without_noise_a_batch_is_what_was_seen(field: Field, known: Demonstrations, monkeypatch) -> None:
    """Bar: every row of the loss is a row of the demonstrations, to the bit."""
    shown: list[Demonstrations] = []
    inner = imitation.cloning_loss
    monkeypatch.setattr(imitation, "cloning_loss", lambda *given: (shown.append(given[1]), inner(*given))[1])
    clone(_model(field), known, replace(SETTINGS, epochs=1, batch=len(known)), 0, progress=False)
    rows = torch.randperm(len(known), generator=torch.Generator().manual_seed(0))
    assert all(torch.equal(v, known.observation[name][rows]) for name, v in shown[0].observation.items())
