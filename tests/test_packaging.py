"""The wheel is the product: what a user installs must hold everything and run from anywhere."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NEEDED = (
    "drrl_env/py.typed",
    "drrl_env/models/bundled/model.safetensors",
    "drrl_env/models/bundled/calibration.safetensors",
    "drrl_env/models/bundled/directions.safetensors",
    "drrl_env/models/bundled/tokenizer.json",
    "drrl_env/models/bundled/README.md",
    "drrl_env/data/splits.json",
    "drrl_env/data/text/test-prose.txt.xz",
    "drrl_env/data/LICENSES.md",
    "drrl_env/data/PSF-LICENSE.txt",
    "drrl_env/envs/guards/refreshed.safetensors",
    "drrl_env/envs/guards/calibrated.safetensors",
    "drrl_env/envs/timings/intel-xeon-2-cores.csv",
    "drrl_agents/cli.py",
    "drrl_policies/transformer.py",
)
SCRIPT = """
import gymnasium as gym, drrl_env
env = gym.make("drrl_env:DRRL-Attention-v0", instances=1, context=512)
env.reset(seed=0)
print(drrl_env.__file__, env.step(3)[1])
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    return next(folder.glob("*.whl"))


@pytest.mark.slow
def test_the_wheel_holds_weights_text_and_licences(wheel: Path) -> None:
    """A build drops git-ignored files silently; a wheel without weights imports and then fails at the first make."""
    names = set(zipfile.ZipFile(wheel).namelist())
    assert not [name for name in NEEDED if name not in names]
    assert not [name for name in names if name.startswith(("tests/", "agents/", "policies/"))]


@pytest.mark.slow
def test_the_wheel_runs_from_any_folder(wheel: Path, tmp_path: Path) -> None:
    """Installed apart from the source tree it makes an environment and steps it."""
    target = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target), str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    found = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(target)},
        check=True,
        capture_output=True,
        text=True,
    )
    assert str(target) in found.stdout
    assert 0 < float(found.stdout.split()[-1]) < 1


def test_the_bundled_model_is_small_enough_to_ship() -> None:
    """At most 20 MB of weights and 2 MB of text; a float32 copy would be twice as large."""
    weights = ROOT / "drrl_env" / "models" / "bundled" / "model.safetensors"
    text = (ROOT / "drrl_env" / "data" / "text").glob("*.xz")
    assert weights.stat().st_size <= 20e6
    assert sum(path.stat().st_size for path in text) <= 2e6
