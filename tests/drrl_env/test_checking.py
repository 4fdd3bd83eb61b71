"""`check_env` passes what is sound and names what is broken: every fault it promises to see is put in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest

import drrl_env
from drrl_env import checking
from drrl_env.checking import CHECKS, CheckError, check_env
from drrl_env.envs.heads import HeadsMechanism
from drrl_env.envs.ranks import RankMechanism
from drrl_env.envs.settings import Guard
from drrl_env.envs.simulator import Simulator
from drrl_env.envs.single import RankEnv
from drrl_env.envs.tasks import TASKS
from drrl_env.envs.vector import RankVectorEnv
from drrl_env.sb3 import RankVecEnv

SHORT = {"context": 512, "instances": 2, "layer": 1}
ATTENTION = "DRRL-Attention-v0"
LIVE = ("DRRL-Layers-v0",)
"""Tasks played live: fewer steps of shorter spans are as many seconds."""
PAIRS = [(task, guard) for task in TASKS for guard in ("off", "paper") if task not in LIVE or guard == "paper"]
Patch = pytest.MonkeyPatch


@pytest.fixture
def _few(monkeypatch: Patch) -> None:
    """Few rounds and forks, no other process, and no step recalled: what is tested is whether a fault is seen now."""
    monkeypatch.setattr(Simulator, "_recalled", lambda self, at, actions: self._found(at, actions, None))
    monkeypatch.setattr(checking, "FACE_ROUNDS", 9)
    monkeypatch.setattr(checking, "FORKS", 2)
    monkeypatch.delitem(CHECKS, "another process")


@pytest.mark.usefixtures("_few")
@pytest.mark.parametrize(("task", "guard"), PAIRS)
def test_every_task_passes(task: str, guard: str) -> None:
    """40 steps, 6 where each is played live; the report has a line for every check."""
    steps, context = (6, 256) if task in LIVE else (40, 512)
    report = check_env(task, steps, guard=guard, **{**SHORT, "context": context})
    assert list(report.lines) == list(CHECKS)
    assert str(report).startswith(f"{task} (guard={guard!r}, context={context}, instances=2, layer=1)")
    assert len(str(report).splitlines()) == len(CHECKS) + 1


@pytest.mark.usefixtures("_few")
def test_a_task_of_indices_passes_with_actions_that_are_numbers() -> None:
    """`actions="box"`: all three faces, states and the libraries' own checkers."""
    report = check_env("DRRL-Tolerance-v0", 40, actions="box", guard="paper", **SHORT)
    assert list(report.lines) == list(CHECKS)


def test_another_process_gives_the_same_bits() -> None:
    """Computed anew there, under another hash seed."""
    case = checking.Case("DRRL-Heads-v0", 12, 3, {**SHORT, "guard": "paper"})
    assert checking.check_process(case) == "12 steps computed anew, the same bits"


def test_another_process_that_differs_or_fails_is_told(monkeypatch: Patch) -> None:
    """By the first observation that does; by the last line it wrote."""
    case = checking.Case(ATTENTION, 3, 3, SHORT)
    case.walked[2] = "0" * 16
    with pytest.raises(checking.BrokenError, match="observation 2, resets counted, has other bits when computed anew"):
        checking.check_process(case)
    monkeypatch.setattr(checking, "PROGRAM", "raise SystemExit('no such luck')")
    with pytest.raises(checking.BrokenError, match="the other process ended with code 1: no such luck"):
        checking.check_process(case)


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_every_task_passes_10_000_steps(task: str) -> None:
    """The issue's bar: all checks, on one span of every kind of text at full length; a quarter of it if played live."""
    check_env(task, 10_000, guard="paper", instances=4, context=512 if task in LIVE else 2048)


def test_it_is_a_function_of_the_package() -> None:
    """`drrl_env.check_env`; the id may be the one that imports the package."""
    assert drrl_env.check_env is check_env
    with pytest.raises(ValueError, match="env_id='DRRL-Atention-v0': unknown; use one of 'DRRL-Attention-v0'"):
        check_env("drrl_env:DRRL-Atention-v0")
    with pytest.raises(ValueError, match="steps=0"):
        check_env(ATTENTION, 0)
    with pytest.raises(ValueError, match="contxt=512"):
        check_env(ATTENTION, 1, contxt=512)


