"""`drrl doctor` says what a bug report needs and clears only what is ours."""

from __future__ import annotations

from drrl_agents.doctor import Doctor, report, run_doctor
from drrl_agents.training import PACKAGES


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
    for name in ("calibrations", "others"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("kept?")
    run_doctor(Doctor(clear_cache=True))
    assert [path.name for path in tmp_path.iterdir()] == ["others"]
    assert "drrl doctor" in capsys.readouterr().out


def test_clearing_a_cache_that_is_not_there_is_no_error(monkeypatch, tmp_path):
    """A second clearing does nothing."""
    monkeypatch.setenv("DRRL_CACHE", str(tmp_path / "none"))
    run_doctor(Doctor(clear_cache=True))
    assert not (tmp_path / "none").exists()
