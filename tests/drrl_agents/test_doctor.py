"""`drrl doctor` says what a bug report needs and clears only what is ours."""

from __future__ import annotations

import pytest

from drrl_agents.doctor import CACHED, Doctor, report, run_doctor
from drrl_agents.run_folder import PACKAGES


def test_the_report_names_versions_devices_and_the_cache(monkeypatch, tmp_path):
    """Every package with a version, the cache's place and size, how to move and how to clear it."""
    monkeypatch.setenv("DRRL_CACHE", str(tmp_path))
    (tmp_path / "calibrations").mkdir()
    (tmp_path / "calibrations" / "a.safetensors").write_bytes(bytes(2_000_000))
    found = report()
    assert all(found[name][0].isdigit() for name in PACKAGES)
    assert "cpu" in found["devices"]
    assert found["cache"].startswith(f"{tmp_path} (2.0 MB)")
    assert "DRRL_CACHE" in found["cache"]
    assert found["clear it"] == "drrl doctor --clear-cache"


def test_clearing_takes_what_is_cached_and_nothing_else(monkeypatch, tmp_path, capsys):
    """DRRL_CACHE may name a folder that holds other things: deleting all of it would lose them."""
    monkeypatch.setenv("DRRL_CACHE", str(tmp_path))
    for name in (*CACHED, "others"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("kept?")
    assert {"calibrations", "traces"} <= set(CACHED)
    run_doctor(Doctor(clear_cache=True))
    assert [path.name for path in tmp_path.iterdir()] == ["others"]
    assert "drrl doctor" in capsys.readouterr().out


def test_the_report_says_how_much_is_traced_and_how_to_turn_it_off(monkeypatch, tmp_path):
    """Files and megabytes below the cache, part of its size; the switch, and whether it is off."""
    monkeypatch.setenv("DRRL_CACHE", str(tmp_path))
    monkeypatch.delenv("DRRL_TRACES", raising=False)
    folder = tmp_path / "traces" / "0123456789abcdef"
    folder.mkdir(parents=True)
    for name in ("a.safetensors", "b.safetensors"):
        (folder / name).write_bytes(bytes(1_500_000))
    assert report()["traces"] == "2 files (3.0 MB), on; DRRL_TRACES=off turns them off"
    assert report()["cache"].startswith(f"{tmp_path} (3.0 MB)")
    monkeypatch.setenv("DRRL_TRACES", "off")
    assert report()["traces"] == "2 files (3.0 MB), off by DRRL_TRACES"
    monkeypatch.setenv("DRRL_TRACES", "no")
    with pytest.raises(ValueError, match="use one of 'on', 'off'"):
        report()


def test_clearing_a_cache_that_is_not_there_is_no_error(monkeypatch, tmp_path):
    """A second clearing does nothing."""
    monkeypatch.setenv("DRRL_CACHE", str(tmp_path / "none"))
    run_doctor(Doctor(clear_cache=True))
    assert not (tmp_path / "none").exists()
