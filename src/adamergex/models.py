"""Backbones: what a name means, which family it is, and loading it with its tokenizer."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForMultipleChoice,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PreTrainedConfig,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_MASKED_LM_MAPPING_NAMES
from transformers.utils import logging
from transformers.utils.hub import cached_file

from adamergex.backbones import NAMES, PACKAGED, SHIPPED
from adamergex.backbones import folder as shipped_folder
from adamergex.errors import ModelError
from adamergex.packaged import folder as packaged_folder
from adamergex.residency import resident
from adamergex.vocabulary import require_embeddings, require_vocabulary

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Family = Literal["encoder", "decoder", "encoder-decoder"]
Head = Literal["sequence-classification", "multiple-choice", "question-answering", "token-classification"]
Kind = Literal["masked-lm", "causal-lm", "sequence-to-sequence"] | Head

_CLASSES: dict[Kind, Any] = {
    "masked-lm": AutoModelForMaskedLM,
    "causal-lm": AutoModelForCausalLM,
    "sequence-classification": AutoModelForSequenceClassification,
    "multiple-choice": AutoModelForMultipleChoice,
    "question-answering": AutoModelForQuestionAnswering,
    "token-classification": AutoModelForTokenClassification,
    "sequence-to-sequence": AutoModelForSeq2SeqLM,
}
HEADS: tuple[Head, ...] = get_args(Head)
"""Kinds whose head a masked-LM checkpoint lacks, so that it is new and trained with the adapter."""
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


@dataclass(frozen=True)
class Loaded:
    """A backbone in memory. ``fresh``: modules whose weights the checkpoint lacks (a new classification head)."""

    base: str
    kind: Kind
    family: Family
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    fresh: tuple[str, ...]

    @property
    def sha256(self) -> str:
        """Hash of the checkpoint: see ``base_sha256``."""
        return base_sha256(self.base)


def resolve(base: str) -> str:
    """What transformers can load: the folder of a named backbone, a local folder, or the hub id unchanged.

    A packaged backbone is converted at the first call: see ``adamergex.packaged.folder``.
    Raises: ModelError when the name is a path and no folder is there, or a packaged backbone is not installed.
    """
    if base in SHIPPED:
        folder = shipped_folder(base)
        if not (folder / "config.json").is_file():
            raise ModelError(
                f"the shipped backbone {base!r} is not part of this installation",
                where=folder,
                fix="install the complete package, or name a folder or a hub id",
            )
        return str(folder)
    if base in PACKAGED:
        return str(packaged_folder(base))
    folder = Path(base).expanduser()
    if folder.is_dir():
        return str(folder)
    if base.startswith(("/", ".", "~")) or base.count("/") > 1 or folder.exists():
        raise ModelError(
            "there is no such model folder",
            where=base,
            expected=f"a folder with config.json and weights, a hub id, or one of {NAMES}",
            fix="check the path",
        )
    return base


def family(config: PreTrainedConfig) -> Family:
    """Whether the architecture encodes, decodes or does both, by transformers' own architecture mappings.

    Raises: ModelError when the architecture has neither a masked nor a causal language-model head.
    """
    if config.is_encoder_decoder:
        return "encoder-decoder"
    name = config.model_type
    if name in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False):
        return "encoder"
    if name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return "decoder"
    raise ModelError(
        f"the architecture {name!r} has no language-model head in transformers",
        expected="a text model: an encoder, a decoder or an encoder-decoder",
        fix="choose another base",
    )


def load_config(base: str) -> PreTrainedConfig:
    """The configuration of a backbone. Raises: ModelError when it cannot be read."""
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(resolve(base), trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise _unreadable(base, error) from error
    return config


def kind_for(base: str, *, labelled: bool, head: Head = "sequence-classification") -> Kind:
    """The kind of head that training needs: for labels ``head`` on encoders, else the language model's."""
    side = family(load_config(base))
    if side == "encoder-decoder":
        return "sequence-to-sequence"
    if side == "decoder":
        return "causal-lm"
    return head if labelled else "masked-lm"


def load(base: str, kind: Kind, labels: Sequence[str] | None = None) -> Loaded:
    """Load a backbone and its tokenizer: float32 on CPU, bfloat16 on CUDA whatever the checkpoint's dtype.

    No code of the checkpoint is run (``trust_remote_code`` stays off). ``labels`` are the classes of a sequence- or
    token-classification head. Raises: ModelError for an unreadable checkpoint, one without the language-model
    head that ``kind`` needs, or a tokenizer without a usable padding piece.
    """
    classes = None if labels is None else tuple(labels)
    return resident(lambda: (base_sha256(base), base, kind, classes), lambda: _load(base, kind, labels))


