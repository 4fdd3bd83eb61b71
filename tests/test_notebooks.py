"""The notebooks as they lie in the repository; `make notebooks` (part of `make test-slow`) executes them."""

from __future__ import annotations

import ast
import importlib
import json
import re
from functools import cache
from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "notebooks"
NAMES = ("1-the-environment", "2-train-and-compare", "3-your-own-model", "4-your-own-parts")
OURS = ("drrl_env", "drrl_policies", "drrl_agents")
ELSEWHERE = re.compile(r"https?://|hf download|['\"](/[A-Za-z~]|[A-Za-z]:\\)|from_pretrained\(")
"""What a cell would need a network, a hub or somebody's own machine for."""


@cache
def notebook(name: str) -> NotebookNode:
    """A notebook, checked against the format's schema."""
    found = nbformat.read(FOLDER / f"{name}.ipynb", nbformat.NO_CONVERT)
    nbformat.validate(found)
    return found


def code(name: str) -> list[str]:
    """The source of its code cells."""
    return [cell.source for cell in notebook(name).cells if cell.cell_type == "code"]


def test_the_four_are_there_and_nothing_else() -> None:
    """A notebook that is not listed here would be executed and never looked at."""
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == list(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_valid_and_asks_for_the_kernel_that_is_there(name: str) -> None:
    """nbformat 4.5 or later, with the kernel `python3`: one of somebody's own runs nowhere else."""
    found = notebook(name)
    assert (found.nbformat, found.nbformat_minor) >= (4, 5)
    assert found.metadata.kernelspec.name == "python3"


@pytest.mark.parametrize("name", NAMES)
def test_outputs_are_stripped(name: str) -> None:
    """No output, no count, and no metadata that an editor leaves in a cell: a diff shows what somebody wrote."""
    for cell in notebook(name).cells:
        assert not cell.metadata, cell.source
        if cell.cell_type == "code":
            assert not cell.outputs, cell.source
            assert cell.execution_count is None, cell.source


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_begins_small_and_says_how_to_scale_up(name: str) -> None:
    """Prose, then a cell with the switch that CI leaves as it is, and a setting that it changes."""
    first, second = notebook(name).cells[:2]
    assert (first.cell_type, second.cell_type) == ("markdown", "code")
    assert second.source.startswith("SMALL = True  # False: ")
    assert " if SMALL else " in second.source


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_needs_neither_a_network_nor_somebodys_folders(name: str) -> None:
    """No address, no hub and no absolute path in its code."""
    assert not [cell for cell in code(name) if ELSEWHERE.search(cell)]


@pytest.mark.parametrize("name", NAMES)
def test_what_a_notebook_imports_is_there(name: str) -> None:
    """Every name it takes from these packages: one that was renamed fails here, in seconds, before anything is run."""
    taken = [node for cell in code(name) for node in ast.walk(ast.parse(cell)) if isinstance(node, ast.ImportFrom)]
    named = [(node.module or "", each.name) for node in taken for each in node.names]
    ours = [(module, each) for module, each in named if module.split(".")[0] in OURS]
    assert ours
    assert not [(module, each) for module, each in ours if not hasattr(importlib.import_module(module), each)]


@pytest.mark.parametrize("name", NAMES)
def test_what_a_notebook_says_in_prose_is_there_too(name: str) -> None:
    """Environment ids and `drrl` commands named anywhere in it exist."""
    from drrl_agents import cli
    from drrl_env.envs.registration import IDS

    text = json.dumps([cell.source for cell in notebook(name).cells])
    assert set(re.findall(r"DRRL-[A-Za-z-]+-v\d", text)) <= set(IDS)
    commands = set(re.findall(r"`drrl ([a-z]+)", text))
    source = Path(cli.__file__).read_text()
    assert not [command for command in commands if f'"{command}"' not in source]
