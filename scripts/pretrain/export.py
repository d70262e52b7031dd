"""Step 4: write a trained backbone as a transformers checkpoint with its model card.

    python scripts/pretrain/export.py --work WORK --data DATA --backbone nano --output src/adamergex/backbones/nano

Weights are stored in float16 (half the bytes) and declared float32: loading gives float32 parameters.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path

import torch

from backbones import build
from corpus import LICENCES, PLAIN, UNSEEN, parallel_rows
from probe import LANGUAGES, probe, rows

CARD = """---
license: cc-by-sa-4.0
library_name: transformers
language: [{codes}]
---

# {name}

A small multilingual model ({parameters:.1f} M parameters, {architecture}), pretrained from scratch so that
`adamergex` can show real transfer offline. It is a test bench, not a language model to build products on.

- **Shape**: {layers} layers, hidden size {hidden}, vocabulary {vocabulary} (unigram pieces with byte fallback,
  shared by `nano` and `nano-causal`), {size:.1f} MB in float16.
- **Data**: {data}. Plain text: {plain}. Translations of English sentences: {parallel}.
  **Never seen**: {unseen} (Swahili, Xhosa, Igbo).
- **Training**: {tokens:.1f} M tokens in {steps} steps of at most {batch} padded tokens, one CPU core. Token
  embeddings start from a bag-of-pieces distillation; then {objective} on plain text and on translation pairs, and
  distillation of sentence vectors: an English sentence, its translations, and the English words of the teacher's
  vocabulary are pulled to the vector of all-MiniLM-L6-v2 (Apache-2.0).
  Last losses: language modelling {language_loss}, sentence distillation {sentence_loss}.
- **Script**: `scripts/pretrain/` (prepare, embeddings, train, export), seed 0.

Zero-shot accuracy on SIB-200, seven topics, in percent: a ridge classifier on the frozen vector of {place},
fitted on the 701 English training sentences, read on the 204 test sentences of each language.
Majority class: {majority:.1f}.

| {header} |
|{rule}|
| {values} |

Columns with * are languages that the model has not seen. The sentences of the SIB-200 training part (in the languages
seen, without labels) and the XQuAD contexts are part of the pretraining text; no test sentence, question or label is.

The weights are derived from CC BY-SA 4.0 text (NTREX-128, FLORES-200 as in SIB-200, XQuAD) and are given
under CC BY-SA 4.0.
"""


def rewrite_tokenizer(path: Path, causal: bool) -> None:
    """Without indentation, which costs a megabyte; and a decoder's texts stay open at their end.

    lm-evaluation-harness and others encode a prompt with the special pieces, and go on after the last of them.
    """
    tokenizer = json.loads(path.read_text())
    if causal:
        tokenizer["post_processor"]["single"] = [
            piece
            for piece in tokenizer["post_processor"]["single"]
            if piece.get("SpecialToken", {}).get("id") != "</s>"
        ]
    path.write_text(json.dumps(tokenizer, ensure_ascii=False, separators=(",", ":")) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--backbone", choices=["nano", "nano-causal"], required=True)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    causal = arguments.backbone == "nano-causal"
    model, tokenizer = build(arguments.backbone, arguments.work / "tokenizer.json")
    state = torch.load(arguments.work / f"{arguments.backbone}.pt", weights_only=True)
    model.load_state_dict(state["model"])
    model.half()
    model.save_pretrained(arguments.output)
    tokenizer.save_pretrained(arguments.output)
    rewrite_tokenizer(arguments.output / "tokenizer.json", causal)
    config_file = arguments.output / "config.json"
    config = json.loads(config_file.read_text())
    config["dtype"] = "float32"
    config_file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")

    scores = probe(model.float(), tokenizer, arguments.data, causal, split="test")
    labels = Counter(label for label in rows(arguments.data, "en", "test")[1])
    log = [json.loads(line) for line in (arguments.work / f"{arguments.backbone}.jsonl").read_text().splitlines()]
    parallel = sorted({language for row in parallel_rows(arguments.data).values() for language in row})
    card = CARD.format(
        name=arguments.backbone,
        codes=", ".join(json.dumps(code) for code in sorted({*parallel, *(code.split("-")[0] for code in PLAIN)})),
        architecture="Llama architecture, causal" if causal else "XLM-R architecture, masked",
        parameters=sum(parameter.numel() for parameter in model.parameters()) / 1e6,
        layers=model.config.num_hidden_layers,
        hidden=model.config.hidden_size,
        vocabulary=model.config.vocab_size,
        size=(arguments.output / "model.safetensors").stat().st_size / 1e6,
        data="; ".join(f"{name} ({licence})" for name, licence in LICENCES.items()),
        plain=" ".join(PLAIN),
        parallel=" ".join(parallel),
        unseen=" ".join(sorted(UNSEEN)),
        tokens=log[-1]["tokens"] / 1e6,
        steps=log[-1]["step"],
        batch=2048,
        objective="next-token prediction" if causal else "masked language modelling (15 %)",
        language_loss=log[-1]["language"],
        sentence_loss=log[-1]["sentence"],
        place="the last token of “… Topic:”" if causal else "the first token",
        majority=100 * labels.most_common(1)[0][1] / sum(labels.values()),
        header=" | ".join(f"{code}*" if code in UNSEEN else code for code in LANGUAGES),
        rule="|".join("---:" for _ in LANGUAGES),
        values=" | ".join(f"{scores[code]:.1f}" for code in LANGUAGES),
    )
    (arguments.output / "README.md").write_text(card)
    print(json.dumps(scores))


if __name__ == "__main__":
    main()
