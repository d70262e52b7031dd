"""Damage settings and data files at random, and complain where the answer is not one clear error.

python scripts/fuzz/settings_and_data.py settings|data [FIRST] [COUNT]

Every seed makes one valid input, damages it, and goes as far as a run goes before it trains. Complaints: another
exception than ours, no answer in 5 s of the processor or 60 s in all, a message that nobody can read, a file written or
changed anywhere in the scratch folder, rows lost in silence. Exit 1 where there is one; a seed alone repeats it.
"""

from __future__ import annotations

import contextlib
import copy
import gzip
import io
import json
import os
import random
import re
import signal
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

os.environ.setdefault("HF_HUB_OFFLINE", "1")

LIMIT_S, MESSAGE = 5, 20_000
WORDS = ("river", "doctor", "match", "train", "maji", "daktari", "mechi", "treni", "é", "水", "ต้น")


class Late(BaseException):
    """No answer in time."""


@contextlib.contextmanager
def in_time(seconds: float) -> Iterator[None]:
    """Raises: Late."""

    def late(*_: object) -> None:
        raise Late

    # Of the processor, so that a busy machine is no complaint; and on the wall, for what waits without working.
    clocks = ((signal.SIGPROF, signal.ITIMER_PROF, seconds), (signal.SIGALRM, signal.ITIMER_REAL, 12 * seconds))
    before = [signal.signal(number, late) for number, _, _ in clocks]
    for _, timer, limit in clocks:
        signal.setitimer(timer, limit)
    try:
        yield
    finally:
        for (number, timer, _), handler in zip(clocks, before, strict=True):
            signal.setitimer(timer, 0)
            signal.signal(number, handler)


def text(r: random.Random, words: int = 8) -> str:
    return " ".join(r.choices(WORDS, k=words))


# ---- settings

ODD: list[Any] = [ None, [], {}, "", " ", "x", "no", 0, -1, 1, 7, True, False, 1.5, 0.0, -0.5, 1e308, 1e-320,
    10**30, 2**64, "0.5", "5e-4", float("nan"), float("inf"), [1], [None], [[]], {"a": 1}, {1: 2}, {"": ""},
    {"kind": "x"}, {"kind": []}, "../../victim/x", "a\0b", "\x1b[31mred", "\u202e", "é" * 3000, "{language}", "{",
    "{}", "con", "(a+)+$", "(", "[", "nano", "/dev/zero", "hub", "lora", "ia3", "prefix", "bottleneck", "tuned",
    "entropy", "all", "2021-99-99", "0x1F", ["en", "en"], ["sw", ["x"]], list(range(300)), "task", "language",
    "classification", "tagging", "span", "generation", "multiple-choice", "mgsm", "xnli", ]  # fmt: skip
NAMES = ["metric", "words", "labels", "limit", "columns", "base_adapters", "kind", "folder", "steps", "modules",
    "leave_out", "weight", "grid", "hub", "path", "measured_as", "prompt", "stop", "choices", "only", "task",
    "__class__", "x", "é", 1, ""]  # fmt: skip


def settings_of(r: random.Random, folder: Path) -> tuple[str, dict[str, Any]]:
    """A verb and settings that it takes, on files below ``folder``."""
    data, few = f"{folder}/data/{{language}}", {"steps": 2, "batch_size": 4, "learning_rate": 0.01}
    task = {"name": "topics", "train": f"{data}.csv", "validation": f"{data}.csv", "test": f"{data}.csv", "labels":
        ["a", "b"], "words": {"a": "one", "b": "two"}, "max_length": 32, "optimisation": few}  # fmt: skip
    table: dict[str, Any] = { "title": "T", "base": "nano", "structure": {"kind": "lora", "rank": 2, "alpha": 4},
        "source": "en", "proxy": "fr", "targets": ["sw"], "methods": ["english_tuning", "adamergex"], "task": task,
        "seeds": [0], "reference": {"text": f"{data}.txt", "segment": 16, "segments": 2, "optimisation": few},
        "merge": {"weight": "tuned", "modules": "attention-qv", "grid": [0, 0.5, 1.0], "swap": {"bottom": 1, "top":
        1}}, "mad_x": {"leave_out": [], "language": {"segment": 16, "optimisation": few}}, "output":
        f"{folder}/out", }  # fmt: skip
    verb = r.choice(["transfer", "transfer", "train", "language", "study", "study"])
    if verb == "transfer":
        table["methods"] = r.choice(
            [table["methods"], ["mad_x"], ["layer_swapping", "ties"], ["full_fine_tuning", "lf_sft"]]
        )
        return verb, table
    if verb == "study":
        shared = {name: value for name, value in table.items() if name not in ("task", "title")}
        return verb, {
            **shared,
            "tasks": {"one": {"task": task}},
            "variants": {"ia3": {"structure": {"kind": "ia3"}, "only": ["one"]}},
        }
    common = {"base": "nano", "language": "en", "structure": r.choice([{"kind": "lora", "rank": 2}, {"kind":
        "bottleneck"}]), "output": f"{folder}/out", "seed": 1}  # fmt: skip
    if verb == "train":
        return "train", {
            "kind": "task",
            "task": {name: value for name, value in task.items() if name != "test"},
            **common,
        }
    return "train", {"kind": "language", "text": f"{data}.txt", "segment": 16, "optimisation": few, **common}


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in nested settings."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [*([path] if path else []), *(place for key, item in inner for place in places(item, (*path, key)))]


