"""The papers' numbers: what they print adds up, and they stand beside ours where ours are the same thing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adamergex.errors import DataError
from adamergex.report import parse
from adamergex.report.papers import COLUMNS, Quoted, paper_comparisons, read
from adamergex.report.summary import mean, score

Sample = Callable[..., dict[str, Any]]
FOLDER = Path(__file__).parents[2] / "studies" / "papers"
QUOTED = read([FOLDER / "adamergex.csv", FOLDER / "mad-x.csv"])


def groups(key: Callable[[Quoted], tuple[Any, ...]], axis: str) -> list[tuple[Quoted, list[float]]]:
    """Rows of a table that print a mean, with the numbers that it is of."""
    rows: dict[tuple[Any, ...], list[Quoted]] = {}
    for item in QUOTED:
        rows.setdefault(key(item), []).append(item)
    found = []
    for row in rows.values():
        means = [item for item in row if getattr(item, axis) == "mean"]
        others = (
            [
                item
                for item in row
                if item not in means and not ("without en" in means[0].note and item.language == "en")
            ]
            if means
            else []
        )
        if means and others:
            assert len(means) == 1
            found.append((means[0], [item.value for item in others]))
    return found


LANGUAGES = groups(
    lambda x: (x.paper, x.table, x.model, x.structure, x.source, x.reference, x.label, x.task), "language"
)
TASKS = groups(lambda x: (x.paper, x.table, x.structure, x.source, x.reference, x.label, x.language), "task")


@pytest.mark.parametrize(("printed", "values"), LANGUAGES + TASKS)
def test_printed_means_are_those_of_their_rows(printed: Quoted, values: list[float]) -> None:
    """Within the rounding of one decimal, except where the note says that the paper prints another."""
    own = sum(values) / len(values)
    if printed.note.startswith("printed so"):
        assert float(printed.note.rsplit(" ", 1)[1]) == pytest.approx(own, abs=0.051)
        assert abs(printed.value - own) > 0.05
    else:
        assert printed.value == pytest.approx(own, abs=0.0501)


def test_every_table_is_there() -> None:
    counts: dict[tuple[str, str], int] = {}
    for item in QUOTED:
        counts[item.paper.split(" ")[0], item.table] = counts.get((item.paper.split(" ")[0], item.table), 0) + 1
    assert counts == {
        ("AdaMergeX", "2"): 2 * 6 * 6, ("AdaMergeX", "3"): 2 * 5 + 3 * 5, ("AdaMergeX", "4"): 4 * (4 + 4 + 5 + 6 + 5),
        ("AdaMergeX", "5"): 2 * 4 * 6, ("AdaMergeX", "6"): 3 * (4 + 9 + 8),
        ("AdaMergeX", "7"): 6 * (7 + 4 + 12 + 10 + 10), ("AdaMergeX", "8"): 6 * (7 + 4 + 12 + 10 + 10),
        ("AdaMergeX", "10"): 12 * 3,
        ("AdaMergeX", "A.6, first"): 2 * 7 + 2 * 5, ("AdaMergeX", "A.6, second"): 2 * 7 + 2 * 5,
        ("MAD-X", "2"): 6 * 17, ("MAD-X", "5"): 7 * 17,
    }  # fmt: skip
    assert len(LANGUAGES) + len(TASKS) > 60
    doubtful = [item for item in QUOTED if "no Swahili" in item.note]
    assert [(item.table, item.task, item.language, item.label) for item in doubtful] == [
        ("3", "XQuAD", "sw", label) for label in ("MAD-X", "LF-SFT", "AdaMergeX")
    ]


def test_numbers_as_the_papers_print_them() -> None:
    """A few of every table, read off the papers by eye."""
    found = {
        (x.paper[:5], x.table, x.structure, x.source, x.reference, x.label, x.task, x.language): x.value for x in QUOTED
    }
    lm, ada = "language modeling", "AdaMe"
    assert found[ada, "2", "lora", "en", lm, "AdaMergeX", "XNLI", "mean"] == 33.6
    assert found[ada, "2", "ia3", "en", lm, "AriMerge", "mean", "mean"] == 25.7
    assert found[ada, "3", "", "en", lm, "LF-SFT", "XQuAD", "el"] == 75.2
    assert found[ada, "4", "lora", "th", lm, "AdaMergeX", "XNLI", "mean"] == 6.2
    assert found[ada, "4", "ia3", "vi", lm, "Vi-Tune", "XCOPA", "mean"] == 49.8
    assert found[ada, "5", "ia3", "en", "XNLI", "AdaMergeX", "XLSum", "mean"] == 13.1
    assert found[ada, "6", "prefix", "en", lm, "AriMerge", "XNLI", "el"] == 21.8
    assert found[ada, "7", "lora", "en", lm, "AdaMergeX", "MGSM", "sw"] == 7.2
    assert found[ada, "7", "lora", "en", lm, "Eng-FT", "XCOPA", "vi"] == 67.2
    assert found[ada, "8", "ia3", "en", lm, "AdaMergeX", "XQuAD", "hi"] == 24.6
    assert found[ada, "A.6, second", "lora", "en", lm, "AdaMergeX", "XQuAD", "mean"] == 40.8
    assert found[ada, "10", "lora", "en", lm, "AdaMergeX (cross)", "XNLI", "es"] == 17.6
    assert found["MAD-X", "2", "bottleneck", "mean of 16", "", "MAD-X", "NER", "sw"] == 50.4
    assert found["MAD-X", "5", "", "en", "", "XLM-R MLM-TRG", "NER", "ilo"] == 84.7


@pytest.mark.parametrize(("detail", "structure"), [("7", "lora"), ("8", "ia3")])
def test_table_2_is_the_mean_of_tables_7_and_8(detail: str, structure: str) -> None:
    """So the languages of rows whose columns our text lost are the right ones; the paper's slips are noted."""
    printed = [x for x in QUOTED if (x.table, x.structure) == ("2", structure) and x.task != "mean"]
    assert len(printed) == 30
    for item in printed:
        own = [x.value for x in QUOTED if (x.table, x.label, x.task) == (detail, item.label, item.task)]
        average = sum(own) / len(own)
        if item.note:
            assert float(item.note.rsplit(" ", 1)[1]) == pytest.approx(average, abs=0.006)
            assert abs(item.value - average) > 0.0501
        else:
            assert item.value == pytest.approx(average, abs=0.0501)


