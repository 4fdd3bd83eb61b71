"""The batched simulator: n lanes, each an episode of rank choices over an (instance, layer). No Gym word in it.

Values are computed per instance (see `store`); lanes only gather them, so one lane and many give the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np

from drrl_env.data.instances import Instance
from drrl_env.envs.game import Game
from drrl_env.envs.mechanism import Bools, Doubles, Integers, Lanes
from drrl_env.envs.observation import WINDOW
from drrl_env.envs.play import EFFECTS, Batch, Episode, Observation

RECALLED = 16_384
"""Steps of one lane that a game remembers whole, some 3 kB each; then it begins again."""


class Simulator:
    """Episodes in lanes.

    Args:
        game: tables and rules.
        lanes: number of lanes.
    """

    def __init__(self, game: Game, lanes: int) -> None:
        self.game, self.world = game, game.world
        self.mechanism, self.objective = game.mechanism, game.objective
        self.sizes, self.entries = game.mechanism.sizes, game.entries
        self.vector, self.terms = game.objective.vector, game.objective.terms
        self.parameter = game.objective.parameter
        self._segments = game.world.segments
        self._recalls = lanes == 1 and game.objective.parameter is None
        self._clock = np.linspace(0, 1, self._segments + 1, dtype=np.float32)[:, None]
        self._uris, self._layers = [""] * lanes, [0] * lanes
        self.lanes = _empty(lanes, game.mechanism.start, self._segments, game.mechanism.heads)
        self._some_ended, self._everything = True, np.ones((lanes, sum(game.mechanism.sizes)), bool)
        self._masks = self._everything

    def playable(self, layers: tuple[int, ...]) -> tuple[int, ...]:
        """An episode is played on one layer: any of them."""
        return layers

    def draw(self, layers: Integers, uniform: Doubles) -> Doubles:
        """The parameter of new episodes."""
        return self.objective.draw(layers, uniform)

    def check(self, layer: int, value: float) -> float:
        """A parameter somebody asked for."""
        return self.objective.check(layer, value)

    def begin(self, lanes: Sequence[int], episodes: Sequence[Episode]) -> None:
        """Begins an episode in each of some lanes: the previous rank is full."""
        found, start = _map(self.lanes, np.copy), self.mechanism.start
        where = np.array(lanes, np.int64)
        found.block[where] = [self.game.store.block(e.instance, e.layer) for e in episodes]
        found.layer[where] = [e.layer for e in episodes]
        found.parameter[where] = [e.parameter for e in episodes]
        found.position[where], found.state[where], found.history[where], found.spent[where] = 0, start, 0, 0
        self._name(lanes, episodes)
        self._arrive(found)

    def _name(self, lanes: Sequence[int], episodes: Sequence[Episode]) -> None:
        uris, layers = self._uris.copy(), self._layers.copy()  # the last batch's infos may still show them
        for lane, episode in zip(lanes, episodes, strict=True):
            uris[lane], layers[lane] = episode.instance.uri, episode.layer
        self._uris, self._layers = uris, layers

    def _arrive(self, lanes: Lanes) -> None:
        """Puts the lanes somewhere and looks it up there, measuring what is new."""
        ended = lanes.position == self._segments
        self._ended, self._some_ended = ended, bool(np.count_nonzero(ended))
        waiting = ~(self.mechanism.ready(lanes) | ended)
        if np.count_nonzero(waiting):
            for lane in np.flatnonzero(waiting):
                self.mechanism.prepare(lanes, int(lane))
        self.lanes = lanes
        self._masks = self._allowed()

    def _allowed(self) -> Bools:
        if not self.game.masked:
            return self._everything
        allowed = self.objective.allowed(self.lanes, self.mechanism.allowed(self.lanes))
        if self._some_ended:
            allowed = allowed | self._ended[:, None]
        return allowed

    def step(self, actions: Integers, where: Integers | None = None) -> Batch:
        """Carries out an action in every lane; a masked one becomes the nearest allowed one.

        Args:
            actions: choices, (lanes, components).
            where: numbers of the lanes to step; None for all.

        Returns:
            What came of it.

        Raises:
            ValueError: a lane's episode has ended, or none was begun.
        """
        if self._some_ended and (where is None or self._ended[where].any()):
            raise ValueError("step: the episode has ended; call reset first")
        at = self.lanes if where is None else _map(self.lanes, lambda rows: rows[where])
        batch = self._recalled(at, actions) if self._recalls and where is None else self._found(at, actions, where)
        moved = self._moved(at, batch)
        self._arrive(moved if where is None else self._put(where, moved))
        return batch

    def _recalled(self, at: Lanes, actions: Integers) -> Batch:
        """One lane's step, worked out once: where a task draws nothing it is the same whenever the lane is there."""
        memory = self.game.memory
        key = (at.block.item(), at.position.item(), at.state.tobytes(), actions.tobytes())
        found = memory.get(key)
        if found is None:
            if len(memory) >= RECALLED:
                memory.clear()
            found = memory[key] = self._found(at, actions, None)
        return found

    def _found(self, at: Lanes, wanted: Integers, where: Integers | None) -> Batch:
        """What actions do."""
        done = wanted
        if self.game.masked:
            done = self.mechanism.carried_out(at, wanted, self._masks if where is None else self._masks[where])
        effects = self.mechanism.effects(at, done)
        terms = self.objective.score(effects, at)
        rewards = np.stack(terms, axis=-1) if self.vector else _sum(terms)
        columns = {name: getattr(effects, name) for name in EFFECTS}
        columns |= self.game.cost_facts(effects)
        columns |= self.objective.facts(effects, at)
        named, changed = dict(zip(self.terms, terms, strict=True)), (done != wanted).any(-1)
        ended, described = at.position == self._segments - 1, self.mechanism.describe(at, done)
        return Batch(rewards, named, columns, done, changed, ended, described, where)

    def _moved(self, at: Lanes, batch: Batch) -> Lanes:
        """The lanes at their next segment."""
        shares, done = self.mechanism.shares(batch.actions), batch.actions
        history = np.concatenate([at.history[:, shares.shape[1] :], shares], axis=1)
        state, spent = self.mechanism.following(at, done), at.spent + batch.columns["flops"]
        return Lanes(at.block, at.layer, at.position + 1, state, history, at.parameter, spent)

    def _put(self, where: Integers, moved: Lanes) -> Lanes:
        """All lanes, some of them moved."""
        found = _map(self.lanes, np.copy)
        for each in fields(Lanes):
            getattr(found, each.name)[where] = getattr(moved, each.name)
        return found

    def observe(self) -> Observation:
        """The observation of every lane, fresh arrays, (lanes, size) each."""
        lanes, segments = self.lanes, self._segments
        seen = np.minimum(lanes.position, segments - 1) if self._some_ended else lanes.position
        static = self.game.store.static.take(lanes.block * segments + seen, axis=0)
        found = {name: static[:, columns] for name, columns in self.world.layout.slices.items()}
        found |= self.mechanism.observe(lanes)
        found |= self.objective.observe(lanes)
        found["position"] = self._clock.take(lanes.position, axis=0)
        return found

    def masks(self) -> Bools:
        """Allowed choices of every component side by side, (lanes, sum of sizes); all once an episode has ended."""
        return self._masks.copy()

    def infos(self, batch: Batch, masks: Bools) -> list[dict[str, Any]]:
        """What a user wants to know of a step, a dict of plain values per lane."""
        terms = _dicts(tuple(batch.terms), [values.tolist() for values in batch.terms.values()])
        shared = (terms, *(batch.columns[name].tolist() for name in EFFECTS), batch.changed.tolist(), masks)
        rows = zip(*shared, *self._names(batch.where), *(batch.described[name] for name in DESCRIBED), strict=False)
        found = [
            {
                "reward_terms": t, "cosine": c, "relative_error": e, "flops": f, "flops_ratio": q, "score_change": s,
                "masked_action": m, "action_mask": a, "instance": i, "layer": k, "rank": r, "value_rank": v,
                "choice": x,
            }
            for t, c, e, f, q, s, m, a, i, k, r, v, x in rows
        ]  # fmt: skip
        self._add(found, batch)
        if len(self.sizes) > 1:
            for info in found:
                info.update({name: list(info[name]) for name in DESCRIBED if isinstance(info[name], tuple)})
        return found

    def _names(self, where: Integers | None) -> tuple[list[str], list[int]]:
        """Instance and layer of the lanes."""
        if where is None:
            return self._uris, self._layers
        chosen = where.tolist()
        return [self._uris[lane] for lane in chosen], [self._layers[lane] for lane in chosen]

    def _add(self, found: list[dict[str, Any]], batch: Batch) -> None:
        """What only some tasks report."""
        further: dict[str, list[Any]] = {
            name: _tolist(values) for name, values in batch.columns.items() if name not in EFFECTS
        }
        further |= {name: values for name, values in batch.described.items() if name not in DESCRIBED}
        for name, values in further.items():
            for info, value in zip(found, values, strict=True):
                info[name] = value

    def start_info(self, lane: int) -> dict[str, Any]:
        """What `reset` says of a lane."""
        found: dict[str, Any] = {"instance": self._uris[lane], "layer": self._layers[lane]}
        if self.parameter is not None:
            found[self.parameter] = float(self.lanes.parameter[lane])
        found["action_mask"] = self._masks[lane].copy()
        return found

    def spectrum(self, lane: int) -> Doubles:
        """Share of the score energy that each rank keeps, up to the segment in front of the lane, (segments, ranks)."""
        if not self._uris[lane]:
            return np.empty((0, len(self.world.ranks)))
        to_full = self.game.store.changes[self.lanes.block[lane], : self.lanes.position[lane] + 1, :, -1]
        found: Doubles = 1 - to_full * to_full
        return found

    def state(self, lane: int) -> dict[str, Any]:
        """A lane as a value: plain JSON."""
        at = self.lanes
        return {
            "instance": self._uris[lane],
            "layer": self._layers[lane],
            "position": int(at.position[lane]),
            "state": at.state[lane].tolist(),
            "history": at.history[lane].tolist(),
            "parameter": float(at.parameter[lane]),
            "spent": float(at.spent[lane]),
        }

    def restore(self, lane: int, state: Mapping[str, Any], instance: Instance | None) -> None:
        """Puts a lane where it was when `state` was taken; the instance is None for one from before any episode."""
        if instance is None and not self._uris[lane]:
            return
        found = _map(self.lanes, np.copy)
        if instance is not None:
            found.block[lane] = self.game.store.block(instance, state["layer"])
        for name in ("layer", "position", "state", "history", "parameter", "spent"):
            getattr(found, name)[lane] = state[name]
        self._uris, self._layers = self._uris.copy(), self._layers.copy()
        self._uris[lane], self._layers[lane] = state["instance"], state["layer"]
        if state["position"] == self._segments:
            self.mechanism.prepare(found, lane)
        self._arrive(found)


