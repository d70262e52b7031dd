"""The papers' tables in studies/: each is planned without a hub, and runs scaled down to a report that quotes it."""

from __future__ import annotations

import gzip
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import pytest

from adamergex.cli.main import main
from adamergex.config.study import load_study
from adamergex.config.transfer import read_yaml
from adamergex.report.papers import read

ROOT = Path(__file__).parents[1]
FILES = {path.stem: path for path in sorted((ROOT / "studies").glob("*.yaml"))}
NUMBERS = [str(ROOT / "studies" / "papers" / name) for name in ("adamergex.csv", "mad-x.csv")]
REAL = os.environ.get("ADAMERGEX_DATA")

# --- plans


class Counts(NamedTuple):
    """Of a plan, by hand."""

    base: str
    tables: int
    cells: int
    train: int
    tune: int
    merge: int
    evaluate: int


LLAMA, XLM_R = "meta-llama/Llama-2-7b-hf", "FacebookAI/xlm-roberta-base"
CELLS = 7 + 4 + 12 + 10 + 10  # languages of MGSM, XCOPA, XNLI, XQuAD, XLSum
ELSEWHERE = 6 * 4 + 3 * 2 + 11 * 5 + 9 * 4 + 9 * 4  # Table 4: the others of these, from every source that has the task
BY_TASK = (1 + 2 + 2 + 2 + 2) + (4 + 2 + 5 + 4 + 4) + (3 + 2 + 4 + 4 + 3)  # Table 5: what task and reference share
EXPECTED = {
    # 12 languages and English, five tasks; the base's answers (two methods) are the same for both structures.
    "adamergex-table-2": Counts(LLAMA, 2 * 5, 2 * 6 * CELLS, 2 * (13 + 5), 2 * 5, 2 * 2 * CELLS, (2 + 2 * 4) * CELLS),
    # Prefix and LoRA: references of en, tr, vi, th, sw, el, ru and two tasks; MAD-X: the same languages and tasks;
    # LF-SFT: en, th, el, ru and a task. Two methods for both structures, MAD-X on 4 + 3 languages, LF-SFT on 3.
    "adamergex-table-3": Counts(
        XLM_R, 2 * 2, 2 * 2 * 7 + 7 + 3, 2 * (7 + 2) + (7 + 2) + (4 + 1), 4, 2 * 7, 2 * 2 * 7 + 7 + 3
    ),
    # 12 languages, none of them English; 3 + 3 + 4 + 5 + 4 tasks of de, fr, es, th, vi.
    "adamergex-table-4": Counts(
        LLAMA, 2 * 19, 2 * 2 * ELSEWHERE, 2 * (12 + 19), 2 * 19, 2 * ELSEWHERE, 2 * 2 * ELSEWHERE
    ),
    # References: XCOPA of en, th, vi, zh; XNLI of en and five; XQuAD of en, de, es, th, vi. Eng-FT is the same for all
    # reference tasks: 4 + 2 + 5 + 4 + 4 cells.
    "adamergex-table-5": Counts(
        LLAMA, 2 * 15, 2 * 2 * BY_TASK, 2 * (4 + 6 + 5 + 5), 2 * 15, 2 * BY_TASK, 2 * (BY_TASK + 19)
    ),
    "adamergex-table-6": Counts("google/mt5-base", 3, 3 * (4 + 8 + 7), 9 + 3, 3, 2 * 19, 3 * 19),
    "adamergex-table-9": Counts("google-t5/t5-base", 4, 2 * 3 * 4, 2 * (3 + 2), 4, 2 * 2 * 4, 2 * 3 * 4),
    "adamergex-table-10": Counts(LLAMA, 4, 2 * 3 * 4, 2 * (4 + 2), 2 * 4, 2 * 2 * 4, 2 * 3 * 4),
    # Eight languages and two tasks, of all modules and of two; Eng-FT is the same for both ways to merge the first.
    "adamergex-table-a6": Counts(LLAMA, 6, 2 * 3 * 10, 2 * (8 + 2), 6, 3 * 10, 3 * 10 + 2 * 10),
    # Languages with and without invertible blocks and of full models: 16 each. From every source: a task adapter on
    # each of the two and alone; a full model, and one after the text of every language.
    "mad-x-table-2": Counts(XLM_R, 16, 16 * 15 * 6, 3 * 16 + 16 * (3 + 1 + 16), 0, 0, 16 * 15 * 6),
    "mad-x-table-5": Counts(XLM_R, 2, 15 * 6 + 15, 3 * 16 + 3 + 1 + 16 + 1, 0, 0, 15 * 6 + 15),
}
# Tables and trainings of our own studies.
OWN = {
    "sib200": (19, 407),
    "tasks": (12, 70),
    "e5-small": (2, 36),
    "e5-confirm": (1, 35),
    "e5-references": (3, 13),
    "e5-domain": (2, 45),
    "e5-nli": (1, 5),
    "e5-parallel-text": (2, 7),
    "e5-ner": (1, 8),
    "e5-masked-lm": (1, 9),
    "smollm2": (2, 6),
}