@pytest.mark.parametrize(("detail", "structure"), [("7", "lora"), ("8", "ia3")])
def test_table_5_tells_which_choices_are_thai_and_vietnamese(detail: str, structure: str) -> None:
    (printed,) = [x for x in QUOTED if (x.table, x.structure, x.label, x.task) == ("5", structure, "Eng-Tune", "XCOPA")]
    own = {x.language: x.value for x in QUOTED if (x.table, x.label, x.task) == (detail, "Eng-FT", "XCOPA")}
    assert printed.value == pytest.approx((own["th"] + own["vi"]) / 2)


def test_beside_ours_only_where_it_is_the_same_thing(sample: Sample, tmp_path: Path) -> None:
    lines = [",".join(COLUMNS)]
    for structure, method, task, language in (
        ("lora", "adamergex", "Topics", "es"), ("", "english_tuning", "topics", "mean"), 
        ("ia3", "average", "topics", "es"),
        ("", "adamergex", "XNLI", "es"), ("", "adamergex", "topics", "xx"), ("", "mad_x", "topics", "es"),
    ):  # fmt: skip
        lines.append(f"P,1,m,{structure},en,,{method},Label,{task},{language},50.5,")
    (tmp_path / "p.csv").write_text("\n".join(lines) + "\n")
    results = parse(sample())
    es, average = score(results, "adamergex", "es"), mean(results, "english_tuning")
    assert es is not None and average is not None
    compared = paper_comparisons(read([tmp_path / "p.csv"]), [results])
    found = [(x.quoted.method, x.quoted.language, x.ours) for x in compared]
    assert found == [("adamergex", "es", es.mean), ("english_tuning", "mean", average.mean)]


def quotation(**changes: str) -> Quoted:
    plain = {
        "paper": "P", "table": "1", "model": "m", "structure": "", "source": "en", "reference": "", "label": "L",
        "method": "adamergex", "task": "topics", "language": "es", "note": "",
    }  # fmt: skip
    return Quoted(**{**plain, **changes}, value=50.5)


def test_settings_choose_the_tables_that_stand_beside(sample: Sample) -> None:
    items = [quotation(), quotation(table="2"), quotation(table="2", model="n"), quotation(source="de")]
    results = parse(sample())
    assert [x.quoted for x in paper_comparisons(items, [results])] == items[:3]  # another source is another thing
    for chosen, expected in (
        ({"table": ["2"]}, items[1:3]), ({"table": ["1", "2"], "model": ["m"]}, items[:2]), ({"label": ["none"]}, []),
    ):  # fmt: skip
        assert [x.quoted for x in paper_comparisons(items, [parse({**sample(), "papers": chosen})])] == expected


def test_a_mean_over_sources_stands_beside_the_mean_of_our_tables(sample: Sample) -> None:
    item = quotation(source="mean of 16")
    one, other, larger = (parse({**sample(gap=gap), "source": source, "base": base}) for gap, source, base in
                          ((1.0, "en", "a"), (5.0, "ja", "a"), (9.0, "ja", "b")))  # fmt: skip
    assert paper_comparisons([item], [one]) == paper_comparisons([item], [one, larger]) == ()
    (found,) = paper_comparisons([item], [one, other, larger])
    scores = [score(results, "adamergex", "es") for results in (one, other)]
    assert found.ours == pytest.approx(sum(x.mean for x in scores if x) / 2) and "2 source languages" in found.title


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("paper,table\n", "other columns"),
        (",".join(COLUMNS) + "\nP,1,m,,en,,adamergex,L,t,es,high,\n", "row 2"),
        (",".join(COLUMNS) + "\nP,1,m,,en,,adamergex,L,t,es,nan,\n", "row 2"),
        (",".join(COLUMNS) + "\nP,1,m,,en,,adamergex,L,t,es,1.0,note,more\n", "row 2"),
    ],
)
def test_files_that_do_not_fit_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "p.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        read([path])
    with pytest.raises(DataError, match="does not exist"):
        read([tmp_path / "none.csv"])
