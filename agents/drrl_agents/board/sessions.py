"""The HParams tab: a row per run, and one list of columns for a whole logdir.

TensorBoard takes the columns from any one run that names some, so no run may name its own: a training run or a baseline
writes a session (its row), and the columns of all of them stand in one run named `about`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path

from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams.api_pb2 import (
    DATA_TYPE_FLOAT64,
    DATA_TYPE_STRING,
    Experiment,
    HParamInfo,
    MetricInfo,
    MetricName,
)
from tensorboard.plugins.hparams.metadata import (
    EXPERIMENT_TAG,
    SESSION_START_INFO_TAG,
    create_summary_metadata,
    parse_session_start_info_plugin_data,
)
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch.utils.tensorboard.summary import hparams
from torch.utils.tensorboard.writer import SummaryWriter

from drrl_agents.board.runs import clear, run_writer

Value = bool | int | float | str
Columns = dict[str, set[Value]]
"""Hyperparameter to the values that runs have of it."""
FIRST = ("env", "algo", "policy", "seed")
"""Hyperparameters whose columns come first, where runs differ in them."""
ABOUT = "about"
"""The run that holds the columns and says what the others are."""
HEAD = 12
"""Events of a file among which its session is, being written first."""
TEXT = """
| run | what it is |
|---|---|
| `TASK/ALGO-POLICY/seed-N` | a training run: `rollout/` of its own episodes, `validation/` of the validation episodes |
| `TASK/ALGO-POLICY/mean` | mean over the seeds with its 95 % interval (Student's t), charts under Custom Scalars |
| `TASK/baselines/NAME` | a rule, an offline basis or the oracle: it does not train, so its lines are flat |
| `TASK/compare-SPLIT` | the last comparison: Pareto front, scores, table |

| tag | what it is |
|---|---|
| `normalised_score` | mean return between that of random choices (0) and the oracle's (1) |
| `return` | mean return of an episode |
| `regret` | return lost to the oracle, per step |
| `cosine`, `relative_error` | attention's output against full attention's |
| `flops_ratio` | attention's FLOPs over full attention's; `total_flops_ratio`: with observing and deciding |

`validation/` is played during training, on few instances; `test/` once at the end, by `drrl compare`.
Under Custom Scalars, intervals wider than a chart are whole without "Ignore outliers in chart scaling".
"""


def write_session(writer: SummaryWriter, values: Mapping[str, Value | None]) -> None:
    """Makes the run a row of the HParams tab, in which its seed is a name; a value of None is left out."""
    _, start, end = hparams({name: str(v) if name == "seed" else v for name, v in values.items()}, {})
    assert writer.file_writer is not None
    writer.file_writer.add_summary(start)
    writer.file_writer.add_summary(end)


def write_about(logdir: Path, metrics: Iterable[str], more: Mapping[str, Value] | None = None) -> None:
    """Writes the columns that all runs of a logdir have together, and what the runs are.

    Args:
        logdir: the folder that TensorBoard is to show.
        metrics: tags of the final metrics, in the order of their columns.
        more: hyperparameters of a run that is about to begin.
    """
    columns = columns_of(logdir)
    for name, value in (more or {}).items():
        columns.setdefault(name, set()).add(str(value) if name == "seed" else value)
    clear(logdir / ABOUT, ABOUT)
    with run_writer(logdir / ABOUT, ABOUT) as writer:
        assert writer.file_writer is not None
        writer.file_writer.add_summary(_experiment(columns, metrics))
        writer.add_text("about/runs_and_tags", TEXT)


def columns_of(logdir: Path) -> Columns:
    """Hyperparameters of every run below a folder."""
    found: Columns = {}
    for path in sorted(logdir.rglob("events.out.tfevents.*")):
        for name, value in session_of(path).items():
            found.setdefault(name, set()).add(value)
    return found


def session_of(path: Path) -> dict[str, Value]:
    """Hyperparameters that an event file begins with; none if it does not."""
    for event in islice(LegacyEventFileLoader(str(path)).Load(), HEAD):
        for value in event.summary.value:
            if value.tag == SESSION_START_INFO_TAG:
                start = parse_session_start_info_plugin_data(value.metadata.plugin_data.content)
                return {name: getattr(each, each.WhichOneof("kind")) for name, each in start.hparams.items()}
    return {}


def _experiment(columns: Columns, metrics: Iterable[str]) -> Summary:
    """Columns as TensorBoard stores them."""
    experiment = Experiment(
        hparam_infos=[_column(name, columns[name]) for name in sorted(columns)],
        metric_infos=[MetricInfo(name=MetricName(tag=tag)) for tag in metrics],
    )
    data = HParamsPluginData(experiment=experiment)
    return Summary(value=[Summary.Value(tag=EXPERIMENT_TAG, metadata=create_summary_metadata(data))])


def _column(name: str, values: set[Value]) -> HParamInfo:
    # TensorBoard shows five columns unless told otherwise: first those that are said to differ, then by name.
    differs = name in FIRST and len(values) > 1
    if not any(isinstance(value, str) for value in values):
        return HParamInfo(name=name, type=DATA_TYPE_FLOAT64, differs=differs)
    info = HParamInfo(name=name, type=DATA_TYPE_STRING, differs=differs)
    info.domain_discrete.extend(sorted(str(value) for value in values))
    return info