def damage_values(settings: dict[str, Any], r: random.Random) -> str:
    """Change one to three values, names or shapes in place; what was done."""
    done = []
    for _ in range(r.choice([1, 1, 1, 2, 3])):
        *above, last = r.choice(places(settings))
        inner: Any = settings
        for key in above:
            inner = inner[key]
        what = r.choice(["odd", "odd", "odd", "drop", "wrap", "twice", "name", "rename"])
        if what == "odd":
            inner[last] = copy.deepcopy(r.choice(ODD))
        elif what == "drop":
            del inner[last]
        elif what == "wrap":
            inner[last] = r.choice(
                [[inner[last]], {"path": inner[last]}, {r.choice(NAMES): inner[last]}, str(inner[last])]
            )
        elif what == "twice" and isinstance(inner, list):
            inner.append(inner[last])
        elif isinstance(inner, dict):
            value = copy.deepcopy(r.choice(ODD)) if what == "name" else inner.pop(last)
            inner[r.choice(NAMES)] = value
        done.append(f"{what} {'.'.join(map(str, (*above, last)))}")
        if not settings:
            break
    return ", ".join(done)


STRAY = [b"\0", b"\t", b"'", b'"', b"*a", b"&a ", b"!!python/name:os.system ", b"!!int ", b"[", b"{", b"- ", b"? ",
    b"%", b"\xff", b"\xed\xa0\x80", b"#", b": ", b"|", b"<<: *a", b".nan", b"---\n"]  # fmt: skip
BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join(['*' + before] * 9)}]\n" for before, name in zip("abcdef", "bcdefg", strict=True)
)
ADDED = [b"targets: [sw]\n", b"x: " + b"[" * 4000, b"x: " + b"{a: " * 500 + b"1" + b"}" * 500, BOMB.encode(),
         b"seed: " + b"9" * 6000 + b"\n", b"seed: 0x" + b"f" * 6000 + b"\n", b"title: " + b"x" * 300_000]  # fmt: skip
INSTEAD = [b"", b"null", b"[]", b"5", b"x", b"- a", b"\xef\xbb\xbf", b"&a [*a]", b"!!set {a}", b"!!binary aGk="]


def damage_yaml(content: str, r: random.Random) -> bytes:
    """Damage the text of settings."""
    raw = content.encode()
    at = r.randrange(len(raw) + 1)
    lines = raw.splitlines(keepends=True)
    ways: list[Callable[[], bytes]] = [
        lambda: raw[:at],
        lambda: raw[:at] + bytes([r.randrange(256)]) + raw[at + 1 :],
        lambda: raw[:at] + r.choice(STRAY) + raw[at:],
        lambda: raw[:at] + r.choice(STRAY) + raw[at:],
        lambda: content.encode(r.choice(["utf-16", "utf-32", "utf-8-sig"])),
        lambda: raw + r.choice(ADDED),
        lambda: b"".join(r.sample(lines, len(lines))),
        lambda: r.choice(INSTEAD),
    ]
    return r.choice(ways)()


def plan(verb: str, path: Path, changes: list[str]) -> None:
    """What a verb does before it trains. Raises: AdamergexError."""
    from adamergex.config import train, transfer
    from adamergex.config.study import load_study
    from adamergex.graph.steps import in_order
    from adamergex.tables.plan import Plan, absolute, facts, train_job
    from adamergex.tables.study import dry_run
    from adamergex.tables.study_plan import StudyPlan
    from adamergex.training import preflight

    if verb == "train":
        preflight.require_job(train_job(train.load_training(path)))
    elif verb == "study":
        study = load_study(path, changes)
        dry_run(study)
        preflight.require_possible(StudyPlan(study).steps)
    else:
        table = absolute(transfer.load(path))
        preflight.require_possible(in_order(Plan(table, facts(table)).wanted))


