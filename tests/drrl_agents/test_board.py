"""TensorBoard shows agents, baselines and the oracle in the same charts, with numbers that are what was measured."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import t as student
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams.metadata import (
    EXPERIMENT_TAG,
    SESSION_START_INFO_TAG,
    parse_experiment_plugin_data,
    parse_session_start_info_plugin_data,
)

from drrl_agents.board.baselines import write_baselines
from drrl_agents.board.comparison import prefix, write_board
from drrl_agents.board.curves import CHARTS, Curve, margin, tags
from drrl_agents.board.runs import run_writer
from drrl_agents.comparison import Compare, compare
from drrl_agents.tasks import Task
from drrl_agents.training import Train, train
from drrl_policies.fitting import full, oracle_policy
from drrl_policies.rollout import reference, rollout

GROUP, SEEDS, STEPS = "maskable-ppo-mlp", (0, 1), 512


@pytest.fixture(scope="module")
def board(tmp_path_factory):
    """Two seeds of 512 steps, validated three times, compared on two test spans; the logdir and the comparison."""
    logdir, task = tmp_path_factory.mktemp("board"), Task(context=512, basis="calibrated")
    settings = Train(task, "maskable-ppo", "mlp", STEPS, n_envs=2, instances=2, validation_instances=2, logdir=logdir)
    for seed in SEEDS:
        train(replace(settings, seed=seed, validate_every=256, progress=False))
    found = compare(Compare(task, (GROUP,), 2, instances=2, train_instances=2, logdir=logdir, progress=False))
    write_board(found, logdir)
    return logdir, found


@pytest.fixture(scope="module")
def runs(board):
    """Every run of the logdir, by its name in TensorBoard."""
    return EventMultiplexer().AddRunsFromDirectory(str(board[0])).Reload()


def line(runs, run: str, tag: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in runs.Scalars(run, tag)]


def scalars(runs, run: str, first: str) -> set[str]:
    return {tag for tag in runs.Runs()[run]["scalars"] if tag.startswith(f"{first}/")}


def test_runs_are_grouped_by_task_policy_and_seed(board, runs):
    """A run per seed, the mean of them, a flat run for everything that does not train, the comparison's and `about`."""
    _, found = board
    task = found.task.env
    trained = {f"{task}/{GROUP}/{name}" for name in ("seed-0", "seed-1", "mean")}
    flat = {f"{task}/baselines/{row.policy}" for row in found.rows if row.kind != "agent"}
    assert {"full", "oracle"} < {name.rpartition("/")[2] for name in flat}
    assert set(runs.Runs()) == trained | flat | {f"{task}/compare-test", "about"}


def test_baselines_have_the_tags_of_training_from_its_first_step_to_its_last(board, runs):
    """So they are in the same charts: every validation and test tag of an agent, two points, one value."""
    _, found = board
    agent = f"{found.task.env}/{GROUP}/seed-0"
    for row in found.rows:
        if row.kind != "agent":
            flat = f"{found.task.env}/baselines/{row.policy}"
            for first in ("validation", "test"):
                assert scalars(runs, flat, first) == scalars(runs, agent, first)
                for tag in scalars(runs, flat, first):
                    (start, before), (end, after) = line(runs, flat, tag)
                    assert (start, end, before) == (0, STEPS, after)


def test_final_scores_stand_at_the_last_step_of_every_seed(board, runs):
    """Each seed's own score on the test split, not the mean of the group."""
    _, found = board
    entry = found.entries[0]
    for seed, played in zip(entry.entrant.seeds, entry.rollouts, strict=True):
        ((step, score),) = line(runs, f"{found.task.env}/{GROUP}/seed-{seed}", "test/normalised_score")
        assert step == STEPS
        assert score == pytest.approx(found.judge.reference.score(played.returns), abs=1e-6)


def test_validation_lines_are_played_on_the_episodes_of_training(board, runs):
    """Full attention and the oracle on the two spans that training validates on; on the test split it reaches less."""
    _, found = board
    field = found.task.field("validation", 2, progress=False)
    for policy in (full(field), oracle_policy(field)):
        flat = f"{found.task.env}/baselines/{policy.name}"
        expected = float(rollout(policy, field).returns.mean())
        assert line(runs, flat, "validation/return")[0][1] == pytest.approx(expected, rel=1e-6)
    oracle = f"{found.task.env}/baselines/oracle"
    assert line(runs, oracle, "validation/normalised_score")[0][1] == pytest.approx(1)
    assert line(runs, oracle, "test/return")[0][1] != pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("metric", CHARTS)
