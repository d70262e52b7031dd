"""Fuzz stores and results: damage a finished run's files, one at a time, and see how the commands take it.

    python scripts/fuzz/stores.py [--mutants 1000] [--first 0]

A transfer is made once. For every mutant its folder is copied and one file of the store or of the output is changed
(bytes, types, nesting, names, links; half of the changes keep the hashes of the manifest right, as a forger would).
Then `runs`, `gc`, `report` and the same `transfer` again run in this process. Wrong is: an exit code other than 0 and
2, a traceback, control characters, more than ``SECONDS``, a change outside the run, a file left behind, and other
scores than before where the damage had to be noticed. Mutant N is always the same.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from adamergex.cli.main import main
from adamergex.config.transfer import load
from adamergex.graph import manifests
from adamergex.tables import transfer

SECONDS = 5.0
MEMORY = 8 << 30
"""Bytes of address space: what asks for more is told by the command, and is a fault."""
TEXTS = {"en": "the river is deep", "fr": "la rivière est profonde", "sw": "mto ni wenye kina"}
ODD: tuple[Any, ...] = (
    None, True, -1, 0, 1, 2.5, 1e308, -1e308, 10**30, 2**63, "", "x", "\x1b[2Jowned\x07", "\u202egnp", "NaN", "inf",
    "-", "../../outside/victim", "/etc/passwd", "a\0b", "a" * 5000, "é" * 300, "\n\n\n", "javascript:alert(1)",
    "9999-12-31T23:59:59-14:00", "0001-01-01T00:00:00+14:00", [], {}, [None], [[]], {"": ""}, ["x"] * 300,
    {"__class__": "os.system"},
)  # fmt: skip
RAW = (
    b"", b"{", b"null", b"[]", b"5", b'"x"', b"\xff\xfe{}", b"\xef\xbb\xbf{}", b"[" * 100_000, b'{"a":' * 5_000,
    b"\0" * 64, b"NaN", b"9" * 6000, b'{"a": 1, "a": 2}', b'"\\ud800"', b'{"key": 1e999}', b" " * (5 << 20),
    b"{}\n{}\n", b"\n\n",
)  # fmt: skip
WORSE = re.compile("a bug of adamergex|no memory left|machine refused")
INNER = ("tuning.json", "scores.json", "predictions.jsonl", "lineage.json", "merge_report.json")


class Fault(AssertionError):
    """A command that did not end as it must."""


class World:
    """A finished transfer, kept, and a place where its mutants run."""

    def __init__(self, folder: Path, base: str = "nano") -> None:
        self.folder, self.run, self.kept, self.outside = (
            folder,
            *(folder / name for name in ("run", "kept", "outside")),
        )
        self.outside.mkdir(parents=True)
        (self.outside / "victim").write_text("untouched")
        shutil.copyfile(Path(__file__), self.outside / "manifest.json")
        self.settings = folder / "settings.yaml"
        self.settings.write_text(json.dumps(_settings(folder, base)), encoding="utf-8")
        code, said = self.call("transfer", str(self.settings))
        assert code == 0, said
        self.run.rename(self.kept)
        self.scores = _scores(self.kept)
        self.facts = transfer.facts(transfer.absolute(load(self.settings)))
        self.actions = dict.fromkeys(transfer.ACTIONS, self._restore)
        self.files = sorted(
            path.relative_to(self.kept)
            for path in self.kept.rglob("*.json*")
            if path.name in (*INNER, "manifest.json", "results.json") or path.parent.name in ("studies", "predictions")
        )

    def call(self, *arguments: str) -> tuple[int, str]:
        """A command in this process: its exit code and all that it printed."""
        out = io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            code = main(list(arguments))
        return code, out.getvalue()

    def _restore(self, job: Any, inputs: Any, output: Path, workdir: Path) -> None:
        """Instead of training: what the step gave when the run was made."""
        key = output.parent.name.removeprefix(".stage-").partition("-")[0]
        origin = next(self.kept.glob(f"store/*/{key}"))
        shutil.copytree(origin, output, ignore=shutil.ignore_patterns("manifest.json"))

    def check(self, number: int) -> str:
        """Run mutant ``number``; what was changed. Raises: Fault."""
        about, must_notice = self._mutated(number)
        self._command(about, "runs", str(self.run / "store"))
        self._command(about, "gc", str(self.run / "store"), "--yes")
        self._mutated(number)
        if number % 2:
            self._command(about, "report", str(self.run), "--output", str(self.folder / "page"))
        code = self._command(about, "transfer", str(self.settings))
        if code == 0 and must_notice and _scores(self.run) != self.scores:
            raise Fault(f"{about}: other scores, and nobody noticed")
        if left := list(self.run.rglob(".*")):
            raise Fault(f"{about}: left behind {left}")
        return f"{about}, transfer ended with {code}"

    def _mutated(self, number: int) -> tuple[str, bool]:
        shutil.rmtree(self.run, ignore_errors=True)
        shutil.rmtree(self.folder / "page", ignore_errors=True)
        shutil.copytree(self.kept, self.run)
        chance = random.Random(number)
        name = chance.choice(self.files)
        how = chance.choice((_flip, _flip, _cut, _raw, _value, _value, _value, _key, _grown, _place, _names))
        forged = chance.random() < 0.5 and how not in (_place,)
        what = how(self.run / name, chance, self.outside)
        if forged:
            _forge(self.run / name)
        stored = name.parts[0] == "store" and name.parts[1] != "studies"
        return f"mutant {number}: {name}, {what}{', forged' if forged else ''}", stored and not forged

    def _command(self, about: str, *arguments: str) -> int:
        began = time.monotonic()
        try:
            with _alarm(SECONDS * 6), _patched(self.actions, self.facts):
                code, said = self.call(*arguments)
        except BaseException as error:
            raise Fault(f"{about}: {arguments[0]} raised {error!r}") from error
        seconds = time.monotonic() - began
        controls = re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", said)
        if code not in (0, 2) or "Traceback" in said or WORSE.search(said) or controls:
            raise Fault(f"{about}: {arguments[0]} ended with {code}: {said[-600:]!r}")
        if seconds > SECONDS:
            raise Fault(f"{about}: {arguments[0]} took {seconds:.1f} s")
        if sorted(path.name for path in self.outside.iterdir()) != ["manifest.json", "victim"]:
            raise Fault(f"{about}: {arguments[0]} changed what lies outside")
        return code


def _settings(folder: Path, base: str) -> dict[str, Any]:
    quick = {"steps": 2, "batch_size": 8}
    data = folder / "data"
    data.mkdir()
    for language, text in TEXTS.items():
        rows = [f"{label}\t{text} {number}" for number in range(4) for label in ("nature", "travel")]
        for part in ("train", "validation", "test"):
            (data / f"{language}.{part}.tsv").write_text("label\ttext\n" + "\n".join(rows) + "\n", encoding="utf-8")
        (data / f"{language}.txt").write_text("\n".join(f"{text} {n}" for n in range(24)) + "\n", encoding="utf-8")
    parts = {part: f"{data}/{{language}}.{part}.tsv" for part in ("train", "validation", "test")}
    return {
        "title": "Fuzzed", "base": base, "structure": {"kind": "lora", "rank": 2, "alpha": 4}, "proxy": "fr",
        "targets": ["sw"], "methods": ["english_tuning", "adamergex"], "task": {**parts, "optimisation": quick},
        "reference": {"text": f"{data}/{{language}}.txt", "segment": 16, "optimisation": quick},
        "merge": {"grid": [0.5, 1.0]}, "output": str(folder / "run"),
    }  # fmt: skip


def _scores(run: Path) -> list[tuple[Any, ...]]:
    cells = json.loads((run / "results.json").read_text(encoding="utf-8"))["cells"]
    return [(cell["method"], cell["language"], cell["score"], cell["weight"], cell["interval"]) for cell in cells]


@contextlib.contextmanager
def _patched(actions: dict[str, Any], facts: Any) -> Iterator[None]:
    """With steps that are copied, not trained, and the hashes of base and data that no mutant changes."""
    before = transfer.ACTIONS, transfer.facts
    transfer.ACTIONS, transfer.facts = actions, lambda config: facts  # type: ignore[assignment]
    try:
        yield
    finally:
        transfer.ACTIONS, transfer.facts = before  # type: ignore[assignment]


@contextlib.contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    def ring(*_: object) -> None:
        raise TimeoutError(f"still running after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# --- changes; each says what it did


def _flip(path: Path, chance: random.Random, outside: Path) -> str:
    content = bytearray(path.read_bytes())
    place, bit = chance.randrange(len(content)), chance.randrange(8)
    content[place] ^= 1 << bit
    path.write_bytes(content)
    return f"bit {bit} of byte {place} flipped"


def _cut(path: Path, chance: random.Random, outside: Path) -> str:
    content = path.read_bytes()
    start = chance.randrange(len(content))
    end = chance.choice((len(content), start + chance.choice((1, 4, 40))))
    path.write_bytes(content[:start] + content[end:])
    return f"bytes {start} to {end} taken away"


def _raw(path: Path, chance: random.Random, outside: Path) -> str:
    content = chance.choice(RAW)
    path.write_bytes(content)
    return f"replaced by {content[:20]!r} ({len(content)} bytes)"


def _grown(path: Path, chance: random.Random, outside: Path) -> str:
    content = path.read_bytes()
    path.write_bytes(content * chance.choice((2, 3)) if chance.random() < 0.5 else content + chance.randbytes(50))
    return "longer"


def _value(path: Path, chance: random.Random, outside: Path) -> str:
    def change(holder: Any, place: Any) -> str:
        holder[place] = chance.choice(ODD)
        return f"{place!r} set to {str(holder[place])[:30]!r}"

    return _edited(path, chance, change)


def _key(path: Path, chance: random.Random, outside: Path) -> str:
    def change(holder: Any, place: Any) -> str:
        if isinstance(holder, list) or chance.random() < 0.5:
            del holder[place]
            return f"{place!r} taken away"
        name = chance.choice(("x", "../x", "\x1b[31m", "", "key", "a" * 300))
        holder[name] = holder.pop(place)
        return f"{place!r} renamed {name[:20]!r}"

    return _edited(path, chance, change)


def _names(path: Path, chance: random.Random, outside: Path) -> str:
    """Names that lead out: of a manifest's files, else of anything that looks like a path."""

    def change(holder: Any, place: Any) -> str:
        name = chance.choice(
            ("../../../outside/victim", str(outside / "victim"), "..", ".", "/dev/zero", "a/../../b", "~/x")
        )
        if isinstance(holder, dict) and isinstance(place, str) and chance.random() < 0.5:
            holder[name] = holder.pop(place)
        else:
            holder[place] = name
        return f"{place!r} named {name!r}"

    return _edited(path, chance, change)


