"""The Transformer uses all it is shown and nothing it is not, and serves every algorithm."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from sb3_contrib import QRDQN, MaskablePPO
from stable_baselines3 import A2C, DQN, PPO
from torch import nn

from drrl_env.envs.arena import open_arena
from drrl_env.envs.observation import CHUNKS, COMPONENTS, WINDOW
from drrl_env.envs.registration import IDS
from drrl_env.envs.render import steps_of_segment
from drrl_env.sb3 import make_vec_env
from drrl_policies.transformer import TransformerExtractor, entry_sizes, transformer_policy_kwargs

LANES, SHOWN = 5, 2
"""Lanes of a batch, and window slots that lie before the first segment."""
SEGMENTS = 6
"""Of the short episodes here: more than the window holds."""
TASKS = [task for task in IDS if task not in ("DRRL-Attention-MO-v0", "DRRL-Attention-Continuous-v0")]
"""Those that MaskablePPO plays."""


DEFAULT = {
    "energy": 8, "segment": 20, "window": 4 * 20, "layer": 13, "tokens": CHUNKS * COMPONENTS, "previous_rank": 8,
    "window_ranks": 4, "position": 1,
}  # fmt: skip
"""Sizes of the default observation on the bundled model."""
OBSERVATIONS = {
    "heads": {**DEFAULT, "previous_rank": 4 * 8, "window_ranks": WINDOW * 4},
    "a tolerance and a budget": {**DEFAULT, "tolerance": 1, "budget": 2},
    "no statistics": {"layer": 4, "previous_rank": 8, "window_ranks": 4, "position": 1},
    "no energy": {name: size for name, size in DEFAULT.items() if name != "energy"},
    "no text": {name: size for name, size in DEFAULT.items() if name != "tokens"},
    "another text": {**DEFAULT, "tokens": 40},
    "no ranks": {name: size for name, size in DEFAULT.items() if name not in ("window_ranks", "previous_rank")},
    "no past": {name: size for name, size in DEFAULT.items() if name not in ("window_ranks", "window")},
    "a clock": {"position": 1},
}


def space_of(sizes: dict[str, int]) -> spaces.Dict:
    """A Dict of boxes of these sizes."""
    return spaces.Dict({name: spaces.Box(-8, 8, (size,), np.float32) for name, size in sizes.items()})


@pytest.fixture(scope="module")
def env() -> gymnasium.Env:
    """Two short spans in a calibrated basis."""
    return gymnasium.make("drrl_env:DRRL-Attention-v0", context=512, instances=2, basis="calibrated")


def test_the_default_sizes_are_those_of_the_environment(env):
    """Or what follows would be about another observation."""
    assert {name: box.shape[0] for name, box in env.observation_space.spaces.items()} == DEFAULT


@pytest.fixture
def extractor() -> TransformerExtractor:
    """With weights of a size at which everything matters."""
    torch.manual_seed(0)
    return TransformerExtractor(space_of(DEFAULT))


@pytest.fixture
def seen() -> dict[str, torch.Tensor]:
    """A batch in which the last two of four window slots were played."""
    rng = np.random.default_rng(0)
    rows = {
        name: torch.tensor(rng.uniform(0.1, 0.9, (LANES, size)), dtype=torch.float32) for name, size in DEFAULT.items()
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


@pytest.mark.parametrize("left_out", ["", "window_ranks"])
def test_slots_before_the_first_segment_are_padding_whatever_the_inputs_are_standardised_to(left_out):
    """Means far from zero make the zeros of such a slot other numbers, yet it stays padding; a played one does not."""
    sizes = {name: size for name, size in DEFAULT.items() if name != left_out}
    found, rows = TransformerExtractor(space_of(sizes)), drawn(sizes)
    for name, times in (("window", 20), ("window_ranks", 1)):
        if name in rows:
            rows[name][:, : SHOWN * times] = 0
    found.standard.fit({name: values + 3.0 for name, values in drawn(sizes).items()})
    seen = []
    found.encoder.register_forward_hook(lambda *given: seen.append(given[2]["src_key_padding_mask"]), with_kwargs=True)
    found(rows)
    assert seen[0][:, :WINDOW].tolist() == [[True] * SHOWN + [False] * (WINDOW - SHOWN)] * LANES


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


def drawn(sizes: dict[str, int]) -> dict[str, torch.Tensor]:
    """A batch of observations, every window slot played."""
    random = torch.Generator().manual_seed(1)
    return {name: 0.1 + 0.8 * torch.rand(LANES, size, generator=random) for name, size in sizes.items()}


def test_the_default_observation_is_read_as_ever():
    """The layers of the first release, drawn in its order under one seed: a seed still gives the same policy.

    What standardises its inputs is not learnt and draws nothing.
    """
    torch.manual_seed(5)
    found = TransformerExtractor(space_of(DEFAULT)).state_dict()
    found = {name: value for name, value in found.items() if not name.startswith("standard.")}
    torch.manual_seed(5)
    layers = {
        "past": nn.Linear(21, 64), "present": nn.Linear(29, 64), "layer": nn.Linear(13, 64),
        "text": nn.Conv1d(16, 64, 3, padding=1), "rank": nn.Linear(8, 64, bias=False),
    }  # fmt: skip
    slots = 0.02 * torch.randn(8, 64)
    block = nn.TransformerEncoderLayer(64, 4, 128, 0.0, "gelu", batch_first=True, norm_first=True)
    layers["encoder"] = nn.TransformerEncoder(block, 2, nn.LayerNorm(64), enable_nested_tensor=False)
    wanted = {f"{at}.{name}": value for at, layer in layers.items() for name, value in layer.state_dict().items()}
    assert found.keys() == wanted.keys() | {"slots"}
    assert torch.equal(found["slots"], slots)
    assert all(torch.equal(found[name], value) for name, value in wanted.items())
    assert sum(value.numel() for value in found.values()) == 75_456


@pytest.mark.parametrize("name", OBSERVATIONS)
def test_any_task_and_selection_is_read_whole(name):
    """Every number of every entry has a gradient, for other entries than the default's and for fewer."""
    torch.manual_seed(0)
    found, rows = TransformerExtractor(space_of(OBSERVATIONS[name])), drawn(OBSERVATIONS[name])
    for value in rows.values():
        value.requires_grad_()
    output = found(rows)
    assert output.shape == (LANES, 64)
    (output * torch.randn(LANES, 64)).sum().backward()
    for entry, value in rows.items():
        assert (value.grad != 0).all(), entry
    assert all(weight.grad is not None for weight in found.parameters())


