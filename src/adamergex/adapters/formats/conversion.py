"""Adapter directories from one form to another: AdapterHub's, composable-sft's and ours; what a directory holds."""

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


class Found(NamedTuple):
    """What a directory, archive or file holds, and whose form it has; ``tensors`` is the file that says so."""

    contents: Contents
    form: Form
    tensors: str


@dataclass(frozen=True)
class Conversion:
    """What a conversion did; ``str()`` is what ``adamergex convert`` prints."""

    contents: Contents
    name: str
    before: Form
    after: Form
    tensors: int
    head: bool
    lineage: bool
    output: Path

    def __str__(self) -> str:
        also = [what for what, there in (("head", self.head), ("lineage", self.lineage)) if there]
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
    """Write what ``source`` holds to ``output`` in another form, whole or not at all; what it is, is found out.

    AdapterHub directories and their zip archives (all dialects, heads too) and composable-sft's ``pytorch_diff.bin``
    become ours (safetensors), and ours theirs; PEFT's ``adapter_model.bin``
    becomes safetensors. Pickles are read as plain tensors only: nothing in a file is run.

    Args:
        source: a directory, a zip archive of one, or the file of a sparse difference.
        output: a directory that does not exist yet. ``lineage.json`` goes along.
        to: ``adamergex``, ``adapterhub`` (what ``adapters`` 1.x loads) or ``composable-sft``.
        base: for ``adapterhub``, the model whose layers name the tensors: only its configuration is read. By default
            the one that the adapter names.
        safetensors: for ``adapterhub``, ``adapter.safetensors`` instead of ``pytorch_adapter.bin``.

    Raises: AdapterFileError for files that cannot be read, hold something else, or have the wanted form already;
        ConfigError for arguments that do not go together; ModelError for a base that cannot be read.
    """
    source, output = Path(source), Path(output)
    _require_arguments(to, base, safetensors)
    found = detect(source)
    _require_change(source, found, to, safetensors)
    require_free(output)
    if found.contents == "sparse difference":
        return _convert_difference(source, output, found, to)
    if found.contents == "PEFT adapter":
        return _convert_peft(source, output, found)
    if to == "adamergex":
        files = adapterhub.import_adapter(source, output)
    else:
        with adapterhub.opened(source) as directory:
            files = adapterhub.read_adapter(directory)
        adapterhub.export_adapter(files, output, _structure(base, files, source), safetensors=safetensors)
    return Conversion(
        found.contents,
        files.name,
        found.form,
        to,
        len(files.tensors),
        files.head is not None,
        files.lineage is not None,
        output,
    )


def detect(source: str | Path) -> Found:
    """What ``source`` holds, by the names of its files and the kind that ``adapter_config.json`` declares.

    Raises: AdapterFileError when it is missing, holds nothing that can be converted, or two things at once.
    """
    path = Path(source)
    if path.name in (sparse.PEER, sparse.TENSORS) and path.is_file():
        return _difference(path.name)
    if path.is_file() and path.suffix in (".bin", ".safetensors", ".json", ".pt"):
        raise _unknown(path, "a file of an adapter", fix=f"name its directory: {path.parent}")
    if not path.exists():
        raise _unknown(path, "nothing", fix="check the path")
    with adapterhub.opened(path) as directory:
        return _detect(directory, path)


def _detect(directory: Path, where: Path) -> Found:
    there = {item.name for item in directory.iterdir()}
    differences = [name for name in (sparse.TENSORS, sparse.PEER) if name in there]
    if differences and CONFIG in there:
        raise _unknown(where, f"an adapter and a sparse difference ({differences[0]})", fix="move one of them away")
    if differences:
        return _difference(differences[0])
    if CONFIG not in there:
        raise _unknown(where, ", ".join(sorted(there)[:8]) or "an empty directory", fix="name an adapter's directory")
    declared = read_config(directory).get("peft_type")
    if declared is not None and PICKLE in there and TENSORS not in there:
        return Found("PEFT adapter", "pickle", PICKLE)
    if declared is not None:
        raise AdapterFileError(
            "this is a PEFT adapter: adamergex and PEFT both read it as it is, and there is nothing to convert",
            where=where,
            found=f"peft_type {declared}",
            expected=_expected(),
            fix="give it to attach, merge or inspect",
        )
    for name in (TENSORS, adapterhub.SAFE, adapterhub.PICKLE):
        if name in there:
            return Found("bottleneck adapter", "adamergex" if name == TENSORS else "adapterhub", name)
    names = f"{CONFIG} without tensors ({', '.join(sorted(there)[:8])})"
    raise _unknown(where, names, fix="download the adapter again")


