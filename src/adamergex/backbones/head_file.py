"""Masked-LM heads in small files, and base directories composed of a base and such a file."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from adamergex.backbones.base_documents import TOKENIZER_FILES
from adamergex.backbones.base_files import base_sha256, checkpoint_file, resolve
from adamergex.backbones.embedding_rows import write_tensors
from adamergex.backbones.heads import fold, with_new_head
from adamergex.backbones.loading import quiet
from adamergex.backbones.pooling import POOLING_FILE
from adamergex.backbones.trimming import KEPT, RECORD
from adamergex.base_names import PACKAGED, folder
from adamergex.errors import AdapterFileError, ModelError
from adamergex.files.inputs import open_regular, read_json_object
from adamergex.files.outputs import staged_directory
from adamergex.files.tensor_files import read_safetensors
from adamergex.files.tensor_header import read_header

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FILE = "masked_lm_head.safetensors"
HEAD_RECORD = "masked_lm_head.json"
FORMAT = "adamergex-masked-lm-head/1"
_LOW_RANK = "low_rank."
_STORED = (torch.float32, torch.float16)
_COPIED = (*TOKENIZER_FILES, "LICENSE", "LICENSE.txt", POOLING_FILE)


@dataclass(frozen=True)
class HeadFile:
    """The tensors of a head, its low-rank change of the body, and the base that it is for.

    ``original_sha256`` and ``rows``: for a head trained on a trimmed base, the full base and the rows kept from it."""

    base: str
    base_sha256: str
    head: Mapping[str, Tensor]
    factors: Mapping[str, tuple[Tensor, Tensor]]
    scale: float = 1.0
    original_sha256: str | None = None
    rows: Tensor | None = None

    def write(self, path: Path, *, half: bool = False) -> None:
        """Write one safetensors file, deterministically. ``half``: round to float16, for shipping."""
        tensors = {name: tensor.detach() for name, tensor in self.head.items()}
        for name, (a, b) in self.factors.items():
            tensors |= {
                f"{_LOW_RANK}{name}.a": a.detach().contiguous(),
                f"{_LOW_RANK}{name}.b": b.detach().contiguous(),
            }
        if self.rows is not None:
            tensors["rows"] = self.rows.to(torch.int32)
        if half:
            tensors = {name: item.half() if item.is_floating_point() else item for name, item in tensors.items()}
        metadata = {
            "format": "pt",
            "kind": FORMAT,
            "base": self.base,
            "base_sha256": self.base_sha256,
            "scale": repr(self.scale),
            **({"original_sha256": self.original_sha256} if self.original_sha256 else {}),
        }
        write_tensors(path, tensors, metadata)

    @classmethod
    def read(cls, path: Path) -> HeadFile:
        """Read a head's file. Raises: ModelError: no such file, or not a head's."""
        try:
            metadata = read_header(path).metadata
            if metadata.get("kind") != FORMAT:
                raise ValueError(f"its kind is {metadata.get('kind')!r}")
            tensors = read_safetensors(path)
            scale = float(metadata["scale"])
            rows = tensors.pop("rows", None)
            if rows is not None and not is_rows(rows):
                raise ValueError("its rows are not numbers in ascending order")
            if wrong := next((name for name, item in tensors.items() if item.dtype not in _STORED), None):
                raise ValueError(f"{wrong} is {tensors[wrong].dtype}, not float32 or float16")
            tensors = {name: item.float() for name, item in tensors.items()}
            if not math.isfinite(scale):
                raise ValueError(f"its scale is {scale}")
            names = [name for name in tensors if name.startswith(_LOW_RANK) and name.endswith(".a")]
            factors = {
                name.removeprefix(_LOW_RANK)[:-2]: (tensors.pop(name), tensors.pop(f"{name[:-2]}.b")) for name in names
            }
            base, sha256, original = metadata["base"], metadata["base_sha256"], metadata.get("original_sha256")
        except (AdapterFileError, ValueError, KeyError) as problem:
            raise ModelError(
                "this is not the file of a masked-LM head",
                where=path,
                found=problem.problem if isinstance(problem, AdapterFileError) else problem,
                expected=FORMAT,
                fix=f"name the {FILE} that adamergex train wrote",
            ) from None
        return cls(base, sha256, tensors, factors, scale, original, rows)


def shipped(base: str) -> Path:
    """The shipped head of a base, or of the base that it was trimmed from. Raises: ModelError: there is none."""
    files = {name: folder(name) / FILE for name in PACKAGED if (folder(name) / FILE).is_file()}
    for name, path in files.items():
        metadata = read_header(path).metadata
        hashes = {metadata["base_sha256"], metadata.get("original_sha256")}
        if base == name or {base_sha256(base), origin(base)[0]} & hashes:
            return path
    raise ModelError(
        "no masked-LM head ships for this base",
        where=base,
        expected=" or ".join([*files, "a base trimmed from it"]),
        fix="name the head's file with --head, or train one (kind: masked-lm-head)",
    )


def compose(base: str, head: str | Path | None, output: str | Path) -> None:
    """Write the base directory of a base and a head's file (None: the base's shipped head).

    A head trained on a trimmed base also fits the full base, and other bases trimmed from it: tokens that its own base
    lacks get the lowest bias. Raises: ModelError: not a head's file, or one for another base; AdapterFileError: the
    output exists already.
    """
    path = shipped(base) if head is None else Path(head) / FILE if Path(head).is_dir() else Path(head)
    file = HeadFile.read(path)
    rows = _rows_of(base, file, path)
    with staged_directory(output) as stage:
        model, new = with_new_head(base)
        contents = dict(file.head)
        if rows is not None:
            contents = _for_rows(file, rows(model.get_input_embeddings().weight.shape[0]), path)
        if contents.keys() != new.keys() or any(contents[name].shape != new[name].shape for name in new):
            raise ModelError(
                "the head does not fit the base",
                where=path,
                found={name: tuple(item.shape) for name, item in contents.items()},
                expected={name: tuple(item.shape) for name, item in new.items()},
                fix="name the base that it was trained on",
            )
        with torch.no_grad():
            for name, parameter in new.items():
                parameter.copy_(contents[name])
        fold(model, file.factors, file.scale)
        if not all(torch.isfinite(parameter).all() for parameter in model.parameters()):
            raise ModelError(
                "the base with this head would have values that are not finite",
                where=path,
                fix="copy or train the head again",
            )
        write_base(model, base, stage)
        shutil.copyfile(path, stage / FILE)
        if (path.parent / HEAD_RECORD).is_file():
            record = read_json_object(path.parent / HEAD_RECORD, what="the record of the head", error=ModelError)
            (stage / HEAD_RECORD).write_text(json.dumps(record, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _rows_of(base: str, file: HeadFile, path: Path) -> Callable[[int], Tensor] | None:
    """A function of the number of rows that returns the base's rows in the full base; None if they are the head's.

    Raises: ModelError: the head is for another base.
    """
    sha256, (full, kept) = base_sha256(base), origin(base)
    if sha256 == file.base_sha256:
        return None
    if sha256 == file.original_sha256:
        return torch.arange
    if kept is not None and full == file.original_sha256:
        return lambda count: kept
    raise ModelError(
        "the head was trained on another base",
        where=path,
        found=f"{base} with SHA-256 {sha256[:12]}…",
        expected=f"{file.base} with SHA-256 {file.base_sha256[:12]}…, the base that it was trimmed from, or "
        "another one trimmed from that",
        fix="name that base",
    )


def _for_rows(file: HeadFile, rows: Tensor, path: Path) -> dict[str, Tensor]:
    """A head's tensors for the given rows of the full base; rows that its own base lacks get the lowest value."""
    kept = file.rows
    if kept is None or len(kept) == 0 or (len(rows) == int(rows[-1]) + 1 and int(kept[-1]) >= len(rows)):
        raise ModelError("the head's file does not name its rows", where=path, fix="train the head again")
    result = dict(file.head)
    for name, tensor in result.items():
        if tensor.shape == kept.shape:
            whole = torch.full((int(max(kept[-1], rows[-1])) + 1,), float(tensor.min()))
            whole[kept.long()] = tensor
            result[name] = whole[rows.long()]
    return result


