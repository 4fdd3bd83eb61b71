"""Who takes part in a comparison is what was asked for, and what stands beside it costs the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from drrl_agents.entrants import OFFLINE, basis_entrants, group_name, group_runs, play
from drrl_agents.tasks import Task
from drrl_env.envs.store import Store
from drrl_policies.fitting import candidates
from drrl_policies.rollout import rollout

TASK = Task(context=512, layer=1)


def _spent(task: Task) -> list[float]:
    """FLOPs of every fixed rank over full attention's, on another text than the one that is matched on."""
    field = task.field("validation", 1, progress=False)
    return [float(rollout(rule.table, field).total_ratio(field.mean_full).mean()) for rule in candidates(field)]


@pytest.mark.parametrize("rank", [0, 3, 6])
def test_an_offline_basis_has_the_rank_whose_cost_was_asked_for(rank):
    """Exactly that of the cheapest, a middle and the last reduced rank; a little more or less changes nothing."""
    spent = _spent(Task(context=512, layer=1, basis="calibrated"))
    for nudge in (-0.01, 0.0, 0.01):
        gap = min((abs(spent[rank] - each) for at, each in enumerate(spent) if at != rank))
        found = [each.policies[0] for each in basis_entrants(TASK, spent[rank] + nudge * gap)]
        assert [policy.name.rpartition("-")[0] for policy in found] == list(OFFLINE)
        assert {tuple(policy.choices.ravel().tolist()) for policy in found} == {(rank,)}


def test_what_no_rank_costs_gets_the_nearest():
    """Nothing is as cheap as 0; and never full rank from end to end, where no basis is used."""
    spent = _spent(Task(context=512, layer=1, basis="calibrated"))
    for flops in (0.0, 9.0, spent[7]):
        for each in basis_entrants(TASK, flops):
            chosen = each.policies[0].choices.ravel().tolist()
            assert chosen[-1] < 7
            assert flops > 0 or chosen == [0]


@pytest.mark.parametrize("rank", [1, 4])
def test_a_cost_between_two_ranks_is_met_by_a_beginning_at_the_higher_one(rank):
    """Closer than either of them, on text that it was not matched on; the name says what is played."""
    own = Task(context=512, layer=1, basis="calibrated")
    spent, field = _spent(own), own.field("validation", 1, progress=False)
    wanted = (spent[rank] + spent[rank + 1]) / 2
    (each, *_) = [entrant.policies[0] for entrant in basis_entrants(TASK, wanted)]
    chosen = each.choices.ravel().tolist()
    assert chosen == sorted(chosen, reverse=True)
    assert {*chosen} == {chosen[0], chosen[0] - 1}
    ranks = field.arena.world.ranks
    assert each.name == f"kq-svd-{ranks[chosen[0]]}then{ranks[chosen[-1]]}"
    gap = abs(float(rollout(each, field).total_ratio(field.mean_full).mean()) - wanted)
    assert gap < min(abs(cost - wanted) for cost in spent)


def test_each_basis_is_played_as_its_own_task():
    """With `basis=` of that name, everything else as the task has it; the outcome is another one in each."""
    found = list(basis_entrants(TASK, 0.8))
    assert {each.name.rpartition("-")[0]: each.task.basis for each in found} == OFFLINE
    returns = [float(play(each, each.task.field("test", 1, progress=False))[0].returns[0]) for each in found]
    assert len(set(returns)) == len(OFFLINE)


def test_matching_a_cost_measures_nothing(monkeypatch):
    """What a fixed rank costs is the same on any text."""
    monkeypatch.setattr(Store, "fill", lambda *_: pytest.fail("measured"))
    assert len(list(basis_entrants(TASK, 0.8))) == len(OFFLINE)


@pytest.mark.parametrize("task", [Task("DRRL-Basis-v0", context=512), Task(context=512, guard="conformal")])
def test_a_task_to_which_the_bases_do_not_compare_has_none(task):
    """Where the agent chooses the basis itself, or the guard's promise holds for one basis alone."""
    assert list(basis_entrants(task, 0.8)) == []


def test_runs_are_named_after_what_was_done(finished_run):
    """The folder's name where it says more than algorithm and network, else those two."""
    place = Path("runs/DRRL-Attention-v0")
    named = {folder: group_name(place / folder / "seed-1", "ppo", "mlp") for folder in ("ppo-mlp-cloned-rl", "mine")}
    assert named == {"ppo-mlp-cloned-rl": "ppo-mlp-cloned-rl", "mine": "ppo-mlp"}
    (entrant,) = group_runs([finished_run], Task(context=512, basis="calibrated", guard="paper"))
    assert (entrant.name, entrant.seeds, entrant.folders) == ("maskable-ppo-transformer", (0,), (finished_run,))
    assert entrant.policies[0].name == "maskable-ppo-transformer-seed0"
