"""The page and its sister files hold the numbers, and nothing from outside."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from adamergex.report import charts, parse, pictures, report, save, write_report
from adamergex.report.page import page
from adamergex.report.papers import Quoted
from adamergex.report.svg import ticks
from adamergex.report.views import link, size, time

Sample = Callable[..., dict[str, Any]]
HOSTILE = " </script><script>alert(1)</script>\"'&|`* $x_{1}$ \\end <img src=x onerror=alert(1)>"
VOID = {"meta", "link", "img", "br", "hr", "input"}


class Reader(HTMLParser):
    """Tables as rows of (bold?, first line) cells, ids, links, tags; every tag must be closed in its place."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.tags: Counter[str] = Counter()
        self.references: list[str] = []
        self.untitled = 0
        self.last = ""
        self.tables: list[list[list[str]]] = []
        self.handlers: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags[tag] += 1
        self.untitled += bool(self.open) and self.open[-1] == "svg" and self.last == "svg" and tag != "title"
        self.last = tag
        if tag not in VOID:
            self.open.append(tag)
        self.ids += [given["id"] or ""] if "id" in given else []
        self.links += [value or "" for key, value in attrs if key in ("href", "src", "action", "data", "xlink:href")]
        for key in ("aria-labelledby", "aria-describedby"):
            self.references += (given.get(key) or "").split()
        self.handlers += [key for key, _ in attrs if key.startswith("on")]
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.tables and {"td", "th"} & set(self.open) and "svg" not in self.open:
            mark = "**" if "b" in self.open else ""
            if "small" in self.open:
                data = f" {data}"
            self.tables[-1][-1][-1] += mark + data.strip("\n") + mark


def expected(data: dict[str, Any], method: str, language: str) -> tuple[float, str]:
    """The mean and the small print of a cell, computed from the definition alone."""
    cells = [c for c in data["cells"] if (c["method"], c["language"]) == (method, language)]
    values = [c["score"] for c in cells]
    middle = sum(values) / len(values)
    if len(values) == 1:
        return middle, "[{:.1f}, {:.1f}]".format(*cells[0]["interval"])
    sd = (sum((v - middle) ** 2 for v in values) / (len(values) - 1)) ** 0.5
    assert len(values) == 3  # t of two degrees of freedom: 4.3027
    items = sum(((c["interval"][1] - c["interval"][0]) / 2) ** 2 for c in cells) / 3
    half = (4.3027**2 * sd**2 / 3 + items) ** 0.5
    return middle, f"± {sd:.1f} [{middle - half:.1f}, {middle + half:.1f}]"


def rows_of(data: dict[str, Any]) -> dict[str, list[str]]:
    """What the score table must hold, method by method, bold in asterisks."""
    names = [method["name"] for method in data["methods"]]
    scores = {name: [expected(data, name, language) for language in data["targets"]] for name in names}
    means = {name: sum(value for value, _ in scores[name]) / len(scores[name]) for name in names}
    rows = {}
    for name in names:
        row = []
        for column, (value, small) in enumerate(scores[name]):
            bold = "**" if f"{value:.1f}" == f"{max(scores[other][column][0] for other in names):.1f}" else ""
            row.append(f"{bold}{value:.1f}{bold} {small}")
        bold = "**" if f"{means[name]:.1f}" == f"{max(means.values()):.1f}" else ""
        rows[name] = [*row, f"{bold}{means[name]:.1f}{bold}"]
    return rows


@pytest.mark.parametrize("seeds", [(0,), (0, 1, 2)])
def test_every_file_holds_the_same_numbers(sample: Sample, tmp_path: Path, seeds: tuple[int, ...]) -> None:
    data = sample(seeds=seeds)
    path = write_report(parse(data), tmp_path)
    assert path == tmp_path / "report.html"
    wanted = rows_of(data)
    html = Reader(path.read_text(encoding="utf-8")).tables[0]
    markdown = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in (tmp_path / "report.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("| ")
    ]
    latex = (tmp_path / "scores.tex").read_text(encoding="utf-8").splitlines()
    start = latex.index(r"\midrule") + 1
    for index, method in enumerate(data["methods"]):
        row = wanted[method["name"]]
        for found in (html[1 + index], markdown[2 + index]):
            assert [re.sub(r" ± [\d.]+$", "", found[-1]).strip()] == row[-1:]
            assert found[1:-1] == row[:-1]
            assert found[0].startswith(method["label"])
        values = latex[start + 2 * index].removesuffix(r" \\").split(" & ")
        small = latex[start + 2 * index + 1].removesuffix(r" \\").split(" & ")
        plain = [re.sub(r"\\textbf\{(.*)\}", r"**\1**", value) for value in values[1:]]
        assert plain == [cell.split(" ")[0] for cell in row]
        under = [re.sub(r"\{\\scriptsize (.*)\}", r"\1", value).replace(r"$\pm$", "±") for value in small[1:-1]]
        assert under == [cell.split(" ", 1)[1] for cell in row[:-1]]


