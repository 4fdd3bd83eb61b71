"""`drrl doctor`: versions, devices, and what is cached where."""

from __future__ import annotations

import platform
import shutil
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from drrl_agents.run_folder import PACKAGES
from drrl_env.envs.traces import FOLDER, SWITCH, switched_on
from drrl_env.envs.world import cache_folder

CACHED = ("calibrations", "documents", "guards", FOLDER)
"""Folders below the cache folder that are ours: DRRL_CACHE may name one that holds more."""


@dataclass(frozen=True)
class Doctor:
    """Show versions, devices, the cache's place and size, and how to clear it.

    Attributes:
        clear_cache: delete what is cached.
    """

    clear_cache: bool = False


def run_doctor(settings: Doctor) -> None:
    """Prints the report; clears the cache first if asked to."""
    if settings.clear_cache:
        for name in CACHED:
            shutil.rmtree(cache_folder() / name, ignore_errors=True)
    table = Table(title="drrl doctor", show_header=False)
    for name, value in report().items():
        table.add_row(name, value)
    Console().print(table)


def report() -> dict[str, str]:
    """What a bug report should say."""
    folder = cache_folder()
    held = sum(folder_bytes(folder / name) for name in CACHED)
    return {
        "python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        **{name: _version(name) for name in PACKAGES},
        "torch threads": str(torch.get_num_threads()),
        "devices": _devices(),
        "cache": f"{folder} ({held / 1e6:.1f} MB); move it with DRRL_CACHE",
        "traces": _traces(),
        "clear it": "drrl doctor --clear-cache",
    }


def _traces() -> str:
    """How much of what was measured is kept, and whether it is read."""
    folder = cache_folder() / FOLDER
    count = sum(1 for _ in folder.rglob("*.safetensors"))
    switch = f"on; {SWITCH}=off turns them off" if switched_on() else f"off by {SWITCH}"
    return f"{count} files ({folder_bytes(folder) / 1e6:.1f} MB), {switch}"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _devices() -> str:
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return ", ".join(["cpu", *gpus])


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below a folder; 0 if there is none."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