def test_margins_are_the_mean_over_seeds_and_its_interval(board, runs, metric):
    """numpy's mean and Student's t with one degree of freedom, at every validation."""
    task = board[1].task.env
    seeds = [line(runs, f"{task}/{GROUP}/seed-{seed}", f"validation/{metric}") for seed in SEEDS]
    values = np.array([[value for _, value in seed] for seed in seeds])
    half = student.ppf(0.975, 1) * values.std(0, ddof=1) / np.sqrt(2)
    expected = (values.mean(0), values.mean(0) - half, values.mean(0) + half)
    for tag, wanted in zip(tags(task, metric), expected, strict=True):
        written = line(runs, f"{task}/{GROUP}/mean", tag)
        assert [step for step, _ in written] == [0, 256, STEPS]
        np.testing.assert_allclose([value for _, value in written], wanted, rtol=1e-5, atol=1e-6)


def test_margins_of_seeds_that_validated_at_other_steps_are_interpolated_up_to_the_shortest():
    """A seed at 0, 10, 20 and one at 0, 20, 40: three steps, the second's value at 10 half way."""
    first = Curve(np.array([0, 10, 20]), np.array([0.0, 1.0, 2.0]))
    found = margin([first, Curve(np.array([0, 20, 40]), np.array([4.0, 6.0, 9.0]))])
    np.testing.assert_array_equal(found.steps, [0, 10, 20])
    np.testing.assert_allclose(found.mean, [2.0, 3.0, 4.0])
    np.testing.assert_allclose(found.high - found.mean, student.ppf(0.975, 1) * np.array([2.0, 2.0, 2.0]))


def test_the_margin_of_one_seed_has_no_width():
    """There is nothing to take an interval over."""
    curve = Curve(np.array([0, 5]), np.array([0.25, 0.5]))
    found = margin([curve])
    np.testing.assert_array_equal([found.low, found.high], [curve.values, curve.values])


def test_custom_scalars_chart_means_and_baselines(board, runs):
    """A margin chart per metric, whose tags the group's mean and every baseline but random have."""
    _, found = board
    task = found.task.env
    (tensor,) = runs.Tensors(f"{task}/compare-test", "custom_scalars__config__")
    layout = Layout.FromString(tensor.tensor_proto.string_val[0])
    assert [category.title.split(",")[0] for category in layout.category] == [task]
    charts = list(layout.category[0].chart)
    assert {chart.title for chart in charts} == set(CHARTS.values())
    wanted = {tag for chart in charts for series in chart.margin.series for tag in (series.value, series.lower)}
    assert wanted <= set(runs.Runs()[f"{task}/{GROUP}/mean"]["scalars"])
    for row in found.rows:
        if row.kind != "agent":
            has = wanted <= set(runs.Runs()[f"{task}/baselines/{row.policy}"]["scalars"])
            assert has == (row.policy != "random")


def test_hparams_have_a_row_for_every_policy_and_one_list_of_columns(board, runs):
    """TensorBoard takes the columns from any one run that names some: only `about` does, and it names final metrics."""
    _, found = board
    content = {run: runs.PluginRunToTagToContent("hparams").get(run, {}) for run in runs.Runs()}
    assert [run for run, own in content.items() if EXPERIMENT_TAG in own] == ["about"]
    experiment = parse_experiment_plugin_data(content["about"][EXPERIMENT_TAG])
    rows = [run for run, own in content.items() if SESSION_START_INFO_TAG in own]
    assert len(rows) == len(SEEDS) + len(found.rows) - 1
    columns = {info.name for info in experiment.hparam_infos}
    for run in rows:
        start = parse_session_start_info_plugin_data(content[run][SESSION_START_INFO_TAG])
        assert {"env", "algo", "policy"} <= set(start.hparams) <= columns
        assert {info.name.tag for info in experiment.metric_infos} <= set(runs.Runs()[run]["scalars"])
    assert experiment.metric_infos[0].name.tag == "test/normalised_score"


