"""`drrl bench`: measurements, each a ratio within one run, printed as a table or as one JSON object."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module

import tyro

from drrl_env.envs.settings import one_of

BENCHES = ("update", "env", "policy", "guard", "tasks", "decide")
"""The benchmarks, each a module beside this one with a function `run(threads)`."""


@dataclass(frozen=True)
class Bench:
    """Measure here: `update` (the incremental update), `env` and `decide` (speed), `policy` (seeds), `guard`, `tasks`.

    Attributes:
        name: update, env, policy, guard (what is safe), tasks (what each task's baselines and oracle reach) or decide
            (time of a decision of the Transformer policy).
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
    bench = import_module(f"drrl_agents.bench.{settings.name}")
    rows = bench.run(threads=settings.threads)
    show = report.to_json if settings.json else getattr(bench, "render", report.render)
    show(rows)
