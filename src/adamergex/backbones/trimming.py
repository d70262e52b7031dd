"""Vocabulary trimming: a base with only the tokens that given texts use, and unchanged rows.

On these texts the trimmed base reads the same rows of the embeddings, so its hidden states equal the full base's. Every
text is tokenised with both tokenizers and compared before the base is written.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from tokenizers import Tokenizer
from transformers import AutoModel

from adamergex.backbones.base_documents import require_config
from adamergex.backbones.base_files import base_sha256, checkpoint_file, resolve
from adamergex.backbones.chat import in_chat
from adamergex.backbones.embedding_rows import WeightRows, body_sha256, write_tensors
from adamergex.backbones.loading import skeleton, tokenizer, vocabulary_size
from adamergex.backbones.pooling import POOLING_FILE
from adamergex.backbones.token_subsets import Vocabulary, require_kind
from adamergex.data import reader, values
from adamergex.errors import ConfigError, DataError, ModelError
from adamergex.files.hashing import file_sha256
from adamergex.files.inputs import DOCUMENT_BYTES, read_json_object
from adamergex.files.outputs import staged_directory
from adamergex.jobs.settings import Rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

RECORD = "trimmed.json"
KEPT = "kept_rows.safetensors"
"""The rows of the full base that the trimmed base has, in its order."""
_CHUNK = 2048  # texts at a time
_ATTEMPTS = 8
# Copied unchanged if present; tokenizer files of other formats would restore the full vocabulary.
_COPIED = ("chat_template.jinja", "special_tokens_map.json", "LICENSE", "LICENSE.txt", POOLING_FILE)


@dataclass(frozen=True)
class Trimmed:
    """The result of trimming. ``hidden``: width of the embeddings; ``bytes``: of the weight files."""

    tokens_before: int
    tokens: int
    bytes_before: int
    bytes: int
    hidden: int
    texts: int

    def __str__(self) -> str:
        share = 100 * self.tokens / self.tokens_before
        return "\n".join(
            [
                f"vocabulary: {self.tokens:,} of {self.tokens_before:,} tokens ({share:.1f} %)",
                f"weights: {self.bytes / 1e6:.1f} MB of {self.bytes_before / 1e6:.1f} MB",
                f"logits of one position: {self.tokens * self.hidden / 1e6:.1f} M multiply-adds "
                f"of {self.tokens_before * self.hidden / 1e6:.1f} M",
                f"{self.texts:,} texts are tokenised as before",
            ]
        )


def trim(base: str, texts: Sequence[str | Path], output: str | Path, *, columns: Sequence[str] = ("text",)) -> Trimmed:
    """Write a base with the tokens that the texts in these files use; ``columns``: the columns with text.

    Special and added tokens, single characters, bytes, and the tokens of a chat template are also kept. Other text is
    tokenised into shorter tokens.
    Raises: ModelError: no tokenizer.json of Unigram, BPE or WordPiece, weights that are only a pickle, an unknown
    tensor with one row per token. DataError: unreadable texts. AdapterFileError: the output exists already.
    """
    with staged_directory(output) as stage:
        contents, files = _texts(texts, columns)
        location = resolve(base)
        config = require_config(base)
        document, where = _document(location, "tokenizer.json"), f"{base}: tokenizer.json"
        require_kind(document, where)
        full = tokenizer(base)  # raises for a tokenizer that the library rejects
        vocabulary = Vocabulary(document, where)
        weights = WeightRows.open(base, vocabulary_size(base), len(vocabulary.ids))
        document, new = _trimmed_tokenizer(base, full, location, vocabulary, contents, _named_ids(config), stage)
        _require_positions(base, new)
        (stage / "config.json").write_text(_json(_renumbered(config, new) | {"vocab_size": len(new)}), encoding="utf-8")
        if (generation := checkpoint_file(location, "generation_config.json")) is not None:
            values = read_json_object(generation, what="the settings of generation", error=ModelError)
            (stage / "generation_config.json").write_text(_json(_renumbered(values, new)), encoding="utf-8")
        weights.write(stage / "model.safetensors", sorted(new))
        trimmed = Trimmed(
            weights.tokens, len(new), weights.bytes, (stage / "model.safetensors").stat().st_size, weights.hidden,
            len(contents),
        )  # fmt: skip
        record = {
            "base": {"name": base, "sha256": base_sha256(base)},
            "body_sha256": body_sha256(base),
            "columns": list(columns),
            "format": "adamergex-trimmed/1",
            "texts": files,
            "tokens": len(new),
            "tokens_before": weights.tokens,
        }
        (stage / RECORD).write_text(_json(record), encoding="utf-8")
        write_tensors(stage / KEPT, {"rows": torch.tensor(sorted(new), dtype=torch.int32)}, {"format": "pt"})
        (stage / "README.md").write_text(_card(base, trimmed, files), encoding="utf-8")
    return trimmed


def _texts(paths: Sequence[str | Path], columns: Sequence[str]) -> tuple[list[str], list[dict[str, str | int]]]:
    """All distinct texts, and the record of their files. Raises: DataError."""
    contents: dict[str, None] = {}
    files: list[dict[str, str | int]] = []
    for path in paths:
        rows = reader.read(Rows(path=str(path)), "", names=tuple(columns), also=())
        for row in rows:
            for name in columns:
                value = row[name]
                if not all(isinstance(item, str) for item in (value if isinstance(value, list) else [value])):
                    raise DataError(
                        "a column has values that are not text",
                        where=f"{path}, column {name!r}",
                        found=repr(value)[:60],
                        expected="a text, or a list of texts",
                        fix="name the columns of text with --column",
                    )
                words = values.texts(value)
                contents |= dict.fromkeys([*words, " ".join(words)])
        files.append({"file": Path(path).name, "rows": len(rows), "sha256": file_sha256(path)})
    return list(contents), files


def _trimmed_tokenizer(
    base: str,
    full_tokenizer: PreTrainedTokenizerBase,
    location: str,
    vocabulary: Vocabulary,
    texts: Sequence[str],
    named: set[int],
    stage: Path,
) -> tuple[dict[str, object], dict[int, int]]:
    """Write a tokenizer that tokenises all texts as before to ``stage``; returns its document, and old id -> new id."""
    full, texts = _plain(full_tokenizer.backend_tokenizer), _model_texts(full_tokenizer, vocabulary.kind, texts)
    used = {index for batch in _encoded(full, texts) for ids in batch for index in ids}
    kept = vocabulary.parts(vocabulary.always() | used | {index for index in named if index < len(vocabulary.ids)})
    for _ in range(_ATTEMPTS):
        document, new = vocabulary.trimmed(kept)
        _write_tokenizer(location, document, new, stage)
        trimmed = _plain(tokenizer(_with_config(location, stage)).backend_tokenizer)
        missing: set[int] = set()
        for text in _different(full, trimmed, texts, new):
            missing |= _inside(full, vocabulary, text)
        if not missing - kept:
            break
        kept = vocabulary.parts(kept | missing)
    if next(_different(full, trimmed, texts, new), None) is not None:
        raise ModelError(
            "the vocabulary cannot be trimmed without changing the tokenisation of these texts",
            where=base,
            found=vocabulary.kind,
            fix="use the base as it is",
        )
    return document, new


def _model_texts(tokenizer: PreTrainedTokenizerBase, kind: str, texts: Sequence[str]) -> list[str]:
    """The texts, also after a space (different tokens in BPE), and a prompt of the chat template."""
    result = [*texts, *(f" {text}" for text in texts)] if kind == "BPE" else list(texts)
    if tokenizer.chat_template:
        with contextlib.suppress(ConfigError):  # a failing template writes no prompts
            result.append(in_chat(tokenizer, "a"))
    return result


def _different(full: Tokenizer, trimmed: Tokenizer, texts: Sequence[str], new: Mapping[int, int]) -> Iterator[str]:
    """The texts that the two tokenizers tokenise differently."""
    pairs = zip(_encoded(full, texts), _encoded(trimmed, texts), strict=True)
    for start, (before, after) in enumerate(pairs):
        for text, ids, trimmed_ids in zip(texts[start * _CHUNK :], before, after, strict=False):
            if [new.get(index) for index in ids] != trimmed_ids:
                yield text


def _inside(full: Tokenizer, vocabulary: Vocabulary, text: str) -> set[int]:
    normal = full.normalizer.normalize_str(text) if full.normalizer else text
    words = [word for word, _ in full.pre_tokenizer.pre_tokenize_str(normal)] if full.pre_tokenizer else [normal]
    return {index for word in words for index in vocabulary.within(word)}


def _encoded(backend: Tokenizer, texts: Sequence[str]) -> Iterator[list[list[int]]]:
    for start in range(0, len(texts), _CHUNK):
        yield [item.ids for item in backend.encode_batch_fast(list(texts[start : start + _CHUNK]))]


def _plain(backend: Tokenizer) -> Tokenizer:
    """A copy without truncation and padding."""
    plain = Tokenizer.from_str(backend.to_str())
    plain.no_truncation()
    plain.no_padding()
    return plain


def _write_tokenizer(location: str, document: dict[str, object], new: Mapping[int, int], stage: Path) -> None:
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":"))
    (stage / "tokenizer.json").write_text(text, encoding="utf-8")
    settings = checkpoint_file(location, "tokenizer_config.json")
    if settings is not None:
        values = read_json_object(settings, what="the tokenizer's settings", error=ModelError)
        if isinstance(added := values.get("added_tokens_decoder"), dict):
            known = {str(old): str(index) for old, index in new.items()}
            values["added_tokens_decoder"] = {known[old]: token for old, token in added.items() if old in known}
        (stage / "tokenizer_config.json").write_text(_json(values), encoding="utf-8")
    for name in _COPIED:
        if (path := checkpoint_file(location, name)) is not None:
            (stage / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(path, stage / name)


def _with_config(location: str, stage: Path) -> str:
    """The stage with the base's config.json, which determines some tokenizers' classes."""
    if (path := checkpoint_file(location, "config.json")) is not None:
        shutil.copyfile(path, stage / "config.json")
    return str(stage)


def _named_ids(settings: Mapping[str, object]) -> set[int]:
    """The token ids in settings such as ``eos_token_id``, single or in lists."""
    values = [value for name, value in settings.items() if name.endswith("_token_id")]
    flat = [item for value in values for item in (value if isinstance(value, list) else [value])]
    return {item for item in flat if isinstance(item, int) and not isinstance(item, bool) and item >= 0}


def _renumbered(settings: dict[str, object], new: Mapping[int, int]) -> dict[str, object]:
    def renumber(value: object) -> object:
        if isinstance(value, list):
            return [renumber(item) for item in value]
        return new.get(value) if type(value) is int and value >= 0 else value

    return {name: renumber(value) if name.endswith("_token_id") else value for name, value in settings.items()}


def _require_positions(base: str, new: Mapping[int, int]) -> None:
    """Raises: ModelError: positions are counted from the padding's id (RoBERTa), which would change."""
    model = skeleton(base, AutoModel)
    for name, module in model.named_modules():
        padding = getattr(module, "padding_idx", None)
        if "position" in name.rpartition(".")[2] and padding is not None and new.get(padding) != padding:
            raise ModelError(
                "positions are counted from the padding's id, which trimming would change",
                where=f"{base}: {name}",
                found=f"padding has id {padding}, and tokens before it would be removed",
                expected="padding among the first tokens, as in XLM-R and RoBERTa",
                fix="use the base as it is",
            )


def _document(location: str, name: str) -> dict[str, object]:
    path = checkpoint_file(location, name)
    if path is None:
        raise ModelError(
            f"there is no {name}",
            where=location,
            expected="a transformers checkpoint with a tokenizer.json",
            fix="load and save the tokenizer once with transformers (AutoTokenizer)",
        )
    return read_json_object(path, what=name, error=ModelError, limit=4 * DOCUMENT_BYTES)


def _json(values: Mapping[str, object]) -> str:
    return json.dumps(values, indent=2, ensure_ascii=False, sort_keys=True) + "\n"


def _card(base: str, trimmed: Trimmed, files: Sequence[Mapping[str, str | int]]) -> str:
    texts = "\n".join(f"- {item['file']}: {item['rows']} rows, SHA-256 `{item['sha256']}`" for item in files)
    return (
        f"# {base}, vocabulary trimmed\n\n"
        f"Made by adamergex from `{base}`, SHA-256 `{base_sha256(base)}`; the licence is that of the base. All "
        f"weights are the base's; the embeddings keep {trimmed.tokens:,} of {trimmed.tokens_before:,} rows.\n\n"
        f"## Texts that are tokenised as before\n\n{texts}\n\n## Sizes\n\n```text\n{trimmed}\n```\n"
    )
