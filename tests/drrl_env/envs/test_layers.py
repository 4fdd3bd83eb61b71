"""DRRL-Layers-v0: approximated attention flows on through the whole model; a segment pays in true log-likelihood."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from stable_baselines3 import PPO

from drrl_env.envs.conformal import open_guard
from drrl_env.envs.costs import FlopsCost
from drrl_env.envs.flow import relative_changes
from drrl_env.envs.layers import LayersSimulator
from drrl_env.envs.play import Episode
from drrl_env.envs.predictor import segment_evidence
from drrl_env.envs.settings import Guard, Reward
from drrl_env.envs.single import RankEnv
from drrl_env.lowrank.flops import full_flops, segment_flops
from drrl_env.models.capture import capture
from drrl_env.models.closed_loop import ClosedLoop
from drrl_env.sb3 import make_vec_env

LAYERS, FULL = 4, 7
SHORT = {"context": 384, "instances": 2}
"""Three segments of four layers: twelve steps."""

Make = Callable[..., RankEnv]
Step = tuple[dict[str, Any], float, bool, dict[str, Any]]


@pytest.fixture(scope="session")
def layers(make: Make) -> Make:
    """Makes the environment on short spans; arguments override."""
    return lambda **arguments: make("DRRL-Layers-v0", **{**SHORT, **arguments})


def live(env: RankEnv) -> ClosedLoop:
    """The closed loop of the only lane."""
    play = env.arena.play
    assert isinstance(play, LayersSimulator)
    found = play._lanes[0]
    assert found is not None
    return found.flow.loop


def drive(env: RankEnv, choices: Sequence[int], seed: int | None = 0) -> list[Step]:
    """An episode, or a part of one, with these choices; from where it is if there is no seed."""
    if seed is not None:
        env.reset(seed=seed)
    found = []
    for choice in choices:
        observation, reward, ended, _, info = env.step(choice)
        found.append((observation, reward, ended, info))
    return found


def scattered(count: int, seed: int = 1, choices: int = FULL + 1) -> list[int]:
    """Random choices."""
    return np.random.default_rng(seed).integers(choices, size=count).tolist()


def engine(env: RankEnv, uri: str, executed: Sequence[int]) -> tuple[list[float], list[float]]:
    """Mean log-likelihood of every segment under the engine driven by hand, and under the model as it is."""
    world = env.arena.world
    ids = world.token_ids(env.arena.by_uri[uri])
    loop = ClosedLoop(world.model.network, world.streams, world.calibration.layers, ids)
    for choice in executed:
        loop.choose(choice)
    found = loop.log_likelihood, capture(world.model.network, ids).log_likelihood
    flowed, plain = ([float(part.double().mean()) for part in each.split(world.measurement.segment)] for each in found)
    return flowed, plain


@pytest.mark.parametrize("basis", ["calibrated", "refreshed"])
def test_full_ranks_pay_minus_beta_a_segment(basis: str, layers: Make) -> None:
    """No log-likelihood is lost (1e-4 nats per token), and FLOPs are full attention's: −.3 a segment on average."""
    steps = drive(layers(basis=basis), [FULL] * 12)
    changes = [info["log_likelihood_change"] for _, _, _, info in steps if "log_likelihood_change" in info]
    assert len(changes) == 3
    assert np.abs(changes).max() < 1e-4
    assert sum(reward for _, reward, _, _ in steps) == pytest.approx(-0.3 * 3, abs=3e-4)
    assert [ended for _, _, ended, _ in steps] == [False] * 11 + [True]


@pytest.mark.parametrize("folder", ["gpt2_folder", "llama_folder"])
def test_full_ranks_lose_nothing_in_a_users_own_model(
    folder: str, layers: Make, request: pytest.FixtureRequest
) -> None:
    """Learned positions, and two key heads for four query heads: 1e-4 nats per token; the lowest rank loses more."""
    env = layers(model=request.getfixturevalue(folder), segment=32, context=96)
    full, low = drive(env, [FULL] * 6), drive(env, [0] * 6)
    assert max(abs(info["log_likelihood_change"]) for *_, info in full[1::2]) < 1e-4
    assert max(abs(info["log_likelihood_change"]) for *_, info in low[1::2]) > 1e-4


@pytest.mark.parametrize("basis", ["calibrated", "refreshed"])
def test_a_segment_pays_for_what_flowed_through_all_layers(basis: str, layers: Make) -> None:
    """Random ranks: the reward is that of the engine driven by hand and of FLOPs counted anew, to rounding."""
    env, choices = layers(basis=basis), scattered(12)
    steps = drive(env, choices)
    flowed, plain = engine(env, steps[0][-1]["instance"], choices)
    world, previous = env.arena.world, [FULL] * LAYERS
    mean = float(np.mean([full_flops(world.shape, t) for t in range(3)]))
    for position in range(3):
        spent = 0.0
        for layer, stream in enumerate(world.streams):
            place = position * LAYERS + layer
            costs = stream.costs[choices[place]], stream.costs[previous[layer]]
            flops = segment_flops(world.shape, position, *costs, basis, stream.width)
            info, spent, previous[layer] = steps[place][-1], spent + flops, choices[place]
            assert (info["segment"], info["layer"], info["choice"]) == (position, layer, choices[place])
            assert info["flops"] == pytest.approx(flops)
            assert info["flops_ratio"] == pytest.approx(flops / mean)
        gained = flowed[position] - plain[position]
        assert abs(gained) > 1e-3
        assert info["log_likelihood_change"] == gained
        assert info["reward_terms"]["log_likelihood"] == gained
        assert info["reward_terms"]["flops"] == pytest.approx(-0.3 * spent / (LAYERS * mean))


