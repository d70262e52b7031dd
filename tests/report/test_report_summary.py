"""The headline, the means and what counts as a difference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from adamergex.report import parse
from adamergex.report.numbers import by_chance, number, probability, signed
from adamergex.report.summary import differences, headline, score_table

Sample = Callable[..., dict[str, Any]]


def test_headline_says_no_difference_when_every_interval_holds_zero(sample: Sample) -> None:
    data = sample(gap=1.6, reach=3.0)
    assert headline(parse(data)) == (
        "No difference beyond noise: AdaMergeX (factors) scores 59.6 % and Eng-FT 58.0 % on the mean of 5 languages "
        "(+1.6 points), and the 95 % interval of the paired difference includes 0 in every language."
    )


def test_headline_says_above_only_where_it_is_so(sample: Sample) -> None:
    data = sample(gap=1.6, reach=3.0)
    for cell in data["cells"]:
        if cell["method"] == "adamergex" and cell["language"] in ("sw", "tr"):
            cell["against"].update(interval=[0.1, 3.0], p=0.01)
    words = headline(parse(data))
    assert words.startswith(
        "AdaMergeX (factors) is 1.6 points above Eng-FT on the mean of 5 languages (59.6 % and 58.0 %)"
    )
    assert words.endswith("above it beyond noise in tr, sw, not elsewhere.")
    assert headline(parse(sample(gap=1.6, reach=0.5))).endswith("the difference is beyond noise in every language.")


def test_headline_says_below_as_plainly(sample: Sample) -> None:
    words = headline(parse(sample(gap=-2.4, reach=1.0)))
    assert "points below Eng-FT on the mean of 5 languages" in words
    assert words.endswith("the difference is beyond noise in every language.")


def test_headline_names_both_sides(sample: Sample) -> None:
    data = sample(gap=0.2, reach=9.0)
    for cell in data["cells"]:
        if cell["method"] == "adamergex" and cell["language"] in ("es", "sw"):
            sign = 1 if cell["language"] == "es" else -1
            cell["against"].update(difference=2.0 * sign, interval=sorted([1.0 * sign, 3.0 * sign]), p=0.001)
    assert headline(parse(data)).endswith("beyond noise above it in es and below it in sw.")


def test_headline_says_when_tuning_chose_english_tuning(sample: Sample) -> None:
    assert headline(parse(sample(chosen=0.0, gap=0.0))).endswith("Tuning chose λ = 0, which is Eng-FT itself.")


def test_headline_without_a_comparison_or_without_results(sample: Sample) -> None:
    data = sample()
    for cell in data["cells"]:
        cell["against"] = None
    assert "it was not compared with Eng-FT on the same items" in headline(parse(data))
    data["cells"] = []
    assert headline(parse(data)) == "AdaMergeX (factors) has no results."
    data["methods"] = []
    data["tuning"] = data["weights"] = []
    assert headline(parse(data)) == "Nothing was measured."


def test_the_headline_is_about_adamergex_even_when_a_rival_is_better(sample: Sample) -> None:
    data = sample()
    for cell in data["cells"]:
        if cell["method"] == "average":
            cell["score"] = 99.0
    assert "AdaMergeX (factors) scores 59.6 %" in headline(parse(data))


def test_with_several_seeds_all_must_agree(sample: Sample) -> None:
    data = sample(seeds=(0, 1, 2), gap=1.6, reach=0.8)
    assert {item.sign for item in differences(parse(data)) if item.method.name == "adamergex"} == {1}
    for cell in data["cells"]:
        if (cell["method"], cell["language"], cell["seed"]) == ("adamergex", "sw", 1):
            cell["against"].update(difference=-0.1, interval=[-0.9, 0.7])
    signs = {item.language: item.sign for item in differences(parse(data)) if item.method.name == "adamergex"}
    assert signs == {"es": 1, "de": 1, "tr": 1, "sw": 0, "vi": 1}


def test_means_of_incomplete_methods_are_not_compared(sample: Sample) -> None:
    data = sample()
    data["cells"] = [c for c in data["cells"] if (c["method"], c["language"]) != ("adamergex", "sw")]
    table = score_table(parse(data))
    ours = next(row for row in table.rows if row.method.name == "adamergex")
    assert ours.scores[3] is None and ours.mean is not None and not ours.mean.complete and ours.mean.languages == 4
    assert ("english_tuning", "mean") in table.best and ("adamergex", "mean") not in table.best
    assert ("english_tuning", "sw") in table.best


def test_languages_beyond_the_targets_are_shown_and_kept_out_of_the_mean(sample: Sample) -> None:
    data = sample()
    before = score_table(parse(data)).rows[1].mean
    data["cells"].append({**data["cells"][5], "language": "en", "score": 99.0, "interval": [97.0, 100.0]})
    table = score_table(parse(data))
    assert table.languages[-1] == "en" and table.rows[1].mean == before


@pytest.mark.parametrize(
    ("value", "plain", "with_sign"),
    [(1.25, "1.2", "+1.2"), (-0.04, "0.0", "0.0"), (-3.0, "−3.0", "−3.0"), (0.06, "0.1", "+0.1"), (0.0, "0.0", "0.0")],
)
def test_numbers(value: float, plain: str, with_sign: str) -> None:
    assert (number(value), signed(value)) == (plain, with_sign)


def test_probabilities_and_chance() -> None:
    assert [probability(value) for value in (0.5, 0.0001, 0.05, 0.04997)] == ["0.500", "<0.001", "0.050", "0.04997"]
    assert by_chance(40).startswith("Of 40 columns") and "about 2.0 would" in by_chance(40) and by_chance(1) == ""
