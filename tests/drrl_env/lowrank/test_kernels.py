"""What a segment executes, against the FLOPs account and against the engine that executes it."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from drrl_env.lowrank import kernels
from drrl_env.lowrank.flops import AttentionShape, RankCost, full_flops, segment_flops, update_flops
from drrl_env.lowrank.kernels import (
    DECOMPOSITION,
    FULL,
    GRAMS,
    LOW_RANK,
    PROJECTION,
    HeadSizes,
    KernelCall,
    Operands,
    segment_calls,
)
from drrl_env.lowrank.segment import StreamSettings
from drrl_env.lowrank.stream import LayerStream, run_stream

SIZES = HeadSizes(kv_heads=2, groups=3, dim=32)
WIDTH, POSITION = 16, 4


class Unmasked(AttentionShape):
    """A shape whose queries see every key, as the kernels compute it: a masked key costs as much as a visible one."""

    def visible(self, position: int) -> float:
        """n instead of n̄."""
        return self.keys(position)


SHAPE = Unmasked(kv_heads=2, groups=3, dim=32, value_dim=32, segment=16)
EQUAL = [RankCost(8, 8), RankCost(12, 12), RankCost(24, 24)]


@pytest.fixture(scope="module")
def operands() -> Operands:
    return Operands(SIZES, 256)


def executed(operands, calls, monkeypatch):
    """FLOPs of the matrix products that the calls execute; fused attention as the two products it is."""

    def products(queries, keys, values, segment, scale=None):
        return queries @ keys.mT @ values

    monkeypatch.setattr("drrl_env.lowrank.attention.full_attention", products)
    monkeypatch.setattr(kernels, "full_attention", products)
    with FlopCounterMode(display=False) as counter:
        for call in calls:
            operands.run(call)()
    return counter.get_total_flops()


@pytest.mark.parametrize("previous", [*EQUAL, RankCost(32, 32)])
@pytest.mark.parametrize("chosen", EQUAL)
@pytest.mark.parametrize("basis", ["refreshed", "calibrated"])
def test_the_calls_of_a_segment_execute_the_flops_it_is_charged(basis, chosen, previous, operands, monkeypatch):
    """To the FLOP, at equal r and r_v, whatever is cached; the update's factorisations are counted elsewhere."""
    calls = segment_calls(SHAPE, POSITION, chosen, previous, basis, WIDTH)
    timed = [call for call in calls if call.kernel not in (GRAMS, DECOMPOSITION)]
    update = SHAPE.kv_heads * update_flops(SHAPE, WIDTH) if basis == "refreshed" else 0
    assert len(calls) - len(timed) == (2 if basis == "refreshed" else 0)
    charged = segment_flops(SHAPE, POSITION, chosen, previous, basis, WIDTH)
    assert executed(operands, timed, monkeypatch) == pytest.approx(charged - update, abs=0.5)


def test_full_attention_is_one_call_whatever_came_before(operands, monkeypatch):
    """No update and no projection: 2gTn(d + d_v) and nothing else."""
    for basis in ("refreshed", "calibrated"):
        calls = segment_calls(SHAPE, POSITION, RankCost(32, 32), RankCost(8, 8), basis, WIDTH)
        assert calls == (KernelCall(FULL, 80, 16, 32),)
        assert executed(operands, calls, monkeypatch) == full_flops(SHAPE, POSITION)


def test_grams_are_updated_from_the_segments_rows_alone(operands, monkeypatch):
    """2Td² for the keys and 2gTd² for the queries of each key head."""
    calls = [KernelCall(GRAMS, 0, 16, 32)]
    assert executed(operands, calls, monkeypatch) == 2 * (2 * 16 * 32**2 * (1 + 3))