def _load(base: str, kind: Kind, labels: Sequence[str] | None) -> Loaded:
    config = load_config(base)
    if labels is not None:
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: index for index, label in enumerate(labels)}
    # A missing head is drawn at random here, and drawn again from the job's seed when an adapter is attached.
    with torch.random.fork_rng(devices=[]), quiet():
        torch.manual_seed(0)
        try:
            model, report = _CLASSES[kind].from_pretrained(
                resolve(base),
                config=config,
                dtype=torch.bfloat16 if torch.cuda.is_available() else torch.float32,
                trust_remote_code=False,
                ignore_mismatched_sizes=kind in HEADS,
                output_loading_info=True,
            )
        except (SafetensorError, UnpicklingError, EOFError, IndexError) as error:
            raise ModelError(
                "the model's weights are damaged",
                where=_damaged(base),
                found=str(error) or type(error).__name__,
                fix="copy or download the checkpoint again",
            ) from error
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise _unreadable(base, error) from error
    missing = [*report["missing_keys"], *(entry[0] for entry in report["mismatched_keys"])]
    fresh = _fresh_modules(base, kind, model.base_model_prefix, missing)
    if torch.cuda.is_available():
        model.to("cuda")
    pieces = tokenizer(base)
    return Loaded(base, kind, family(config), _fitting(model.eval(), pieces, base), pieces, fresh)


def outline(base: str, kind: Kind, labels: Sequence[str] | None = None) -> Loaded | None:
    """A backbone of the right shape without weights, and its tokenizer, to ask what would be possible; None for an
    architecture that cannot be made so. Raises: ModelError, as ``load`` does, but for the weights."""
    config, pieces = load_config(base), tokenizer(base)
    if labels is not None:
        config.id2label = dict(enumerate(labels))
    try:
        with torch.device("meta"), quiet():
            model = _CLASSES[kind].from_config(config, trust_remote_code=False)
    except (RuntimeError, NotImplementedError, ValueError, ImportError):
        return None
    return Loaded(base, kind, family(config), _fitting(model.eval(), pieces, base), pieces, ())


def _fitting(model: PreTrainedModel, pieces: PreTrainedTokenizerBase, base: str) -> PreTrainedModel:
    embeddings = model.get_input_embeddings()
    if isinstance(embeddings, nn.Embedding):
        require_embeddings(pieces, embeddings.num_embeddings, base)
    return model


