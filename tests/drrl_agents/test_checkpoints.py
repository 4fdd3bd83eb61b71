"""A checkpoint holds everything bit for bit, is whole or not there, and runs no code."""

from __future__ import annotations

import errno
import json
import os
from copy import deepcopy
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from safetensors.numpy import load_file
from stable_baselines3 import SAC
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.noise import OrnsteinUhlenbeckActionNoise
from stable_baselines3.common.vec_env import VecNormalize

from drrl_agents.checkpoints import (
    KEPT,
    Checkpoint,
    DamagedError,
    between_updates,
    capture,
    newest_checkpoint,
    read_checkpoint,
    restore,
    restore_generators,
    write_checkpoint,
)
from drrl_agents.checkpoints.tree import pack, unpack
from drrl_env.sb3 import make_vec_env

DTYPES = (np.float32, np.float64, np.int64, np.uint8, np.uint32, np.bool_)
SHAPES = arrays.array_shapes(min_dims=0, max_side=3, min_side=0)
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(),
    st.floats(width=32).map(np.float32),
    st.floats().map(np.float64),
    st.sampled_from(DTYPES).flatmap(lambda kind: arrays.arrays(kind, SHAPES)),
    arrays.arrays(np.float32, arrays.array_shapes(min_dims=0)).map(lambda a: torch.from_numpy(np.array(a))),
)
TREES = st.recursive(
    LEAVES,
    lambda each: (
        st.lists(each, max_size=3)
        | st.lists(each, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=4) | st.integers(0, 9), each, max_size=3)
    ),
    max_leaves=8,
)


