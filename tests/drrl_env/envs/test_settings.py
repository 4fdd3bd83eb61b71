"""A wrong argument is named in one line with its value and the way out, before any work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drrl_env.envs import world
from drrl_env.envs.settings import Guard, Measurement, Reward, check_ranks

WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"ranks": (8, 96)}, "ranks=(8, 96)", "use ranks up to 64"),
    ({"ranks": (16, 8, 64)}, "ranks=(16, 8, 64)", "use ranks=(8, 16, 64)"),
    ({"ranks": (8, 16)}, "ranks=(8, 16)", "use ranks=(8, 16, 64)"),
    ({"ranks": (8, 8, 64)}, "ranks=(8, 8, 64)", "use ranks=(8, 64)"),
    ({"ranks": (64,)}, "ranks=(64,)", "add a rank below 64"),
    ({"ranks": ()}, "ranks=()", "add a rank below 64"),
    ({"ranks": (0, 64)}, "ranks=0", "at least 1"),
    ({"ranks": (7.5, 64)}, "ranks=7.5", "whole number"),
    ({"split": "holdout"}, "split='holdout'", "'train', 'validation', 'test'"),
    ({"context": 500}, "context=500", "use 384"),
    ({"context": 64}, "context=64", "use 128"),
    ({"context": 8192}, "context=8192", "use context=4096"),
    ({"context": "long"}, "context='long'", "whole number"),
    ({"segment": 0}, "segment=0", "at least 1"),
    ({"segment": 4}, "segment=4", "at least 8"),
    ({"layer": 4}, "layer=4", "layers 0 to 3"),
    ({"layer": -1}, "layer=-1", "layers 0 to 3"),
    ({"layer": 1.5}, "layer=1.5", "layers 0 to 3"),
    ({"instances": 100_000}, "instances=100000", "use at most"),
    ({"instances": 0}, "instances=0", "at least 1"),
    ({"instances": []}, "instances=[]", "at least one URI"),
    ({"instances": "drrl://bundled/train/0000"}, "instances='drrl", "a list"),
    ({"instances": ["drrl://bundled/train/9999"]}, "uri='drrl://bundled/train/9999'", "use drrl://"),
    ({"guard": "papers"}, "guard='papers'", "'off', 'paper'"),
    ({"guard": None}, "guard=None", "'off', 'paper'"),
    ({"guard": Guard("paper", threshold=-1.0)}, "threshold=-1.0", "above 0"),
    ({"reward": "papers"}, "reward='papers'", "'default', 'paper'"),
    ({"reward": 1.0}, "reward=1.0", "'default', 'paper'"),
    ({"reward": Reward(alpha=float("nan"))}, "alpha=nan", "finite"),
    ({"reward": Reward(fidelity="cos")}, "reward.fidelity='cos'", "'cosine', 'error'"),
    ({"basis": "fresh"}, "basis='fresh'", "'refreshed', 'calibrated'"),
    ({"value_rank": "balance"}, "value_rank='balance'", "'balanced', 'same'"),
    ({"value_rank": 0}, "value_rank=0", "at least 1"),
    ({"model": "bundeld"}, "model='bundeld'", "'bundled'"),
    ({"text": "no-such-file.txt"}, "text=no-such-file.txt", "give a text file"),
    ({"contxt": 512}, "contxt=512", "did you mean 'context'"),
    ({"xyz": 1}, "xyz=1", "use model, layer"),
    ({"statistics": ("energy",)}, "statistics=", "use"),
    ({"cost": "seconds"}, "cost='seconds'", "use"),
    ({"tolerance": 0.2}, "tolerance=0.2", "use DRRL-Tolerance-v0"),
    ({"budget": 0.5}, "budget=0.5", "use DRRL-Budget-v0"),
    ({"env_id": "DRRL-Tolerance-v0", "tolerance": (0.4, 0.2)}, "tolerance=(0.4, 0.2)", "(low, high)"),
    ({"env_id": "DRRL-Tolerance-v0", "tolerance": 0.0}, "tolerance=0.0", "above 0"),
    ({"env_id": "DRRL-Budget-v0", "budget": float("nan")}, "budget=nan", "above 0"),
    ({"env_id": "DRRL-Basis-v0", "basis": "calibrated"}, "basis='calibrated'", "'refreshed'"),
]


@pytest.mark.parametrize(("arguments", "named", "remedy"), WRONG, ids=lambda value: str(value)[:40])
def test_a_wrong_argument_is_named_with_its_value_and_the_remedy(
    arguments: dict[str, Any], named: str, remedy: str, make: Any
) -> None:
    """One line."""
    with pytest.raises(ValueError, match="=") as error:
        make(**arguments)
    message = str(error.value)
    assert named in message
    assert remedy in message
    assert "\n" not in message


def test_a_text_shorter_than_a_span_is_refused(make: Any, tmp_path: Path) -> None:
    """It says how many tokens there are and how many are needed."""
    path = tmp_path / "short.txt"
    path.write_text("Call me Ishmael. " * 20)
    with pytest.raises(ValueError, match=r"text=.*short\.txt: its \d+ tokens make 0 spans of length=512") as error:
        make(text=path, instances=None)
    assert "longer text" in str(error.value)


def test_options_of_a_reset_are_checked(make: Any) -> None:
    """An instance that is not in the pool, a layer that is not in the model."""
    env = make()
    with pytest.raises(ValueError, match=r"options\['instance'\]='x'"):
        env.reset(options={"instance": "x"})
    with pytest.raises(ValueError, match="layer=9"):
        env.reset(options={"layer": 9})
    with pytest.raises(ValueError, match=r"options='instnace'.*'instance', 'layer'"):
        env.reset(options={"instnace": env.pool[0].uri})


def test_wrong_settings_cost_no_work(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a model is loaded nor one calibrated for a misspelt split, guard, reward, basis or value rank."""
    monkeypatch.setattr(world, "load_language_model", lambda name: pytest.fail("a model was loaded"))
    world._language_model.cache_clear()
    for name in ("split", "guard", "reward", "basis", "value_rank"):
        with pytest.raises(ValueError, match=name):
            make(**{name: "wrong", "context": 640})


