"""What every face shares: a task on a pool of instances, played in lanes."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from numbers import Integral
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from drrl_env.data.instances import SPLITS, Instance, parse_uri
from drrl_env.envs.arguments import Arguments, known_arguments
from drrl_env.envs.codecs import Codec, resolve_codec
from drrl_env.envs.fingerprint import check_fingerprint, fingerprint
from drrl_env.envs.game import Rules
from drrl_env.envs.objectives import resolve_range
from drrl_env.envs.observation import Entry
from drrl_env.envs.play import Episode, Play
from drrl_env.envs.pool import instance_pool
from drrl_env.envs.settings import Measurement, one_of, resolve_guard, resolve_reward
from drrl_env.envs.tasks import TASKS, Task
from drrl_env.envs.world import World, open_world
from drrl_env.lowrank.statistics import select_statistics

DRAWS = 3
"""Uniform numbers an episode takes from its lane's generator: instance, layer, parameter."""


@dataclass(frozen=True)
class Arena:
    """A task on a pool of instances.

    Attributes:
        task: the task.
        codec: its action space, the task's own unless `actions=` asks for another.
        rules: its rules, resolved.
        play: the lanes.
        pool: instances episodes are drawn from.
        layers: layers they are drawn from.
        action_space: of one lane.
        observation_space: of one lane.
        by_uri: the pool by name.
        lanes: their number.
    """

    task: Task
    codec: Codec
    rules: Rules
    play: Play
    pool: tuple[Instance, ...]
    layers: tuple[int, ...]
    action_space: spaces.Space[Any]
    observation_space: spaces.Dict
    by_uri: dict[str, Instance] = field(default_factory=dict, repr=False)
    lanes: int = 1

    @property
    def world(self) -> World:
        """Model, calibration and sizes."""
        return self.play.world

    @property
    def reward_space(self) -> spaces.Box:
        """Of a vector reward: one number per term."""
        size = len(self.play.terms)
        return spaces.Box(-np.inf, np.inf, (size,), np.float32)

    def begin(
        self,
        lanes: Sequence[int],
        generators: Sequence[np.random.Generator],
        options: Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        """Begins an episode in each of some lanes, drawn from its generator unless options name it.

        Args:
            lanes: their numbers.
            generators: a generator for each; `DRAWS` numbers are taken from it.
            options: `instance` (a URI of the pool, `?layer=` allowed), `layer`, and the task's parameter, of each.
        """
        uniform = np.stack([generator.random(DRAWS) for generator in generators])
        places = (uniform[:, 0] * len(self.pool)).astype(np.int64).tolist()
        layers = np.array(self.layers).take((uniform[:, 1] * len(self.layers)).astype(np.int64))
        drawn = self.play.draw(layers, uniform[:, 2])
        episodes = [
            Episode(self.pool[place], layer, parameter)
            for place, layer, parameter in zip(places, layers.tolist(), drawn.tolist(), strict=True)
        ]
        if options is not None:
            uniforms = uniform[:, 2].tolist()
            episodes = [self._asked(*each) for each in zip(episodes, options, uniforms, strict=True)]
        self.play.begin(lanes, episodes)

    def _asked(self, drawn: Episode, options: Mapping[str, Any], uniform: float) -> Episode:
        """The episode that options name; what they leave open stays as drawn."""
        name = self.play.parameter
        known = ("instance", "layer", *([name] if name else []))
        for key in options:
            one_of("options", key, known)
        found, layer = drawn.instance, drawn.layer
        if "instance" in options:
            uri, asked = parse_uri(str(options["instance"]))
            found, layer = self._named(uri), layer if asked is None else asked
        layer = check_layer(self.world, options.get("layer", layer))
        if name is not None and name in options:
            return Episode(found, layer, self.play.check(layer, float(options[name])))
        again = (
            drawn.parameter
            if layer == drawn.layer
            else float(self.play.draw(np.array([layer]), np.array([uniform]))[0])
        )
        return Episode(found, layer, again)

    def _named(self, uri: str) -> Instance:
        if uri not in self.by_uri:
            raise ValueError(
                f"options['instance']={uri!r}: not among the {len(self.pool)} instances of this environment"
            )
        return self.by_uri[uri]

    def decode(self, actions: NDArray[Any]) -> NDArray[np.int64]:
        """Choices of the actions of all lanes, (lanes, components).

        Raises:
            ValueError: an action is outside its space, or there is not one for each lane.
        """
        found = self.codec.decode(actions, self.play.sizes)
        if len(found) != self.lanes:
            raise ValueError(f"action={actions!r}: {len(found)} actions for {self.lanes} lanes; give one for each")
        return found

    @cached_property
    def fingerprint(self) -> dict[str, Any]:
        """What a lane's state depends on beside its own numbers, as plain JSON."""
        return fingerprint(self.rules, self.world, self.pool, self.layers)

    def check_state(self, state: object) -> None:
        """Raises a one-line ValueError unless `state` is a lane's, of this task and these arguments."""
        if not isinstance(state, Mapping) or state.get("task") != self.task.id:
            raise ValueError(f"state={str(state)[:60]!r}: not of {self.task.id}; give what its get_state returned")
        check_fingerprint(self.fingerprint, state.get("arguments"))

    def check_states(self, states: Sequence[object]) -> None:
        """Raises a one-line ValueError unless there is such a state for every lane."""
        if not isinstance(states, Sequence) or len(states) != self.lanes:
            many = len(states) if isinstance(states, Sequence) else 1
            raise ValueError(f"states: {many} of them for {self.lanes} lanes; give a list of one a lane")
        for state in states:
            self.check_state(state)

    def restore(self, lane: int, state: Mapping[str, Any]) -> None:
        """Puts a lane where it was when `state` was taken, in this or another environment of the same arguments.

        Raises:
            ValueError: it is not such a state; one line that names what differs.
        """
        self.check_state(state)
        uri = str(state["instance"])
        self.play.restore(lane, state, self.by_uri[uri] if uri else None)

    def state(self, lane: int, generator: np.random.Generator | None) -> dict[str, Any]:
        """A lane and its generator as plain JSON."""
        return {
            "task": self.task.id,
            "arguments": copy.deepcopy(self.fingerprint),
            **self.play.state(lane),
            "generator": None if generator is None else _plain(generator.bit_generator.state),
        }


def restored_generator(state: Mapping[str, Any]) -> np.random.Generator | None:
    """The generator of a lane's state."""
    if state["generator"] is None:
        return None
    kind = getattr(np.random, str(state["generator"]["bit_generator"]))()
    kind.state = state["generator"]
    return np.random.Generator(kind)


def _plain(state: Mapping[str, Any]) -> dict[str, Any]:
    """Plain JSON of a bit generator's state."""
    found = {name: _plain(value) if isinstance(value, Mapping) else value for name, value in state.items()}
    return {name: value.item() if isinstance(value, np.generic) else value for name, value in found.items()}


def open_arena(task_id: str, lanes: int, given: Mapping[str, Any]) -> Arena:
    """Opens a task.

    Raises:
        ValueError: an argument is wrong; one line that names it, its value and the remedy.
    """
    one_of("task", task_id, tuple(TASKS))
    task, arguments = TASKS[task_id], known_arguments(task_id, given)
    codec, rules = resolve_codec(arguments.actions, task.codec, task.id), task_rules(task, arguments)
    world = open_world(rules.measurement)
    wanted, layer = named_layer(arguments.instances, arguments.layer)
    pool = instance_pool(world, arguments.split, wanted, arguments.text)
    play = task.play(rules, lanes)
    layers = play.playable(check_layers(world, layer))
    spaces_ = codec.space(play.sizes), observation_space(play.entries)
    return Arena(task, codec, rules, play, pool, layers, *spaces_, {found.uri: found for found in pool}, lanes)


def named_layer(wanted: int | Sequence[str] | None, layer: int | None) -> tuple[int | Sequence[str] | None, int | None]:
    """Instances without the layer that `?layer=N` behind their URIs names, and that layer.

    Raises:
        ValueError: the URIs, and `layer=`, name several.
    """
    if wanted is None or isinstance(wanted, (str, int, np.integer)):
        return wanted, layer
    parts = [parse_uri(uri) for uri in wanted]
    named = {each for _, each in parts} | ({layer} if layer is not None else set())
    if len(named - {None}) > 1 or (None in named and len(named) > 1 and layer is None):
        raise ValueError(f"instances={list(wanted)!r}: they name different layers; name one layer, or none")
    return [uri for uri, _ in parts], next(iter(named - {None}), None)


def task_rules(task: Task, arguments: Arguments) -> Rules:
    """The rules that arguments make of a task, all checked."""
    guard = resolve_guard(arguments.guard)
    reward = task.reward if arguments.reward == "default" else resolve_reward(arguments.reward)
    if arguments.split is not None:
        one_of("split", arguments.split, SPLITS)
    basis = task.bases[0] if arguments.basis is None else arguments.basis
    one_of("basis", basis, task.bases)
    limits = _limits(task, arguments)
    measurement = Measurement(
        str(arguments.model),
        arguments.segment,
        arguments.context,
        None if arguments.ranks is None else tuple(arguments.ranks),
        arguments.value_rank,
        basis,
        _statistics(task, arguments),
    )
    cost = task.cost if arguments.cost is None else str(arguments.cost)
    if cost != "flops" and not task.timed:
        raise ValueError(f"cost={cost!r}: {task.id} has no timings for its actions; use cost='flops'")
    return Rules(open_world(measurement).measurement, reward, guard, cost, limits)


def _statistics(task: Task, arguments: Arguments) -> tuple[str, ...] | None:
    """Names of the statistics to observe, the task's own where none are asked for."""
    if arguments.statistics is None:
        return task.statistics
    return tuple(found.name for found in select_statistics(arguments.statistics))


def _limits(task: Task, arguments: Arguments) -> tuple[float, float] | None:
    """The range of the task's parameter; a range of another task's is refused."""
    for name in ("tolerance", "budget"):
        value = getattr(arguments, name)
        if value is not None and name != task.parameter:
            fitting = [each.id for each in TASKS.values() if each.parameter == name]
            raise ValueError(f"{name}={value!r}: {task.id} draws none; use {' or '.join(fitting)}")
        if value is not None:
            return resolve_range(name, value)
    return None


def observation_space(entries: Sequence[Entry]) -> spaces.Dict:
    """The flat Dict of 1-D boxes."""
    return spaces.Dict({e.name: spaces.Box(e.low, e.high, (e.size,), np.float32) for e in entries})


def check_layer(world: World, layer: int) -> int:
    """The layer, if the model has it."""
    if not isinstance(layer, Integral) or isinstance(layer, bool) or not 0 <= layer < world.layers:
        raise ValueError(
            f"layer={layer}: model {world.measurement.model!r} has layers 0 to {world.layers - 1}; use one of them"
        )
    return int(layer)


def check_layers(world: World, layer: int | None) -> tuple[int, ...]:
    """All layers, or the one asked for."""
    return tuple(range(world.layers)) if layer is None else (check_layer(world, layer),)