def test_pictures_and_histograms_of_ranks_are_there(board, runs):
    """The Pareto front and the scores; for every policy a heatmap and a histogram of as many ranks as there are."""
    _, found = board
    task, steps = found.task.env, len(found.field.episodes) * found.field.steps
    assert {"comparison/pareto", "comparison/scores"} <= set(runs.Runs()[f"{task}/compare-test"]["images"])
    for run in [name for name in runs.Runs() if "/baselines/" in name or "/seed-" in name]:
        assert runs.Images(run, "test/rank_by_layer_and_segment")[0].encoded_image_string.startswith(b"\x89PNG")
        assert runs.Histograms(run, "test/rank")[0].histogram_value.num == steps


def test_comparing_again_replaces_what_was_written(board):
    """Not a point more than before, a baseline of an earlier one is gone, training's own events are untouched."""
    logdir, found = board
    folder = logdir / found.task.env
    own = {path: path.read_bytes() for path in folder.glob("*/seed-*/events.*") if path.suffix[1:].isdigit()}
    with run_writer(folder / "baselines" / "fixed-99", "comparison") as writer:
        writer.add_scalar("test/return", 0.0, 0)
    before = sorted(_points(logdir))
    write_board(found, logdir)
    assert sorted(_points(logdir)) == [point for point in before if "fixed-99" not in point[0]]
    assert not (folder / "baselines" / "fixed-99").exists()
    assert len(own) == len(SEEDS)
    assert own == {path: path.read_bytes() for path in own}


def _points(logdir: Path) -> list[tuple[str, str, int]]:
    found = EventMultiplexer().AddRunsFromDirectory(str(logdir)).Reload()
    return [
        (r, tag, p.step) for r, own in found.Runs().items() for tag in own["scalars"] for p in found.Scalars(r, tag)
    ]


def test_agents_from_elsewhere_are_flat_runs(board, tmp_path):
    """Their folders are not touched: another logdir shows their final scores, a line per seed."""
    logdir, found = board
    before = sorted(logdir.rglob("events.*"))
    write_board(found, tmp_path)
    assert sorted(logdir.rglob("events.*")) == before
    events = EventAccumulator(str(tmp_path / found.task.env / "baselines" / GROUP / "seed-1")).Reload()
    expected = found.judge.reference.score(found.entries[0].rollouts[1].returns)
    assert [point.value for point in events.Scalars("test/normalised_score")] == pytest.approx([expected] * 2, abs=1e-6)


def test_training_can_have_baselines_before_anything_is_compared(board, tmp_path):
    """Rules fitted on train, the oracle at 1, lines to the last step, HParams with the columns of the run to come."""
    task = board[1].task
    fields = [task.field(split, 2, progress=False) for split in ("train", "validation")]
    names = write_baselines(*fields, tmp_path / task.env, 1000, {"algo": "ppo", "n_steps": 64})
    names = write_baselines(*fields, tmp_path / task.env, 2000, {"algo": "ppo", "n_steps": 64})
    assert {"full", "layer-table", "oracle"} < set(names)
    expected = reference(fields[1])
    for name, score in (("oracle", 1.0), ("full", expected.score(rollout(full(fields[1]), fields[1]).returns))):
        events = EventAccumulator(str(tmp_path / task.env / "baselines" / name)).Reload()
        points = [(point.step, point.value) for point in events.Scalars("validation/normalised_score")]
        assert points == [(0, pytest.approx(score, abs=1e-6)), (2000, pytest.approx(score, abs=1e-6))]
    about = EventAccumulator(str(tmp_path / "about")).Reload().PluginTagToContent("hparams")[EXPERIMENT_TAG]
    columns = {info.name: info for info in parse_experiment_plugin_data(about).hparam_infos}
    assert {"algo", "env", "policy", "n_steps"} == set(columns)
    assert "ppo" in [value.string_value for value in columns["algo"].domain_discrete.values]


def test_a_comparison_whose_agents_were_validated_otherwise_leaves_the_lines_of_validation_alone(board, tmp_path):
    """Runs of another reward than is compared: theirs stay, and none of the comparison's stand beside their curves."""
    logdir = Path(shutil.copytree(board[0], tmp_path / "runs"))
    entries = [
        replace(e, entrant=replace(e.entrant, folders=_moved(e.entrant, board[0], logdir))) for e in board[1].entries
    ]
    found = replace(board[1], task=replace(board[1].task, reward="paper"), entries=tuple(entries))
    oracle = logdir / found.task.env / "baselines" / "oracle"
    before = [path.read_bytes() for path in oracle.glob("*.curves")]
    write_board(found, logdir)
    assert len(before) == 1
    assert [path.read_bytes() for path in oracle.glob("*.curves")] == before
    for entry in entries:
        for path in entry.entrant.folders:
            assert "test/return" in EventAccumulator(str(path)).Reload().Tags()["scalars"]