def test_layers_before_the_last_pay_nothing(layers: Make) -> None:
    """Terms of zero, and no change of log-likelihood is told before there is one."""
    for place, (_, reward, _, info) in enumerate(drive(layers(), scattered(12))):
        if place % LAYERS == LAYERS - 1:
            assert reward == sum(info["reward_terms"].values()) != 0
        else:
            assert (reward, info["reward_terms"]) == (0.0, {"log_likelihood": 0.0, "flops": 0.0})
            assert "log_likelihood_change" not in info


def test_change_is_charged_where_it_has_a_weight(layers: Make) -> None:
    """γ times the mean over layers of ‖ΔS‖/‖S‖, the third term; the other terms are those without it."""
    choices = scattered(12)
    plain = drive(layers(), choices)
    steps = drive(layers(reward=Reward(1.0, 0.3, 0.5)), choices)
    for position in range(3):
        segment = [info for *_, info in steps[position * LAYERS : (position + 1) * LAYERS]]
        terms, mean = segment[-1]["reward_terms"], np.mean([info["score_change"] for info in segment])
        assert terms["change"] == pytest.approx(-0.5 * mean)
        assert {name: terms[name] for name in ("log_likelihood", "flops")} == plain[position * LAYERS + 3][-1][
            "reward_terms"
        ]


def test_latency_can_be_charged_instead(layers: Make) -> None:
    """Milliseconds over their mean for full attention in the reward; FLOPs are reported all the same."""
    steps = drive(layers(cost="latency"), scattered(4))
    ratios = [info["latency_ratio"] for *_, info in steps]
    assert steps[-1][-1]["reward_terms"]["flops"] == pytest.approx(-0.3 * np.mean(ratios))
    assert [info["flops"] for *_, info in steps] == [info["flops"] for *_, info in drive(layers(), scattered(4))]


def test_error_is_against_full_attention_of_the_same_inputs(layers: Make) -> None:
    """Cosine 1 and error 0 at full rank although the layers below erred; otherwise the live segment's own."""
    env = layers()
    env.reset(seed=0)
    for choice in [0, 3, FULL, 5]:
        segment = live(env).segment
        full, low = segment.full_output.double(), segment.output(choice).double()
        info = env.step(choice)[-1]
        assert info["relative_error"] == pytest.approx(float((low - full).norm() / full.norm()), rel=1e-6)
        assert (info["relative_error"] == 0.0) == (choice == FULL)
        assert info["cosine"] == pytest.approx(float((low * full).sum() / (low.norm() * full.norm())), rel=1e-6)


def test_one_layer_alone_can_be_chosen_for(layers: Make) -> None:
    """A step a segment; the others run full, in the log-likelihood, in the FLOPs and in what is observed."""
    env, choices = layers(layer=2), [0, 2, 1]
    _, info = env.reset(seed=0)
    assert info["layer"] == 2
    steps = drive(env, choices)
    executed = [choice if layer == 2 else FULL for choice in choices for layer in range(LAYERS)]
    flowed, plain = engine(env, info["instance"], executed)
    flops, full = FlopsCost().table(env.arena.world)[2], FlopsCost().full(env.arena.world)
    for position, (observation, reward, ended, told) in enumerate(steps):
        before = choices[position - 1] if position else FULL
        spent = 3 * full[position] + flops[position, before, choices[position]]
        gained = flowed[position] - plain[position]
        assert reward == pytest.approx(gained - 0.3 * spent / (LAYERS * full.mean()), abs=1e-12)
        assert told["layer"] == 2
        assert ended == (position == 2)
        assert observation["layers_ranks"].tolist() == ([1, 1, 0, 0] if not ended else [1, 1, env.ranks[1] / 64, 1])
        assert observation["position"][0] == np.float32((position + 1) / 3)


def test_a_layer_cannot_be_asked_for_at_reset(layers: Make) -> None:
    """An episode runs through all layers: one line says how to choose for one of them."""
    with pytest.raises(
        ValueError, match=r"options\['layer'\]=2: ranks are chosen for all layers; make .* with layer=2"
    ):
        layers().reset(options={"layer": 2})
    with pytest.raises(ValueError, match=r"options\['layer'\]=0: ranks are chosen for layer 2 alone; make"):
        layers(layer=2).reset(options={"layer": 0})


