"""The table of docs/families.md: what it says "yes" to is trained, merged and evaluated; the rest fails as it says."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from peft import PrefixTuningConfig, get_peft_model
from transformers import AutoModelForSequenceClassification, TrainerCallback

from adamergex import evaluation
from adamergex.backbones import loading
from adamergex.backbones.loading import HEADS
from adamergex.errors import ConfigError
from adamergex.files.records import Scores
from adamergex.jobs.settings import (
    Classification,
    EvaluateJob,
    Generation,
    LanguageModeling,
    MultipleChoice,
    Optimisation,
    PairClassification,
    Rows,
    SpanAnswering,
    Structure,
    Tagging,
    Target,
    TrainJob,
)
from adamergex.merging import merge
from adamergex.tasks import running
from adamergex.training import train
from family_models import LABELS, SENTENCES

PAGE = Path(__file__).parents[1] / "docs" / "families.md"
REFERENCE = LanguageModeling(segment=24, segments=8)
QUICK = Optimisation(
    steps=2, learning_rate=1e-2, batch_size=4, schedule="constant_with_warmup", warmup=0.0, max_grad_norm=1.0
)
TASKS: dict[str, Target] = {
    "classification": Classification(labels=("food", "sports", "travel"), prompt="{text} Topic:"),
    "pair": PairClassification(labels=("food", "sports", "travel"), prompt="{premise} {hypothesis} Topic:"),
    "choice": MultipleChoice(prompt="{premise} Topic:"),
    "span": SpanAnswering(max_length=72, stride=16, max_new_tokens=4, prompt="{context} {question}"),
    "tagging": Tagging(types=("PER",), max_new_tokens=4, prompt="{text} Topic:"),
    "generation": Generation(prompt="{text} Topic:", max_length=72, max_new_tokens=4),
}
STRUCTURES: dict[str, Structure] = {
    "LoRA": Structure(kind="lora", rank=2, dropout=0.0),
    "(IA)³": Structure(kind="ia3"),
    "prefix": Structure(kind="prefix", virtual_tokens=3),
    "bottleneck": Structure(kind="bottleneck", reduction=4),
    "MAD-X": Structure(kind="bottleneck", reduction=4),
}
LANGUAGE = Structure(kind="bottleneck", reduction=2, invertible=True)
# What stands in a column: pairs of a base and a task. None is the reference task.
COLUMNS: dict[str, tuple[tuple[str, str | None], ...]] = {
    "encoder: sequence, choice": (("encoder", "classification"), ("encoder", "pair"), ("encoder", "choice")),
    "encoder: span, token": (("encoder", "span"), ("encoder", "tagging")),
    "encoder: generation": (("encoder", "generation"),),
    "decoder: choice (prompt)": (("llama", "classification"), ("llama", "pair"), ("llama", "choice")),
    "decoder: generation": (("llama", "generation"), ("llama", "span"), ("llama", "tagging")),
    "encoder-decoder: choice (prompt)": (("t5", "classification"), ("bart", "pair"), ("mbart", "choice")),
    "encoder-decoder: generation": (("mbart", "generation"), ("bart", "span"), ("t5", "tagging")),
    "decoder and encoder-decoder: heads": (),
    "reference task": (("encoder", None), ("llama", None), ("t5", None), ("bart", None), ("mbart", None)),
}


class Cell(NamedTuple):
    structure: str
    column: str
    said: str


def table() -> list[Cell]:
    """The cells of the page's first table; a row of two structures gives cells of each."""
    lines = [line for line in PAGE.read_text(encoding="utf-8").split("## ")[0].splitlines() if line.startswith("|")]
    head, _, *rows = ([text.strip() for text in line.strip("|").split("|")] for line in lines)
    assert head[1:] == list(COLUMNS) and all(len(row) == len(head) for row in rows)
    return [
        Cell(name, column, said)
        for row in rows
        for name in row[0].split(", ")
        for column, said in zip(head[1:], row[1:], strict=True)
    ]


CELLS = table()


def _id(cell: Cell) -> str:
    return f"{cell.structure}-{cell.column}"


def test_the_table_is_whole() -> None:
    """Every structure has a row, every letter its reason, and every cell says something."""
    assert {cell.structure for cell in CELLS} == set(STRUCTURES)
    reasons = set(re.findall(r"^- \*\*(\w)\*\*:", PAGE.read_text(encoding="utf-8"), re.MULTILINE))
    assert {part for cell in CELLS for part in cell.said.split(", ")} == {"yes"} | reasons


class World(NamedTuple):
    """Bases, rows, and the adapters that more than one cell needs, trained once."""

    folder: Path
    bases: dict[str, str]

    def rows(self, task: str | None, language: str = "en") -> Rows:
        return Rows(path=str(self.folder / f"{task or language}.{'jsonl' if task else 'txt'}"))

    def train(self, structure: Structure, base: str, task: str | None, output: Path, **changes: Any) -> None:
        wanted = TrainJob(
            base=self.bases[base], structure=structure, task=TASKS[task] if task else REFERENCE,
            rows=self.rows(task, changes.get("language", "en")), optimisation=QUICK, **{"language": "en", **changes},
        )  # fmt: skip
        train.train(wanted, output, callbacks=[EveryTensorMoves()])

    def reference(self, structure: Structure, base: str, language: str = "en") -> Path:
        kind = "language" if getattr(structure, "invertible", False) else structure.kind
        output = self.folder / f"{kind}-{base}-{language}"
        if not output.exists():
            self.train(structure, base, None, output, language=language)
        return output