def same(one: Any, other: Any) -> bool:
    """Equal to the bit, in type too; NaN equals itself."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, torch.Tensor):
        one, other = one.numpy(), other.numpy()
    if isinstance(one, (np.ndarray, np.generic)):
        return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
    return bool(one == other) or (one != one and other != other)


@hypothesis.given(TREES)
def test_a_tree_comes_back_from_json_and_arrays_with_its_types(tree):
    """np.float64 stays np.float64 (a mean recorded as np.float32 rounds otherwise), tuples stay tuples, 7 stays 7."""
    plain, found = pack(tree)
    assert same(unpack(json.loads(json.dumps(plain)), found), tree)


def test_what_a_checkpoint_cannot_hold_is_refused():
    """An object would need pickle."""
    with pytest.raises(TypeError, match="cannot hold a set"):
        pack({"names": {"a"}})


def state(number: int) -> Checkpoint:
    """A checkpoint of some arrays, its step in them."""
    tree = {"step": number, "rows": np.arange(5_000.0) + number, "none": np.zeros((0, 3)), "one": np.float32(number)}
    return Checkpoint(number, tree)


def test_a_checkpoint_is_read_back_and_is_a_safetensors_file(tmp_path):
    """The library reads what is written here, sizes and types and an empty array too."""
    path = write_checkpoint(tmp_path / "new", state(7))
    assert path.name == "step-000000007.safetensors"
    assert read_checkpoint(path).step == 7
    assert same(read_checkpoint(path).tree, state(7).tree)
    assert {array.shape for array in load_file(path).values()} == {(5_000,), (0, 3), ()}


def test_the_latest_few_are_kept(tmp_path):
    """Three of five, and what a killed writer left behind goes with the next one."""
    (tmp_path / "step-000000001.safetensors.partial").write_bytes(b"half")
    for number in (10, 30, 200, 400, 5_000):
        write_checkpoint(tmp_path, state(number))
    assert KEPT == 3
    assert sorted(int(path.stem[5:]) for path in tmp_path.iterdir()) == [200, 400, 5_000]


def test_unreadable_ones_of_later_steps_take_no_places(tmp_path):
    """Three damaged files, and the run goes on from the start: what it writes from there on is kept."""
    for number in (300, 400, 500):
        (tmp_path / f"step-{number:09d}.safetensors").write_bytes(b"damaged")
    assert newest_checkpoint(tmp_path) is None
    write_checkpoint(tmp_path, state(100))
    found = newest_checkpoint(tmp_path)
    assert found is not None
    assert found.step == 100
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000100.safetensors"]


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.999])
def test_a_truncated_checkpoint_falls_back_to_the_one_before(tmp_path, capsys, share):
    """Cut anywhere, in the header too: a message names it, and the one before is found."""
    first, second = (write_checkpoint(tmp_path, state(number)) for number in (1, 2))
    second.write_bytes(second.read_bytes()[: int(second.stat().st_size * share)])
    found = newest_checkpoint(tmp_path)
    assert found is not None
    assert same(found.tree, read_checkpoint(first).tree)
    message = capsys.readouterr().err.strip()
    assert message.startswith("checkpoint step-000000002.safetensors cannot be read")
    assert "\n" not in message


@pytest.mark.parametrize("place", [0.1, 0.5, 0.9])
def test_an_altered_byte_is_noticed(tmp_path, place):
    """Safetensors alone checks sizes only: a flipped bit in a weight would go unseen without the digest."""
    path = write_checkpoint(tmp_path, state(1))
    content = bytearray(path.read_bytes())
    content[int(len(content) * place)] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedError, match="digest"):
        read_checkpoint(path)


def test_no_checkpoint_that_can_be_read_is_none(tmp_path, capsys):
    """No folder, and a folder of damaged ones with a message for each."""
    assert newest_checkpoint(tmp_path / "missing") is None
    for number in (1, 2):
        (tmp_path / f"step-00000000{number}.safetensors").write_bytes(b"not a checkpoint")
    assert newest_checkpoint(tmp_path) is None
    assert len(capsys.readouterr().err.splitlines()) == 2


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_full_disk_leaves_the_folder_as_it_was(tmp_path, monkeypatch, failing):
    """ENOSPC when the bytes or the name go to the disk: an error, the earlier file, and no half of one."""
    write_checkpoint(tmp_path, state(1))

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, failing, full)
    with pytest.raises(OSError, match="No space left"):
        write_checkpoint(tmp_path, state(2))
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000001.safetensors"]
    assert read_checkpoint(tmp_path / "step-000000001.safetensors").step == 1


def test_a_writer_killed_in_the_middle_leaves_the_one_before(tmp_path):
    """The child dies by SIGKILL after half of the bytes: what is found is the earlier checkpoint."""
    write_checkpoint(tmp_path, state(1))
    child = os.fork()
    if child == 0:
        os.fsync = lambda _: os.kill(os.getpid(), 9)  # type: ignore[assignment]
        write_checkpoint(tmp_path, state(2))
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == 9
    assert [path.name for path in tmp_path.glob("*.partial")] == ["step-000000002.safetensors.partial"]
    found = newest_checkpoint(tmp_path)
    assert found is not None
    assert found.step == 1


def noisy_sac() -> SAC:
    """SAC with what no default here has: a normaliser, gSDE, and noise that remembers."""
    env = make_vec_env("DRRL-Attention-Continuous-v0", 2, seed=0, context=512, instances=2, split="train")
    noise = OrnsteinUhlenbeckActionNoise(np.zeros(1), np.full(1, 0.3))
    options: dict[str, Any] = {"learning_starts": 8, "batch_size": 8, "buffer_size": 40, "train_freq": 3}
    networks = {"net_arch": [8]}
    normalised = VecNormalize(env, gamma=0.9)
    found = SAC(
        "MultiInputPolicy", normalised, action_noise=noise, policy_kwargs=networks, use_sde=True, seed=0, **options
    )
    found.set_logger(Logger(None, []))
    return found


def states(model: SAC, at: int, steps: int, found: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    """Packs the state before each update from step `at` on, until the training's end."""
    seen: list[Any] = []

    def look() -> None:
        if found is not None and not seen:
            restore_generators(model, found)
        if model.num_timesteps >= at:
            plain, values = pack(capture(model))
            seen.append((json.dumps(plain), {name: each.copy() for name, each in values.items()}))

    with between_updates(model, look):
        model.learn(steps - model.num_timesteps, reset_num_timesteps=False, log_interval=None)
    return [unpack(json.loads(plain), values) for plain, values in seen]


def test_a_normaliser_gsde_remembering_noise_and_a_buffer_that_is_full_are_restored():
    """120 steps into a buffer of 40, restored at 60 into an agent that has played on: every later state is the same."""
    whole = states(noisy_sac(), 60, 120)
    resumed = noisy_sac()
    resumed.learn(30)
    found = deepcopy(whole[0])
    restore(resumed, found)
    again = states(resumed, 60, 120, found)
    assert len(again) == len(whole) > 5
    for one, other in zip(whole, again, strict=True):
        for name in one:
            assert same(_timeless(one[name]), _timeless(other[name])), name


def _timeless(tree: Any) -> Any:
    """Without the seconds that episodes took."""
    if isinstance(tree, list):
        return [_timeless(each) for each in tree]
    if isinstance(tree, dict):
        return {key: _timeless(each) for key, each in tree.items() if key not in ("t", "time/fps")}
    return tree


def test_the_hook_is_gone_afterwards():
    """An agent that is saved later must not drag the run along."""
    model = noisy_sac()
    with between_updates(model, lambda: None):
        assert "collect_rollouts" in vars(model)
    assert "collect_rollouts" not in vars(model)
