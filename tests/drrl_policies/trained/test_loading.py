"""What is read runs no code unless the user says so, and damaged files are refused in one line."""

from __future__ import annotations

import base64
import json
import os
import pickle
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import drrl_policies
from drrl_policies.trained import CARD, WEIGHTS, load, load_trained


def one_line(error: pytest.ExceptionInfo[ValueError], *parts: str) -> None:
    """One line that holds these parts."""
    text = str(error.value)
    assert len(text.splitlines()) == 1, text
    for part in parts:
        assert part in text


def change(folder: Path, **values: Any) -> None:
    """Writes other values into a card; None takes one out."""
    card = json.loads((folder / CARD).read_text())
    kept = {name: value for name, value in {**card, **values}.items() if value is not None or name == "score"}
    (folder / CARD).write_text(json.dumps(kept))


DAMAGED_CARDS = {
    "no JSON": (None, "{", CARD),
    "no mapping": (None, "[]", "mapping"),
    "deep": (None, "[" * 100_000, CARD),
    "another format": ({"format": 99}, None, "format 99"),
    "other numbers": ({"engine": 99}, None, "engine 99"),
    "a value more": ({"code": "print()"}, None, "unknown 'code'"),
    "a value missing": ({"versions": None}, None, "lacks 'versions'"),
    "another algorithm": ({"algorithm": "os.system"}, None, "os.system"),
    "another extractor": ({"extractor": "os.system"}, None, "os.system"),
    "another activation": ({"network": {"activation_fn": "exec"}}, None, "exec"),
    "another argument": ({"network": {"nonsense": 1}}, None, "nonsense"),
    "a network too large": ({"network": {"net_arch": [10**9]}}, None, "at most"),
    "another network": ({"network": {"net_arch": [8]}}, None, WEIGHTS),
    "other actions": ({"actions": "Text"}, None, "actions='Text'"),
    "actions that it does not choose": ({"algorithm": "dqn", "actions": "Box"}, None, "dqn"),
    "no actions": ({"sizes": []}, None, CARD),
    "sizes of another kind": ({"sizes": ["4"]}, None, "sizes"),
    "a number for text": ({"name": 3}, None, "name=3"),
    "an observation of another size": ({"sizes": [5]}, None, WEIGHTS),
    "an entry that is none": ({"observation": [{"name": "segment"}]}, None, CARD),
    "a window of no whole slots": (
        {"observation": [{"name": "window", "size": 7, "low": 0, "high": 1}]},
        None,
        "window",
    ),
}


@pytest.mark.usefixtures("_nothing_runs")
@pytest.mark.parametrize(("values", "text", "named"), DAMAGED_CARDS.values(), ids=DAMAGED_CARDS)
def test_a_damaged_card_is_refused(copy, values, text, named):
    """In one line with the folder, the file and a reason."""
    if text is not None:
        (copy / CARD).write_text(text)
    else:
        change(copy, **values)
    with pytest.raises(ValueError, match="cannot be used") as error:
        load(copy)
    one_line(error, str(copy), named)


def test_nan_in_a_card_is_refused(copy):
    """JSON has none, and Python reads it."""
    (copy / CARD).write_text(re.sub(r'"score": 0.9', '"score": NaN', (copy / CARD).read_text()))
    with pytest.raises(ValueError, match="NaN") as error:
        load(copy)
    one_line(error, CARD)


def refused_weights(folder: Path, named: str) -> None:
    """One line that names the file and the reason."""
    with pytest.raises(ValueError, match="cannot be used") as error:
        load(folder)
    one_line(error, WEIGHTS, named)


def test_damaged_weights_are_refused(copy):
    """Cut off, NaN, another shape, another type, one missing, one more, or of another save."""
    path = copy / WEIGHTS
    whole = path.read_bytes()
    good = {name: tensor.clone() for name, tensor in load_file(path).items()}
    name = next(iter(good))
    path.write_bytes(whole[: len(whole) // 2])
    refused_weights(copy, "")
    path.write_bytes(b"")
    refused_weights(copy, "")
    for other, named in (
        ({**good, name: torch.full_like(good[name], torch.nan)}, "NaN"),
        ({**good, name: good[name][None]}, name),
        ({**good, name: good[name].half()}, "float16"),
        ({key: tensor for key, tensor in good.items() if key != name}, f"lacks {name}"),
        ({**good, "more": good[name].clone()}, "more"),
        ({**good, name: good[name] + 1}, "not the file"),
    ):
        save_file(other, path)
        refused_weights(copy, named)
    path.write_bytes(whole)
    load(copy)


@pytest.mark.parametrize("name", [WEIGHTS, CARD])
def test_a_missing_file_is_named(copy, name):
    """With who writes such folders."""
    (copy / name).unlink()
    with pytest.raises(ValueError, match=f"no {name}") as error:
        load_trained(copy, "run")
    one_line(error, f"run='{copy}'", "drrl train")


def test_other_versions_only_warn(copy):
    """A minor version of what computes; a patch, or a package that computes nothing, says nothing."""
    change(copy, versions={"torch": "1.0.0", "numpy": np.__version__, "transformers": "0.1"})
    with pytest.warns(UserWarning, match=r"torch .* \(was 1.0.0\)"):
        load(copy)
    major, minor, *_ = torch.__version__.split(".")
    change(copy, versions={"torch": f"{major}.{minor}.99"})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(copy)


class Bomb:
    """Leaves a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_a_zip_runs_code_only_where_it_is_trusted(make_agent, tmp_path, observations):
    """A zip of SB3 whose unpickling makes a folder: refused untouched, and with `trust=True` it does."""
    agent, flag, path = make_agent("ppo", "Discrete", "mlp"), tmp_path / "flag", tmp_path / "model.zip"
    agent.model.save(tmp_path / "good.zip")
    with zipfile.ZipFile(tmp_path / "good.zip") as good, zipfile.ZipFile(path, "w") as bad:
        for name in good.namelist():
            content = good.read(name)
            if name == "data":
                data = json.loads(content)
                data["bomb"] = {":type:": "Bomb", ":serialized:": base64.b64encode(pickle.dumps(Bomb(flag))).decode()}
                content = json.dumps(data).encode()
            bad.writestr(name, content)
    for given in (path, str(path)):
        with pytest.raises(ValueError, match="trust=True") as error:
            load(given)
        one_line(error, "pickles")
    with pytest.raises(ValueError, match="algo=None") as error:
        load(path, trust=True)
    one_line(error, "'maskable-ppo'")
    assert not flag.exists()
    loaded = load(path, trust=True, algo="ppo")
    assert flag.exists()
    batch = observations()
    np.testing.assert_array_equal(loaded.predict(batch, deterministic=True)[0], agent.predict(batch))
    with pytest.raises(ValueError, match="no such file"):
        load(tmp_path / "none.zip", trust=True, algo="ppo")


def test_an_unknown_name_is_told_what_ships():
    """One line, whether it looks like an id or like a folder."""
    for name in ("DRRL-Tolerance-v9", "/nowhere/run"):
        with pytest.raises(ValueError, match="no trained policy ships") as error:
            load(name)
        one_line(error, name, *drrl_policies.shipped())