def test_attention_runs_at_the_larger_of_rank_and_value_rank():
    """Rank 8 with value rank 24 is a kernel of 24 columns, and a refreshed basis projects n keys into 24."""
    calls = segment_calls(SHAPE, POSITION, RankCost(8, 24), RankCost(8, 24), "refreshed", WIDTH)
    assert calls[-1] == KernelCall(LOW_RANK, 80, 16, 24)
    assert KernelCall(PROJECTION, 80, 0, 24) in calls
    kept = segment_calls(SHAPE, POSITION, RankCost(8, 24), RankCost(8, 24), "calibrated", WIDTH)
    assert kept[-1] == calls[-1]
    assert [(call.keys, call.rank) for call in kept[:-1]] == [(48, 8), (16, 8), (16, 24)]


def test_full_values_are_not_projected():
    """Of a calibrated segment with full values, queries and new keys are all that is projected."""
    calls = segment_calls(SHAPE, POSITION, RankCost(8, 32), RankCost(8, 32), "calibrated", WIDTH)
    assert [call.keys for call in calls if call.kernel == PROJECTION] == [48, 16]
    assert calls[-1].rank == 32


@dataclass
class Recorder:
    """Sizes of the fused attention calls and of the projections the engine makes."""

    attention: list[tuple[int, int, int]]
    projections: list[tuple[int, int]]


@pytest.fixture
def recorder(monkeypatch):
    """Watches `scaled_dot_product_attention` and the segment's `project`."""
    found = Recorder([], [])
    fused, project = torch.nn.functional.scaled_dot_product_attention, kernels.project

    def watched(queries, keys, values, **arguments):
        found.attention.append((keys.shape[-2], queries.shape[-2], queries.shape[-1]))
        assert queries.shape[-1] == keys.shape[-1] == values.shape[-1]
        return fused(queries, keys, values, **arguments)

    def projected(rows, columns):
        found.projections.append((rows.shape[-2], columns.shape[-1]))
        return project(rows, columns)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    monkeypatch.setattr("drrl_env.lowrank.segment.project", projected)
    return found


@pytest.mark.parametrize("cost", [RankCost(24, 18), RankCost(8, 43), RankCost(40, 40)])
def test_a_timed_segment_makes_the_calls_the_stream_makes(cost, bundled_layers, recorder):
    """The engine with this one rank to choose from: the same attention, the same n keys projected to as many columns.

    Queries and values are projected by the engine to the widths all its ranks share, so they are not compared.
    """
    full = RankCost(64, 64)
    shape, layer = bundled_layers.shape, bundled_layers.spans[0][1]
    stream = LayerStream(StreamSettings(shape, (cost, full), "refreshed"), bundled_layers.bases[1], 512)
    segment = run_stream(stream, layer, 4)[-1]
    segment.output(0)
    calls = segment_calls(shape, 3, cost, cost, "refreshed", stream.settings.width)
    assert recorder.attention[-1:] == [(calls[-1].keys, calls[-1].segment, calls[-1].rank)]
    rows = max(call.keys for call in calls if call.kernel == PROJECTION)
    engine = max(columns for keys, columns in recorder.projections if keys == rows)
    timed = max(call.rank for call in calls if call.kernel == PROJECTION and call.keys == rows)
    assert timed <= engine <= max(timed, cost.rank + 8)


def test_every_kernel_gives_finite_numbers_of_its_size(operands):
    """Operands are well conditioned: the decomposition in either method, the attention at any rank."""
    full, low = operands.run(KernelCall(FULL, 64, 16, 32))(), operands.run(KernelCall(LOW_RANK, 64, 16, 12))()
    assert full.shape == low.shape == (2, 48, 32)
    assert operands.run(KernelCall(PROJECTION, 200, 0, 7))().shape == (2, 200, 7)
    grams = operands.run(KernelCall(GRAMS, 0, 16, 32))()
    assert grams.query.shape == grams.key.shape == (2, 32, 32)
    for width in (4, 16, 28):
        basis = operands.run(KernelCall(DECOMPOSITION, 0, 0, width))()
        assert basis.width == width
        assert bool((basis.energies > 0).all())
    assert bool(torch.isfinite(full).all() and torch.isfinite(low).all())
