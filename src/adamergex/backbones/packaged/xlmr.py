"""XLM-R's tokenizer from a list of tokens and scores."""

from __future__ import annotations

import json
from pathlib import Path

# NFKC folds the full-width tilde; SentencePiece's nmt_nfkc, with which XLM-R's vocabulary was made, keeps it.
_TILDE, _ASIDE = "\uff5e", "\U000f0000"
_SPECIAL = {"bos": "<s>", "cls": "<s>", "eos": "</s>", "mask": "<mask>", "pad": "<pad>", "sep": "</s>", "unk": "<unk>"}


def write_tokenizer(output: Path, vocabulary: list[tuple[str, float]], *, positions: int) -> None:
    """Write XLM-R's tokenizer for a vocabulary [(token, score)] in row order: tokenizer.json, tokenizer_config.json."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    rows = {token: row for row, (token, _) in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=rows["<unk>"], byte_fallback=False))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Replace(_TILDE, _ASIDE),
            normalizers.Nmt(),
            normalizers.NFKC(),
            normalizers.Replace(_ASIDE, _TILDE),
            normalizers.Replace(Regex(" {2,}"), " "),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=True)
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always", split=True)
    ends = [(token, rows[token]) for token in ("<s>", "</s>")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=ends
    )
    special = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    tokenizer.save(str(output / "tokenizer.json"))
    config = {
        "backend": "tokenizers",
        "model_max_length": positions,
        "tokenizer_class": "TokenizersBackend",
        **{f"{role}_token": token for role, token in _SPECIAL.items()},
    }
    (output / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
