"""What standardises observations is fitted on the train split, on what random choices see there."""

from __future__ import annotations

import pytest
import torch
from sb3_contrib import MaskablePPO

from drrl_agents.inputs import fit_inputs, observed
from drrl_agents.tasks import Task
from drrl_policies.field import Field
from drrl_policies.transformer import TransformerExtractor, transformer_policy_kwargs

TASK = Task(context=512, basis="calibrated", guard="paper")


@pytest.fixture(scope="module")
def field() -> Field:
    """Four layers of two train spans."""
    return TASK.field("train", 2, progress=False)


def _model(transformer: bool = True) -> MaskablePPO:
    kwargs = transformer_policy_kwargs() if transformer else {}
    lanes = TASK.make_lanes("train", 1, 1)
    return MaskablePPO("MultiInputPolicy", lanes, policy_kwargs=kwargs, seed=0, device="cpu")


def test_every_step_of_every_episode_is_observed(field):
    """Eight episodes of four steps: a row each, of every entry of the observation, and the clock has its four marks."""
    rows = observed(field)
    space = field.arena.observation_space
    assert {name: tuple(values.shape) for name, values in rows.items()} == {
        name: (32, *box.shape) for name, box in space.spaces.items()
    }
    assert len(rows["position"].unique()) == 4


def test_random_choices_are_those_of_the_seed(field):
    """The same rows again, and others of another seed: what was chosen shows in the previous rank."""
    first, again, other = (observed(field, seed) for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["previous_rank"], other["previous_rank"])
    assert (first["previous_rank"][8:].sum(0) > 0).sum() >= 4, "one rank after another is no random choice"


def test_a_transformer_is_fitted_on_these_rows(field):
    """Mean 0 and deviation 1 on them, the first before .5: `stable_rank` and the like lie far from zero."""
    model, rows = _model(), observed(field, 3)
    assert fit_inputs(model, field, 3)
    (standard,) = {each.standard for each in model.policy.modules() if isinstance(each, TransformerExtractor)}
    shown = standard(rows)["segment"]
    moving = rows["segment"].std(0) > 1e-3
    torch.testing.assert_close(shown[:, moving].mean(0), torch.zeros(int(moving.sum())), atol=1e-3, rtol=0)
    assert rows["segment"][:, moving].mean(0).abs().max() > 0.5


def test_networks_without_it_stay_as_they_are(field):
    """An MLP of the library's: nothing to fit, not a bit changes."""
    model = _model(transformer=False)
    before = {name: values.clone() for name, values in model.policy.state_dict().items()}
    assert not fit_inputs(model, field)
    assert all(torch.equal(values, before[name]) for name, values in model.policy.state_dict().items())