@pytest.fixture(scope="module")
def connections() -> Iterator[tuple[int, list[object]]]:
    """A port, and who has asked for it."""
    listener, found = socket.create_server(("127.0.0.1", 0)), []

    def accept() -> None:
        while True:
            try:
                connection, address = listener.accept()
            except OSError:
                return
            found.append(address)
            connection.close()

    threading.Thread(target=accept, daemon=True).start()
    yield listener.getsockname()[1], found
    listener.close()


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory, connections: tuple[int, list[object]]) -> dict[str, str]:
    """What ``--dry-run`` prints of every study, where nothing is cached and a proxy sees who asks the network."""
    folder = tmp_path_factory.mktemp("plans")
    proxy = dict.fromkeys(
        ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), f"http://127.0.0.1:{connections[0]}"
    )
    free = {name: value for name, value in os.environ.items() if not name.startswith("HF_") and name != "NO_PROXY"}
    code = "import sys\nfrom adamergex.cli.main import main\nfor file in sys.argv[1:]:\n"
    code += "    print('##', file)\n    assert main(['study', file, '--dry-run']) == 0\n"
    result = subprocess.run(
        [sys.executable, "-c", code, *map(str, FILES.values())], cwd=folder, capture_output=True, text=True,
        timeout=300, check=False, env={**free, **proxy, "HF_HOME": str(folder / "hub")},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert [path.name for path in folder.iterdir() if path.name != "hub"] == []
    sections = [part.split("\n", 1) for part in result.stdout.split("## ")[1:]]
    return {Path(file).stem: text for file, text in sections}


def test_every_study_is_known_here() -> None:
    assert FILES.keys() == {*EXPECTED, *OWN} == {*SCALED, *OWN}


@pytest.mark.parametrize("name", EXPECTED)
def test_a_papers_study_is_planned_without_a_hub(
    name: str, plans: dict[str, str], connections: tuple[int, list[object]]
) -> None:
    expected, text = EXPECTED[name], plans[name]
    assert connections[1] == []
    assert f": {expected.tables} tables, {expected.cells} cells\n" in text
    rows = {line.split()[0]: line.split() for line in text.splitlines() if line.strip()}
    found = {kind: int(rows[kind][1]) for kind in ("train", "tune", "merge", "evaluate") if kind in rows}
    wanted = {kind: getattr(expected, kind) for kind in ("train", "tune", "merge", "evaluate")}
    assert found == {kind: count for kind, count in wanted.items() if count}
    absent, assumed = text.split("assumed, because it is not on this machine:\n")[1].split("\nassumed:\n")
    assert f"the model cannot be loaded: {expected.base} (" in absent
    assert "rows that are not here: " in assumed and "tokens of a row: " in assumed
    assert "parameters without embeddings: " in assumed and float(rows["together"][5]) > 1e17  # FLOPs


@pytest.mark.parametrize("name", OWN)
def test_our_own_studies_are_planned_too(name: str, plans: dict[str, str]) -> None:
    found = load_study(FILES[name]).tables.values()
    with_weight = {"adamergex", "adamergex_delta", "adamergex_cross"}  # an oracle of each is a row too
    rows = [len(table.methods) + table.merge.oracle * len(with_weight & {*table.methods}) for table in found]
    cells = sum(row * len(table.targets) * len(table.seeds) for row, table in zip(rows, found, strict=True))
    tables, trainings = OWN[name]
    assert f": {tables} tables, {cells} cells\n" in plans[name]
    (trained,) = [line.split()[1] for line in plans[name].splitlines() if line.startswith("train ")]
    assert int(trained) == trainings


@pytest.mark.parametrize("name", EXPECTED)
def test_a_study_measures_what_the_paper_prints(name: str) -> None:
    """Every language and method for which the table that a study names has a number, but for what it leaves out."""
    study, numbers = load_study(FILES[name]), read(NUMBERS)
    for title, table in study.tables.items():
        chosen = table.papers.chosen
        assert chosen
        quoted = [
            item
            for item in numbers
            if item.task.lower() == table.task.name
            and all(getattr(item, column) in values for column, values in chosen.items())
            and item.structure in ("", table.structure.kind)
            and (item.source == table.source or item.source.startswith("mean of"))
        ]
        assert quoted or name == "adamergex-table-9", title
        if chosen["table"] == ("7",):  # A.6 has it for comparison only
            continue
        left_out = {"mean", table.source, "en"}  # Table 5 of MAD-X has its source as a column
        printed = {item.language for item in quoted if not ("?" in item.language or "no Swahili" in item.note)}
        assert printed - left_out <= set(table.targets), title
        own = set() if title.endswith("-lora") else {item.method for item in quoted}  # ours, beside Table 3
        assert own <= set(table.methods), title


# --- scaled down


class Scaled(NamedTuple):
    """How a study is scaled down: the tasks that stay, what is set, and a number of the paper that is quoted."""

    tasks: dict[str, dict[str, Any]]
    base: str = "nano-causal"
    sets: tuple[str, ...] = ()
    quoted: tuple[str, str, str, str] | None = None


QUICK = ("steps=2", "batch_size=2")
TEXT = "reference.text=DATA/sib200/{language}.train.jsonl.gz"
REFERENCE = (
    TEXT,
    "reference.segment=32",
    "reference.segments=4",
    *(f"reference.optimisation.{item}" for item in QUICK),
)
FEW = {"task.settings.max_new_tokens": 4}
SHORT = ["english_tuning", "average", "adamergex"]  # XLT's 256 pieces once, not five times
MAD_X = (TEXT, *(f"mad_x.language.{item}" for item in ("segment=32", *(f"optimisation.{item}" for item in QUICK))))
EVERY = [f"{part}.language.steps_by_language=null" for part in ("mad_x", "full")]
FULL = (
    *MAD_X,
    *EVERY,
    *(f"full.language.{item}" for item in ("segment=32", *(f"optimisation.{item}" for item in QUICK))),
)
# Of XNLI the data folder has en, es and sw, and no translated training rows.
XNLI = {"proxy": "sw", "targets": ["sw"]}
SCALED = {
    "adamergex-table-2": Scaled(
        {
            "mgsm": {**FEW, "targets": ["sw", "th"]},
            "xcopa": {"targets": ["sw"], "methods": ["vanilla", *SHORT]},
            "xnli": {**XNLI, "methods": ["vanilla", *SHORT]},
            "xquad": {**FEW, "targets": ["th"], "methods": ["vanilla", *SHORT]},
            "xlsum": {**FEW, "targets": ["sw"], "methods": ["vanilla", *SHORT]},
        },
        base="DECODER",  # longer than nano-causal: XLT may answer in 256 pieces
        sets=REFERENCE,
        quoted=("XLT(Eng-FT)", "MGSM", "sw", "4.4"),
    ),
    "adamergex-table-3": Scaled(
        {"xcopa": {"targets": ["sw"]}, "xquad": {"targets": ["th"]}},
        base="nano",
        sets=(
            *REFERENCE, *MAD_X, *(f"mad_x.task.optimisation.{item}" for item in QUICK),
            *(f"lf_sft.{part}.{item}" for part in ("language", "task") for item in
              ("entries=0.05", "first_steps=2", *(f"optimisation.{item}" for item in QUICK))),
            "lf_sft.language.segment=32", "mad_x.language.steps_by_language=null",
        ),
        quoted=("LF-SFT", "XQuAD", "th", "65.5"),
    ),
    "adamergex-table-4": Scaled(
        {
            "mgsm-de": {**FEW, "targets": ["sw"]},
            "xcopa-vi": {"targets": ["sw"]},
            "xquad-th": {**FEW, "targets": ["es"]},
            "xlsum-es": {**FEW, "targets": ["vi"]},
        },
        sets=REFERENCE,
        quoted=("De-Tune", "MGSM", "mean", "20.9"),
    ),
    "adamergex-table-5": Scaled(
        {
            "mgsm-by-xcopa": FEW,
            "mgsm-by-xnli": {**FEW, **XNLI, "reference.task.train.split": "validation"},
            "xcopa-by-xquad": {"targets": ["th"]},
            "xquad-by-xquad": {**FEW, "targets": ["th"]},
            "xlsum-by-xcopa": {**FEW, "targets": ["vi"]},
        },
        sets=(
            "reference.task.data=DATA", "reference.task.train.limit=4", "reference.task.settings.max_length=256",
            *(f"reference.task.optimisation.{item}" for item in QUICK),
        ),
        quoted=("AdaMergeX", "XCOPA", "mean", "61.8"),
    ),
    "adamergex-table-6": Scaled(
        {"xcopa": {"targets": ["sw"]}, "xnli": XNLI, "xlsum": {**FEW, "targets": ["sw"]}},
        base="T5",
        sets=REFERENCE,
        quoted=("AriMerge", "XNLI", "sw", "14.6"),
    ),
    "adamergex-table-9": Scaled(
        {"xnli": {**XNLI, "targets": ["es"]}, "xlsum": {**FEW, "targets": ["es"]}}, base="T5", sets=REFERENCE
    ),
    "adamergex-table-10": Scaled(
        {"xnli": {**XNLI, "targets": ["es"]}, "xquad": {**FEW, "targets": ["es", "vi"]}},
        sets=REFERENCE,
        quoted=("AdaMergeX (cross)", "XQuAD", "mean", "41.3"),
    ),
    "adamergex-table-a6": Scaled(
        {"xnli": XNLI, "xquad": {**FEW, "targets": ["de"]}},
        sets=REFERENCE,
        quoted=("AdaMergeX", "XQuAD", "de", "10.4"),
    ),
    "mad-x-table-2": Scaled(
        {"en": {"targets": ["sw"]}, "zh": {"targets": ["sw"]}},
        base="nano",
        sets=FULL,
        quoted=("MAD-X", "NER", "sw", "50.4"),
    ),
    "mad-x-table-5": Scaled(
        {"ner": {"targets": ["sw"]}}, base="nano", sets=FULL, quoted=("XLM-R MLM-TRG", "NER", "sw", "77.7")
    ),
}  # fmt: skip


def changes(name: str, places: dict[str, str]) -> list[str]:
    """What is given to --set: the study's own settings, but for the model, the amounts, and where data are."""
    scaled = SCALED[name]
    pieces = 256 if scaled.base.startswith("nano") else 1600  # the other tokenizers know few words
    found = [f"base={scaled.base}", f"task.settings.max_length={pieces}", "task.data=DATA"]
    found += [f"task.{part}.limit=4" for part in ("train", "validation", "test")]
    found += [f"task.optimisation.{item}" for item in QUICK]
    found += ["merge.grid=[0.5]"] if name.startswith("adamergex") else []
    found += scaled.sets
    for task in read_yaml(FILES[name])["tasks"]:
        own = scaled.tasks.get(task)
        found += (
            [f"tasks.{task}=null"] if own is None else [f"tasks.{task}.{x}={json.dumps(y)}" for x, y in own.items()]
        )
    for word, place in places.items():
        found = [text.replace(word, place) for text in found]
    return found


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data folder, and files as XL-Sum's, whose licence keeps it out of there: of each news text of NTREX the
    second sentence and the rest, summed up by the first."""
    folder = tmp_path_factory.mktemp("data")
    for path in Path(str(REAL)).absolute().iterdir():
        (folder / path.name).symlink_to(path)
    (folder / "xlsum").mkdir()
    for language in ("en", "es", "fr", "sw", "vi"):
        texts: dict[str, list[str]] = {}
        with gzip.open(Path(str(REAL)) / "ntrex" / f"{language}.train.jsonl.gz", "rt", encoding="utf-8") as stream:
            for row in map(json.loads, stream):
                texts.setdefault(row["doc"], []).append(row["text"])
        rows = [
            {"id": doc, "title": lines[1], "text": " ".join(lines[1:]), "summary": lines[0]}
            for doc, lines in texts.items()
            if len(lines) > 2
        ]
        for split in ("train", "validation", "test"):
            with gzip.open(folder / "xlsum" / f"{language}.{split}.jsonl.gz", "wt", encoding="utf-8") as stream:
                stream.writelines(json.dumps(row) + "\n" for row in rows[:6])
    return folder


class Line(NamedTuple):
    """A line of the report's comparison, in its own words."""

    label: str
    task: str
    language: str
    paper: str
    ours: str
    model: str
    table: str
    title: str
    note: str


def lines_of(report: Path) -> list[Line]:
    """The papers' numbers beside ours, as report.md has them."""
    _, found, section = report.read_text(encoding="utf-8").partition("## Beside the papers' numbers")
    rows = [line for line in section.split("\n## ")[0].splitlines() if line.startswith("|")] if found else []
    return [Line(*(cell.strip() for cell in row.strip("|").split("|"))) for row in rows[2:]]


def ours(output: Path, line: Line, method: str) -> float:
    """The number that a line must show, from the results alone."""
    tables = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(output.glob("*/results.json"))]
    if not line.title.startswith("mean of"):
        tables = [results for results in tables if results["title"] == line.title]
    found = [
        fmean(
            cell["score"]
            for cell in results["cells"]
            if cell["method"] == method and line.language in (cell["language"], "mean")
        )
        for results in tables
    ]
    assert found
    return fmean(found)