def _difference(name: str) -> Found:
    return Found("sparse difference", "composable-sft" if name == sparse.PEER else "adamergex", name)


def _convert_difference(source: Path, output: Path, found: Found, to: Form) -> Conversion:
    difference = sparse.read_difference(source if source.is_file() else source / found.tensors)
    lineage = lineages.read(source.parent if source.is_file() else source)
    write = sparse.write_difference if to == "adamergex" else sparse.export_difference
    write(output, difference, lineage=lineage)
    name = (source.parent if source.is_file() else source).resolve().name
    count = len(difference.sparse) + len(difference.whole)
    return Conversion(found.contents, name, found.form, to, count, bool(difference.whole), lineage is not None, output)


def _convert_peft(source: Path, output: Path, found: Found) -> Conversion:
    """PEFT's pickle as safetensors, under PEFT's names; the config as it was read."""
    with adapterhub.opened(source) as directory:
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
    return Conversion(found.contents, name, found.form, "adamergex", len(tensors), False, lineage is not None, output)


def _structure(base: str | None, files: adapterhub.AdapterFiles, where: Path) -> PreTrainedModel:
    """The base without its weights: the names of its modules are all that an export needs."""
    named = base or files.metadata.get("model_name")
    if not named:
        raise ConfigError(
            "AdapterHub names tensors by the base's layers, and this adapter does not say its base",
            where=where,
            expected="the base that the adapter was trained with",
            fix="give --base (base=...)",
        )
    try:
        config = load_config(str(named))
    except ModelError as error:
        if base:
            raise
        raise ConfigError(
            "AdapterHub names tensors by the base's layers, and the base that this adapter names is not here",
            where=where,
            found=named,
            expected="a folder or a hub id that can be read",
            fix="give --base (base=...)",
        ) from error
    model: PreTrainedModel = skeleton(str(named), _STRUCTURES[family(config)])
    return model


def _require_arguments(to: str, base: str | None, safetensors: bool) -> None:
    if to not in FORMS:
        raise ConfigError("there is no such form", where="to", found=repr(to), expected=" or ".join(FORMS))
    given = [name for name, value in (("base", base), ("safetensors", safetensors)) if value]
    if given and to != "adapterhub":
        raise ConfigError(
            "these arguments only say something for AdapterHub's form",
            where=", ".join(given),
            found=f"to {to}",
            expected="to adapterhub",
            fix="leave them out",
        )


def _require_change(source: Path, found: Found, to: Form, safetensors: bool) -> None:
    if to not in _FORMS_OF[found.contents]:
        raise AdapterFileError(
            f"a {found.contents} has no form of {to}",
            where=source,
            found=f"{found.contents} ({found.tensors})",
            expected=" or ".join(_FORMS_OF[found.contents]),
            fix="choose one of these with --to",
        )
    wanted = {"adapterhub": adapterhub.SAFE if safetensors else adapterhub.PICKLE}.get(to, found.tensors)
    if found.form == to and found.tensors == wanted:
        raise AdapterFileError(
            f"this {found.contents} is in the wanted form already; nothing was written",
            where=source,
            found=f"{to} ({found.tensors})",
            fix="use it as it is, or choose another form with --to",
        )


def _expected() -> str:
    adapters = f"{CONFIG} with {TENSORS}, {adapterhub.SAFE} or {adapterhub.PICKLE}"
    return f"{adapters}; {PICKLE} of PEFT; or {sparse.TENSORS} or {sparse.PEER}"


def _unknown(where: Path, found: str, fix: str) -> AdapterFileError:
    return AdapterFileError(
        "there is nothing here that can be converted", where=where, found=found, expected=_expected(), fix=fix
    )