DESCRIBED = ("rank", "value_rank", "choice")
"""What a mechanism says of an executed action, whatever the task."""


def _dicts(names: Sequence[str], columns: Sequence[list[float]]) -> list[dict[str, float]]:
    """A dict per lane; spelt out for the usual numbers of terms, since replayed steps spend their time here."""
    if len(names) == 3:
        a, b, c = names
        return [{a: x, b: y, c: z} for x, y, z in zip(*columns, strict=True)]
    if len(names) == 2:
        a, b = names
        return [{a: x, b: y} for x, y in zip(*columns, strict=True)]
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def _tolist(values: Doubles) -> list[float]:
    found: list[float] = values.tolist()
    return found


def _sum(terms: Sequence[Doubles]) -> Doubles:
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


def _empty(lanes: int, start: Sequence[int], segments: int, window: int) -> Lanes:
    zeros = np.zeros(lanes, np.int64)
    state = np.tile(np.array(start, np.int64), (lanes, 1))
    history = np.zeros((lanes, WINDOW * window), np.float32)
    return Lanes(zeros, zeros, np.full(lanes, segments), state, history, np.zeros(lanes), np.zeros(lanes))


def _map(lanes: Lanes, function: Callable[[Any], Any]) -> Lanes:
    return Lanes(**{each.name: function(getattr(lanes, each.name)) for each in fields(lanes)})


def pairs(found: Sequence[Instance], layers: Sequence[int]) -> list[tuple[Instance, int]]:
    """Every (instance, layer), instances first."""
    return [(instance, layer) for instance in found for layer in layers]
