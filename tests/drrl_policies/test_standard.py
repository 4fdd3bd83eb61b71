"""Inputs are standardised by what was measured, as it was measured, and what must not be touched stays."""

from __future__ import annotations

import pytest
import torch

from drrl_env.envs.observation import LIMIT, WINDOW
from drrl_policies.standard import LEAST, LEFT, TOKENS_SCALE, Standard

SIZES = {"segment": 3, "window": WINDOW * 3, "tokens": 6, "tolerance": 1, **dict.fromkeys(LEFT, 4)}
ROWS = 50


@pytest.fixture
def rows() -> dict[str, torch.Tensor]:
    """Numbers of very different means and deviations; the second of `segment` never changes."""
    random = torch.Generator().manual_seed(0)
    found = {name: torch.rand(ROWS, size, generator=random) for name, size in SIZES.items()}
    found["segment"] = found["segment"] * torch.tensor([0.02, 0.0, 3.0]) + torch.tensor([5.0, 0.7, -2.0])
    return found


@pytest.fixture
def fitted(rows: dict[str, torch.Tensor]) -> Standard:
    """Fitted on them."""
    found = Standard(SIZES)
    found.fit(rows)
    return found


def test_it_changes_nothing_before_it_was_fitted(rows):
    """The identity, to the bit: an agent of the library's own loop sees what it always saw."""
    assert all(torch.equal(values, rows[name]) for name, values in Standard(SIZES)(rows).items())


def test_what_it_was_fitted_on_has_mean_0_and_deviation_1(fitted, rows):
    """To 1e-4, however small a number's own deviation is; not standardised, one of these deviations is 0.006."""
    for name in ("segment", "tolerance"):
        shown = fitted(rows)[name][:, [0, 2] if name == "segment" else [0]]
        torch.testing.assert_close(shown.mean(0), torch.zeros(shown.shape[1]), atol=1e-4, rtol=0)
        torch.testing.assert_close(shown.std(0), torch.ones(shown.shape[1]), atol=1e-4, rtol=0)
    assert rows["segment"].std(0)[0] < 0.01


def test_a_number_that_never_changed_shows_nothing(fitted, rows):
    """Zero, also where it is another one day: divided by its deviation it would be anything."""
    assert rows["segment"].std(0)[1] < LEAST
    assert (fitted({**rows, "segment": rows["segment"] + 9.0})["segment"][:, 1] == 0).all()


def test_shares_and_one_hot_entries_stay_as_they_are(fitted, rows):
    """Their zeros say where the episode began."""
    assert all(torch.equal(fitted(rows)[name], rows[name]) for name in LEFT)


def test_every_slot_of_the_window_is_shown_as_its_segment_was(fitted, rows):
    """A segment that moves into the window is the same numbers again, in each of the slots."""
    shown = fitted({**rows, "window": rows["segment"].repeat(1, WINDOW)})
    assert torch.equal(shown["window"], shown["segment"].repeat(1, WINDOW))


def test_the_text_is_made_small_and_not_shifted(fitted, rows):
    """Times .05: its numbers are whitened already."""
    torch.testing.assert_close(fitted(rows)["tokens"], TOKENS_SCALE * rows["tokens"])


def test_nothing_exceeds_the_limit_of_observations(fitted, rows):
    """A number far from all that was seen is cut at ±8."""
    shown = fitted({**rows, "segment": rows["segment"] * 1e6})["segment"]
    assert shown.abs().max() == LIMIT


def test_what_was_fitted_travels_with_the_weights_and_is_not_trained(fitted, rows):
    """Loaded into a fresh module it shows the same bits; no optimiser sees it."""
    other = Standard(SIZES)
    other.load_state_dict(fitted.state_dict())
    assert all(torch.equal(values, fitted(rows)[name]) for name, values in other(rows).items())
    assert not list(fitted.parameters())
    assert set(fitted.state_dict()) == {f"{n}_{what}" for n in SIZES if n not in LEFT for what in ("mean", "scale")}