def settings_case(r: random.Random, folder: Path) -> tuple[str, Callable[[], str]]:
    """What was damaged, and what to do with it."""
    for language in ("en", "fr", "sw"):
        (folder / "data").mkdir(exist_ok=True)
        rows = "".join(f"{text(r)},{label}\n" for _ in range(6) for label in "ab")
        (folder / f"data/{language}.csv").write_text("text,label\n" + rows, encoding="utf-8")
        (folder / f"data/{language}.txt").write_text("".join(text(r, 20) + "\n" for _ in range(40)), encoding="utf-8")
    verb, settings = settings_of(r, folder)
    what = damage_values(settings, r) if r.random() < 0.7 else ""
    written = (
        json.dumps(settings) if r.random() < 0.2 else yaml.safe_dump(settings, allow_unicode=True, sort_keys=False)
    )
    content = written.encode() if what else damage_yaml(written, r)
    path, changes = folder / "settings.yaml", []
    path.write_bytes(content)
    if verb == "study" and r.random() < 0.3:
        value = yaml.safe_dump(r.choice(ODD), default_flow_style=True).removesuffix("...\n").strip()
        changes = [f"{r.choice(['seeds', 'task.optimisation.steps', 'tasks.one', 'output', 'x', 'targets'])}={value}"]

    def run() -> str:
        plan(verb, path, changes)
        return ""

    return f"{verb}: {what or 'text'} {changes or ''}", run


# ---- data


def data_of(ending: str, rows: list[dict[str, Any]]) -> bytes:
    """Rows as a file of a format."""
    if ending == "parquet":
        import pyarrow
        from pyarrow import parquet

        stream = io.BytesIO()
        parquet.write_table(pyarrow.Table.from_pylist(rows), stream)
        return stream.getvalue()
    separator = {"csv": ",", "tsv": "\t"}.get(ending)
    if separator:
        return (
            "\n".join([f"text{separator}label", *(f"{row['text']}{separator}{row['label']}" for row in rows)]) + "\n"
        ).encode()
    if ending == "json":
        return json.dumps(rows, ensure_ascii=False).encode()
    return "".join((json.dumps(row) if ending == "jsonl" else row["text"]) + "\n" for row in rows).encode()


INSERTED = [b'"', b'""', b"'", b"\n", b"\r", b"\0", b"\t", b",", b";", b"\xff", b"\xed\xa0\x80", b"\xef\xbb\xbf",
    b"NaN", b"null", b"{", b"}", b"[" * 5000, b"\\ud800", b"\\u0000", b"1e999", b"9" * 5000, b"\x1b[2J", b"x" *
    100_000, b' "', b'",', b'"\n']  # fmt: skip
REPLACED = [(b",", b";"), (b"\t", b","), (b"\n", b"\r"), (b"\n", b"\r\n"), (b'"', b"'"), (b"text", b"label"),
    (b"text", b""), (b'"a"', b"NaN"), (b"a\n", b'a"\n')]  # fmt: skip
WHOLE = [b"", b"\n", b" ", b"[]", b"{}", b"null", b"[[[", b"PAR1", b"\x1f\x8b", b"PK\x03\x04"]


def damage_bytes(raw: bytes, r: random.Random) -> bytes:
    """Damage the bytes of a file once to three times."""
    for _ in range(r.choice([1, 1, 2, 3])):
        raw = _damaged_once(raw, r)
    return raw


def _damaged_once(raw: bytes, r: random.Random) -> bytes:
    a, b = sorted((r.randrange(len(raw) + 1), r.randrange(len(raw) + 1)))
    ways: list[Callable[[], bytes]] = [
        lambda: raw[:a] + bytes(byte ^ (1 << r.randrange(8)) for byte in raw[a : a + 4]) + raw[a + 4 :],
        lambda: raw[:a],
        lambda: raw[:a] + raw[b:],
        lambda: raw[:a] + raw[a:b] * 2 + raw[b:],
        lambda: raw[:a] + r.choice(INSERTED) + raw[a:],
        lambda: raw[:a] + r.choice(INSERTED) + raw[a:],
        lambda: raw[:a] + r.choice(INSERTED) + raw[a:b] + r.choice(INSERTED) + raw[b:],
        lambda: raw.replace(*r.choice(REPLACED)),
        lambda: r.choice(WHOLE),
        lambda: r.randbytes(r.choice([1, 16, 400])),
    ]
    return r.choice(ways)()


