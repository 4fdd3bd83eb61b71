"""What cannot be loaded says so in one line that names the argument, the value and the way out."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BloomConfig, MistralConfig

from drrl_env.models.language_model import LanguageModel, load_language_model

WEIGHTS = "model.safetensors"
Damage = Callable[[Path], object]


@pytest.fixture
def copy(llama_folder: Path, tmp_path: Path) -> Path:
    """A good model folder of one's own to damage."""
    return Path(shutil.copytree(llama_folder, tmp_path / "copy"))


def one_line(name: str) -> str:
    """The message of the error that loading `name` raises, checked to be one line that names it."""
    with pytest.raises(ValueError, match="model=") as error:
        load_language_model(name)
    message = str(error.value)
    assert message.startswith(f"model={name!r}: ")
    assert "\n" not in message
    return message


def truncate(folder: Path) -> None:
    """Cuts the weights off in the middle, as an interrupted copy does."""
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[: len(whole) // 2])


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Rewrites the weights after a change."""
    weights = load_file(folder / WEIGHTS)
    change(weights)
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


def poison(folder: Path) -> None:
    """One NaN in one weight."""
    change_weights(
        folder, lambda weights: weights["model.layers.1.self_attn.k_proj.weight"].view(-1)[5:6].fill_(torch.nan)
    )


def pickle_only(folder: Path) -> None:
    """The same weights as a pickle, which would run code where it is loaded."""
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()


def ask_for_code(folder: Path) -> None:
    """A model that wants its own Python file run."""
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text("raise SystemExit('the code of the model was run')")


def resize(folder: Path) -> None:
    """A config that does not go with the weights."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 128}))


@pytest.mark.parametrize(
    ("damage", "remedy"),
    [
        (lambda folder: (folder / "config.json").unlink(), "config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "JSON"),
        (lambda folder: (folder / WEIGHTS).write_bytes(b"nothing of the kind"), "copy it again"),
        (lambda folder: (folder / WEIGHTS).unlink(), "*.safetensors"),
        (lambda folder: change_weights(folder, lambda weights: weights.popitem()), "save the whole model"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer"),
        (truncate, "copy it again"),
        (poison, "NaN"),
        (pickle_only, "*.safetensors"),
        (ask_for_code, "custom code"),
        (resize, "cannot be loaded"),
    ],
)
def test_a_damaged_folder_is_refused_in_one_line(
    copy: Path, damage: Damage, remedy: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Left to transformers: a prompt (own code), random numbers for missing weights, NaN rewards, long reports."""
    damage(copy)
    assert remedy in one_line(str(copy))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["/nowhere/at/all", "./nowhere", "~/nowhere-at-all"])
def test_a_folder_that_is_not_there_is_called_one(name: str) -> None:
    """Not mistaken for a repository name, whose rules the error would then explain."""
    message = one_line(name)
    assert "no folder with a config.json is there" in message
    assert "'bundled'" in message


@pytest.mark.parametrize("name", ["bundeld", "nobody/no-such-model", "", "a name with spaces"])
def test_an_unknown_name_is_not_asked_for_again_and_again(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At most one look-up of a host, the hub believed to be online; by default its client retries for 23 s.

    That one is huggingface_hub's own: it fetches a list for its user agent once a process.
    """
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    asked: list[object] = []

    def refuse(host: object, *_: object, **__: object) -> None:
        asked.append(host)
        raise OSError("no network in this test")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    message = one_line(name)
    assert len(asked) <= 1
    assert "'bundled'" in message


def test_an_attention_that_cannot_be_captured_is_refused_at_loading(save_tiny: Callable[..., Path]) -> None:
    """BLOOM adds ALiBi inside its own attention: no q and k give its scores, and it never shows them."""
    folder = save_tiny("bloom", BloomConfig(vocab_size=4096, hidden_size=64, n_layer=2, n_head=4))
    assert "AttentionInterface" in one_line(str(folder))


def test_a_sliding_window_limits_the_context(save_tiny: Callable[..., Path]) -> None:
    """Beyond its window a layer's attention is not that over all keys (off by a quarter at twice the window)."""
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = MistralConfig(vocab_size=4096, intermediate_size=96, sliding_window=32, **sizes)
    assert load_language_model(str(save_tiny("mistral", config))).context == 32


def test_a_model_is_ready_to_be_captured(model: LanguageModel) -> None:
    """Float32, evaluation mode, no gradients, through our door."""
    assert not model.network.training
    assert model.network.config._attn_implementation == "drrl"
    assert all(not weight.requires_grad and weight.dtype == torch.float32 for weight in model.network.parameters())


def test_the_digest_names_the_weights(llama: LanguageModel, copy: Path) -> None:
    """The same weights in another folder have the same digest; one changed number gives another."""
    assert load_language_model(str(copy)).digest == llama.digest
    change_weights(copy, lambda weights: weights["model.norm.weight"][:1].add_(1e-3))
    assert load_language_model(str(copy)).digest != llama.digest