def test_numpy_numbers_are_numbers(make: Any) -> None:
    """Sweeps hand over np.int64; the store is the same one."""
    plain = make(ranks=(8, 64), context=512, instances=1)
    found = make(ranks=np.array([8, 64]), context=np.int64(512), instances=np.int64(1))
    assert found.ranks == (8, 64)
    assert found.game.store is plain.game.store


@pytest.mark.parametrize("dim", [2, 4, 16, 64, 80, 128])
def test_default_ranks_ascend_to_full_for_any_head_dimension(dim: int) -> None:
    """8, 12, 16, 20, 24, 32, 40, 64 of 64, and their shares elsewhere, without a double."""
    ranks = check_ranks(None, dim, "any")
    assert list(ranks) == sorted(set(ranks))
    assert ranks[-1] == dim
    assert ranks[0] >= 1
    assert dim != 64 or ranks == (8, 12, 16, 20, 24, 32, 40, 64)


def test_the_horizon_is_context_over_segment() -> None:
    """16 by default."""
    assert Measurement().segments == 16
    assert Measurement(segment=64, context=512).segments == 8


def test_instances_may_be_chosen_by_name(make: Any, tmp_path: Path) -> None:
    """URIs of the bundled text in the order given, and of one's own text, which a number would take from the start."""
    uris = ["drrl://bundled/validation/0001", "drrl://bundled/validation/0000"]
    assert [found.uri for found in make(instances=uris, split="validation").pool] == uris
    path = tmp_path / "own.txt"
    path.write_text("It was a bright cold day in April, and the clocks were striking thirteen. " * 100)
    own = [found.uri for found in make(text=path, instances=None).pool]
    assert len(own) > 1
    assert [found.uri for found in make(text=path, instances=own[1:]).pool] == own[1:]
    with pytest.raises(ValueError, match="instances='drrl://bundled/train/0000'"):
        make(text=path, instances=["drrl://bundled/train/0000"])


def test_the_splits_of_an_own_text_share_no_span(make: Any, tmp_path: Path) -> None:
    """Of four spans two train, one validates, one tests; validating on training text would flatter every agent."""
    path = tmp_path / "own.txt"
    path.write_text("".join(f"Line {number} says that {number * number} is a square.\n" for number in range(900)))
    pools = {
        split: make(text=path, split=split, instances=None).pool for split in (None, "train", "validation", "test")
    }
    uris = {split: [found.uri for found in pool] for split, pool in pools.items()}
    dealt = [uri for split in ("train", "validation", "test") for uri in uris[split]]
    assert sorted(dealt) == uris[None]
    assert len(set(dealt)) == len(dealt)
    assert len(uris["train"]) > len(uris["validation"]) >= len(uris["test"]) > 0
