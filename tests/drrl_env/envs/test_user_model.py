"""A user's own model folder and own text work like the bundled ones."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from drrl_env.envs import world
from drrl_env.envs.settings import Measurement
from drrl_env.envs.world import cache_folder, calibration_path
from drrl_env.models.language_model import bundled_folder, load_language_model

SIZES = {"context": 128, "segment": 32, "instances": 2}


@pytest.fixture(scope="session")
def own_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text file of about 20 kB."""
    path = tmp_path_factory.mktemp("text") / "my text.txt"
    path.write_text("\n".join(f"Line {n}: the quick brown fox jumps over {n * n} lazy dogs." for n in range(400)))
    return path


@pytest.fixture(params=["gpt2_folder", "llama_folder"])
def folder(request: pytest.FixtureRequest) -> Path:
    """A tiny GPT-2, and a tiny Llama with grouped queries."""
    found: Path = request.getfixturevalue(request.param)
    return found


@pytest.mark.parametrize("basis", ["refreshed", "calibrated"])
def test_a_model_folder_becomes_an_environment(folder: Path, basis: str, make: Any, play: Any) -> None:
    """Ranks are shares of its head dimension 16, full rank is exact, Gymnasium's checker passes."""
    env = make(model=folder, basis=basis, guard="paper", **SIZES)
    assert env.ranks == (2, 3, 4, 5, 6, 8, 10, 16)
    assert env.arena.layers == (0, 1)
    check_env(env)
    last = play(env, choices=[7] * 4)[-1].info
    assert (last["cosine"], last["relative_error"]) == (1.0, 0.0)
    assert np.isfinite([step.reward for step in play(env, seed=1)]).all()


def test_own_text_is_played_span_by_span(folder: Path, own_text: Path, make: Any, play: Any) -> None:
    """The pool is the file's consecutive spans, and each can be begun by its name."""
    env = make(model=folder, text=own_text, **{**SIZES, "instances": None})
    assert len(env.pool) > 10
    assert all(found.uri.startswith("drrl://text/my-text-") for found in env.pool)
    steps = play(env, instance=env.pool[5].uri)
    assert steps[-1].info["instance"] == env.pool[5].uri


def test_a_calibration_is_kept_and_read_again(folder: Path, make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """In $DRRL_CACHE, named by the weights and the sizes; a new world of the same sizes fits nothing."""
    env = make(model=folder, **SIZES)
    path = calibration_path(env.game.rules.measurement, env.game.world.model)
    assert path.is_file()
    assert path.parent.parent == cache_folder() == Path(os.environ["DRRL_CACHE"])
    monkeypatch.setattr(world, "calibrate", lambda *args: pytest.fail("calibrated again"))
    make(model=folder, **SIZES, ranks=(4, 16))
    make(model=folder, **SIZES, value_rank=None)


def test_a_context_beyond_the_model_is_refused(folder: Path, make: Any) -> None:
    """256 tokens are all that these models read."""
    with pytest.raises(ValueError, match=r"context=512: model .* reads at most 256 tokens; use context=256"):
        make(model=folder, context=512)


def test_a_cache_that_cannot_be_written_is_refused_before_calibrating(
    llama_folder: Path, make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A minute of calibration is not thrown away for want of a place: DRRL_CACHE is named at once."""
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("DRRL_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(world, "calibrate", lambda *args: pytest.fail("calibrated for nothing"))
    with pytest.raises(ValueError, match=r"DRRL_CACHE=.*set it to a folder you can write to"):
        make(model=llama_folder, context=256, segment=64, instances=1)


def test_a_calibration_of_another_model_is_refused(
    llama_folder: Path, make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Copied by hand, it would project with bases of the wrong size."""
    monkeypatch.setenv("DRRL_CACHE", str(tmp_path))
    sizes = Measurement(str(llama_folder), segment=64, context=192)
    path = calibration_path(sizes, load_language_model(str(llama_folder)))
    path.parent.mkdir(parents=True)
    path.write_bytes((bundled_folder() / "calibration.safetensors").read_bytes())
    with pytest.raises(ValueError, match="fitted to another model; delete it"):
        make(model=llama_folder, segment=64, context=192, instances=1)


def test_the_bundled_calibration_does_not_depend_on_who_asks_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the artefact is missing it is fitted at the default sizes, not at those of a short test."""
    asked: list[int] = []
    monkeypatch.setattr(world, "bundled_folder", lambda: cache_folder() / "nothing-here")
    monkeypatch.setattr(world, "calibrate", lambda model, texts, segment: asked.extend([len(texts[0]), segment]))
    monkeypatch.setattr(world, "save_calibration", lambda found, path: None)
    world._calibration(Measurement(segment=64, context=256), load_language_model("bundled"))
    assert asked == [2048, 128]
