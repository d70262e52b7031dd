"""Converts adapter directories between AdapterHub's, composable-sft's and our format; detects what one holds."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM

from adamergex.adapters import sparse
from adamergex.adapters.formats import adapterhub
from adamergex.adapters.saving import save_tensors
from adamergex.backbones.loading import family, load_config, skeleton
from adamergex.errors import AdapterFileError, ConfigError, ModelError, printable
from adamergex.files import lineage as lineages
from adamergex.files.directory import CONFIG, PICKLE, TENSORS, AdapterDirectory, read_config
from adamergex.files.outputs import require_free, staged_directory
from adamergex.files.tensor_files import read_peft_pickle, separate

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Form = Literal["adamergex", "adapterhub", "composable-sft", "pickle"]
Contents = Literal["bottleneck adapter", "sparse difference", "PEFT adapter"]
FORMS: tuple[Form, ...] = tuple(form for form in get_args(Form) if form != "pickle")  # a pickle is read, not written
_FORMS_OF: dict[Contents, tuple[Form, ...]] = {
    "bottleneck adapter": ("adamergex", "adapterhub"),
    "sparse difference": ("adamergex", "composable-sft"),
    "PEFT adapter": ("adamergex",),
}
_STRUCTURES = {
    "encoder": AutoModelForMaskedLM,
    "decoder": AutoModelForCausalLM,
    "encoder-decoder": AutoModelForSeq2SeqLM,
}


class Detected(NamedTuple):
    """What a directory, archive or file holds, and in which format; ``tensors`` is the file that shows it."""

    contents: Contents
    form: Form
    tensors: str


@dataclass(frozen=True)
class Conversion:
    """The result of a conversion; ``adamergex convert`` prints ``str()`` of it."""

    contents: Contents
    name: str
    before: Form
    after: Form
    tensors: int
    head: bool
    lineage: bool
    output: Path

    def __str__(self) -> str:
        also = [name for name, present in (("head", self.head), ("lineage", self.lineage)) if present]
        parts = ", ".join([f"{self.tensors} tensors", *also])
        return printable(f"{self.contents} {self.name!r}: {self.before} -> {self.after} ({parts})")


def convert(
    source: str | Path,
    output: str | Path,
    to: Form = "adamergex",
    *,
    base: str | None = None,
    safetensors: bool = False,
) -> Conversion:
    """Convert the adapter in ``source``, whose format is detected, to another format, and write it atomically.

    Converts AdapterHub directories and their zip archives (all dialects, with heads) and composable-sft's
    ``pytorch_diff.bin`` to our format (safetensors) and back, and PEFT's ``adapter_model.bin`` to safetensors. Pickles
    are read as plain tensors only: nothing in a file is executed.

    Args:
        source: a directory, a zip archive of one, or the file of a sparse difference.
        output: a directory that does not exist yet. ``lineage.json`` is copied.
        to: ``adamergex``, ``adapterhub`` (what ``adapters`` 1.x loads) or ``composable-sft``.
        base: for ``adapterhub``, the model whose layers name the tensors: only its configuration is read. Default:
            the base in the adapter's configuration.
        safetensors: for ``adapterhub``, ``adapter.safetensors`` instead of ``pytorch_adapter.bin``.

    Raises: AdapterFileError for files that cannot be read, hold something else, or already have the format;
        ConfigError for arguments that conflict; ModelError for a base that cannot be read.
    """
    source, output = Path(source), Path(output)
    _require_arguments(to, base, safetensors)
    detected = detect(source)
    _require_change(source, detected, to, safetensors)
    require_free(output)
    if detected.contents == "sparse difference":
        return _convert_difference(source, output, detected, to)
    if detected.contents == "PEFT adapter":
        return _convert_peft(source, output, detected)
    if to == "adamergex":
        files = adapterhub.import_adapter(source, output)
    else:
        with adapterhub.unpacked_directory(source) as directory:
            files = adapterhub.read_adapter(directory)
        adapterhub.export_adapter(files, output, _structure(base, files, source), safetensors=safetensors)
    return Conversion(
        detected.contents,
        files.name,
        detected.form,
        to,
        len(files.tensors),
        files.head is not None,
        files.lineage is not None,
        output,
    )


def detect(source: str | Path) -> Detected:
    """Detect what ``source`` holds, by its file names and the kind that ``adapter_config.json`` declares.

    Raises: AdapterFileError when it is missing, holds nothing to convert, or holds two things.
    """
    path = Path(source)
    if path.name in (sparse.SFT_FILE, sparse.TENSORS) and path.is_file():
        return _difference(path.name)
    if path.is_file() and path.suffix in (".bin", ".safetensors", ".json", ".pt"):
        raise _unknown(path, "a file of an adapter", fix=f"name its directory: {path.parent}")
    if not path.exists():
        raise _unknown(path, "nothing", fix="check the path")
    with adapterhub.unpacked_directory(path) as directory:
        return _detect(directory, path)


def _detect(directory: Path, where: Path) -> Detected:
    names = {item.name for item in directory.iterdir()}
    differences = [name for name in (sparse.TENSORS, sparse.SFT_FILE) if name in names]
    if differences and CONFIG in names:
        raise _unknown(where, f"an adapter and a sparse difference ({differences[0]})", fix="move one of them away")
    if differences:
        return _difference(differences[0])
    if CONFIG not in names:
        raise _unknown(where, ", ".join(sorted(names)[:8]) or "an empty directory", fix="name an adapter's directory")
    declared = read_config(directory).get("peft_type")
    if declared is not None and PICKLE in names and TENSORS not in names:
        return Detected("PEFT adapter", "pickle", PICKLE)
    if declared is not None:
        raise AdapterFileError(
            "this PEFT adapter needs no conversion: adamergex and PEFT read it as it is",
            where=where,
            found=f"peft_type {declared}",
            expected=_expected(),
            fix="pass it to attach, merge or inspect",
        )
    for name in (TENSORS, adapterhub.SAFE, adapterhub.PICKLE):
        if name in names:
            return Detected("bottleneck adapter", "adamergex" if name == TENSORS else "adapterhub", name)
    description = f"{CONFIG} without tensors ({', '.join(sorted(names)[:8])})"
    raise _unknown(where, description, fix="download the adapter again")


def _difference(name: str) -> Detected:
    return Detected("sparse difference", "composable-sft" if name == sparse.SFT_FILE else "adamergex", name)


def _convert_difference(source: Path, output: Path, detected: Detected, to: Form) -> Conversion:
    difference = sparse.read_difference(source if source.is_file() else source / detected.tensors)
    lineage = lineages.read(source.parent if source.is_file() else source)
    write = sparse.write_difference if to == "adamergex" else sparse.export_difference
    write(output, difference, lineage=lineage)
    name = (source.parent if source.is_file() else source).resolve().name
    count = len(difference.sparse) + len(difference.whole)
    return Conversion(
        detected.contents, name, detected.form, to, count, bool(difference.whole), lineage is not None, output
    )


def _convert_peft(source: Path, output: Path, detected: Detected) -> Conversion:
    """Convert PEFT's pickle to safetensors with PEFT's names, and copy the config."""
    with adapterhub.unpacked_directory(source) as directory:
        config, lineage = read_config(directory), lineages.read(directory)
        tensors = read_peft_pickle(directory / PICKLE, config)
    with staged_directory(output) as stage:
        text = json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
        (stage / CONFIG).write_text(text + "\n", encoding="utf-8")
        save_tensors(separate(tensors), stage / TENSORS)
        if lineage:
            lineage.write(stage)
        AdapterDirectory.open(stage)
    name = source.resolve().stem if source.is_file() else source.resolve().name
    return Conversion(
        detected.contents, name, detected.form, "adamergex", len(tensors), False, lineage is not None, output
    )


def _structure(base: str | None, files: adapterhub.AdapterFiles, where: Path) -> PreTrainedModel:
    """The base without its weights: an export needs only the names of its modules."""
    name = base or files.metadata.get("model_name")
    if not name:
        raise ConfigError(
            "AdapterHub names tensors by the base's layers, and this adapter does not name its base",
            where=where,
            expected="the base that the adapter was trained with",
            fix="give --base (base=...)",
        )
    try:
        config = load_config(str(name))
    except ModelError as error:
        if base:
            raise
        raise ConfigError(
            "AdapterHub names tensors by the base's layers, and the base that this adapter names is not available",
            where=where,
            found=name,
            expected="a folder or a hub id that can be read",
            fix="give --base (base=...)",
        ) from error
    model: PreTrainedModel = skeleton(str(name), _STRUCTURES[family(config)])
    return model


def _require_arguments(to: str, base: str | None, safetensors: bool) -> None:
    if to not in FORMS:
        raise ConfigError("unknown format", where="to", found=repr(to), expected=" or ".join(FORMS))
    given = [name for name, value in (("base", base), ("safetensors", safetensors)) if value]
    if given and to != "adapterhub":
        raise ConfigError(
            "these arguments apply to AdapterHub's format only",
            where=", ".join(given),
            found=f"to {to}",
            expected="to adapterhub",
            fix="omit them",
        )


def _require_change(source: Path, detected: Detected, to: Form, safetensors: bool) -> None:
    if to not in _FORMS_OF[detected.contents]:
        raise AdapterFileError(
            f"a {detected.contents} cannot be written in the format {to}",
            where=source,
            found=f"{detected.contents} ({detected.tensors})",
            expected=" or ".join(_FORMS_OF[detected.contents]),
            fix="choose one of these with --to",
        )
    file = {"adapterhub": adapterhub.SAFE if safetensors else adapterhub.PICKLE}.get(to, detected.tensors)
    if detected.form == to and detected.tensors == file:
        raise AdapterFileError(
            f"this {detected.contents} is in the wanted format already; nothing was written",
            where=source,
            found=f"{to} ({detected.tensors})",
            fix="use it as it is, or choose another format with --to",
        )


def _expected() -> str:
    adapters = f"{CONFIG} with {TENSORS}, {adapterhub.SAFE} or {adapterhub.PICKLE}"
    return f"{adapters}; {PICKLE} of PEFT; or {sparse.TENSORS} or {sparse.SFT_FILE}"


def _unknown(where: Path, found: str, fix: str) -> AdapterFileError:
    return AdapterFileError("nothing to convert found", where=where, found=found, expected=_expected(), fix=fix)