def write_base(model: PreTrainedModel, base: str, stage: Path) -> None:
    """Write the model as a checkpoint, with the base's tokenizer and pooling; config.json differs only in the class."""
    with quiet():
        model.save_pretrained(stage)
    for path in stage.glob("*.safetensors"):
        path.chmod(stage.stat().st_mode & 0o666)
    location = resolve(base)
    original = checkpoint_file(location, "config.json")
    assert original is not None  # the model was loaded from it
    # Not transformers' config.json: it contains the version of transformers, and the file is part of the base's hash.
    config = read_json_object(original, what="config.json", error=ModelError)
    config |= {"architectures": [type(model).__name__], "dtype": "float32", "tie_word_embeddings": True}
    (stage / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    for name in _COPIED:
        if (file := checkpoint_file(location, name)) is not None:
            (stage / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(file, stage / name)


def is_rows(rows: Tensor) -> bool:
    """Whether a tensor lists unique rows of an embedding as trimming writes them: int32, ascending."""
    if rows.dtype != torch.int32 or rows.dim() != 1:
        return False
    return bool((rows[1:] > rows[:-1]).all()) and bool((rows >= 0).all())


def origin(base: str) -> tuple[str | None, Tensor | None]:
    """For a trimmed base, the hash of the full base and the rows kept from it; for any other base, (None, None)."""
    location = resolve(base)
    record, kept = checkpoint_file(location, RECORD), checkpoint_file(location, KEPT)
    if record is None or kept is None:
        return None, None
    full = read_json_object(record, what="the record of trimming", error=ModelError).get("base")
    open_regular(kept, what="the list of kept rows", error=ModelError).close()
    try:
        with safe_open(kept, "pt") as file:
            rows = file.get_tensor("rows")
    except (SafetensorError, OSError) as problem:
        raise _damaged_record(kept, problem) from None
    if not is_rows(rows):
        raise _damaged_record(kept, f"{rows.dtype} of shape {tuple(rows.shape)}")
    if not isinstance(full, dict) or not isinstance(full.get("sha256"), str):
        raise _damaged_record(record, "no SHA-256 of a base")
    return str(full["sha256"]), rows


def _damaged_record(path: Path, reason: object) -> ModelError:
    return ModelError(
        "the record of trimming is damaged", where=path, found=reason, fix="trim the base again, or copy it again"
    )
