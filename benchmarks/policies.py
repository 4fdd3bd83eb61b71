"""Trains, compares and ships the policies: `benchmarks/policies.json`, `benchmarks/ablation.json`, shipped weights.

python benchmarks/policies.py train    five seeds a task, what is finished already left alone
python benchmarks/policies.py compare  every task on the test split, and the ablation
python benchmarks/policies.py ship     exports the seed that did best on the validation split
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from drrl_agents.agent import as_policy
from drrl_agents.algorithms import make_algorithm
from drrl_agents.bench.report import machine
from drrl_agents.comparison import Compare, Comparison, Entry, compare, entry, outcome
from drrl_agents.comparison_files import write
from drrl_agents.entrants import AGENT, Entrant
from drrl_agents.export import Export, run_export
from drrl_agents.inputs import fit_inputs
from drrl_agents.statistics import Contrast, Interval
from drrl_agents.tables import print_contrasts, print_table
from drrl_agents.tasks import Task
from drrl_agents.training import Train, train
from drrl_env.sb3 import RankVecEnv
from drrl_policies.field import Field

HERE = Path(__file__).parent
SHIPPED = HERE.parent / "policies" / "drrl_policies" / "shipped"
CLONED, TRAINED, BOTH = (
    "maskable-ppo-transformer-cloned",
    "maskable-ppo-transformer",
    "maskable-ppo-transformer-cloned-rl",
)


@dataclass(frozen=True)
class Plan:
    """How a task's policy is made and judged.

    Attributes:
        policy: `<algo>-<policy>`, with `-cloned` where the oracle is cloned.
        steps: of reinforcement learning.
        spans: train spans.
        test: test spans.
        seeds: how many.
    """

    policy: str = CLONED
    steps: int = 0
    spans: int = 128
    test: int = 32
    seeds: int = 5


PLANS = {
    "DRRL-Tolerance-v0": Plan(),
    "DRRL-Attention-v0": Plan(),
    "DRRL-Heads-v0": Plan(),
    "DRRL-Budget-v0": Plan(),
    "DRRL-Basis-v0": Plan(spans=64),
    "DRRL-Latency-v0": Plan(spans=64),
    "DRRL-Attention-Continuous-v0": Plan("ppo-transformer-cloned"),
    "DRRL-Layers-v0": Plan(TRAINED, 40_960, spans=16, test=8, seeds=1),
}
"""Fewer spans for Latency, for Basis, which measures every basis at every segment, and for Layers, computed live."""
PART = "policies.json"
"""A task's part of the file of that name, in its folder of the logdir."""
ABLATION, ABLATION_STEPS = "DRRL-Tolerance-v0", 40_000


def settings_of(task: str, policy: str, plan: Plan, seed: int, logdir: Path) -> Train:
    """One run."""
    plain = policy.removesuffix("-rl").removesuffix("-cloned")
    algo, _, network = plain.rpartition("-")
    return Train(
        Task(task),
        algo,
        network,
        0 if policy.endswith("-cloned") else plan.steps or ABLATION_STEPS,
        seed,
        instances=plan.spans,
        validation_instances=2 if task == "DRRL-Layers-v0" else 8,
        validate_every=10_000,
        logdir=logdir,
        imitate=plain != policy,
    )


def runs(logdir: Path) -> Iterator[tuple[Path, Train]]:
    """Every run that there should be, and its folder."""
    wanted = [(task, plan.policy, plan) for task, plan in PLANS.items()]
    wanted += [(ABLATION, policy, PLANS[ABLATION]) for policy in (TRAINED, BOTH)]
    for task, policy, plan in wanted:
        for seed in range(plan.seeds):
            yield logdir / task / policy / f"seed-{seed}", settings_of(task, policy, plan, seed, logdir)


def train_all(logdir: Path, tasks: Sequence[str]) -> None:
    """Trains what is missing, and goes on with what was stopped."""
    for folder, settings in runs(logdir):
        if settings.task.env in tasks and not (folder / "policy.safetensors").is_file():
            train(Train(resume=folder) if (folder / "config.json").is_file() else settings)


def compare_all(logdir: Path, tasks: Sequence[str]) -> None:
    """Compares these tasks and the ablation, and puts all that was ever compared in the logdir together."""
    for task in tasks:
        found = compared(task, PLANS[task], logdir)
        save(logdir / task / PART, found)
        if task == ABLATION:
            save(HERE / "ablation.json", ablation(found))
    parts = [json.loads((logdir / task / PART).read_text()) for task in PLANS if (logdir / task / PART).is_file()]
    joined = {name: [each for part in parts for each in part[name]] for name in ("rows", "contrasts")}
    (HERE / "policies.json").write_text(json.dumps({"machine": parts[0]["machine"], **joined}, indent=1) + "\n")


