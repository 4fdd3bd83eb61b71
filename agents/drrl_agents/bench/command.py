"""`drrl bench`: measurements, each a ratio within one run, printed as a table or as one JSON object."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module

import tyro

from drrl_env.envs.settings import one_of

BENCHES = ("update", "env", "policy")
"""The benchmarks, each a module beside this one with a function `run(threads)`."""


@dataclass(frozen=True)
class Bench:
    """Measure on this machine: `update` (the incremental update), `env` (steps per second), `policy` (three seeds).

    Attributes:
        name: update, env or policy.
        json: print one JSON object with `machine` and `rows` instead of a table.
        threads: torch threads.
    """

    name: tyro.conf.Positional[str]
    json: bool = False
    threads: int = 1


def run_bench(settings: Bench) -> None:
    """Runs the benchmark and prints its rows."""
    one_of("name", settings.name, BENCHES)
    report = import_module("drrl_agents.bench.report")
    rows = import_module(f"drrl_agents.bench.{settings.name}").run(threads=settings.threads)
    show = report.to_json if settings.json else report.render
    show(rows)