def test_a_slot_is_played_as_soon_as_one_head_has_a_rank():
    """Heads side by side in a slot: slots without any rank have no influence, one with a single rank has."""
    torch.manual_seed(0)
    sizes = OBSERVATIONS["heads"]
    found, rows = TransformerExtractor(space_of(sizes)), drawn(sizes)
    rows["window_ranks"][:, : SHOWN * 4] = 0
    before = found(rows).detach()
    slots(rows)[:, :SHOWN] = 7.0
    assert torch.equal(before, found(rows))
    rows["window_ranks"][:, SHOWN * 4 - 1] = 0.5
    assert ((found(rows) - before).abs().amax(-1) > 1e-4).all()


def test_the_order_of_unknown_entries_does_not_matter():
    """A task that lists its entries otherwise gets the same policy from the same seed, to the bit."""
    sizes = OBSERVATIONS["a tolerance and a budget"]
    rows, outputs = drawn(sizes), []
    for names in (sizes, reversed(sizes)):
        torch.manual_seed(0)
        outputs.append(TransformerExtractor(space_of({name: sizes[name] for name in names}))(rows))
    assert torch.equal(*outputs)


def test_an_observation_it_cannot_read_is_named():
    """One line with the entry and the remedy."""
    picture = spaces.Dict({"picture": spaces.Box(0, 1, (4, 4), np.float32)})
    with pytest.raises(ValueError, match=r"observation_space\['picture'\]: shape \(4, 4\); use one-dimensional boxes"):
        TransformerExtractor(picture)
    with pytest.raises(ValueError, match=r"observation_space\['window'\]: 6 numbers; use a multiple of 4"):
        TransformerExtractor(space_of({"window": 6, "position": 1}))


ALGORITHMS = [
    (PPO, {"n_steps": 32, "batch_size": 32, "n_epochs": 1}),
    (MaskablePPO, {"n_steps": 32, "batch_size": 32, "n_epochs": 1}),
    (A2C, {"n_steps": 8}),
    (DQN, {"learning_starts": 16, "buffer_size": 100, "batch_size": 16}),
    (QRDQN, {"learning_starts": 16, "buffer_size": 100, "batch_size": 16}),
]


