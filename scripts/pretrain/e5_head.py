"""The masked-LM head that ships for e5-small: its text, its file in half precision, and what it can do.

python scripts/pretrain/e5_head.py text DATA text           # at most 8,000 sentences of each of 13 languages
adamergex backbones trim --base e5-small --text text/*.txt --output bases/e5-cc0
adamergex train scripts/pretrain/e5_head.yaml               # copied beside bases/ and text/
python scripts/pretrain/e5_head.py ship bases/e5-mlm src/adamergex/backbones/e5-small
adamergex backbones head --base bases/e5-cc0 --output bases/e5-mlm-shipped
python scripts/pretrain/e5_head.py measure DATA e5-small bases/e5-mlm-shipped
"""

from __future__ import annotations

import gzip
import json
import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from adamergex.backbones.base_files import resolve
from adamergex.backbones.head_file import FILE, HEAD_RECORD, HeadFile
from adamergex.backbones.loading import load, longest_input
from adamergex.backbones.logits import labelled_loss
from adamergex.jobs.settings import LanguageModeling
from adamergex.tasks.language_modeling import segments
from adamergex.training.probe import logistic_regression

LANGUAGES = ["en", "fr", "es", "de", "ar", "hi", "id", "tr", "sw", "ha", "rw", "lg", "gn"]
MOST = 8000
HELD_OUT = {"en": "commonvoice", "rw": "commonvoice", "sw": "tico19"}
PROBED = ["en", "fr", "sw", "ha", "rw", "lg", "gn", "ig", "wo", "yo"]


def rows(path: Path) -> list[dict[str, str]]:
    """The rows of a gzipped jsonl file."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def text(data: Path, output: Path) -> None:
    """Every k-th sentence of Common Voice (CC0), so that at most ``MOST`` are left; of Swahili TICO-19 (CC0)."""
    output.mkdir(parents=True, exist_ok=True)
    for language in LANGUAGES:
        if language == "sw":
            found = [row["text"] for row in rows(data / "tico19" / "sw.train.jsonl.gz")]
        else:
            with gzip.open(data / "commonvoice-large" / f"{language}.txt.gz", "rt", encoding="utf-8") as lines:
                found = [line.rstrip("\n") for line in lines]
        found = found[:: -(-len(found) // MOST)]
        (output / f"{language}.txt").write_text("\n".join(found) + "\n", encoding="utf-8")


def ship(trained: Path, output: Path) -> None:
    """The file in half precision, and what was measured when it was trained; of the base's folder the name alone."""
    output.mkdir(parents=True, exist_ok=True)
    file = HeadFile.read(trained / FILE)
    name = Path(file.base).name
    replace(file, base=name).write(output / FILE, half=True)
    record = json.loads((trained / HEAD_RECORD).read_text(encoding="utf-8"))
    record["base"]["name"] = name
    (output / HEAD_RECORD).write_text(json.dumps(record, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def nats(data: Path, base: str) -> dict[str, float]:
    """Masked-LM loss on sentences that no training saw, in nats a masked token."""
    loaded, result = load(base, "masked-lm"), {}
    for language, corpus in HELD_OUT.items():
        texts = [row["text"] for row in rows(data / corpus / f"{language}.dev.jsonl.gz")]
        cut = segments(
            texts,
            loaded.tokenizer,
            LanguageModeling(segment=64, mask_rate=0.15),
            masked=True,
            seed=1,
            longest=longest_input(loaded.model, loaded.tokenizer),
        )
        total = torch.zeros(2)
        for start in range(0, len(cut.ids), 16):
            batch = cut.batch(range(start, min(start + 16, len(cut.ids))), 0)
            inputs = {"input_ids": batch["input_ids"], "attention_mask": torch.ones_like(batch["input_ids"])}
            with torch.no_grad():
                loss = labelled_loss(loaded.model, inputs, batch["labels"], shift=False)
            count = int((batch["labels"] >= 0).sum())
            total += torch.tensor([float(loss) * count, count])
        result[f"{language} ({int(total[1])} tokens)"] = round(float(total[0] / total[1]), 3)
    return result


def probe(data: Path, base: str) -> dict[str, float]:
    """Accuracy on SIB-200 dev of logistic regression on mean vectors, fitted on the English training sentences."""
    from transformers import AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(resolve(base), add_pooling_layer=False).eval()
    words = AutoTokenizer.from_pretrained(resolve(base))

    def vectors(texts: list[str]) -> Tensor:
        parts = []
        for start in range(0, len(texts), 16):
            batch = words(texts[start : start + 16], padding=True, truncation=True, max_length=128, return_tensors="pt")
            mask = batch["attention_mask"].unsqueeze(-1)
            with torch.no_grad():
                parts.append((model(**batch).last_hidden_state * mask).sum(1) / mask.sum(1))
        return torch.cat(parts)

    train = rows(data / "sib200" / "en.train.jsonl.gz")
    labels = sorted({row["label"] for row in train})
    fitted = logistic_regression(
        vectors([row["text"] for row in train]),
        torch.tensor([labels.index(row["label"]) for row in train]),
        len(labels),
        0.01,
    )
    result = {}
    for language in PROBED:
        dev = rows(data / "sib200" / f"{language}.dev.jsonl.gz")
        scores = vectors([row["text"] for row in dev]).double() @ fitted.weight.double().T + fitted.bias.double()
        right = sum(labels[int(at)] == row["label"] for at, row in zip(scores.argmax(1), dev, strict=True))
        result[language] = round(100 * right / len(dev), 1)
    return result


def main(arguments: list[str]) -> None:
    """One of the three steps."""
    verb, *rest = arguments
    if verb == "text":
        text(Path(rest[0]), Path(rest[1]))
    elif verb == "ship":
        ship(Path(rest[0]), Path(rest[1]))
    else:
        print(json.dumps({f"masked LM, {rest[1]}": nats(Path(rest[0]), rest[1])}))
        for name in rest[2:]:
            print(json.dumps({f"probe, {name}": probe(Path(rest[0]), name)}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
