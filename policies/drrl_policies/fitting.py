"""Fitting rule policies on the train split, and the oracle of a field."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
from tqdm import tqdm

from drrl_env.envs.basis import CALIBRATED, KEPT, REFRESHED
from drrl_env.envs.mechanism import Doubles
from drrl_env.envs.optima import SOLVERS
from drrl_env.envs.processes import Process, process
from drrl_env.envs.solvers.decision import DecisionProcess, plan, rank_process
from drrl_policies.accounts import step_layers
from drrl_policies.base import Choices, Masks, Policy
from drrl_policies.field import Field
from drrl_policies.rollout import rollout
from drrl_policies.rules import Bins, EnergyThreshold, Oracle, Random, Table, ToleranceThreshold, constant

SHARES = 1 - np.geomspace(1e-4, 0.5, 40)
"""Energy shares a threshold is chosen from, .9999 to .5; every eighth where each trial is computed live."""
SCALES = np.geomspace(1e-3, 1e3, 61)
"""Factors κ that a threshold on ε² is chosen from."""
BINS = 8
"""Bins of what a task draws, equally many episodes in each."""


@dataclass(frozen=True)
class Candidate:
    """A rule that observes nothing.

    Attributes:
        family: rules among which the best is chosen.
        table: its choices.
    """

    family: str
    table: Table


def returns(policy: Policy, field: Field) -> Doubles:
    """Return of every episode, (episodes,)."""
    return rollout(policy, field).returns


def candidates(field: Field) -> list[Candidate]:
    """One rank for everything, the lowest first; with every way to use a basis where an action names one."""
    named = list(enumerate(field.arena.world.ranks))
    if len(field.sizes) > field.rank_components:
        return [rule for choice, rank in named for rule in _basis_rules(field, choice, rank)]
    fixed = [constant(f"fixed-{rank}", field.sizes, (choice,) * len(field.sizes)) for choice, rank in named]
    return [Candidate("fixed", table) for table in fixed]


def _basis_rules(field: Field, choice: int, rank: int) -> Iterator[Candidate]:
    """A rank in a basis that is always calibrated, always refreshed, or refreshed once and then kept."""
    yield Candidate("calibrated", constant(f"calibrated-{rank}", field.sizes, (choice, CALIBRATED)))
    yield Candidate("refreshed", constant(f"refreshed-{rank}", field.sizes, (choice, REFRESHED)))
    kinds = [REFRESHED, *[KEPT] * (field.steps - 1)]
    kept = np.array([[[choice, kind]] for kind in kinds])[None]
    yield Candidate("kept", Table(f"kept-{rank}", field.sizes, kept))


def full(field: Field) -> Table:
    """Plain full attention."""
    last = (len(field.arena.world.ranks) - 1,) * field.rank_components
    return constant("full", field.sizes, (*last, *[CALIBRATED] * (len(field.sizes) - len(last))))


def best_fixed(field: Field) -> Table:
    """The one constant rule with the highest mean return; of equal ones the highest rank."""
    return max((rule.table for rule in reversed(candidates(field))), key=lambda each: returns(each, field).mean())


def best_of_family(field: Field) -> dict[str, Table]:
    """The best constant rule of every family."""
    found: dict[str, list[Table]] = {}
    for rule in reversed(candidates(field)):
        found.setdefault(rule.family, []).append(rule.table)
    return {name: max(mine, key=lambda each: returns(each, field).mean()) for name, mine in found.items()}


def best_threshold(field: Field) -> EnergyThreshold:
    """The energy threshold with the highest mean return, one that knows the tolerance where there is one."""
    sizes, ranks = field.sizes, field.rank_components
    shares = SHARES[::8] if field.live else SHARES
    choices: list[EnergyThreshold] = [EnergyThreshold(sizes, float(share), ranks) for share in shares]
    if field.arena.play.parameter == "tolerance":
        choices = [ToleranceThreshold(sizes, float(scale)) for scale in SCALES]
    return max(choices, key=lambda policy: returns(policy, field).mean())


def best_layer_table(field: Field) -> Table:
    """The best constant rule of each layer; of equal ones, and where no episode is, the highest rank."""
    if field.live:
        start = best_fixed(field).choices.repeat(field.arena.world.layers, axis=0)
        return climb(Table("layer-table", field.sizes, start), field)
    return _by_group("layer-table", field, np.zeros(len(field.episodes), np.int64), None)


def best_parameter_table(field: Field) -> Table:
    """The best constant rule for each layer and bin of what the task drew."""
    groups, bins = _binned(field)
    return _by_group(f"layer-{bins.entry}-table", field, groups, bins)


def best_parameter_segment_table(field: Field) -> Table:
    """The best sequence of choices for each layer and bin of what the task drew, where a task is a finite process."""
    groups, bins = _binned(field)
    plans = [[_layer_plan(field, layer, groups == group) for group in range(BINS)] for layer in _layers(field)]
    return Table(
        f"layer-segment-{bins.entry}-table", field.sizes, np.stack([np.concatenate(row, axis=1) for row in plans]), bins
    )


def _binned(field: Field) -> tuple[Choices, Bins]:
    """The bin of every episode, and the bins: equally many episodes in each."""
    name = field.arena.play.parameter
    assert name is not None
    shown = _shown(field, name)
    edges = np.quantile(shown, np.arange(1, BINS) / BINS)
    return np.searchsorted(edges, shown), Bins(name, tuple(edges.tolist()))


def _shown(field: Field, name: str) -> Doubles:
    """What an observation shows of the drawn parameter, (episodes,)."""
    field.arena.play.begin(range(len(field.episodes)), field.episodes)
    found: Doubles = field.arena.play.observe()[name][:, 0].astype(np.float64)
    return found


def _by_group(name: str, field: Field, groups: Choices, bins: Bins | None) -> Table:
    """The best candidate of each (layer, group of episodes)."""
    rules = [rule.table for rule in reversed(candidates(field))]
    gained = np.stack([returns(rule, field) for rule in rules])
    count, layers, steps = 1 if bins is None else BINS, field.arena.world.layers, max(r.choices.shape[1] for r in rules)
    found = np.zeros((layers, steps, count, len(field.sizes)), np.int64)
    for layer, group in np.ndindex(layers, count):
        mine = gained[:, (field.layers == layer) & (groups == group)]
        found[layer, :, group] = rules[int(mine.sum(-1).argmax())].choices[0, :, 0]
    return Table(name, field.sizes, found, bins)


def best_layer_segment_table(field: Field) -> Table:
    """The sequence of choices with the highest mean return, layer by layer.

    Exact without a guard where a task is a finite decision process: the mean of the rewards is itself one. Elsewhere
    the better of that and of the layer table is improved an entry at a time.
    """
    layered = best_layer_table(field)
    start = Table("layer-segment-table", field.sizes, np.broadcast_to(layered.choices, _table_shape(field)).copy())
    if field.arena.task.id in SOLVERS:
        return climb(start, field)
    everything = np.ones(len(field.episodes), bool)
    plans = np.stack([_layer_plan(field, layer, everything) for layer in _layers(field)])
    planned = Table("layer-segment-table", field.sizes, plans)
    if field.arena.rules.guard.kind == "off":
        return planned
    gained = returns(start, field)
    return climb(_better(start, gained, planned.choices, field)[0], field)


def _table_shape(field: Field) -> tuple[int, int, int, int]:
    return field.arena.world.layers, field.steps, 1, len(field.sizes)


def _layers(field: Field) -> range:
    return range(field.arena.world.layers)


def _layer_plan(field: Field, layer: int, among: Masks) -> Choices:
    """The best open-loop choices of a layer on some episodes, full where there is none, (steps, 1, components)."""
    mine = [e for e, wanted in zip(field.episodes, among, strict=True) if wanted and e.layer == layer]
    if not mine:
        return np.broadcast_to(full(field).choices[0], _table_shape(field)[1:])
    bar = tqdm(mine, desc=f"table of layer {layer}", leave=False, disable=not field.progress or len(mine) < 64)
    known = [process(field.game, field.game.store.block(e.instance, e.layer), e.parameter) for e in bar]
    mean = np.mean([each.decision.rewards for each in known], axis=0)
    found: Choices = known[0].actions[plan(_open_loop(known[0], mean)).choices][:, None]
    return found


def _open_loop(known: Process, mean: Doubles) -> DecisionProcess:
    """The process of a table: the mean rewards; a guard, which differs by instance, is left out of it."""
    return rank_process(mean) if known.actions.shape[1] == 1 else replace(known.decision, rewards=mean)


def best_heads_table(field: Field) -> Table:
    """A rank per layer and head, allotted on the train split: the static allocation of design §2."""
    start = best_layer_table(field)
    return climb(Table("layer-head-table", field.sizes, start.choices), field)


def climb(table: Table, field: Field) -> Table:
    """Changes single entries while that raises the mean return; layers that share no episode are changed together."""
    scopes = [[layer] for layer in np.unique(step_layers(field))] if field.live else [list(_layers(field))]
    gained, before = returns(table, field), None
    while before is not table:
        before = table
        for step, component in np.ndindex(table.choices.shape[1], table.choices.shape[3]):
            for scope, choice in product(scopes, range(field.sizes[component])):
                changed = table.choices.copy()
                changed[scope, step, :, component] = choice
                table, gained = _better(table, gained, changed, field)
    return table


def _better(table: Table, gained: Doubles, changed: Choices, field: Field) -> tuple[Table, Doubles]:
    """Layer by layer the row with the higher mean return, the first table's where equal, and its returns."""
    if (changed == table.choices).all():
        return table, gained
    other = Table(table.name, table.sizes, changed, table.bins)
    played = returns(other, field)
    better = np.bincount(field.layers, played - gained, minlength=len(changed)) > 1e-9
    if field.live:
        better[:] = better.any()
    if not better.any():
        return table, gained
    mixed = np.where(better[:, None, None, None], changed, table.choices)
    return Table(table.name, table.sizes, mixed, table.bins), np.where(better[field.layers], played, gained)


def oracle_policy(field: Field) -> Oracle:
    """The oracle of these episodes."""
    return Oracle(field.sizes, np.stack([optimum.choices for optimum in field.optima]))


def rule_policies(train: Field, seed: int = 0) -> list[Policy]:
    """Every rule policy of a task, fitted on train episodes."""
    observed = EnergyThreshold.reads <= set(train.arena.world.layout.slices)
    found: list[Policy] = [Random(train.sizes, seed), full(train), *best_of_family(train).values()]
    found += [best_threshold(train)] if observed else []
    found.append(best_layer_table(train))
    if train.live:
        return found
    if train.arena.play.parameter:
        found.append(best_parameter_table(train))
        found += [best_parameter_segment_table(train)] if train.arena.task.id not in SOLVERS else []
    found += [best_heads_table(train)] if train.rank_components > 1 else []
    return [*found, best_layer_segment_table(train)]


def named(policies: Sequence[Policy], name: str) -> Policy:
    """The first policy whose name begins so."""
    return next(policy for policy in policies if policy.name.startswith(name))