@pytest.mark.parametrize(("algorithm", "settings"), ALGORITHMS, ids=lambda value: getattr(value, "__name__", ""))
def test_it_learns_under_every_algorithm_for_discrete_actions(env, algorithm, settings):
    """64 steps move every weight of the extractor: none is left out of the graph."""
    model = algorithm("MultiInputPolicy", env, policy_kwargs=transformer_policy_kwargs(16), seed=0, **settings)
    found = next(part for part in model.policy.modules() if isinstance(part, TransformerExtractor))
    before = {name: weight.detach().clone() for name, weight in found.named_parameters()}
    model.learn(64)
    for name, weight in found.named_parameters():
        assert not torch.equal(before[name], weight), name


@pytest.mark.parametrize("task", [*TASKS, "DRRL-Attention-Continuous-v0"])
def test_the_whole_agent_is_small(task):
    """At most 100,000 weights with both heads, on every task: deciding must not cost what it saves."""
    lanes = make_vec_env(task, 2, instances=1)
    algorithm = MaskablePPO if task in TASKS else PPO
    model = algorithm("MultiInputPolicy", lanes, policy_kwargs=transformer_policy_kwargs())
    assert sum(weight.numel() for weight in model.policy.parameters()) <= 100_000


@pytest.mark.parametrize("task", TASKS)
def test_every_entry_of_every_task_is_used(task):
    """No number of any entry has a gradient of zero, the rank and the parameter of the episode included."""
    space = open_arena(task, 1, {"instances": 1}).observation_space
    torch.manual_seed(0)
    found, rows = TransformerExtractor(space), drawn(entry_sizes(space))
    for value in rows.values():
        value.requires_grad_()
    (found(rows) * torch.randn(LANES, 64)).sum().backward()
    assert set(rows) == set(space.spaces)
    for entry, value in rows.items():
        assert (value.grad != 0).all(), entry


@pytest.mark.parametrize("task", TASKS)
def test_what_is_padding_in_a_real_episode_is_masked_and_nothing_else(task):
    """At every step of an episode: noise in a slot changes the output where a segment was played, and nowhere else.

    A mask from the statistics alone, or one that took rank by layer for rank by segment, would fail in DRRL-Layers-v0.
    """
    lanes = make_vec_env(task, 1, seed=0, context=768, instances=1)
    torch.manual_seed(0)
    found, observation = TransformerExtractor(lanes.observation_space).eval(), lanes.reset()
    each = steps_of_segment(lanes.arena)
    for step in range(SEGMENTS * each):
        ranks = observation["window_ranks"].reshape(WINDOW, -1)
        assert ((ranks > 0).any(-1) == (np.arange(WINDOW) >= WINDOW - step // each)).all(), step
        assert [seen_slot(found, observation, slot) for slot in range(WINDOW)] == (ranks > 0).any(-1).tolist()
        observation, *_ = lanes.step(np.stack([lanes.action_space.sample()]))


def seen_slot(found: TransformerExtractor, observation: dict[str, np.ndarray], slot: int) -> bool:
    """Whether other statistics in a slot of the window change the output."""
    rows = {name: torch.from_numpy(values.copy()) for name, values in observation.items()}
    with torch.no_grad():
        before = found(rows)
        slots(rows)[:, slot] += 1.0
        return not torch.equal(before, found(rows))


def test_gradients_can_be_differentiated_again_where_an_algorithm_does():
    """TRPO's Hessian-vector products: fused attention has no second derivative, and says so; ours gives the same."""
    torch.manual_seed(0)
    plain = TransformerExtractor(space_of(DEFAULT))
    twice = TransformerExtractor(space_of(DEFAULT), second_order=True)
    twice.load_state_dict(plain.state_dict())
    rows = drawn(DEFAULT)
    torch.testing.assert_close(twice(rows), plain(rows), rtol=0, atol=1e-5)
    for found in (plain, twice):
        (gradient,) = torch.autograd.grad(found(rows).square().sum(), found.slots, create_graph=True)
        if found is plain:
            with pytest.raises(RuntimeError, match=r"derivative for .* is not implemented"):
                torch.autograd.grad(gradient.sum(), found.slots)
        else:
            assert (torch.autograd.grad(gradient.sum(), found.slots)[0] != 0).any()


def test_the_mode_of_every_part_follows(extractor):
    """Setting the mode it is in costs nothing, and setting another reaches every part."""
    for mode in (False, False, True, True, False):
        extractor.train(mode)
        assert {part.training for part in extractor.modules()} == {mode}
