"""Flags, adjusted intervals and names in every file of a report: Markdown, LaTeX, CSV, page and terminal."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from adamergex import statistics
from adamergex.report import parse, write_report
from adamergex.report.numbers import format_difference_interval
from adamergex.report.summary import differences, score_table
from adamergex.report.tables import cell_text
from adamergex.report.terminal import terminal_table
from adamergex.statistics import Sample

Made = Callable[..., dict[str, Any]]


def few(sample: Made, won: int, p: float, interval: list[float], methods: int = 1) -> dict[str, Any]:
    """One language; AdaMergeX wins a few items of 250, the other methods differ in none."""
    data = sample(reach=3.0)
    names = ["english_tuning", "adamergex", "average", "vanilla"][: methods + 1]
    data["methods"] = [method for method in data["methods"] if method["name"] in names]
    data["targets"], data["adapters"], data["merges"] = ["sw"], [], []
    data["cells"] = [cell for cell in data["cells"] if cell["language"] == "sw" and cell["method"] in names]
    for cell in data["cells"]:
        ours = cell["method"] == "adamergex"
        cell.update(n=250, score=50.0 + 0.4 * won * ours, interval=[40.0, 60.0])
        if cell["against"]:
            found = (0.4 * won, interval, p) if ours else (0.0, [-1.0, 1.0], 1.0)
            cell["against"].update(zip(("difference", "interval", "p"), found, strict=True))
    return data


@pytest.mark.parametrize(
    ("won", "p", "interval", "methods", "beyond"),
    [
        (4, 0.125, [0.4, 3.2], 1, False),
        (5, 0.0625, [0.4, 4.0], 1, False),
        (6, 0.03125, [0.4, 4.4], 1, True),
        (6, 0.03125, [0.4, 4.4], 2, False),
        (6, 0.03125, [-0.1, 4.4], 1, True),
    ],
)
def test_every_file_flags_what_p_flags(
    sample: Made, tmp_path: Path, won: int, p: float, interval: list[float], methods: int, beyond: bool
) -> None:
    data = few(sample, won, p, interval, methods)
    write_report(parse(data), tmp_path)
    found = next(item for item in differences(parse(data)) if item.method.name == "adamergex")
    assert (found.sign == 1) == beyond == (found.interval[0] > 0) and found.p == p
    assert found.adjusted == pytest.approx(min(1.0, p * methods))
    rows = list(csv.DictReader((tmp_path / "summary.csv").read_text(encoding="utf-8").splitlines()))
    row = next(row for row in rows if (row["method"], row["language"]) == ("adamergex", "sw"))
    assert row["beyond_noise"] == ("yes" if beyond else "no") and (float(row["difference_low"]) > 0) == beyond
    assert (float(row["p"]), float(row["p_holm"])) == (p, pytest.approx(found.adjusted))
    cells = list(csv.DictReader((tmp_path / "scores.csv").read_text(encoding="utf-8").splitlines()))
    own = next(cell for cell in cells if cell["method"] == "adamergex")
    assert (float(own["difference_low"]) > 0) == (p < 0.05)
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert (f"| **+{0.4 * won:.1f}** |" in text) == beyond and ("No difference beyond noise" in text) != beyond
    assert "Holm" in text and "McNemar" in text and "McNemar" in (tmp_path / "report.html").read_text(encoding="utf-8")
    printed = "\n".join(terminal_table(parse(data)))
    assert ("60.0]*" in printed) == ("Holm" in printed) == beyond


def test_an_end_beside_0_is_not_rounded_to_it() -> None:
    assert (
        format_difference_interval((0.04, 3.2)) == "[0.04, 3.20]"
        and format_difference_interval((0.4, 3.2)) == "[0.4, 3.2]"
    )
    assert (
        format_difference_interval((-3.2, -0.004)) == "[−3.200, −0.004]"
        and format_difference_interval((-0.04, 3.2)) == "[0.0, 3.2]"
    )


def test_a_single_point_of_an_older_version_becomes_an_interval(sample: Made) -> None:
    data = few(sample, 0, 1.0, [0.0, 0.0])
    for cell in data["cells"]:
        cell.update(score=0.0, interval=[0.0, 0.0])
    found = score_table(parse(data)).rows[0].scores[0]
    assert found is not None and found.interval == statistics.wilson(0, 250)


def measured(sample: Made, seeds: tuple[int, ...]) -> dict[str, Any]:
    """Results whose numbers come from items: three languages, AdaMergeX right on 30 more of 200."""
    data, languages = sample(seeds=seeds), ("es", "de", "tr")
    data["targets"] = list(languages)
    data["methods"] = [method for method in data["methods"] if method["name"] in ("english_tuning", "adamergex")]
    cells = {
        (method, language, seed): Sample.read(
            [{"id": i, "gold": 1, "predicted": int(i % 200 < 100 + gain + seed)} for i in range(200)]
        )
        for method, gain in (("english_tuning", 0), ("adamergex", 30))
        for language in languages
        for seed in seeds
    }
    kept = [cell for cell in data["cells"] if (cell["method"], cell["language"], cell["seed"]) in cells]
    for cell in kept:
        own = cells[cell["method"], cell["language"], cell["seed"]]
        cell.update(n=200, score=100 * own.score, interval=list(statistics.interval(own)), against=None)
    data |= {"cells": kept, "pooled": [asdict(row) for row in statistics.pooled(cells, languages)]}
    compared = statistics.comparisons(cells, languages, "english_tuning")
    return data | {"comparisons": [asdict(row) for row in compared]}


@pytest.mark.parametrize("seeds", [(0,), (0, 1, 2)])
def test_the_mean_over_languages_has_its_interval_and_test_everywhere(
    sample: Made, tmp_path: Path, seeds: tuple[int, ...]
) -> None:
    data = measured(sample, seeds)
    results = parse(data)
    mean = score_table(results).rows[1].mean
    assert mean is not None and mean.interval is not None and mean.interval[0] < mean.mean < mean.interval[1]
    alone = score_table(results).rows[1].scores[0]
    assert alone is not None and mean.interval == pytest.approx(alone.interval, abs=1.5)  # translations: no surer
    compared = [item for item in differences(results) if item.language == "mean"]
    assert [item.sign for item in compared] == [1] and compared[0].interval[0] > 0
    write_report(parse(data), tmp_path)
    shown = "[{:.1f}, {:.1f}]".format(*mean.interval)
    assert all(
        shown in (tmp_path / name).read_text(encoding="utf-8") for name in ("report.html", "report.md", "scores.tex")
    )
    assert shown in "\n".join(terminal_table(parse(data)))
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "in every language; on their mean it is beyond noise." in text and "| mean | **+15.0** |" in text
    rows = list(csv.DictReader((tmp_path / "summary.csv").read_text(encoding="utf-8").splitlines()))
    last = next(row for row in rows if (row["method"], row["language"]) == ("adamergex", "mean"))
    assert [float(last[name]) for name in ("score", "low", "high")] == pytest.approx([mean.mean, *mean.interval])
    assert last["beyond_noise"] == "yes" and last["seeds"] == str(len(seeds))


@pytest.mark.parametrize("first", ["=", "+", "-", "@", "\t", "\r", "＝", " ="])
def test_text_that_a_spreadsheet_would_calculate_is_quoted(sample: Made, tmp_path: Path, first: str) -> None:
    data = sample()
    data["title"], data["methods"][0]["label"] = f"{first}1+1", f'{first}HYPERLINK("http://x","y")'
    write_report(parse(data), tmp_path)
    for name in ("scores.csv", "summary.csv"):
        with (tmp_path / name).open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        assert all(row["table"].startswith("'") and row["table"].endswith("1+1") for row in rows)
        assert {row["label"][0] for row in rows if row["method"] == "vanilla"} == {"'"}
        assert any(row["difference"].startswith("-") for row in rows)  # numbers stay numbers
        assert all(float(row["difference"]) is not None for row in rows if row["difference"])


def test_cells_of_csv_files() -> None:
    assert [cell_text(value) for value in (-0.4, 3, None, "-0.4", "+1e5", "plain", "a=b", "MAD-X −INV")] == [
        -0.4, 3, None, "-0.4", "+1e5", "plain", "a=b", "MAD-X −INV",
    ]  # fmt: skip
    assert cell_text("-0.4+cmd|' /C calc'!A0") == "'-0.4+cmd|' /C calc'!A0"
    assert cell_text("\x1b[31m=1") == "\\x1b[31m=1" and cell_text("x\x00\u202ey") == "x\\x00\\u202ey"


NASTY = [
    "- a", "1. b", "+c", "===", "> d", "# e", "[x](javascript:alert(1))", "![x](y)", "a|b\nc\n\nd",
    "\x1b[31mred\x1b[0m", "*e*", "{% raw %}", "``` f",
]  # fmt: skip


@pytest.mark.parametrize("words", NASTY)
def test_names_are_shown_as_they_are_in_every_file(sample: Made, tmp_path: Path, words: str) -> None:
    data = sample()
    data["title"] = data["methods"][3]["label"] = words
    data["methods"][3]["space"] = None
    data["commands"] = [f"adamergex transfer {words}"]
    write_report(parse(data), tmp_path)
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    prose = re.sub(r"(?ms)^(`{3,})$.*?^\1$", "", text)
    lines = prose.splitlines()
    assert "\x1b" not in text and len([line for line in lines if line.startswith("# ")]) == 1
    head = lines[2]  # the headline begins with the method's name: no list, quotation, heading or link
    assert not re.match(r"([-+] |\d+[.)] |={2,}|>|#)", head) and not re.search(r"(?<!\\)\]\(", prose)
    blocks = re.findall(r"(?m)(?:^\|.*\n)+", prose)
    widths = [{len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()} for block in blocks]
    assert len(blocks) >= 3 and all(len(found) == 1 for found in widths)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    latex = (tmp_path / "scores.tex").read_text(encoding="utf-8")
    assert "\x1b" not in page + latex and "<script>alert" not in page
    assert latex.count(r"\begin{tabular}") == 1 and not re.search(r"(?m)^\s*[\[*]", latex)
    assert not any("\x1b" in line or "\n" in line for line in terminal_table(parse(data))[1:])


def test_a_row_that_begins_like_an_argument_of_latex(sample: Made, tmp_path: Path) -> None:
    data = sample()
    data["methods"][1]["label"], data["methods"][2]["label"] = "[2em] x", "* y"
    write_report(parse(data), tmp_path)
    latex = (tmp_path / "scores.tex").read_text(encoding="utf-8")
    assert "\n{}[2em] x & " in latex and "\n{}* y & " in latex