def test_the_papers_guard_counts_from_the_layers_own_last_rank(layers: Make) -> None:
    """Allowed is ‖ΔS‖/‖S‖ ≤ ε_t in the live segment; what is masked runs at the nearest allowed rank."""
    env, guard, masked = layers(guard=Guard("paper", 0.2)), Guard("paper", 0.2), 0
    env.reset(seed=0)
    previous = [FULL] * LAYERS
    for step, wanted in enumerate(scattered(12, seed=5, choices=4)):
        position, layer = divmod(step, LAYERS)
        allowed = relative_changes(live(env).segment)[previous[layer]] <= guard.limit(position)
        allowed[-1] = True
        assert np.array_equal(env.action_masks(), allowed)
        outputs = [live(env).segment.output(choice).double() for choice in range(FULL + 1)]
        info = env.step(wanted)[-1]
        done = info["choice"]
        error = (outputs[done] - outputs[FULL]).norm() / outputs[FULL].norm()
        assert info["relative_error"] == pytest.approx(float(error), rel=1e-6, abs=1e-9)
        apart = np.abs(np.array(env.ranks) - env.ranks[wanted])[allowed]
        assert allowed[done]
        assert abs(env.ranks[done] - env.ranks[wanted]) == apart.min()
        assert info["masked_action"] == (done != wanted)
        masked, previous[layer] = masked + (done != wanted), done
    assert masked


def test_the_conformal_guard_reads_the_live_segment(layers: Make) -> None:
    """Its mask at what has arrived, errors of the layers below included; full rank always."""
    guard = Guard("conformal", tolerance=0.4)
    env = layers(guard=guard)
    fitted, seen = open_guard(env.arena.world, guard), set()
    env.reset(seed=0)
    for choice in scattered(12, seed=2):
        loop = live(env)
        wanted = fitted.mask(loop.layer, loop.position, segment_evidence(loop.segment).numpy())
        assert np.array_equal(env.action_masks(), wanted)
        assert wanted[-1]
        seen.add(int(wanted.sum()))
        env.step(choice)
    assert len(seen) > 1


def test_lanes_in_different_places_do_not_see_each_other() -> None:
    """Two lanes of one network, one four steps ahead: the rewards of each played alone; a refused step moves none."""
    env = make_vec_env("DRRL-Layers-v0", 2, **SHORT)
    play, pool = env.arena.play, env.arena.pool
    choices = np.array([scattered(12, seed=6), scattered(12, seed=7)])
    play.begin([0, 1], [Episode(pool[0], 0), Episode(pool[1], 0)])
    found = [[], []]  # type: list[list[float]]
    for step in range(4):
        found[0].append(play.step(choices[:1, step, None], np.array([0])).rewards[0])
    for step in range(8):
        batch = play.step(np.array([[choices[0, step + 4]], [choices[1, step]]]))
        for lane in range(2):
            found[lane].append(batch.rewards[lane])
    before = play.state(1)
    with pytest.raises(ValueError, match="call reset first"):
        play.step(np.zeros((2, 1), np.int64))
    assert play.state(1) == before
    single = RankEnv("DRRL-Layers-v0", **SHORT)
    for lane in range(2):
        single.reset(options={"instance": pool[lane].uri})
        alone = [step[1] for step in drive(single, choices[lane, : len(found[lane])].tolist(), seed=None)]
        assert alone == found[lane]


def test_the_full_models_log_likelihood_is_worked_out_once(layers: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Per instance, not per episode or lane."""
    from drrl_env.envs import flow

    calls = []
    flow.full_log_likelihood.cache_clear()
    monkeypatch.setattr(flow, "capture", lambda *given: calls.append(1) or capture(*given))
    env = layers(instances=1)
    drive(env, [FULL] * 12)
    drive(env, [0] * 12)
    assert len(calls) == 1


def test_an_episode_leaves_the_network_as_it_was(layers: Make) -> None:
    """Log-likelihoods of the model itself are the same bits after an approximated episode."""
    env = layers()
    world = env.arena.world
    ids = world.token_ids(env.pool[0])
    before = capture(world.model.network, ids).log_likelihood
    drive(env, [0] * 12)
    assert torch.equal(capture(world.model.network, ids).log_likelihood, before)


def test_own_text_can_be_played(layers: Make, tmp_path: Path) -> None:
    """A span of a user's own file, drawn and named like any other."""
    path = tmp_path / "own.txt"
    path.write_text("\n".join(f"Line {n}: the quick brown fox jumps over {n * n} lazy dogs." for n in range(400)))
    steps = drive(layers(text=path, context=256, instances=1), [5] * 8)
    assert steps[-1][2]
    assert steps[0][-1]["instance"].startswith("drrl://text/own-")


def test_ppo_learns_on_it() -> None:
    """64 steps, eight episodes, through gym.make and through the native VecEnv."""
    given = {"context": 256, "instances": 1}
    for env in (gymnasium.make("DRRL-Layers-v0", **given), make_vec_env("DRRL-Layers-v0", 2, **given)):
        agent = PPO("MultiInputPolicy", env, n_steps=16, batch_size=16, n_epochs=1, seed=0, device="cpu")
        assert agent.learn(64).num_timesteps >= 64