def _place(path: Path, chance: random.Random, outside: Path) -> str:
    """What is there is no regular file, or the folder leads elsewhere."""
    how = chance.choice(("gone", "folder", "pipe", "link", "device", "loop", "entry", "kind", "unreadable"))
    if how in ("entry", "kind"):
        deeper = how == "kind" and path.parents[2].name == "store"
        folder = path.parents[1] if deeper else path.parent
        if folder.name == "run":
            path.unlink()
            return "gone"
        shutil.rmtree(folder)
        folder.symlink_to(outside)
        return f"its {how} is a link"
    if how == "unreadable":
        path.chmod(0)
        return how
    path.unlink()
    if how == "folder":
        path.mkdir()
    elif how == "pipe":
        os.mkfifo(path)
    elif how != "gone":
        path.symlink_to({"link": outside / "victim", "device": "/dev/zero", "loop": path}[how])
    return how


def _edited(path: Path, chance: random.Random, change: Callable[[Any, Any], str]) -> str:
    lines = (
        path.read_text(encoding="utf-8").splitlines() if path.suffix == ".jsonl" else [path.read_text(encoding="utf-8")]
    )
    index = chance.randrange(len(lines))
    document = json.loads(lines[index])
    places: list[tuple[Any, Any]] = []
    waiting = [document]
    while waiting:
        holder = waiting.pop()
        keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
        places += [(holder, key) for key in keys]
        waiting += [holder[key] for key in keys if isinstance(holder[key], (dict, list))]
    said = change(*chance.choice(places))
    lines[index] = json.dumps(document, ensure_ascii=chance.random() < 0.5)
    with path.open("w", encoding="utf-8", errors="surrogatepass") as file:
        file.write("\n".join(lines) + "\n")
    return said


