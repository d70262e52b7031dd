"""Checks of the untrusted documents in a base's folder, before a library reads them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from adamergex.backbones.base_files import checkpoint_file, resolve
from adamergex.errors import AdamergexError, ModelError
from adamergex.files.inputs import DOCUMENT_BYTES, open_regular, read_json_object

TOKENIZER_BYTES = 4 * DOCUMENT_BYTES
"""Largest file of a tokenizer: 256 MiB (Gemma's is 33 MiB)."""
LAYERS = 2000
"""Maximum number of layers in a config; the deepest published models have some hundreds."""
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "sentencepiece.bpe.model",
    "spiece.model",
    "chat_template.jinja",
)
_SMALL = ("tokenizer_config.json", "special_tokens_map.json")
_OF_THE_HUB = ("tokenizer.json", "tokenizer_config.json")  # each further name costs a network request
_PLAIN = re.compile(r"[A-Za-z0-9_|]*")
_LAYERS = re.compile(r"n_layers?|num_layers|n_blocks|num_blocks|num_\w*layers|\w+_layers")


def require_config(base: str) -> dict[str, object]:
    """The ``config.json`` of a base, checked for transformers; {} for a hub id without this file.

    Raises: ModelError: no file, not strict JSON, larger than ``inputs.SETTINGS_BYTES``, more than ``LAYERS`` layers,
    or an implementation (of attention, of experts) that names a repository, whose code transformers would run.
    """
    location = resolve(base)
    path = checkpoint_file(location, "config.json")
    if path is None and Path(location).is_dir():
        raise ModelError("there is no config.json", where=location, fix="name a transformers checkpoint")
    if path is None:  # not on the hub, or no network: transformers' error distinguishes them
        return {}
    config = read_json_object(path, what="the model's config", error=ModelError)
    for name, value in _settings(config):
        if name.endswith("_implementation") and not _is_plain(value):
            raise ModelError(
                "the model's config names code to run",
                where=f"{path}: {name}",
                found=repr(value)[:200],
                expected="an implementation of transformers itself, such as 'sdpa' or 'eager'",
                fix=f"remove {name} from the file; code named in files is never run",
            )
        if _LAYERS.fullmatch(name) and isinstance(value, int) and value > LAYERS:
            raise ModelError(
                "the model's config asks for more layers than any model has",
                where=f"{path}: {name}",
                found=repr(value)[:40],
                expected=f"at most {LAYERS}",
                fix="copy or download the checkpoint again",
            )
    return config


def require_tokenizer_files(base: str) -> None:
    """Raises: ModelError: a tokenizer file is not a regular file, too large, or (small files) not strict JSON."""
    location = resolve(base)
    for name in TOKENIZER_FILES if Path(location).is_dir() else _OF_THE_HUB:
        path = checkpoint_file(location, name)
        if path is None:
            continue
        with open_regular(path, what="the tokenizer's file", error=ModelError) as file:
            size = os.fstat(file.fileno()).st_size
        if size > TOKENIZER_BYTES:
            raise ModelError(
                "the tokenizer's file is too large",
                where=path,
                found=f"{size:,} bytes",
                expected=f"at most {TOKENIZER_BYTES:,} bytes",
                fix="check that this is the right file",
            )
        if name in _SMALL:
            read_json_object(path, what="the tokenizer's settings", error=ModelError)


@contextmanager
def loading(base: str, part: str = "model") -> Iterator[None]:
    """Context in which a library reads a base. Raises: ModelError for any exception of the library.

    Untrusted files make a library fail in too many ways to list; all of them mean that the base cannot be used.
    """
    try:
        yield
    except (AdamergexError, MemoryError):
        raise
    except Exception as error:
        raise unreadable(base, error, part) from error


def unreadable(base: str, error: BaseException, part: str = "model") -> ModelError:
    """The error for a part of a base that a library cannot read."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    reason = " ".join(lines[:2]) if lines[:1] and lines[0].endswith(":") else lines[0] if lines else ""
    return ModelError(
        f"the {part} cannot be loaded",
        where=base,
        found=reason[:400] if isinstance(error, OSError | ValueError) else f"{type(error).__name__}: {reason[:400]}",
        expected="a folder or hub id with config.json, weights and tokenizer, of an architecture that transformers has",
        fix="check the name; models that need their own code (trust_remote_code) are not run",
    )


def _settings(value: object) -> Iterator[tuple[str, object]]:
    """All named values of a document, recursively; the reader bounds its depth."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield name, inner
            yield from _settings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _settings(inner)


def _is_plain(value: object) -> bool:
    if isinstance(value, dict):  # one implementation per part of a model
        return all(_is_plain(inner) for inner in value.values())
    return value is None or (isinstance(value, str) and _PLAIN.fullmatch(value) is not None)