def compared(task: str, plan: Plan, logdir: Path) -> Comparison:
    """One task's comparison, written into the logdir too; the policy that ships first."""
    policies = (CLONED, TRAINED, BOTH) if task == ABLATION else (plan.policy,)
    settings = Compare(Task(task), policies, plan.seeds, instances=plan.test, train_instances=plan.spans, logdir=logdir)
    found = compare(settings)
    show(found)
    write(found, logdir / task / "compare-test")
    return found


def ablation(found: Comparison) -> Comparison:
    """Neither, cloning only, reinforcement learning only, and both."""
    entries: list[Entry] = [each for each in found.entries if each.row.kind in (AGENT, "oracle")]
    fresh = entry(untrained(found.field, PLANS[ABLATION].seeds), found.field, found.judge)
    made = outcome(found.task, found.split, [fresh, *entries], found.judge)
    show(made)
    return made


def untrained(field: Field, seeds: int) -> Entrant:
    """Networks as they are initialised, their inputs standardised."""
    policies = []
    for seed in range(seeds):
        env = RankVecEnv(ABLATION, 2, split="train", instances=1)
        model = make_algorithm("maskable-ppo", "transformer", env, seed)
        fit_inputs(model, Task(ABLATION).field("train", 8), seed)
        policies.append(as_policy(model, f"untrained-seed{seed}", True, field))
    return Entrant("untrained", AGENT, tuple(policies), tuple(range(seeds)), Task(ABLATION))


def show(found: Comparison) -> None:
    """Prints the tables."""
    print_table(found.rows, f"{found.task.env} · {found.split} · {len(found.field.episodes)} episodes")
    print_contrasts(found)


def save(path: Path, found: Comparison) -> None:
    """Rows and contrasts of a comparison as one JSON object."""
    rows = [{"task": found.task.env, **row.values()} for row in found.rows]
    contrasts = [contrast_of(found.task.env, contrast) for contrast in found.contrasts]
    text = json.dumps({"machine": machine(), "rows": rows, "contrasts": contrasts}, indent=1)
    path.write_text(text.replace("NaN", "null") + "\n")


def contrast_of(task: str, found: Contrast) -> dict[str, Any]:
    """A contrast as plain JSON."""
    numbers = {name: ends(getattr(found, name)) for name in ("mean_return", "score", "probability_of_improvement")}
    return {"task": task, "first": found.first, "second": found.second, **numbers}


def ends(found: Interval) -> list[float]:
    """Value, low, high."""
    return list(asdict(found).values())


def ship(logdir: Path, tasks: Sequence[str]) -> None:
    """Exports each task's best seed, chosen on the validation split."""
    for task in tasks:
        plan = PLANS[task]
        folders = [logdir / task / plan.policy / f"seed-{seed}" for seed in range(plan.seeds)]
        best = max(folders, key=validated)
        config = json.loads((best / "config.json").read_text())
        run_export(Export(best, SHIPPED / task, instances=plan.test, command=command_of(config)))


def validated(folder: Path) -> float:
    """The last validation score of a run."""
    from drrl_agents.board.curves import read_curves

    return float(read_curves(folder)["normalised_score"].values[-1])


def command_of(config: dict[str, Any]) -> str:
    """The command that trains the same policy."""
    verb = "imitate" if config["imitate"] and config["steps"] == 0 else "train"
    chosen = f"drrl {verb} {config['task']['env']} --algo {config['algo']} --policy {config['policy']}"
    steps = "" if verb == "imitate" else f" --steps {config['steps']}" + " --imitate" * config["imitate"]
    return f"{chosen} --seed {config['seed']} --instances {config['instances']}{steps}"


def main() -> None:
    """Runs one of the three."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=("train", "compare", "ship"))
    parser.add_argument("--logdir", type=Path, default=Path("runs"))
    parser.add_argument("--tasks", nargs="+", choices=tuple(PLANS), default=tuple(PLANS))
    given = parser.parse_args()
    torch.set_num_threads(1)
    {"train": train_all, "compare": compare_all, "ship": ship}[given.verb](given.logdir, given.tasks)


if __name__ == "__main__":
    main()