def data_case(r: random.Random, folder: Path) -> tuple[str, Callable[[], str]]:
    """What was damaged, and what to do with it."""
    ending, packed = r.choice(["jsonl", "json", "csv", "csv", "tsv", "tsv", "txt", "parquet"]), r.random() < 0.25
    rows = [{"text": text(r), "label": label} for _ in range(20) for label in "ab"]
    raw, packed = data_of(ending, rows), packed and ending != "parquet"
    if packed and r.random() < 0.5:
        raw = damage_bytes(gzip.compress(raw, mtime=0), r)
    else:
        raw = damage_bytes(raw, r)
        with contextlib.suppress(UnicodeDecodeError):
            raw = raw.decode().encode(r.choice(["utf-8"] * 8 + ["utf-16", "utf-32", "utf-8-sig", "utf-16-le"]))
        raw = gzip.compress(raw, mtime=0) if packed else raw
    path = folder / f"rows.{ending}{'.gz' if packed else ''}"
    place = r.random()
    if place < 0.02:
        os.mkfifo(path)
    elif place < 0.04:
        path.mkdir()
    elif place < 0.05:
        path.symlink_to("/dev/zero")
    else:
        path.write_bytes(raw)

    def run() -> str:
        from adamergex.data import reader
        from adamergex.jobs.settings import Classification, LanguageModeling, Rows
        from adamergex.tasks import rows as task_rows

        task = LanguageModeling() if ending == "txt" else Classification(labels=("a", "b"))
        found = task_rows.read(task, Rows(path=str(path)), "en")
        reader.content_hash(found)
        lost = ending == "csv" and any(row["text"].count("\n") >= 10 for row in found)
        return "rows are lost in silence" if lost else ""

    return path.name, run


CASES = {"settings": settings_case, "data": data_case}


def attempt(verb: str, seed: int) -> tuple[str, str]:
    """Outcome (accepted, refused, complaint) of a seed, and what is complained of."""
    from adamergex.errors import AdamergexError

    r = random.Random(f"{verb} {seed}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve() / "work"
        folder.mkdir()
        what, run = CASES[verb](r, folder)
        before, outcome, problem = _seen(folder.parent), "accepted", ""
        try:
            with in_time(LIMIT_S), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                problem = run()
        except AdamergexError as error:
            outcome, said = "refused", str(error)
            problem = (
                "a message of many characters" if len(said) > MESSAGE else "terminal codes" if "\x1b" in said else ""
            )
        except Late:
            problem = f"no answer in {LIMIT_S} s"
        except Exception as error:
            problem = f"{type(error).__name__}: {str(error)[:100]}"
        if not problem and _seen(folder.parent) != before:
            problem = "something was written"
        return ("complaint", f"{problem} ({what})") if problem else (outcome, "")


def _seen(folder: Path) -> set[tuple[str, int, int]]:
    found = [(path, path.lstat()) for path in folder.rglob("*")]
    return {(str(path), about.st_size, about.st_mtime_ns) for path, about in found}


def import_all() -> None:
    """Pay for the imports before the clock runs."""
    import adamergex.tables.study
    import adamergex.tables.transfer
    import adamergex.tasks.rows  # noqa: F401

    with contextlib.suppress(ModuleNotFoundError):
        import pyarrow.parquet  # noqa: F401


def main(verb: str, first: str = "0", count: str = "200") -> int:
    """Run ``count`` seeds from ``first`` on; 1 where there is a complaint."""
    import_all()
    outcomes: Counter[str] = Counter()
    complaints: dict[str, list[int]] = {}
    for seed in range(int(first), int(first) + int(count)):
        outcome, problem = attempt(verb, seed)
        outcomes[outcome] += 1
        if problem:
            complaints.setdefault(re.sub(r"\d+", "N", problem), []).append(seed)
    print(f"{verb}, seeds {first} to {int(first) + int(count) - 1}: {dict(outcomes)}")
    for problem, seeds in sorted(complaints.items(), key=lambda item: -len(item[1])):
        print(f"{len(seeds):4} {problem}  seeds {seeds[:5]}")
    return 1 if complaints else 0


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:4]))