def tokenizer(base: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a backbone, able to pad. Raises: ModelError when none can be loaded, or it cannot pad."""
    try:
        with quiet():
            found = AutoTokenizer.from_pretrained(resolve(base), trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise _unreadable(base, error, "tokenizer") from error
    require_vocabulary(found, base)
    if found.pad_token_id is None:
        # An invented id would be a word of the vocabulary. The end piece is safe: padding is hidden by the attention
        # mask, and labels are set per position, never by comparing with the padding id.
        if found.eos_token_id is None or family(load_config(base)) == "encoder":
            raise ModelError(
                "the tokenizer has no padding piece",
                where=base,
                found=f"special pieces {found.special_tokens_map}",
                fix="set pad_token in the checkpoint's tokenizer_config.json",
            )
        found.pad_token = found.eos_token
    return found


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers' load reports and progress bars for a while: what matters of them becomes an error."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def base_sha256(base: str) -> str:
    """SHA-256 over the names and bytes of config.json and of the weight files; computed once a process."""
    files = checkpoint_files(base)
    return _hash_files(tuple((str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files))


def longest_input(model: nn.Module, pieces: PreTrainedTokenizerBase) -> int:
    """How many pieces the model takes, special ones included (RoBERTa's positions start after the padding's)."""
    config: Any = model.config
    config = config if config.is_encoder_decoder else config.get_text_config()
    names = ("max_position_embeddings", "max_seq_len", "n_positions")
    limit = next((value for name in names if (value := getattr(config, name, None))), 10**9)
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            limit = module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
            break
    return min(int(limit), int(pieces.model_max_length))


def frame(pieces: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The special pieces that the tokenizer puts before and after one text."""
    inner = pieces("a", add_special_tokens=False)["input_ids"]
    outer = pieces("a")["input_ids"]
    for start in range(len(outer) - len(inner) + 1):
        if outer[start : start + len(inner)] == inner:
            return outer[:start], outer[start + len(inner) :]
    return [], []


def decoder_opening(model: nn.Module, pieces: PreTrainedTokenizerBase) -> list[int]:
    """What an encoder-decoder's decoder reads before the first piece of an answer.

    The decoder start piece of T5 (its padding), BART's end piece and the ``<s>`` of its texts, mBART's language: all
    follow from shifting a text of one piece as the model itself shifts labels.
    """
    before, after = frame(pieces)
    text = next(piece for piece in range(len(pieces)) if piece not in pieces.all_special_ids)
    shifted = decoder_inputs(model, torch.tensor([before + [text] + after]))
    return [int(piece) for piece in shifted[0, : 1 + len(before)]]


def decoder_inputs(model: Any, labels: torch.Tensor) -> torch.Tensor:
    try:
        shifted: torch.Tensor = model.prepare_decoder_input_ids_from_labels(labels=labels)
    except (TypeError, ValueError) as error:
        raise ModelError(
            "the decoder's first piece is not known",
            where=type(model).__name__,
            found=str(error),
            expected="decoder_start_token_id and pad_token_id in config.json",
            fix="set them in the checkpoint's config.json (T5: both the padding's id)",
        ) from error
    return shifted


def _fresh_modules(base: str, kind: Kind, prefix: str, missing: Iterable[str]) -> tuple[str, ...]:
    """The outermost new module of each missing weight: the head, or a pooler that masked-LM checkpoints lack."""
    names = set()
    for key in missing:
        path = key.split(".")[:-1]
        if kind in HEADS and path[0] != prefix:
            names.add(path[0])
        elif kind in HEADS and "pooler" in path:
            names.add(".".join(path[: path.index("pooler") + 1]))
        else:
            raise ModelError(
                f"the checkpoint lacks weights that a {kind} model needs",
                where=base,
                found=f"nothing for {key}",
                fix="give it a masked-LM head with adamergex train (kind: masked-lm-head), or choose one that has it"
                if kind == "masked-lm"
                else "choose a checkpoint that was saved whole, with its language-model head",
            )
    return tuple(sorted(names))


def checkpoint_files(base: str) -> list[Path]:
    """config.json and the weight files of a backbone. Raises: ModelError where one is missing."""
    place = resolve(base)
    config = checkpoint_file(place, "config.json")
    if config is None:
        raise ModelError("there is no config.json", where=place, fix="name a transformers checkpoint")
    for name in _WEIGHTS:
        found = checkpoint_file(place, name)
        if found is None:
            continue
        if not name.endswith(".json"):
            return [config, found]
        shards = sorted(set(json.loads(found.read_text(encoding="utf-8"))["weight_map"].values()))
        return [config, *(shard for shard in (checkpoint_file(place, name) for name in shards) if shard is not None)]
    raise ModelError("there are no weights", where=place, expected=" or ".join(_WEIGHTS[::2]), fix="check the folder")


def checkpoint_file(place: str, name: str) -> Path | None:
    """A file of a checkpoint, of a folder or of the hub; None where it has none of this name."""
    if Path(place).is_dir():
        path = Path(place) / name
        return path if path.is_file() else None
    found = cached_file(place, name, _raise_exceptions_for_missing_entries=False)
    return None if found is None else Path(found)


def _damaged(base: str) -> Path | str:
    """The weight file that cannot be opened, or the only one; the library's error does not tell which it was."""
    weights = checkpoint_files(base)[1:]
    for path in weights:
        if path.suffix == ".safetensors":
            try:
                with safe_open(path, "pt"):
                    pass
            except SafetensorError:
                return path
    return weights[0] if len(weights) == 1 else base


@functools.lru_cache(maxsize=64)
def _hash_files(files: tuple[tuple[str, int, int], ...]) -> str:
    digest = hashlib.sha256()
    for name, size, _ in files:
        digest.update(f"{Path(name).name}\0{size}\0".encode())
        with Path(name).open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _unreadable(base: str, error: BaseException, part: str = "model") -> ModelError:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return ModelError(
        f"the {part} cannot be loaded",
        where=base,
        found=reason,
        expected="a folder or hub id with config.json, weights and tokenizer, of an architecture that transformers has",
        fix="check the name; models that need their own code (trust_remote_code) are not run",
    )
