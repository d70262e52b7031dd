"""Random samples of rows: the same items everywhere, also where ids are shared, empty, or numbers with a fraction."""

from __future__ import annotations

from typing import Any

import pytest

from adamergex.data.sampling import sampled


def draw(ids: list[Any], size: int = 10, seed: int = 0) -> list[int]:
    """The places that are drawn of rows with these ids."""
    rows = [{"id": value, "place": place} for place, value in enumerate(ids)]
    return [row["place"] for row in sampled(rows, size, seed, lambda row: row)]


@pytest.mark.parametrize("ids", [["one"] * 60, [""] * 60, [None] * 60, [f"p{place // 6}" for place in range(60)]])
def test_rows_that_share_an_id_are_drawn_one_by_one(ids: list[Any]) -> None:
    found = draw(ids)
    assert found == sorted(set(found)) and len(found) == 10
    assert max(found) > 20 and found != draw(ids, seed=1)
    assert len({place // 6 for place in found}) > 4  # not the rows of few passages


def test_numbers_are_the_same_ids_however_a_table_holds_them() -> None:
    whole = draw(list(range(60)))
    assert whole == draw([str(place) for place in range(60)]) == draw([float(place) for place in range(60)])
    assert whole == draw([None] * 60)
    assert [59 - place for place in reversed(whole)] == draw(list(reversed(range(60))))


def test_every_row_is_as_likely() -> None:
    counts = [0] * 20
    for seed in range(1000):
        for place in draw(["same"] * 10 + [f"row {place}" for place in range(10)], size=5, seed=seed):
            counts[place] += 1
    assert min(counts) > 200 and max(counts) < 300  # 250 ± 3.6 standard deviations


def test_more_than_there_are_is_all_of_them() -> None:
    assert draw(list(range(5)), size=5) == draw(list(range(5)), size=9) == list(range(5))