class EveryTensorMoves(TrainerCallback):
    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.before = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}

    def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        for name, tensor in model.named_parameters():
            if tensor.requires_grad and tensor.numel() == 1:
                continue  # the bias of a choice's score, which all choices share: its gradient is 0 but for rounding
            assert torch.equal(tensor, self.before[name]) != tensor.requires_grad, name


@pytest.fixture(scope="module")
def world(tiny_encoder: Path, families: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("table")
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in TASKS}
    for text, label in list(zip(SENTENCES, LABELS, strict=True))[::12]:
        words = text.split()
        rows["classification"].append({"text": text, "label": label})
        rows["pair"].append({"premise": text, "hypothesis": "bread", "label": label})
        rows["choice"].append({"premise": text, "choice1": label, "choice2": "bread", "label": len(words) % 2})
        rows["span"].append({"context": text, "question": "Topic:", "answers": [words[1]]})
        rows["tagging"].append({"tokens": words, "tags": ["O", "B-PER", *["O"] * (len(words) - 2)]})
        rows["generation"].append({"text": text, "target": label})
    for name, items in rows.items():
        text = "".join(json.dumps(item) + "\n" for item in items)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    for language, texts in (("en", SENTENCES), ("fr", [text[::-1] for text in SENTENCES])):
        (folder / f"{language}.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")
    return World(folder, {"encoder": str(tiny_encoder), **families})


def evaluated(world: World, base: str, task: str, *stack: Path) -> Scores:
    job = EvaluateJob(base=world.bases[base], task=TASKS[task], language="en", rows=world.rows(task))
    scores = evaluation.evaluate(job, stack)
    assert scores.n == 6 and 0 <= scores.score <= 100
    return scores


@pytest.mark.parametrize("cell", [cell for cell in CELLS if cell.said == "yes"], ids=_id)
def test_yes_is_trained_merged_and_evaluated(world: World, tmp_path: Path, cell: Cell) -> None:
    structure = STRUCTURES[cell.structure]
    assert COLUMNS[cell.column]
    for number, (base, task) in enumerate(COLUMNS[cell.column]):
        output = tmp_path / f"{base}-{task}"
        if cell.structure == "MAD-X":
            language, other = (world.reference(LANGUAGE, base, code) for code in ("en", "fr"))
            if task is not None:
                world.train(structure, base, task, output, base_adapters=(str(language),))
                evaluated(world, base, task, other, output)
            continue
        if task is None:
            merge(task=world.reference(structure, base), target_reference=world.reference(structure, base, "fr"),
                  weight=0.5, rule="average", output=output)  # fmt: skip
            continue
        world.train(structure, base, task, output)
        references = {"target_reference": world.reference(structure, base, "fr")}
        merged = tmp_path / f"{base}-{task}-merged"
        merge(task=output, **references, source_reference=world.reference(structure, base), weight=0.5, output=merged)
        adapters = [output, merged]
        if not number:  # the average has no rule of its own for any structure: one task a column is enough
            adapters.append(tmp_path / "average")
            merge(task=output, **references, weight=0.5, rule="average", output=adapters[-1])
        for adapter in adapters:
            evaluated(world, base, task, adapter)


@pytest.mark.parametrize("cell", [cell for cell in CELLS if cell.said != "yes"], ids=_id)
def test_what_is_empty_is_so_for_the_reason_given(world: World, tmp_path: Path, cell: Cell) -> None:
    structure = STRUCTURES[cell.structure]
    for letter in cell.said.split(", "):
        if letter == "a":
            ((base, task),) = COLUMNS[cell.column]
            assert task is not None
            with pytest.raises(ConfigError, match=r"cannot do a generation task[\s\S]*choose a decoder or an enc"):
                world.train(structure, base, task, tmp_path / "out")
        elif letter == "b":  # answered in words: no task of theirs has a head
            for base in ("llama", "t5", "bart", "mbart"):
                found = {running.model_kind(task, world.bases[base]) for task in TASKS.values()}
                assert len(found) == 1 and not found & set(HEADS)
        else:
            assert letter == "c"
            model = AutoModelForSequenceClassification.from_pretrained(world.bases["t5"], num_labels=3)
            peer = get_peft_model(model, PrefixTuningConfig(num_virtual_tokens=3, task_type="SEQ_CLS"))
            inputs = loading.tokenizer(world.bases["t5"])(SENTENCES[:2], padding=True, return_tensors="pt")
            with pytest.raises(RuntimeError, match="size of tensor"):  # the mask is longer than what is read
                peer(**inputs)
