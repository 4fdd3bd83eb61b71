"""The `drrl` command explains itself."""

from __future__ import annotations

import sys

import pytest

from drrl_agents.cli import RUNNERS, main

COMMANDS = (
    "train", "imitate", "tune", "evaluate", "export", "compare", "validate", "bench", "calibrate", "instances", "check",
    "demo", "doctor",
)  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_help_text(command, monkeypatch, capsys):
    """With every option described: tyro marks none as lacking a text, and exit code 0."""
    monkeypatch.setattr(sys, "argv", ["drrl", command, "--help"])
    with pytest.raises(SystemExit) as stop:
        main()
    shown = capsys.readouterr().out
    assert stop.value.code == 0
    assert f"usage: drrl {command}" in shown
    assert len(shown.splitlines()) > 8


def test_the_command_alone_lists_its_subcommands(monkeypatch, capsys):
    """`drrl --help` names all thirteen, and there are no others."""
    monkeypatch.setattr(sys, "argv", ["drrl", "--help"])
    with pytest.raises(SystemExit):
        main()
    shown = capsys.readouterr().out
    assert all(command in shown for command in COMMANDS)
    assert len(RUNNERS) == len(COMMANDS)


def test_an_unknown_command_is_refused(drrl):
    """Exit code 2."""
    code, said = drrl("dance")
    assert code == 2
    assert "dance" in said


def test_train_prints_where_the_run_lies_and_what_to_type(drrl, monkeypatch, tmp_path, capsys):
    """One step of an MLP through the command line."""
    sizes = ("--context", 256, "--instances", 1, "--validation-instances", 1, "--n-envs", 2, "--steps", 1)
    printed = []
    monkeypatch.setattr("builtins.print", lambda *words, **_: printed.append(" ".join(map(str, words))))
    code, said = drrl("train", *sizes, "--policy", "mlp", "--no-progress", "--logdir", tmp_path)
    assert code == 0, said
    folder = tmp_path / "DRRL-Attention-v0" / "maskable-ppo-mlp" / "seed-0"
    assert printed[-1] == f"run: {folder}\ntensorboard --logdir {tmp_path}"
    assert (folder / "policy.safetensors").is_file()
