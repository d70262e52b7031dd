"""The base and the adapters of golden g7_harness: trained and merged with this package, from seeds.

cd tests/goldens/g7_harness && python ../../harness_cases.py
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from adamergex.jobs.settings import (
    LanguageModeling,
    Optimisation,
    Rows,
    Structure,
    Target,
    Task,
    TrainJob,
)
from adamergex.merging import merge
from adamergex.tasks.catalogue import task_file
from adamergex.training.train import train

GOLDEN = Path(__file__).parent / "goldens" / "g7_harness"
BASE = "base"  # as seen from the golden's folder: adapters name their base
COLUMNS = {
    "xcopa": {name: name for name in ("premise", "question", "choice1", "choice2")},
    "xnli": {"hypothesis": "hypothesis", "premise": "premise"},
    "mgsm": {"question": "question", "answer": "answer", "rationale": "rationale"},
}
LORA = Structure(kind="lora", rank=4, alpha=8, dropout=0)
IA3 = Structure(kind="ia3", dropout=0)


class Case(NamedTuple):
    """A merged adapter: of which structure, for which task."""

    structure: Structure
    task: str


CASES = {
    "lora-xcopa": Case(LORA, "xcopa"),
    "lora-xnli": Case(LORA, "xnli"),
    "lora-mgsm": Case(LORA, "mgsm"),
    "ia3-xcopa": Case(IA3, "xcopa"),
    "ia3-xnli": Case(IA3, "xnli"),
}


def task_of(name: str, **changes: Any) -> Target:
    """The task as it is shipped, with room for the items in the small vocabulary."""
    return task_file(name).TASK.model_copy(update={"max_length": 256, **changes})


def items(name: str) -> list[dict[str, Any]]:
    """The items of a task, in the file's order."""
    return [json.loads(line) for line in (GOLDEN / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def rows(name: str, path: Path) -> Rows:
    """Where the items of a task are read from."""
    return Rows(path=str(path), columns=COLUMNS[name])


def save_base(folder: Path) -> None:
    """A Llama of two layers and a tokenizer of the items' own pieces, every prompt opened by ``<s>``."""
    texts = [str(value) for name in COLUMNS for item in items(name) for value in item.values()]
    prompts = [task_file(name).prompt(item) for name in COLUMNS for item in items(name)]  # type: ignore[attr-defined]
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=1500, special_tokens=special, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator([*texts, *prompts], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    names = dict(zip(("bos_token", "pad_token", "eos_token", "unk_token"), special, strict=True))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names, model_max_length=256).save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(), hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, intermediate_size=48, max_position_embeddings=256, initializer_range=0.15,
        bos_token_id=0, pad_token_id=1, eos_token_id=2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)


def save_adapter(case: Case, output: Path, scratch: Path, base: str = BASE) -> None:
    """Task adapter on the English items, references on English and Chinese premises, merged with λ = 0.5."""

    def trained(name: str, task: Task, language: str, texts: list[dict[str, Any]], steps: int) -> Path:
        path = scratch / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in texts), encoding="utf-8")
        fast = Optimisation(steps=steps, learning_rate=2e-2, batch_size=8, max_grad_norm=1.0)
        found = rows(case.task, path) if task.kind != "language-modeling" else Rows(path=str(path))
        job = TrainJob(base=base, structure=case.structure, task=task, language=language, rows=found, optimisation=fast)
        train(job, scratch / name)
        return scratch / name

    own = items(case.task)
    text = {
        language: [{"text": " ".join(str(item.get("premise", item.get("rationale"))) for item in own * 30
                                     if item["language"] == language)}]
        for language in ("en", "zh")
    }  # fmt: skip
    learned = [item for item in own if item["language"] == "en"]
    modeling = LanguageModeling(segment=32, segments=2)
    merge(
        task=trained("task", task_of(case.task), "en", learned, 60),
        source_reference=trained("en", modeling, "en", text["en"], 10),
        target_reference=trained("zh", modeling, "zh", text["zh"], 10),
        weight=0.5,
        output=output,
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    if not Path(BASE).exists():  # learning a tokenizer twice gives two: ties fall either way
        save_base(Path(BASE))
    for name, case in CASES.items():
        shutil.rmtree(name, ignore_errors=True)
        scratch = Path(tempfile.gettempdir()) / "g7_harness" / name
        scratch.mkdir(parents=True)
        save_adapter(case, Path(name), scratch)
        shutil.rmtree(scratch)
