"""DRRL-Layers-v0: a step per (segment, layer) through a whole LM, in which approximated attention really flows on.

Nothing is tabulated, since what arrives at a layer depends on every rank executed before it: lanes are live, and
stepped one after the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from drrl_env.data.instances import Instance
from drrl_env.envs.flow import Flow, Terms, open_flow_rules, relative_changes
from drrl_env.envs.game import Rules
from drrl_env.envs.lane import Lane, lane_at, lane_entries
from drrl_env.envs.mechanism import Bools, Doubles, Integers
from drrl_env.envs.play import EFFECTS, Batch, Episode, Observation
from drrl_env.lowrank.attention import cosine, relative_error


@dataclass(frozen=True)
class Done:
    """What a step of one lane did.

    Attributes:
        terms: terms of the reward.
        columns: effects by name.
        told: what `info` says beside them.
        changed: whether another action was carried out than was asked for.
        ended: whether the episode has ended.
    """

    terms: Terms
    columns: Mapping[str, float]
    told: Mapping[str, object]
    changed: bool
    ended: bool


class LayersSimulator:
    """An action is a candidate rank for the layer that waits; its output flows on to the next layer, and from the last.

    Where `layer=` names one, only its rank is chosen, a step a segment; the other layers run full and are charged so.
    An observation shows the segment as it arrives at the layer that waits, errors of the layers below included, beside
    what was executed at that layer in the last segments and at the layers below in this one. Cosine and relative error
    compare with full attention of these same inputs; what that comparison takes is in no account. Under
    `guard="paper"` a change is taken from the rank that this layer executed last; the conformal guard's promise does
    not hold in closed loop. An episode holds the caches of a whole model: some 8 MB a layer of the bundled one.

    Args:
        rules: the rules, ranks resolved.
        lanes: number of lanes.

    Attributes:
        shared: rules and tables.
        layers: layers whose ranks are chosen.
    """

    vector = False
    parameter: str | None = None

    def __init__(self, rules: Rules, lanes: int) -> None:
        self.shared = open_flow_rules(rules)
        self.world, self.terms = self.shared.world, self.shared.reward.terms
        self.sizes: tuple[int, ...] = (len(self.world.ranks),)
        self.entries = lane_entries(self.world)
        self.layers = tuple(range(self.world.layers))
        self._lanes: list[Lane | None] = [None] * lanes

    def playable(self, layers: tuple[int, ...]) -> tuple[int, ...]:
        """An episode runs through all layers and begins at the first of those whose ranks are chosen."""
        self.layers = layers
        return layers[:1]

    def draw(self, layers: Integers, uniform: Doubles) -> Doubles:
        """Nothing is drawn."""
        return np.zeros(len(layers))

    def check(self, layer: int, value: float) -> float:
        """Nothing is drawn."""
        return 0.0

    def begin(self, lanes: Sequence[int], episodes: Sequence[Episode]) -> None:
        """Begins an episode in each of some lanes, at the first layer whose rank is chosen.

        Raises:
            ValueError: an episode on another layer was asked for.
        """
        for episode in episodes:
            if episode.layer != self.layers[0]:
                chosen = "all layers" if len(self.layers) > 1 else f"layer {self.layers[0]} alone"
                raise ValueError(
                    f"options['layer']={episode.layer}: ranks are chosen for {chosen}; "
                    f"make the environment with layer={episode.layer}"
                )
        for lane, episode in zip(lanes, episodes, strict=True):
            self._lanes[lane] = lane_at(self.shared, self.layers, episode.instance)

    def step(self, actions: Integers, where: Integers | None = None) -> Batch:
        """Carries out an action in every lane, or in those named; a masked one becomes the nearest allowed one.

        Raises:
            ValueError: a lane's episode has ended, or none was begun.
        """
        chosen = range(len(self._lanes)) if where is None else where.tolist()
        lanes = [lane for each in chosen if (lane := self._lanes[each]) is not None and not lane.flow.loop.ended]
        if len(lanes) < len(chosen):
            raise ValueError("step: the episode has ended; call reset first")
        done = [self._step(lane, int(row[0])) for lane, row in zip(lanes, actions, strict=True)]
        return self._batch(done, where)

    @torch.no_grad()
    def _step(self, lane: Lane, wanted: int) -> Done:
        """One lane; the action is measured before it is carried out, since the loop moves on with it."""
        flow, position, layer = lane.flow, lane.flow.loop.position, lane.layer
        choice = self.shared.carried_out(wanted, lane.allowed)
        columns = self._measured(flow, choice)
        lane.leave()
        terms, gained = flow.execute(choice)
        lane.arrive()
        cost = self.world.streams[layer].costs[choice]
        told = {
            "rank": cost.rank, "value_rank": cost.value_rank, "choice": choice, "instance": flow.instance.uri,
            "layer": layer, "segment": position, "log_likelihood_change": gained,
        }  # fmt: skip
        return Done(terms, columns, told, choice != wanted, flow.loop.ended)

    def _measured(self, flow: Flow, choice: int) -> dict[str, float]:
        """Cosine, error, FLOPs and change of a rank at the attention that waits."""
        shared, segment, previous = self.shared, flow.loop.segment, flow.previous
        move = flow.loop.layer, flow.loop.position, previous, choice
        moments, flops, cost = segment.moments(choice), float(shared.flops[move]), float(shared.cost[move])
        change = float(relative_changes(segment)[previous, choice])
        effects = cosine(moments), relative_error(moments), flops, flops / shared.mean_full, change
        charged = {} if shared.rules.cost == "flops" else {"latency": cost, "latency_ratio": cost / shared.mean_cost}
        return {**dict(zip(EFFECTS, effects, strict=True)), **charged}

    def _batch(self, done: Sequence[Done], where: Integers | None) -> Batch:
        terms = np.array([each.terms for each in done])
        rewards = terms[:, 0].copy()
        for term in terms.T[1:]:
            rewards += term
        named = dict(zip(self.terms, terms.T.copy(), strict=True))
        columns = {name: np.array([each.columns[name] for each in done]) for name in done[0].columns}
        described = {name: [each.told[name] for each in done] for name in done[0].told}
        changed, ended = (np.array([getattr(each, name) for each in done]) for name in ("changed", "ended"))
        actions = np.array(described["choice"], np.int64)[:, None]
        return Batch(rewards, named, columns, actions, changed, ended, described, where)

    def observe(self) -> Observation:
        """The observation of every lane, fresh arrays, (lanes, size) each; zeros before any episode."""
        nothing = {entry.name: np.zeros(entry.size, np.float32) for entry in self.entries}
        rows = [nothing if lane is None else lane.observe() for lane in self._lanes]
        return {name: np.stack([row[name] for row in rows]) for name in nothing}

    def masks(self) -> Bools:
        """Allowed choices, (lanes, ranks); all once an episode has ended."""
        everything = np.ones(self.sizes[0], bool)
        return np.stack([everything if lane is None else lane.allowed for lane in self._lanes])

    def infos(self, batch: Batch, masks: Bools) -> list[dict[str, Any]]:
        """What a user wants to know of a step, a dict of plain values per lane.

        Beside what every task says: `segment`, and where a segment was completed `log_likelihood_change`, nats per
        token against the full model.
        """
        columns = {name: values.tolist() for name, values in batch.columns.items()}
        columns |= {**batch.described, "masked_action": batch.changed.tolist(), "action_mask": list(masks)}
        terms = {name: values.tolist() for name, values in batch.terms.items()}
        found = []
        for lane in range(len(batch.rewards)):
            info = {"reward_terms": {name: values[lane] for name, values in terms.items()}}
            info |= {name: values[lane] for name, values in columns.items() if values[lane] is not None}
            found.append(info)
        return found

    def start_info(self, lane: int) -> dict[str, Any]:
        """What `reset` says of a lane."""
        found = self._lanes[lane]
        assert found is not None, "an episode was begun"
        return {"instance": found.flow.instance.uri, "layer": found.layer, "action_mask": found.allowed.copy()}

    def spectrum(self, lane: int) -> Doubles:
        """Share of the score energy that each rank keeps at the layer that waits, (segments arrived there, ranks)."""
        found = self._lanes[lane]
        return np.empty((0, self.sizes[0])) if found is None else found.spectrum()

    def state(self, lane: int) -> dict[str, Any]:
        """A lane as a value, plain JSON: the instance and what was chosen. The caches follow from them."""
        found = self._lanes[lane]
        uri, choices = ("", []) if found is None else (found.flow.instance.uri, found.flow.choices)
        return {"instance": uri, "layers": list(self.layers), "choices": choices}

    def restore(self, lane: int, state: Mapping[str, Any], instance: Instance | None) -> None:
        """Puts a lane where it was when `state` was taken; replays its choices unless a lane of this process is there.

        Raises:
            ValueError: its choices are for other layers.
        """
        layers = tuple(state["layers"])
        if layers != self.layers:
            raise ValueError(
                f"state: it was taken with ranks chosen at layers {list(layers)}, here they are chosen at "
                f"{list(self.layers)}; use one of the same arguments"
            )
        self._lanes[lane] = None if instance is None else lane_at(self.shared, self.layers, instance, state["choices"])


def open_layers(rules: Rules, lanes: int) -> LayersSimulator:
    """Live lanes of the closed loop.

    Raises:
        ValueError: an argument is wrong; one line that names it, its value and the remedy.
    """
    return LayersSimulator(rules, lanes)