def _forge(path: Path) -> None:
    """Make the hashes of the manifest right again, as far as its text still allows."""
    manifest = path if path.name == "manifest.json" else path.parent / "manifest.json"
    try:
        found = json.loads(manifest.read_text(encoding="utf-8"))
        if manifest != path:
            found["files"][path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
        del found["sha256"]
        manifest.write_text(json.dumps(found | {"sha256": manifests.digest(found)}), encoding="utf-8")
    except (OSError, ValueError, TypeError, LookupError, RecursionError, AttributeError):
        pass


def fuzz(world: World, numbers: range) -> list[str]:
    """Check these mutants; the faults."""
    faults, codes = [], Counter[str]()
    for number in numbers:
        try:
            codes[world.check(number).rpartition(" ")[2]] += 1
            if number % 100 == 99:
                print(f"{number + 1} mutants", flush=True)
        except Fault as fault:
            faults.append(str(fault))
            print(fault, flush=True)
    print(f"{len(numbers)} mutants, {len(faults)} faults; transfer ended with {dict(codes)}")
    return faults


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--mutants", type=int, default=1000)
    options.add_argument("--first", type=int, default=0)
    given = options.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    with tempfile.TemporaryDirectory() as scratch:
        sys.exit(bool(fuzz(World(Path(scratch).resolve()), range(given.first, given.first + given.mutants))))
