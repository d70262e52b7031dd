"""The page docs/madx.md, run from top to bottom on small files: its settings, its commands and its Python.

What is not as on the page: fewer steps, smaller batches.
"""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from adamergex.adapters.formats.adapterhub import read_adapter
from adamergex.cli.main import main
from adamergex.config import train
from adamergex.metrics.entities import repaired
from adamergex.tables.demo import CORPUS

PAGE = Path(__file__).parents[1] / "docs" / "madx.md"
PARTS = re.compile(
    r"^```python\n(?P<python>.*?)^```|`(?P<name>\w+\.yaml)`:\n\n```yaml\n(?P<settings>.*?)^```"
    r"|^(?P<commands>(?:    adamergex [^\n]+\n)+)",
    re.DOTALL | re.MULTILINE,
)
QUICK = {"steps": 3, "batch_size": 4}
TAGGED = {
    "en.train": ("Amina/B-PER lives in/O Nairobi/B-LOC", "Peter/B-PER Otieno/I-PER sings", "It rains in Mombasa/B-LOC"),
    "sw.test": ("Amina/B-PER anaishi Nairobi/B-LOC", "Juma/B-PER anaimba", "Mvua inanyesha Mombasa/B-LOC"),
}


@pytest.fixture
def there_at_first(tmp_path: Path) -> Path:
    """Raw text and labelled sentences."""
    for folder in ("text", "entities"):
        (tmp_path / folder).mkdir()
    for language in ("en", "sw"):
        lines = (CORPUS / f"{language}.text.txt").read_text(encoding="utf-8").splitlines()[:60]
        (tmp_path / "text" / f"{language}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for name, sentences in TAGGED.items():
        pairs = [[(word + "/O").split("/")[:2] for word in sentence.split()] for sentence in sentences]
        rows = [dict(zip(("tokens", "tags"), map(list, zip(*row, strict=True)), strict=True)) for row in pairs]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / "entities" / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return tmp_path


def quickly(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings with fewer steps and smaller batches, wherever something is trained."""
    if settings.get("kind") == "language":
        return {**settings, "optimisation": QUICK}
    changed = {**settings, "task": {**settings["task"], "optimisation": settings["task"]["optimisation"] | QUICK}}
    if "mad_x" in changed:
        language = settings["mad_x"]["language"] | {"optimisation": QUICK}
        changed["mad_x"] = settings["mad_x"] | {"language": language}
    return changed


def test_the_page_runs_from_top_to_bottom(
    there_at_first: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(there_at_first)
    parse = train.parse_training
    monkeypatch.setattr("adamergex.tables.transfer.parse_training", lambda settings: parse(quickly(settings)))
    seen: dict[str, Any] = {}
    text, done = PAGE.read_text(encoding="utf-8"), []
    for part in PARTS.finditer(text):
        done.append(part["name"] or part.lastgroup)
        if part["python"]:
            exec(compile(part["python"], str(PAGE), "exec"), seen)
        elif part["name"]:
            settings = quickly(yaml.safe_load(part["settings"]))
            Path(part["name"]).write_text(yaml.safe_dump(settings), encoding="utf-8")
        else:
            for command in part["commands"].splitlines():
                assert main(shlex.split(command)[1:]) == 0, capsys.readouterr().err
    assert [done.count(kind) for kind in ("python", "commands")] == [2, 4]
    assert done.count("python") == text.count("```python") and len(done) - 6 == text.count("```yaml") == 4

    tagger = read_adapter(Path("adapters/tagger"))
    assert tagger.lineage is not None and tagger.lineage.parents["base_adapter"]["language"] == "en"
    for name in ("sw", "tagger"):
        one, other = (Path(folder, name) for folder in ("adapters", "again"))
        for file in ("adapter_model.safetensors", "lineage.json"):
            assert (one / file).read_bytes() == (other / file).read_bytes(), file
    # Python's first answer is the command's.
    items = [json.loads(line) for line in Path("scores/sw/predictions.jsonl").read_text(encoding="utf-8").splitlines()]
    assert items[0]["gold"] == ["B-PER", "O", "B-LOC"] and repaired(seen["swahili"]) == items[0]["predicted"]
    assert len(seen["english"]) == 4 and set(seen["english"]) <= set(seen["model"].config.label2id)
    scores = json.loads(Path("scores/without-swahili/scores.json").read_text(encoding="utf-8"))
    assert scores["metric"] == "f1" and scores["n"] == 3
    results = json.loads(Path("runs/tagger/results.json").read_text(encoding="utf-8"))
    assert [cell["method"] for cell in results["cells"]] == [
        "english_tuning", "mad_x", "mad_x_no_invertible", "mad_x_task_only",
    ]  # fmt: skip
    assert results["metric"] == "f1" and Path("runs/tagger/report.html").is_file()
    stack = [read_adapter(Path("runs/tagger/adapters/mad_x-sw-seed0") / part).config for part in ("language", "task")]
    assert [(config.reduction, config.invertible) for config in stack] == [(2, True), (16, False)]