def wrapped(monkeypatch: Patch, owner: Any, name: str, change: Callable[..., Any]) -> None:
    """Puts `change(what it gave, *arguments)` in the place of a method's result."""
    real = getattr(owner, name)
    monkeypatch.setattr(owner, name, lambda *args, **kwargs: change(real(*args, **kwargs), *args))


def info_with(name: str, value: Callable[[dict[str, Any]], Any]) -> Callable[[Patch], None]:
    """A fault: every step's info says something else under a name."""

    def fault(monkeypatch: Patch) -> None:
        def changed(infos: list[dict[str, Any]], *_: Any) -> list[dict[str, Any]]:
            return [{**info, name: value(info)} for info in infos]

        wrapped(monkeypatch, Simulator, "infos", changed)

    return fault


def step_with(change: Callable[[tuple[Any, ...]], tuple[Any, ...]]) -> Callable[[Patch], None]:
    """A fault: `step` gives something else."""
    return lambda monkeypatch: wrapped(monkeypatch, RankEnv, "step", lambda given, *_: change(given))


def observation_out_of_bounds(monkeypatch: Patch) -> None:
    """One entry beyond its space, at the end of an episode only."""

    def change(found: dict[str, Any], simulator: Simulator) -> dict[str, Any]:
        ended = simulator.lanes.position == 4
        return {**found, "previous_rank": found["previous_rank"] + 2 * ended[:, None].astype(np.float32)}

    wrapped(monkeypatch, Simulator, "observe", change)


def random_observation(monkeypatch: Patch) -> None:
    """A generator that no seed reaches."""
    random = np.random.default_rng()

    def change(found: dict[str, Any], *_: Any) -> dict[str, Any]:
        noise = random.random(found["position"].shape, np.float32) * np.float32(1e-6)
        return {**found, "position": np.clip(found["position"] - noise, 0, 1)}

    wrapped(monkeypatch, Simulator, "observe", change)


def empty_mask(monkeypatch: Patch) -> None:
    """A guard that forbids full rank too."""
    wrapped(monkeypatch, RankMechanism, "allowed", lambda found, *_: np.zeros_like(found))


def mask_in_info_only(monkeypatch: Patch) -> None:
    """What sb3-contrib asks for is not what info says."""

    def change(mask: Any, *_: Any) -> Any:
        mask[0] = not mask[0]
        return mask

    wrapped(monkeypatch, RankEnv, "action_masks", change)


def masked_action_carried_out(monkeypatch: Patch) -> None:
    """The mechanism does what it is told."""
    monkeypatch.setattr(RankMechanism, "carried_out", lambda self, lanes, actions, allowed: actions)


def forgotten_spending(monkeypatch: Patch) -> None:
    """A state without the ranks executed before: observations differ after a fork."""

    def change(state: dict[str, Any], *_: Any) -> dict[str, Any]:
        return {**state, "history": [0.0] * len(state["history"])}

    wrapped(monkeypatch, Simulator, "state", change)


def pickle_without_generator(monkeypatch: Patch) -> None:
    """EzPickle's fault: the next episode is drawn anew."""
    monkeypatch.setattr(RankEnv, "__reduce__", lambda self: (type(self), (self.arena.task.id,), {}))


def vector_face_off_by_a_bit(monkeypatch: Patch) -> None:
    """Rewards of the Gymnasium vector face in their last place."""

    def change(given: tuple[Any, ...], *_: Any) -> tuple[Any, ...]:
        return (given[0], np.nextafter(given[1], 9), *given[2:])

    wrapped(monkeypatch, RankVectorEnv, "step", change)


def sb3_face_resets_late(monkeypatch: Patch) -> None:
    """The terminal observation is that of the next episode."""

    def change(given: Any, *_: Any) -> Any:
        for lane, info in enumerate(given[3]):
            if "terminal_observation" in info:
                info["terminal_observation"] = {name: rows[lane] for name, rows in given[0].items()}
        return given

    wrapped(monkeypatch, RankVecEnv, "step_wait", change)


def sb3_masks_of_the_step_before(monkeypatch: Patch) -> None:
    """`env_method` is one of the three places."""
    wrapped(monkeypatch, RankVecEnv, "env_method", lambda found, *_: [~mask for mask in found])