def _moved(entrant, logdir, to):
    return tuple(to / path.relative_to(logdir) for path in entrant.folders)


def test_a_comparison_on_validation_does_not_mix_with_the_curves_of_training():
    """Training has `train/` and `validation/`; only the test split needs no word before it."""
    assert [prefix(split) for split in ("test", "validation", "train")] == [
        "test",
        "compare-validation",
        "compare-train",
    ]


def _browser():
    """The module that drives a browser; the test is skipped where something for it is missing."""
    pytest.importorskip("playwright", reason="playwright is missing: pip install -e '.[dev]'")
    from drrl_agents.board import screenshots

    if screenshots.find_chromium() is None:
        pytest.skip("chromium is missing: apt-get install chromium")
    return screenshots


@pytest.mark.slow
@pytest.mark.skipif("DRRL_RUNS" not in os.environ, reason="DRRL_RUNS names no task of a logdir")
def test_a_browser_shows_the_runs_of_the_readme(tmp_path, monkeypatch):
    """Long runs as they lie in a logdir: every seed, rule and mean is there. Pictures go to DRRL_SCREENSHOTS."""
    browser = _browser()
    task, folder = (Path(os.environ.get(name, tmp_path)).resolve() for name in ("DRRL_RUNS", "DRRL_SCREENSHOTS"))
    for part in (task, task.parent / "about"):
        shutil.copytree(part, tmp_path / "runs" / part.name, ignore=shutil.ignore_patterns("checkpoints", "model.zip"))
    monkeypatch.chdir(tmp_path)  # the page shows the logdir's name
    shown = browser.take(Path("runs"), folder)
    seeds = {str(path.parent.relative_to(task.parent)) for path in task.glob("*/seed-*/policy.safetensors")}
    rules = {str(path.relative_to(task.parent)) for path in task.glob("baselines/*")}
    means = {str(path.relative_to(task.parent)) for path in task.glob("*/mean")}
    assert seeds | rules | means <= set(shown["scalars"])
    assert set(shown["hparams"]) == seeds | rules
    drawn = [name for name in rules | means if re.search(browser.LEGIBLE, name)]
    assert shown["custom-scalars"] == {title: len(drawn) for title in CHARTS.values()}
    assert {"comparison/pareto", "test/rank_by_layer_and_segment"} <= set(shown["images"])


@pytest.mark.slow
def test_a_browser_shows_runs_charts_rows_and_pictures(board, tmp_path):
    """TensorBoard itself, in headless Chromium: what must stand on each page does, and each has its picture."""
    browser = _browser()
    (logdir, found), folder = board, tmp_path
    task = found.task.env
    names = [f"{task}/baselines/{row.policy}" for row in found.rows if row.kind != "agent"]
    agents = [f"{task}/{GROUP}/seed-{seed}" for seed in SEEDS]
    shown = browser.take(logdir, folder)

    assert {*names, *agents, f"{task}/{GROUP}/mean", f"{task}/compare-test", "about"} <= set(shown["scalars"])

    drawn = [name for name in (*names, f"{task}/{GROUP}/mean") if re.search(browser.LEGIBLE, name)]
    assert len(drawn) > 2
    assert shown["custom-scalars"] == {title: len(drawn) for title in CHARTS.values()}

    rows = shown["hparams"]
    assert set(rows) == {*names, *agents}
    scores = [found.judge.reference.score(played.returns) for played in found.entries[0].rollouts]
    for seed, score in zip(SEEDS, scores, strict=True):
        algo, policy, number, first, *_ = rows[agents[seed]]
        assert (algo, policy, number, float(first)) == (
            "maskable-ppo",
            "mlp",
            str(seed),
            pytest.approx(score, abs=1e-4),
        )
    assert rows[f"{task}/baselines/oracle"][:3] == ["oracle", "oracle", "1.0000"]

    assert {"comparison/pareto", "test/rank_by_layer_and_segment"} <= set(shown["images"])
    for name in browser.TABS:
        assert (folder / f"tensorboard-{name}.png").stat().st_size > 20_000