@pytest.mark.skipif(REAL is None, reason="ADAMERGEX_DATA names no data folder")
@pytest.mark.parametrize("name", SCALED)
def test_a_papers_study_runs_scaled_down(
    name: str, data: Path, roomy_t5: str, tiny_decoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"DATA": str(data), "T5": roomy_t5, "DECODER": str(tiny_decoder)}
    sets = [f"output={tmp_path / 'run'}", f"store={tmp_path / 'store'}", *changes(name, places)]
    assert main(["study", str(FILES[name]), *(word for text in sets for word in ("--set", text))]) == 0
    study = json.loads((tmp_path / "run" / "study.json").read_text(encoding="utf-8"))
    variants = len(read_yaml(FILES[name]).get("variants", {}))
    assert len(study["tables"]) == len(SCALED[name].tasks) * (1 + variants)
    assert not study["missing"] and all(table["complete"] for table in study["tables"].values())
    report = tmp_path / "report"
    assert main(["report", str(tmp_path / "run"), "--output", str(report), "--papers", *NUMBERS]) == 0
    lines, quoted = lines_of(report / "report.md"), SCALED[name].quoted
    page = (report / "report.html").read_text(encoding="utf-8")
    assert ("Beside the papers" in page) == bool(lines) == (quoted is not None)
    assert quoted is None or quoted in {line[:4] for line in lines}
    tables = load_study(FILES[name]).tables
    methods = {(item.label, item.table): item.method for item in read(NUMBERS)}
    for line in lines:
        table = line.table.partition(", Table ")[2]
        assert line.ours == f"{ours(tmp_path / 'run', line, methods[line.label, table]):.1f}"
        own = tables.get(line.title.rpartition(": ")[2])  # none: a mean over several
        assert own is None or table in own.papers.table


def test_every_table_and_its_variants_quote_their_own_table() -> None:
    wanted = {name: {table.papers.table for table in load_study(FILES[name]).tables.values()} for name in EXPECTED}
    assert wanted.pop("adamergex-table-2") == {("2", "7"), ("2", "8")}
    assert wanted.pop("adamergex-table-a6") == {("7",), ("A.6, first",), ("A.6, second",)}
    assert wanted == {name: {(name.rpartition("-")[2],)} for name in wanted}
