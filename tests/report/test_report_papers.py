"""The papers' numbers: what they print adds up, and they stand beside ours where ours are the same thing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adamergex.errors import DataError
from adamergex.report import parse
from adamergex.report.papers import COLUMNS, Quoted, beside, read
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
        ("AdaMergeX", "5"): 2 * 4 * 6, ("AdaMergeX", "6"): 3 * (4 + 9 + 8), ("AdaMergeX", "10"): 12 * 3,
        ("AdaMergeX", "A.6, first"): 2 * 7 + 2 * 5, ("AdaMergeX", "A.6, second"): 2 * 7 + 5,
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
    assert found[ada, "10", "lora", "en", lm, "AdaMergeX (cross)", "XNLI", "es"] == 17.6
    assert found["MAD-X", "2", "bottleneck", "mean of 16", "", "MAD-X", "NER", "sw"] == 50.4
    assert found["MAD-X", "5", "", "en", "", "XLM-R MLM-TRG", "NER", "ilo"] == 84.7


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
    found = [(x.quoted.method, x.quoted.language, x.ours) for x in beside(read([tmp_path / "p.csv"]), [results])]
    assert found == [("adamergex", "es", es.mean), ("english_tuning", "mean", average.mean)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("paper,table\n", "other columns"),
        (",".join(COLUMNS) + "\nP,1,m,,en,,adamergex,L,t,es,high,\n", "line 2"),
        (",".join(COLUMNS) + "\nP,1,m,,en,,adamergex,L,t,es,nan,\n", "line 2"),
        (",".join(COLUMNS) + "\nP,1,m,,en,,adamergex,L,t,es,1.0,note,more\n", "line 2"),
    ],
)
def test_files_that_do_not_fit_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "p.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        read([path])
    with pytest.raises(DataError, match="cannot be read"):
        read([tmp_path / "none.csv"])
