"""ARS counts each step once and shows the callback what it did, as the other algorithms do."""

from __future__ import annotations

from typing import Any

from sb3_contrib import ARS
from stable_baselines3.common.callbacks import BaseCallback

from drrl_agents.counted_ars import CountedARS
from drrl_env.sb3 import RankVecEnv, make_vec_env
from drrl_policies.extractors import FlatVecEnv

LANES, EPISODES, DELTAS, STEPS = 2, 4, 2, 4
"""An iteration plays 2 · 2 candidates, each over four episodes of four steps."""
PLAYED = 2 * DELTAS * EPISODES * STEPS


class Watching(BaseCallback):
    """Keeps what it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.counts = list[int]()
        self.infos = list[dict[str, Any]]()

    def _on_step(self) -> bool:
        self.counts.append(self.num_timesteps)
        self.infos.extend(self.locals.get("infos", ()))
        return True


def _learn(make: type[ARS]) -> tuple[ARS, Watching, list[int]]:
    """One iteration in two lanes; with the actions that the lanes were given."""
    env, stepped = make_vec_env("DRRL-Attention-v0", LANES, seed=0, context=512, instances=1), list[int]()
    inner = RankVecEnv.step_wait

    def counting(self: RankVecEnv) -> Any:
        stepped.append(self.num_envs)
        return inner(self)

    env.step_wait = counting.__get__(env)  # type: ignore[method-assign]
    model = make("MlpPolicy", FlatVecEnv(env), n_delta=DELTAS, n_top=1, n_eval_episodes=EPISODES, seed=0, device="cpu")
    watching = Watching()
    model.learn(PLAYED, callback=watching)
    return model, watching, stepped


def test_a_step_of_a_lane_is_counted_once():
    """64 steps are played and counted; the library's own counts two lanes' at each of them, 128."""
    model, _, stepped = _learn(CountedARS)
    assert sum(stepped) == PLAYED
    assert model.num_timesteps == PLAYED
    assert _learn(ARS)[0].num_timesteps == LANES * PLAYED


def test_every_step_is_shown_with_its_info():
    """Step by step from 1 to 64, one info each, with a rank; at the end of every episode its return."""
    _, watching, _ = _learn(CountedARS)
    assert watching.counts == list(range(1, PLAYED + 1))
    assert len(watching.infos) == PLAYED
    assert all("rank" in info and "reward_terms" in info for info in watching.infos)
    assert sum("episode" in info for info in watching.infos) == PLAYED // STEPS


def test_it_learns_what_the_librarys_own_learns():
    """Counting changes no weight."""
    ours, theirs = (_learn(make)[0].policy.state_dict() for make in (CountedARS, ARS))
    assert all((values == theirs[name]).all() for name, values in ours.items())