def test_csv_has_every_cell_with_all_digits(sample: Sample, tmp_path: Path) -> None:
    data = sample(seeds=(0, 1))
    write_report(parse(data), tmp_path)
    with (tmp_path / "scores.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(data["cells"]) == 40
    for row, cell in zip(rows, data["cells"], strict=True):
        assert (row["method"], row["language"], int(row["seed"])) == (cell["method"], cell["language"], cell["seed"])
        assert float(row["score"]) == cell["score"] and int(row["n"]) == cell["n"]
        assert [float(row["low"]), float(row["high"])] == cell["interval"]
        against = cell["against"]
        assert row["difference"] == ("" if against is None else repr(against["difference"]))
        assert row["p"] == ("" if against is None else repr(against["p"]))


def test_differences_and_costs_are_in_their_tables(sample: Sample) -> None:
    data = sample(reach=1.0)
    tables = Reader(page(parse(data))).tables
    shown = {(row[0], row[1]): row for row in tables[1][1:]}
    assert len(shown) == 15
    for cell in (c for c in data["cells"] if c["method"] == "adamergex"):
        row, pair = shown["AdaMergeX (factors)", cell["language"]], cell["against"]
        assert row[2] == f"**{pair['difference']:+.1f}**" and row[4] == "[{:.1f}, {:.1f}]".format(*pair["interval"])
    first, total = tables[2][1], tables[2][-1]
    assert first == ["task · en", "classification", "98,304", "401.1 kB", "61,234", "31.4 s", "0.412", "no"]
    assert total == ["All 8", "", "786,432", "3.2 MB", "1,136,434", "6 min 43 s", "", ""]
    assert [row[-1] for row in tables[2][1:4]] == ["no", "no", "yes"] and len(tables[3]) == 1 + 20


@pytest.mark.parametrize("seeds", [(0,), (0, 1, 2)])
def test_the_page_is_whole_and_self_contained(sample: Sample, seeds: tuple[int, ...]) -> None:
    text = page(parse(sample(seeds=seeds, text=HOSTILE)))
    reader = Reader(text)
    assert all(target.startswith(("#", "./")) for target in reader.links)
    assert not re.search(r"url\(|@import|https?://(?!www\.w3\.org/2000/svg)", text)
    assert [name for name, count in Counter(reader.ids).items() if count > 1] == []
    assert set(reader.references) <= set(reader.ids)
    assert {target[1:] for target in reader.links if target.startswith("#")} <= set(reader.ids)
    assert (
        reader.untitled == 0
        and reader.tags["svg"] == 6 + 15 + 1 + 1 + 1 + 1 + (len(seeds) > 1)
        and reader.tags["desc"] == reader.tags["svg"]
    )
    assert (reader.tags["script"], reader.tags["img"], reader.handlers) == (1, 0, [])
    assert "&lt;script&gt;alert(1)" in text and "default-src 'none'" in text


def test_several_tables_share_a_page_without_clashes(sample: Sample) -> None:
    hostile = Quoted("P", "1", "m", "", "en", "", "adamergex", "L", "topics" + HOSTILE, "es", 50.0, "note" + HOSTILE)
    gap = {"method": "average", "language": "tr", "seed": 0, "reason": "train" + HOSTILE}
    data = sample(text=HOSTILE)
    data["cells"] = [c for c in data["cells"] if (c["method"], c["language"]) != ("average", "tr")]
    data["missing"] = [gap]
    text = page([parse(data), parse(sample(seeds=(0, 1), text=HOSTILE))], quoted=[hostile], notes=["gone" + HOSTILE])
    reader = Reader(text)
    assert [name for name, count in Counter(reader.ids).items() if count > 1] == []
    assert set(reader.references) <= set(reader.ids)
    assert {target[1:] for target in reader.links if target.startswith("#")} <= set(reader.ids)
    assert (reader.tags["script"], reader.tags["img"], reader.handlers, reader.untitled) == (1, 0, [], 0)
    assert reader.tags["svg"] == reader.tags["desc"] >= 50
    means = {row[0]: row[1:] for row in reader.tables[0][1:]}
    assert means["AriMerge"][0].endswith("4 of 5 languages") and "**" not in means["AriMerge"][0]
    assert reader.tables[1][1][0] == "16" and len(reader.tables[-1]) == 3  # the paper's number beside both tables
    assert [row[0] for row in reader.tables[-1][1:]] == ["L", "L"] and "1 of 20 cells are not done" in text


def test_hostile_text_stays_text_in_the_other_files(sample: Sample, tmp_path: Path) -> None:
    data = sample(text=HOSTILE)
    data["methods"][3]["label"] = "A|B <script> 50 % & $x_1$ (IA)³"
    write_report(parse(data), tmp_path)
    markdown = (tmp_path / "report.md").read_text(encoding="utf-8")
    prose = re.sub(r"```.*?```", "", markdown, flags=re.S)
    assert "<script" not in prose and "<img" not in prose and r"A\|B &lt;script&gt;" in prose
    latex = (tmp_path / "scores.tex").read_text(encoding="utf-8")
    assert r"A|B \textless{}script\textgreater{} 50 \% \& \$x\_1\$ (IA)$^3$ (factors) & " in latex


def test_missing_cells_empty_tuning_and_nothing_at_all(sample: Sample, tmp_path: Path) -> None:
    data = sample()
    data["cells"] = [c for c in data["cells"] if (c["method"], c["language"]) != ("average", "tr")]
    data.update(tuning=[], weights=[], adapters=[], merges=[], environment={}, commands=[], notes=[], proxy=None)
    text = write_report(parse(data), tmp_path).read_text(encoding="utf-8")
    row = Reader(text).tables[0][3]
    assert row[3] == "– no result" and row[-1] == "– 4 of 5"
    assert 'id="weight"' not in text and 'id="ways"' not in text and 'id="cost"' not in text and "no language" in text
    markdown = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "| AriMerge | " in markdown and "λ on the proxy" not in markdown
    data.update(cells=[], methods=[])
    assert "Nothing was measured." in write_report(parse(data), tmp_path).read_text(encoding="utf-8")


def test_one_language_one_point_flat_curve(sample: Sample) -> None:
    data = sample()
    data["targets"] = ["es"]
    data["cells"] = [c for c in data["cells"] if c["language"] == "es"]
    data["tuning"][0]["curve"] = [{"weight": 0.0, "score": 70.0, "interval": [70.0, 70.0]}]
    data["tuning"][0]["chosen"] = 0.0
    text = page(parse(data))
    assert "bars-mean" not in text and "which is Eng-FT itself" in text and "in es (" in text
    data["tuning"][0]["curve"] = []
    assert 'id="weight"' not in page(parse(data))


def test_links_lead_only_beside_the_report() -> None:
    assert link("predictions/a b.jsonl") == "./predictions/a%20b.jsonl"
    assert link("../store/x") == "./../store/x"
    assert link("javascript:alert(1)") == "./javascript%3Aalert%281%29"
    assert [link(path) for path in (None, "", "/etc/passwd", "//host/x", "\\\\host")] == [None] * 5
    assert [size(999), size(401_112), size(3_200_000_000)] == ["999 B", "401.1 kB", "3.2 GB"]
    assert [time(12.34), time(80), time(3720)] == ["12.3 s", "1 min 20 s", "1 h 02 min"]


def test_bars_start_at_zero_and_end_at_their_value(sample: Sample) -> None:
    table_page = page(parse(sample()))
    svg = re.search(r'<svg[^>]*aria-labelledby="bars-0-title.*?</svg>', table_page, re.S)
    assert svg is not None
    widths = [float(width) for width in re.findall(r'<rect [^>]*width="([\d.]+)"', svg[0])]
    values = [float(value) for value in re.findall(r'class="value \w+">([\d.]+)<', svg[0])]
    ratios = [width / value for width, value in zip(widths, values, strict=True)]
    assert len(values) == 4 and max(ratios) / min(ratios) < 1.005
    assert "Vanilla 38.3 [30.1, 46.3]; Eng-FT 65.7" in svg[0]


def test_curve_marks_the_choice_and_names_english_tuning(sample: Sample) -> None:
    results = parse(sample())
    svg = charts.curve("k", results.methods[3], results.tuning)
    assert svg.count('class="chosen"') == 1 and "chosen λ = 0.4" in svg and "Eng-FT (λ = 0)" in svg
    assert "Eng-FT lies inside the interval at the chosen λ" in svg
    several = parse(sample(seeds=(0, 1, 2)))
    svg = charts.curve("k", several.methods[3], several.tuning)
    assert svg.count('class="curve thin"') == 3 and svg.count('class="chosen"') == 3 and "λ = 0.4 (3 seeds)" in svg


def test_heat_map_places_and_sizes_every_module(sample: Sample) -> None:
    merge = pictures.picked_merge(parse(sample()))
    assert merge is not None and merge.language == "es"
    svg = pictures.heat_map("k", merge, "t")
    assert svg.count('class="heat h') == 24 and svg.count("heat h0") == 12 and "12 of 24 modules changed" in svg
    top = max(merge.modules, key=lambda m: m.change_norm / m.task_norm)
    assert f"{100 * top.change_norm / top.task_norm:.1f} %, in {top.module}." in svg
    assert pictures.layer_module("a.layers.12.self_attn.q_proj") == ("self_attn.q_proj", 12)
    assert pictures.layer_module("classifier") == ("classifier", None)


def test_lineage_takes_the_adapters_of_its_seed_or_none(sample: Sample) -> None:
    data = sample(seeds=(0, 1))
    data["merges"] = [merge for merge in data["merges"] if merge["seed"] == 1]
    family = pictures.picked_family(parse(data))
    assert family is not None
    names = [family.task.name, family.target.name, family.source.name]
    assert names == ["task · en · seed 1", "reference · es · seed 1", "reference · en · seed 1"]
    assert (family.cell.language, family.cell.seed) == ("es", 1)
    for adapter in data["adapters"]:
        adapter["name"] = adapter["name"].rsplit(" · ", 1)[0]
    assert pictures.picked_family(parse(data)) is None
    assert pictures.formula("(IA)³") == pictures.formula("ia3") != pictures.formula("LoRA, rank 8")


def test_a_rival_far_away_does_not_press_the_rest_together(sample: Sample) -> None:
    text = page(parse(sample()))
    marks = re.findall(r'aria-labelledby="difference-(\d+)-title.*?</svg>', text, re.S)
    assert len(marks) == 15 and text.count('<path d="M8 4L0 10L8 16Z"') == 5


def test_ticks_cover_the_range_in_round_steps() -> None:
    assert ticks(0, 78) == [0, 20, 40, 60, 80] and ticks(0, 1, 5) == [0, 0.2, 0.4, 0.6, 0.8, 1]
    assert ticks(5, 5) == [4, 4.5, 5, 5.5, 6]


def test_what_was_cut_and_not_read_is_told_in_both(sample: Sample, tmp_path: Path) -> None:
    given = sample()
    for number, cell in enumerate(given["cells"]):
        cell |= {"truncated": 3 * (number == 0), "unparsable": 2 * (number == 0)}
    write_report(parse(given), tmp_path)
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "Inputs cut to the model's length: 3 over all cells" in text
    assert "Answers that could not be read: 2 over all cells" in text
    assert "Inputs cut to the model's length: 3" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_what_the_titles_of_a_study_share_is_said_once(sample: Sample, tmp_path: Path) -> None:
    runs = [tmp_path / name for name in ("lora", "ia3", "other")]
    for run, title in zip(runs, ("Topics: lora", "Topics: ia3", "Other: lora"), strict=True):
        save(parse(sample() | {"title": title}), run / "results.json")
    whole = report(runs[:2], tmp_path / "report").read_text(encoding="utf-8")
    text, cells = ((tmp_path / "report" / name).read_text(encoding="utf-8") for name in ("report.md", "scores.csv"))
    assert text.startswith("# Topics: 2 tables\n") and "| Method | lora (Accuracy) | ia3 (Accuracy) |" in text
    assert "\n## ia3\n" in text and "Topics: ia3" not in text
    assert "<h1>Topics: 2 tables</h1>" in whole and "Topics: ia3" not in whole
    assert "Topics: ia3" in cells
    assert "<h1>3 tables</h1>" in report(runs, tmp_path / "report").read_text(encoding="utf-8")
