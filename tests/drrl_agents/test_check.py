"""`drrl check` prints what is sound, and ends with one line where something is not."""

from __future__ import annotations

import pytest

from drrl_env import checking
from drrl_env.envs.single import RankEnv


@pytest.fixture(autouse=True)
def _few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few rounds and forks, and no other process."""
    monkeypatch.setattr(checking, "FACE_ROUNDS", 5)
    monkeypatch.setattr(checking, "FORKS", 2)
    monkeypatch.delitem(checking.CHECKS, "another process")


FAST = ("--context", 512, "--instances", 1, "--layer", 1, "--steps", 12)


def test_a_sound_environment_gets_a_line_for_each_check(drrl):
    """Exit code 0; the arguments are those of the command line."""
    shown = []
    real = checking.Report.__str__
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checking.Report, "__str__", lambda report: shown.append(real(report)) or shown[-1])
        code, said = drrl("check", "DRRL-Heads-v0", "--guard", "paper", *FAST)
    assert (code, said) == (0, "")
    lines = shown[0].splitlines()
    assert lines[0].startswith("DRRL-Heads-v0 (")
    assert "guard='paper'" in lines[0]
    assert [line.split("  ")[2] for line in lines[1:]] == list(checking.CHECKS)


def test_a_broken_one_ends_with_one_line_and_exit_code_1(drrl, monkeypatch):
    """The first thing that is wrong."""
    monkeypatch.setattr(RankEnv, "action_masks", lambda self: [False])
    code, said = drrl("check", "DRRL-Attention-v0", *FAST)
    assert code == 1
    assert said.startswith("drrl: DRRL-Attention-v0: random steps: step 0: info['action_mask'] is")
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("DRRL-Atention-v0",), "env_id='DRRL-Atention-v0'"),
        (("DRRL-Attention-v0", "--steps", 0), "steps=0"),
        (("DRRL-Attention-v0", "--threads", 0), "threads=0"),
    ],
)
def test_a_wrong_argument_ends_with_one_line_and_exit_code_2(drrl, arguments, named):
    """Before any work."""
    code, said = drrl("check", *arguments)
    assert code == 2
    assert named in said
    assert said.count("\n") == 1
