"""The table of statistics: what it promises of every row, what it costs, and how a user adds one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from drrl_env.lowrank.flops import AttentionShape
from drrl_env.lowrank.grams import Grams
from drrl_env.lowrank.statistics import (
    DEFAULT_STATISTICS,
    STATISTICS,
    register_statistic,
    select_statistics,
    with_needed,
)
from drrl_env.lowrank.stream import Segment
from drrl_env.lowrank.views import Sizes, Statistic, View
from drrl_env.lowrank.weights import weight_statistics

BUNDLED = Sizes(AttentionShape(4, 1, 64, 64, 128), ranks=8, hidden=256, chunks=8, components=16)
ROUNDING = 1e-9
DESIGN = {
    "energy_ratio", "effective_rank", "stable_rank", "nuclear_share", "spectral_norm", "spectral_share", "weight_mean",
    "weight_deviation", "weight_alpha", "subspace_drift", "hidden_states", "residual_level", "worst_residual_level",
    "head_residual_level", "score_level", "value_mean_level",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _restored(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is gone after it."""
    monkeypatch.setattr("drrl_env.lowrank.statistics.STATISTICS", dict(STATISTICS))


def sizes_of(segment: Segment) -> Sizes:
    """Sizes of a toy segment."""
    return replace(BUNDLED, shape=segment.settings.shape, ranks=len(segment.settings.ranks))


def view_of(segment: Segment, weights: Tensor | None = None) -> View:
    """A view with weights and text of about unit scale."""
    random = torch.Generator().manual_seed(0)
    found = torch.rand(3, 3, generator=random) if weights is None else weights.reshape(3, 3)
    return View(segment, found, torch.randn(8, 16, generator=random))


def assert_sound(view: View) -> None:
    """Every statistic has the declared shape and lies in the declared range."""
    for name, statistic in STATISTICS.items():
        found = statistic.value(view, statistic.resolve(sizes_of(view.segment)))
        assert float(found.min()) >= statistic.low - ROUNDING, name
        assert float(found.max()) <= statistic.high + ROUNDING, name


def degenerate(name: str, tensors: tuple[Tensor, ...]) -> list[Tensor]:
    """Queries, keys, values that break careless statistics."""
    queries, keys, values = (tensor.clone() for tensor in tensors)
    if name == "no queries":
        queries *= 0
    if name == "no keys in one head":
        keys[0] = 0
    if name == "rank two":
        queries, keys = (x[..., :2].repeat(1, 1, x.shape[-1] // 2) for x in (queries, keys))
    if name == "one token repeated":
        queries, keys = (x[:, :1].expand_as(x).clone() for x in (queries, keys))
    if name == "orthogonal":
        queries[..., ::2], keys[..., 1::2] = 0, 0
    if name == "tiny":
        queries, keys = 1e-12 * queries, 1e-12 * keys
    if name == "huge":
        queries, keys = 1e8 * queries, 1e8 * keys
    return [queries, keys, values]


def test_every_statistic_of_the_design_is_there() -> None:
    """All of design §2 under these names, and what an observation shows by default is among them."""
    assert set(STATISTICS) == DESIGN
    assert {statistic.name for statistic in select_statistics(None)} == set(DEFAULT_STATISTICS) < DESIGN


@pytest.mark.parametrize(
    "name", ["no queries", "no keys in one head", "rank two", "one token repeated", "orthogonal", "tiny", "huge"]
)
@pytest.mark.parametrize("kind", ["refreshed", "calibrated"])
def test_every_statistic_is_in_its_range_on_degenerate_segments(make_toy_layer: Callable, kind: str, name: str) -> None:
    """Shape as declared, no NaN, within [low, high] at every segment; 1e-9 is for rounding."""
    layer = make_toy_layer(kind)
    stream, size = layer.fresh(), layer.settings.shape.segment
    for start in range(0, 4 * size, size):
        rows = (tensor[:, start : start + size] for tensor in layer.tensors)
        assert_sound(view_of(stream.advance(*degenerate(name, tuple(rows)))))


@pytest.mark.parametrize("weight", [torch.zeros(8, 8), torch.ones(8, 8), torch.eye(8), torch.randn(8, 8)])
def test_statistics_of_degenerate_weights_are_in_their_range(make_toy_layer: Callable, weight: Tensor) -> None:
    """A zero or constant matrix has no tail, an orthogonal one a vertical tail: the exponent is cut, not NaN."""
    assert_sound(view_of(make_toy_layer("calibrated").run()[0], weight_statistics([weight] * 3)))


def test_every_statistic_is_priced_and_sourced() -> None:
    """Above zero for what is worked out per segment, and more for a larger head; weights are worked out once."""
    large = replace(BUNDLED, shape=AttentionShape(4, 1, 128, 128, 256), hidden=512)
    for statistic in STATISTICS.values():
        cost = statistic.flops(BUNDLED, 48)
        assert (cost == 0) if statistic.level == "weights" else (cost > 0), statistic.name
        assert statistic.flops(large, 96) >= cost
        assert statistic.source
        assert statistic.function.__doc__


def test_what_is_shared_is_worked_out_once(make_toy_layer: Callable) -> None:
    """Three statistics of the leading direction read the query Gram once; evaluated apart they would read it thrice."""
    segment = make_toy_layer("refreshed").run()[2]
    reads: list[str] = []

    @dataclass(frozen=True)
    class Counted(Grams):
        def __getattribute__(self, name: str) -> object:
            if name == "query":
                reads.append(name)
            return super().__getattribute__(name)

    counted = replace(segment, grams=Counted(segment.grams.query, segment.grams.key))
    assert float(counted.products.total.sum()) > 0
    view = view_of(counted)
    reads.clear()
    for name in ("stable_rank", "spectral_share", "spectral_norm"):
        STATISTICS[name].function(view)
    assert reads == ["query"]


def test_what_is_needed_is_paid_with_it_and_once() -> None:
    """Stable rank alone pays for the power step and the energies; with both asked for, nothing is paid twice."""
    alone = {statistic.name for statistic in with_needed(["stable_rank"])}
    assert alone == {"stable_rank", "spectral_share", "energy_ratio"}
    assert len(with_needed(["stable_rank", "spectral_share", "spectral_norm", "energy_ratio"])) == 4


def mine(view: View) -> Tensor:
    """Segments so far."""
    return torch.tensor([float(view.segment.position)])


def free(sizes: Sizes, width: int) -> float:
    """Nothing."""
    return 0.0


MINE = Statistic("mine", (1,), free, "this test", mine)


def test_a_registered_statistic_can_be_selected() -> None:
    """By name, in the order asked for; registering it again changes nothing."""
    register_statistic(MINE)
    assert register_statistic(MINE) is MINE
    assert [s.name for s in select_statistics(("mine", "stable_rank"))] == ["mine", "stable_rank"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("stabel_rank",), r"statistics='stabel_rank': unknown, did you mean 'stable_rank'\?; use some of 'energy"),
        (("qqq",), r"statistics='qqq': unknown; use some of"),
        (("stable_rank", "stable_rank"), r"statistics=.*'stable_rank' is there twice; give it once"),
        ("stable_rank", r"statistics='stable_rank': give names in a tuple; use statistics=\('stable_rank',\)"),
    ],
)
def test_a_wrong_selection_says_what_to_write(names: tuple[str, ...], message: str) -> None:
    """One line with argument, value and remedy."""
    with pytest.raises(ValueError, match=message) as caught:
        select_statistics(names)
    assert "\n" not in str(caught.value)


