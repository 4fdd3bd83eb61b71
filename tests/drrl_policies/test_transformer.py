"""The Transformer uses all it is shown and nothing it is not, and serves every algorithm."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sb3_contrib import QRDQN, MaskablePPO
from stable_baselines3 import A2C, DQN, PPO

from drrl_env.envs.observation import WINDOW
from drrl_policies.transformer import TransformerExtractor, transformer_policy_kwargs

LANES, SHOWN = 5, 2
"""Lanes of a batch, and window slots that lie before the first segment."""


@pytest.fixture
def extractor(space) -> TransformerExtractor:
    """With weights of a size at which everything matters."""
    torch.manual_seed(0)
    return TransformerExtractor(space)


@pytest.fixture
def seen(space) -> dict[str, torch.Tensor]:
    """A batch in which the last two of four window slots were played."""
    rng = np.random.default_rng(0)
    rows = {
        name: torch.tensor(rng.uniform(0.1, 0.9, (LANES, *box.shape)), dtype=torch.float32)
        for name, box in space.spaces.items()
    }
    rows["window_ranks"][:, :SHOWN] = 0
    return rows


def slots(rows: dict[str, torch.Tensor]) -> torch.Tensor:
    """The window slot by slot, a view, (lanes, slots, statistics)."""
    return rows["window"].view(len(rows["window"]), WINDOW, -1)


def test_slots_before_the_first_segment_have_no_influence(extractor, seen):
    """Whatever they hold, the output is the same to the bit."""
    before = extractor(seen)
    slots(seen)[:, :SHOWN] = 7.0
    assert torch.equal(before, extractor(seen))


@pytest.mark.parametrize("slot", range(SHOWN, WINDOW))
def test_it_attends_to_every_segment_that_was_played(extractor, seen, slot):
    """Other statistics in one played slot change the output of every lane."""
    before = extractor(seen).detach()
    slots(seen)[:, slot] += 1.0
    assert ((extractor(seen) - before).abs().amax(-1) > 1e-4).all()


def test_which_segment_came_last_matters(extractor, seen):
    """Two played slots exchanged, ranks and all, change the output: without slot embeddings they would not."""
    before = extractor(seen).detach()
    slots(seen)[:, SHOWN:] = slots(seen)[:, SHOWN:].flip(1).clone()
    seen["window_ranks"][:, SHOWN:] = seen["window_ranks"][:, SHOWN:].flip(1).clone()
    assert (extractor(seen) - before).abs().max() > 1e-4


def test_no_number_of_the_observation_is_ignored(extractor, seen):
    """The gradient to every number of every entry is non-zero, unplayed slots aside."""
    for rows in seen.values():
        rows.requires_grad_()
    weights = torch.randn(LANES, extractor.features_dim)
    (extractor(seen) * weights).sum().backward()
    played = torch.ones_like(seen["window"], dtype=torch.bool)
    played.view(LANES, WINDOW, -1)[:, :SHOWN] = False
    for name, rows in seen.items():
        counted = {"window": played, "window_ranks": seen["window_ranks"] > 0}.get(name, torch.ones_like(rows) > 0)
        assert (rows.grad[counted] != 0).all(), name


def test_a_batch_gives_what_each_observation_alone_gives(extractor, seen):
    """To 1e-5: a policy evaluated in lanes is the policy that runs alone."""
    together = extractor(seen)
    for lane in range(LANES):
        alone = extractor({name: rows[lane : lane + 1] for name, rows in seen.items()})
        torch.testing.assert_close(alone[0], together[lane], rtol=0, atol=1e-5)


def test_the_fused_path_of_evaluation_gives_what_training_gave(extractor, seen):
    """To 1e-5, with and without unplayed slots: PyTorch takes another kernel in evaluation mode."""
    for shown in (SHOWN, 0, WINDOW):
        seen["window_ranks"] = torch.full((LANES, WINDOW), 0.5)
        seen["window_ranks"][:, :shown] = 0
        trained = extractor.train()(seen)
        with torch.no_grad():
            torch.testing.assert_close(extractor.eval()(seen), trained, rtol=0, atol=1e-5)


ALGORITHMS = [
    (PPO, {"n_steps": 32, "batch_size": 32, "n_epochs": 1}),
    (MaskablePPO, {"n_steps": 32, "batch_size": 32, "n_epochs": 1}),
    (A2C, {"n_steps": 8}),
    (DQN, {"learning_starts": 16, "buffer_size": 100, "batch_size": 16}),
    (QRDQN, {"learning_starts": 16, "buffer_size": 100, "batch_size": 16}),
]


@pytest.mark.parametrize(("algorithm", "settings"), ALGORITHMS, ids=lambda value: getattr(value, "__name__", ""))
def test_it_learns_under_every_algorithm_for_discrete_actions(free_game, algorithm, settings):
    """64 steps move every weight of the extractor: none is left out of the graph."""
    model = algorithm(
        "MultiInputPolicy", free_game.env(), policy_kwargs=transformer_policy_kwargs(16), seed=0, **settings
    )
    found = next(part for part in model.policy.modules() if isinstance(part, TransformerExtractor))
    before = {name: weight.detach().clone() for name, weight in found.named_parameters()}
    model.learn(64)
    for name, weight in found.named_parameters():
        assert not torch.equal(before[name], weight), name


def test_the_whole_agent_is_small(free_game):
    """At most 100,000 weights with its heads: deciding must not cost what it saves."""
    model = MaskablePPO("MultiInputPolicy", free_game.env(), policy_kwargs=transformer_policy_kwargs())
    assert sum(weight.numel() for weight in model.policy.parameters()) <= 100_000
