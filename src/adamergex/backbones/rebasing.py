"""Moving an adapter from a trimmed base to the full base, or back, with unchanged tensors."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

from adamergex.backbones.base_files import base_sha256
from adamergex.backbones.embedding_rows import WeightRows
from adamergex.backbones.head_file import origin
from adamergex.backbones.loading import vocabulary_size
from adamergex.errors import AdapterFileError, ModelError
from adamergex.files import lineage as lineages
from adamergex.files.directory import CONFIG, AdapterDirectory
from adamergex.files.hashing import file_sha256
from adamergex.files.inputs import Json, read_json_object
from adamergex.files.outputs import staged_directory
from adamergex.files.tensor_files import read_safetensors
from adamergex.files.tensor_header import read_header
from adamergex.structures.card import write_beside

_ROLE = "rebased_from"


def rebase(adapter: str | Path, source: str, target: str, output: str | Path) -> None:
    """Write an adapter trained on ``source`` as an adapter of ``target``; one base must be trimmed from the other.

    All common weights of the bases are compared bit for bit. Raises: AdapterFileError: no lineage, an adapter with
    values for each token, or a fine-tuning of the base's weights. ModelError: the adapter was trained on another base,
    or the bases differ in more than their vocabulary.
    """
    directory = Path(adapter)
    lineage = lineages.require_base(directory, source, base_sha256(source))
    if lineage is None or not lineage.base.get("sha256"):
        raise AdapterFileError(
            "the adapter does not name the base that it was trained on",
            where=directory,
            expected=lineages.FILE_NAME,
            fix="train it again",
        )
    _require_no_tokens(directory, source)
    AdapterDirectory.open(directory)
    _require_same_body(source, target)
    with staged_directory(output) as stage:
        _copy(directory, stage)
        settings = _settings(stage / CONFIG, target)
        tensors = next(path for path in sorted(stage.glob("*.safetensors")))
        parent = {"path": str(directory), "sha256": file_sha256(tensors), "language": lineage.language}
        moved = replace(
            lineage,
            base={"name": target, "sha256": base_sha256(target)},
            parents={**lineage.parents, _ROLE: parent},
        )
        write_beside(stage, moved, task_type=str(settings["task_type"]) if settings.get("task_type") else None)


def _copy(directory: Path, stage: Path) -> None:
    """Copy the tensors and JSON documents of an adapter; each is checked first, so that links are not followed."""
    for path in sorted(directory.iterdir()):
        if path.name in (lineages.FILE_NAME, "manifest.json") or not path.is_file():
            continue
        if path.suffix == ".safetensors":
            read_safetensors(path)
        elif path.suffix == ".json":
            read_json_object(path, what="the adapter's document", error=AdapterFileError)
        else:
            continue
        shutil.copyfile(path, stage / path.name)


def _settings(path: Path, target: str) -> dict[str, Json]:
    settings = read_json_object(path, what="the adapter's config", error=AdapterFileError)
    if "base_model_name_or_path" in settings:
        settings["base_model_name_or_path"] = target
        path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return settings


def _require_no_tokens(directory: Path, source: str) -> None:
    tokens = vocabulary_size(source)
    files = sorted(directory.glob("*.safetensors"))
    if not files or any(path.name.startswith("sparse_difference") for path in files):
        raise AdapterFileError(
            "only an adapter can be moved to another base",
            where=directory,
            found=", ".join(path.name for path in files) or "no safetensors file",
            expected="LoRA, (IA)³, a prefix or a bottleneck",
            fix="train on the other base",
        )
    for path in files:
        for info in read_header(path).tensors.values():
            if tokens in info.shape:
                raise AdapterFileError(
                    "the adapter has values for each token of its base",
                    where=f"{path}: {info.name}",
                    found=info.shape,
                    expected="an adapter that leaves embeddings and language-model head alone",
                    fix="train on the other base",
                )


def _require_same_body(source: str, target: str) -> None:
    """Raises: ModelError: neither base is the other with fewer rows."""
    for trimmed, full in ((source, target), (target, source)):
        original, kept = origin(trimmed)
        if kept is not None and original == base_sha256(full):
            part, whole = (WeightRows.open(base, vocabulary_size(base)) for base in (trimmed, full))
            if part.is_part_of(whole, kept.tolist()):
                return
    raise ModelError(
        "neither base is trimmed from the other",
        where=f"{source}, {target}",
        expected="an unchanged base from adamergex backbones trim, and the base that it was trimmed from",
        fix="name these two",
    )
