"""Entries are a block's measured part as a value: taken out, put back and merged without loss."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drrl_env.envs.arrays import ArraySpec, Entries, Table, fits, merged

SPECS = (ArraySpec("pairs", (3, 2, 2), axes=2), ArraySpec("rows", (3, 4), dtype=np.float32), ArraySpec("n", (), fill=0))
COUNT = {"pairs": 6, "rows": 3}
TRUTH = {"pairs": np.arange(12.0).reshape(6, 2), "rows": np.arange(12, dtype=np.float32).reshape(3, 4)}

places = st.fixed_dictionaries({name: st.sets(st.integers(0, count - 1)) for name, count in COUNT.items()})
Places = dict[str, set[int]]


def measured(at: Places) -> Entries:
    """These entries of the truth."""
    rows = {name: np.array(sorted(found), np.int64) for name, found in at.items()}
    return {name: (found, TRUTH[name][found]) for name, found in rows.items()}


def same(one: Entries, two: Entries) -> bool:
    """Equal places and bits."""
    return one.keys() == two.keys() and all(
        np.array_equal(one[n][0], two[n][0]) and np.array_equal(one[n][1], two[n][1]) for n in one
    )


@given(places, places)
def test_merging_is_the_union(one: Places, two: Places) -> None:
    """What either has and nothing else; the order does not matter, twice is once."""
    found = merged(measured(one), measured(two))
    assert same(found, measured({name: one[name] | two[name] for name in one}))
    assert same(found, merged(measured(two), measured(one)))
    assert same(found, merged(found, measured(one)))


@given(places)
def test_what_is_put_into_a_block_comes_out_again(at: Places) -> None:
    """Of that block alone; everything else stays unmeasured, and arrays that do not persist stay as they are."""
    table = Table(SPECS)
    table.extend(2)
    table.put(1, measured(at))
    assert same(table.entries(1), measured(at))
    assert same(table.entries(0), measured({"pairs": set(), "rows": set()}))
    assert fits(SPECS, table.entries(1))
    assert table.arrays["n"].sum() == 0


WRONG = {
    "beyond the block": lambda at, rows: (at + 6, rows),
    "before the block": lambda at, rows: (at - 1, rows),
    "another type": lambda at, rows: (at, rows.astype(np.float32)),
    "another size": lambda at, rows: (at, rows[:, :1]),
    "fewer rows": lambda at, rows: (at, rows[1:]),
    "not a list of places": lambda at, rows: (at[None], rows),
}


@pytest.mark.parametrize("spoil", WRONG.values(), ids=WRONG)
def test_entries_of_another_table_do_not_fit(spoil: object) -> None:
    """Putting them would write elsewhere or fail halfway."""
    found = measured({"pairs": {0, 1}, "rows": {2}})
    assert fits(SPECS, found)
    assert not fits(SPECS, {**found, "pairs": spoil(*found["pairs"])})  # type: ignore[operator]
    assert not fits(SPECS, {"pairs": found["pairs"]})


def test_a_table_grows_by_doubling_and_new_blocks_are_unmeasured() -> None:
    """16, then 32: the arrays move only then, and what is in them stays."""
    table = Table(SPECS)
    moved = [table.extend(blocks) for blocks in range(1, 34)]
    assert [blocks for blocks, has in enumerate(moved, 1) if has] == [17, 33]
    table.put(0, measured({"pairs": {3}, "rows": set()}))
    table.extend(100)
    assert same(table.entries(0), measured({"pairs": {3}, "rows": set()}))
    assert np.isnan(table.arrays["pairs"][1:100]).all()
    assert table.capacity >= 100