def test_a_name_cannot_be_taken_twice_nor_need_what_is_not_there() -> None:
    """The table stays what others rely on."""
    with pytest.raises(ValueError, match="'energy_ratio': the name is taken; use another"):
        register_statistic(replace(MINE, name="energy_ratio"))
    with pytest.raises(ValueError, match="'mine': needs='energy_ration': unknown, did you mean 'energy_ratio'"):
        register_statistic(replace(MINE, needs=("energy_ration",)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"level": "layer"}, r"'mine': level='layer': unknown; use one of 'segment', 'weights', 'text'"),
        ({"level": "weights"}, r"'mine': shape=\(1,\): one of the weights begins with 'matrices'"),
    ],
)
def test_a_statistic_that_fits_nowhere_is_refused_at_once(changes: dict[str, str], message: str) -> None:
    """When it is made, not in the middle of an episode."""
    with pytest.raises(ValueError, match=message):
        replace(MINE, **changes)


def test_an_unknown_axis_is_named() -> None:
    """With those that are known."""
    with pytest.raises(ValueError, match=r"'mine': shape=\('lanes',\): 'lanes' is unknown; use numbers or 'ranks'"):
        replace(MINE, shape=("lanes",)).resolve(BUNDLED)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda view: torch.zeros(2), r"'mine': gave shape \(2,\) but declares \(1,\); make them agree"),
        (lambda view: torch.full((1,), torch.nan), "'mine': NaN or infinite at segment 2; bound it"),
    ],
)
def test_a_statistic_that_breaks_its_word_is_named(make_toy_layer: Callable, function: Callable, message: str) -> None:
    """Another shape or a NaN would otherwise surface in an agent, far from its cause."""
    segment = make_toy_layer("calibrated").run()[2]
    with pytest.raises(ValueError, match=message):
        replace(MINE, function=function).value(view_of(segment), (1,))


def test_shapes_follow_the_sizes() -> None:
    """Heads and ranks of the layer at hand."""
    assert STATISTICS["head_residual_level"].resolve(BUNDLED) == (4, 8)
    assert STATISTICS["head_residual_level"].size(BUNDLED) == 32
    assert STATISTICS["hidden_states"].resolve(BUNDLED) == (8, 16)
    assert STATISTICS["weight_alpha"].resolve(BUNDLED) == (3,)