def a_warning(monkeypatch: Patch) -> None:
    """SB3 warns of a box of two dimensions."""
    two = gymnasium.spaces.Box(-1, 1, (1, 1), np.float32)
    wrapped(monkeypatch, RankEnv, "reset", lambda given, self, **_: (self._wide(given[0]), given[1]))
    wrapped(monkeypatch, RankEnv, "step", lambda given, self, *_: (self._wide(given[0]), *given[1:]))
    wide = lambda self, found: {**found, "wide": np.zeros((1, 1), np.float32)}  # noqa: E731
    monkeypatch.setattr(RankEnv, "_wide", wide, raising=False)
    real = RankEnv.__init__

    def init(self: RankEnv, *args: Any, **kwargs: Any) -> None:
        real(self, *args, **kwargs)
        self.observation_space = gymnasium.spaces.Dict({**self.arena.observation_space.spaces, "wide": two})

    monkeypatch.setattr(RankEnv, "__init__", init)
    monkeypatch.delitem(CHECKS, "faces")


FAULTS: dict[str, tuple[Callable[[Patch], None], str]] = {
    "bounds": (observation_out_of_bounds, r"random steps: step 4: observation 'previous_rank' lies in 2.0 to 3.0"),
    "float32 reward": (step_with(lambda s: (s[0], np.float32(s[1]), *s[2:])), "the reward is a float32, not a float"),
    "terms": (info_with("reward_terms", lambda i: {**i["reward_terms"], "more": 1e-17 - 0.25}), "is not the sum"),
    "truncated": (step_with(lambda s: (*s[:3], True, s[4])), "truncated=True; a fixed horizon terminates"),
    "NaN": (info_with("cosine", lambda i: float("nan")), r"info\['cosine'\]=nan is not finite"),
    "NumPy": (info_with("cosine", lambda i: np.float64(0.5)), r"info\['cosine'\]=.* is not plain"),
    "table": (info_with("errors", lambda i: [0.1] * 8), r"info\['errors'\]=.* is not plain"),
    "oracle": (info_with("oracle_choice", lambda i: 3), r"info\['oracle_choice'\] tells what could have been had"),
    "silent": (info_with("masked_action", lambda i: False), "was asked for, .* done, but masked_action=False"),
    "choice": (info_with("choice", lambda i: 7 - i["choice"]), "was carried out, which the mask|was asked for"),
    "empty mask": (empty_mask, "nothing is allowed in component 0"),
    "two masks": (mask_in_info_only, r"info\['action_mask'\] is .*, action_masks\(\) says"),
    "mask ignored": (masked_action_carried_out, "was carried out, which the mask .* forbids"),
    "noise": (random_observation, "determinism: observation 1, resets counted, has other bits when made again"),
    "fork": (forgotten_spending, "state: observation .* has other bits when gone on with from a"),
    "pickle": (pickle_without_generator, "state: .* gone on with from a pickle"),
    "vector": (vector_face_off_by_a_bit, "faces: one lane and the vector face in NextStep differ in round 1, lane 0"),
    "sb3": (sb3_face_resets_late, "the stable-baselines3 face differ in round 4, lane 0: last"),
    "sb3 masks": (sb3_masks_of_the_step_before, "the stable-baselines3 face differ in round 0, lane 0: mask"),
    "warning": (a_warning, "checkers: stable-baselines3's checker says"),
}


@pytest.mark.usefixtures("_few")
@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_named_in_one_line(name: str, monkeypatch: Patch) -> None:
    """Which check, where, and what was seen; under a guard that forbids."""
    put, said = FAULTS[name]
    put(monkeypatch)
    with pytest.raises(CheckError, match=said) as error:
        check_env(ATTENTION, 40, guard=tight(), **SHORT)
    assert str(error.value).startswith(f"{ATTENTION}: ")
    assert "\n" not in str(error.value)


def tight() -> Guard:
    """Tight enough to forbid every second action."""
    return Guard("paper", threshold=0.15, decay=0.3)


@pytest.mark.usefixtures("_few")
def test_a_fault_in_one_component_is_seen(monkeypatch: Patch) -> None:
    """A mask that leaves nothing to the second head only."""

    def change(found: Any, *_: Any) -> Any:
        found[:, 8:16] = False
        return found

    wrapped(monkeypatch, HeadsMechanism, "allowed", change)
    with pytest.raises(CheckError, match="nothing is allowed in component 1"):
        check_env("DRRL-Heads-v0", 5, guard="paper", **SHORT)
