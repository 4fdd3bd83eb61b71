"""What happens before the first step of reinforcement learning: inputs fitted, the oracle cloned as the file says."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from sb3_contrib import MaskablePPO

from drrl_agents.agent import as_policy
from drrl_agents.algorithms import ALGORITHMS
from drrl_agents.hyperparameters import constructor_arguments, read_entry
from drrl_agents.imitation import LOSSES, Cloning
from drrl_agents.tasks import PLAYED, Task
from drrl_agents.warm_start import FILE, Recipe, check_imitation, described, recipe_of, train_field, warm_start
from drrl_policies.field import Field
from drrl_policies.rollout import reference, rollout
from drrl_policies.standard import Standard
from drrl_policies.transformer import transformer_policy_kwargs

TASK = Task(context=512, basis="calibrated", guard="paper")
RECIPE = Recipe(2, 1, 0.95, Cloning(epochs=3, batch=16), {})


@pytest.fixture(scope="module")
def field() -> Field:
    """Four layers of a train span."""
    return TASK.field("train", 1, progress=False)


def _model(seed: int = 0) -> MaskablePPO:
    lanes, kwargs = TASK.make_lanes("train", 1, 1), transformer_policy_kwargs()
    return MaskablePPO("MultiInputPolicy", lanes, policy_kwargs=kwargs, seed=seed, device="cpu")


@pytest.mark.parametrize("task", PLAYED)
def test_every_task_has_a_recipe_in_range(task):
    """Of the file's entry or its default: every number one that `clone` takes, and nothing is left over in the file."""
    found, entry = recipe_of(task), read_entry(FILE, task)
    cloning = found.cloning
    assert cloning.loss in LOSSES
    assert min(found.passes, found.repeats, cloning.epochs, cloning.batch) >= 1
    assert 0 < found.discount <= 1
    assert min(cloning.learning_rate, cloning.temperature) > 0
    assert min(cloning.weight_decay, cloning.value_weight, cloning.noise) >= 0
    assert set(entry) <= {"passes", "repeats", "discount", "then", *vars(cloning)}
    assert entry["epochs"] == cloning.epochs


@pytest.mark.parametrize("task", PLAYED)
def test_what_then_differs_is_known_to_the_algorithm(task):
    """Its constructor takes every one of them; and there are some, or reinforcement learning would undo the cloning."""
    then = recipe_of(task).then
    assert then
    assert constructor_arguments(then, MaskablePPO, TASK.make("train", 1).action_space).keys() == then.keys()


def test_a_recipe_is_plain_json():
    """As the run's config keeps it: read back it says the same."""
    found = described(recipe_of("DRRL-Tolerance-v0"))
    assert json.loads(json.dumps(found)) == found
    assert found["cloning"]["loss"] in LOSSES


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_only_actors_are_taught(algo):
    """Four of thirteen; the others are refused in one line that names them."""
    if algo in ("maskable-ppo", "ppo", "a2c", "trpo"):
        check_imitation(algo, "DRRL-Heads-v0")
        return
    with pytest.raises(ValueError, match=rf"^imitate=True: algo='{algo}' [^\n]*; use maskable-ppo, ppo, a2c or trpo$"):
        check_imitation(algo, "DRRL-Attention-v0")


def test_the_closed_loop_is_not_cloned():
    """It has no exact values off the oracle's plan; the line says what to do instead."""
    with pytest.raises(ValueError, match=r"^imitate=True: DRRL-Layers-v0 [^\n]*reinforcement learning alone$"):
        check_imitation("maskable-ppo", "DRRL-Layers-v0")


def test_without_a_recipe_only_the_inputs_are_fitted(field):
    """No loss, and every weight that is learnt stays; with one there is a loss of every epoch, which falls."""
    plain, taught = _model(), _model()
    before = {name: weights.clone() for name, weights in plain.policy.named_parameters()}
    assert warm_start(plain, field, None, 0, False) == []
    assert all(torch.equal(weights, before[name]) for name, weights in plain.policy.named_parameters())
    assert any((each.segment_scale != 1).any() for each in plain.policy.modules() if isinstance(each, Standard))
    losses = warm_start(taught, field, RECIPE, 0, False)
    assert len(losses) == 3
    assert losses[-1] < losses[0]


def test_it_draws_nothing_from_the_generator_that_training_draws_from(field):
    """The state of torch's is as before, so what reinforcement learning draws does not depend on the cloning."""
    model = _model()
    before = torch.get_rng_state()
    warm_start(model, field, RECIPE, 0, False)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_same_seed_clones_the_same_agent(field):
    """Bit for bit, whatever was drawn before; another seed strays elsewhere and gives other weights."""
    found = []
    for seed in (1, 1, 2):
        model = _model()
        torch.manual_seed(100 + len(found))
        warm_start(model, field, RECIPE, seed, False)
        found.append(torch.cat([weights.flatten() for weights in model.policy.state_dict().values()]))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_a_cloned_agent_plays_better_than_a_fresh_one(field):
    """On the episodes it was shown: .9 of the way from random to the oracle, where a fresh one is below .8."""
    model, known = _model(), reference(field)
    fresh = known.score(rollout(as_policy(model, "fresh", True, field), field).returns)
    warm_start(model, field, replace(RECIPE, cloning=Cloning(epochs=40, batch=16, learning_rate=2e-3)), 0, False)
    assert fresh < 0.8
    assert known.score(rollout(as_policy(model, "cloned", True, field), field).returns) > 0.9


def test_few_instances_are_looked_at_where_every_step_is_computed_live():
    """Two of the closed loop, whose every observation costs a pass through the model; elsewhere all that were asked."""
    live = train_field(Task("DRRL-Layers-v0", context=256), 3, 1, 0, False)
    assert len(live.episodes) == 2
    assert len(set(train_field(TASK, 3, 1, 0, False).instances)) == 3


def test_repeats_are_drawn_with_the_seed():
    """Tolerances of the train episodes are those of the run's seed."""
    task = Task("DRRL-Tolerance-v0", context=512, layer=0)
    first, again, other = (train_field(task, 1, 4, seed, False).parameters for seed in (0, 0, 1))
    assert len(first) == 4
    assert np.array_equal(first, again)
    assert not np.isclose(first, other).any()
