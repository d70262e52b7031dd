"""References that are given, not trained: one adapter directory per language, such as language vectors of others.

Nothing of them is trusted before it is checked: language, base and structure by lineage and config. A given adapter
enters a run as a step of its own, which copies it into the store, in the dtype that adapters are trained in here.
"""

from __future__ import annotations

import glob
import re
import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from adamergex.base_names import folder, with_languages
from adamergex.errors import ConfigError, IncompatibleAdaptersError, ModelError
from adamergex.files import lineage
from adamergex.files.directory import CARD, CHUNK, CONFIG, TENSORS, AdapterDirectory, SafetensorsWriter, TensorReader
from adamergex.files.hashing import file_sha256
from adamergex.files.outputs import staged_directory
from adamergex.structures.layout import Layout, layout
from adamergex.structures.settings import Lora, Structure

KEPT = (CONFIG, lineage.FILE_NAME, CARD)
_FILES = (TENSORS, CONFIG, lineage.FILE_NAME)
_HALF = ("F16", "BF16")


class GivenAdapter(NamedTuple):
    """A checked adapter directory. ``files``: SHA-256 of what decides a result; ``shapes``: LoRA's (rank, α) pairs."""

    path: Path
    files: dict[str, str]
    shapes: tuple[tuple[int, float], ...]


def pattern_of(adapters: str, where: Path) -> str:
    """The path, with ``{language}`` in it, that a setting names: of its own, or that of a base's shipped adapters."""
    if adapters in with_languages():
        return str(folder(adapters) / "languages" / "{language}")
    return str((where / adapters).absolute())


def languages_at(pattern: str) -> list[str]:
    """The languages that a pattern has an adapter directory of."""
    before, _, after = pattern.partition("{language}")
    paths = glob.glob(f"{glob.escape(before)}*{glob.escape(after.replace('{language}', '*'))}")
    named = re.compile(re.escape(before) + r"([^/]+?)" + re.escape(after).replace(r"\{language\}", r"\1"))
    return sorted(match[1] for path in paths if Path(path, CONFIG).is_file() and (match := named.fullmatch(path)))


def read_given(pattern: str, language: str, *, base: str, base_sha256: str, structure: Structure) -> GivenAdapter:
    """The adapter of a language, checked against the base and the structure of a table.

    Raises: ConfigError: there is none of this language, or it is of another one; ModelError: it is of another base;
    IncompatibleAdaptersError: another structure, or a divergence; AdapterFileError: its files are damaged.
    """
    path = Path(pattern.replace("{language}", language))
    if not path.is_dir():
        raise ConfigError(
            f"no adapter is given for {language}",
            where=f"reference.adapters: {path}",
            found=f"adapters of {', '.join(languages_at(pattern)) or 'no language'}",
            expected="a directory that PEFT or adamergex saved",
            fix=f"add it, or leave {language} out",
        )
    shape = layout(AdapterDirectory.open(path))
    known = lineage.require_base(path, base, base_sha256)
    if known is None or not known.base.get("sha256"):
        _require_name(shape, base)
    if known is not None:
        _require_reference(known, path, language)
    if shape.kind != structure.kind:
        raise IncompatibleAdaptersError(
            "the given adapter has another structure",
            where=path,
            found=shape.kind,
            expected=f"{structure.kind}, as structure.kind says",
            fix="set structure.kind to its kind, or give adapters of this one",
        )
    files = {name: file_sha256(path / name) for name in _FILES if (path / name).is_file()}
    shapes = {(site.rank, site.alpha) for site in shape.sites.values()} if shape.structure.low_rank else set()
    return GivenAdapter(path, files, tuple(sorted(shapes)))


def _require_name(shape: Layout, base: str) -> None:
    """Without a hash the base's name decides, as in a merge."""
    if shape.base_name != base:
        raise ModelError(
            "the given adapter names another base",
            where=shape.directory.path / CONFIG,
            found=shape.base_name,
            expected=base,
            fix="give adapters of this base (if only its name differs, correct base_model_name_or_path)",
        )


def _require_reference(known: lineage.Lineage, path: Path, language: str) -> None:
    if known.is_divergence:
        raise IncompatibleAdaptersError(
            "a given reference is a divergence",
            where=path,
            found="a divergence",
            expected="an adapter of one language",
            fix="merge it with adamergex merge --divergence",
        )
    if known.language not in (None, language):
        raise ConfigError(
            "the given adapter is of another language",
            where=path,
            found=known.language,
            expected=language,
            fix="correct reference.adapters",
        )


def require_factors(shapes: Iterable[Iterable[float]], structure: Structure, label: str) -> None:
    """LoRA's factors are merged only at one rank and α. Raises: ConfigError."""
    if not isinstance(structure, Lora):
        return
    own = (structure.rank, structure.alpha)
    other = [tuple(shape) for shape in shapes if tuple(shape) != own]
    if other:
        raise ConfigError(
            "a method merges the factors of LoRA, and a given adapter has another rank or alpha",
            where=label,
            found=f"rank {other[0][0]:g}, alpha {other[0][1]:g}",
            expected=f"rank {own[0]}, alpha {own[1]:g}, as structure says",
            fix="set structure to theirs, or use methods on ΔW: adamergex_delta, ties, dare",
        )


def copy_given(path: str | Path, output: Path) -> None:
    """Copy an adapter directory; tensors of 16 bits are written in float32, exactly."""
    directory = AdapterDirectory.open(path)
    with staged_directory(output) as stage:
        for name in KEPT:
            if (directory.path / name).is_file():
                shutil.copyfile(directory.path / name, stage / name)
        if not any(info.dtype in _HALF for info in directory.tensors.values()):
            shutil.copyfile(directory.tensors_path, stage / TENSORS)
            return
        _write_wide(directory, stage / TENSORS)


def _write_wide(directory: AdapterDirectory, target: Path) -> None:
    wide = [replace(info, dtype="F32") if info.dtype in _HALF else info for info in directory.tensors.values()]
    writer = SafetensorsWriter(target, wide, directory.metadata)
    with TensorReader(directory) as reader:
        for info in (directory.tensors[name.name] for name in writer.order):
            for start in range(0, info.size, CHUNK):
                values, stored = reader.read(info, start, min(start + CHUNK, info.size))
                writer.write(values if info.dtype in _HALF else stored)
    writer.close()
