"""Backbones: what a name means, which family it is, and loading it with its tokenizer."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from safetensors import SafetensorError
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

from adamergex.backbones.base_documents import loading, require_config, require_tokenizer_files, unreadable
from adamergex.backbones.base_files import base_sha256, checkpoint_file, damaged_file, resolve
from adamergex.backbones.cache import cached
from adamergex.backbones.pooling import POOLING_FILE, HeadInput, read_by_mean, says_mean, trains_without
from adamergex.backbones.vocabulary import require_embeddings, require_vocabulary
from adamergex.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Family = Literal["encoder", "decoder", "encoder-decoder"]
Head = Literal["sequence-classification", "multiple-choice", "question-answering", "token-classification"]
Kind = Literal["masked-lm", "causal-lm", "sequence-to-sequence", "sentence-encoder"] | Head

_CLASSES: dict[Kind, Any] = {
    "masked-lm": AutoModelForMaskedLM,
    "causal-lm": AutoModelForCausalLM,
    "sequence-classification": AutoModelForSequenceClassification,
    "multiple-choice": AutoModelForMultipleChoice,
    "question-answering": AutoModelForQuestionAnswering,
    "token-classification": AutoModelForTokenClassification,
    "sequence-to-sequence": AutoModelForSeq2SeqLM,
    # Of an encoder only the backbone is used; its modules have the names that they have beside a head.
    "sentence-encoder": AutoModelForSequenceClassification,
}
HEADS: tuple[Head, ...] = get_args(Head)
"""Kinds whose head a masked-LM checkpoint lacks, so that it is new and trained with the adapter."""


@dataclass(frozen=True)
class Loaded:
    """A backbone in memory. ``new_modules``: modules whose weights the checkpoint lacks (a new classification head)."""

    base: str
    kind: Kind
    family: Family
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    new_modules: tuple[str, ...]

    @property
    def sha256(self) -> str:
        """Hash of the checkpoint: see ``base_sha256``."""
        return base_sha256(self.base)


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
    require_config(base)
    with loading(base):
        config: PreTrainedConfig = AutoConfig.from_pretrained(resolve(base), trust_remote_code=False)
    return config


def vocabulary_size(base: str) -> int:
    """The rows that a backbone's config gives its embeddings. Raises: ModelError where it gives none."""
    size = getattr(load_config(base), "vocab_size", None)
    if type(size) is not int or size < 1:
        raise ModelError(
            "the model's config does not say how many tokens there are",
            where=f"{base}: config.json",
            found=f"vocab_size {size!r}",
            expected="a whole number, 1 or more",
            fix="use a text model whose config has vocab_size",
        )
    return size


def skeleton(base: str, automatic: Any) -> Any:
    """A base's model of one of transformers' Auto classes, without weights (device "meta").

    Raises: ModelError where its config cannot be read, or no model can be made of it.
    """
    config = load_config(base)
    with loading(base), torch.device("meta"), quiet():
        return automatic.from_config(config, trust_remote_code=False)


def kind_for(base: str, *, labelled: bool, head: Head = "sequence-classification") -> Kind:
    """The kind of head that training needs: for labels ``head`` on encoders, else the language model's."""
    side = family(load_config(base))
    if side == "encoder-decoder":
        return "sequence-to-sequence"
    if side == "decoder":
        return "causal-lm"
    return head if labelled else "masked-lm"


def head_input(base: str, chosen: HeadInput) -> HeadInput:
    """What a head for whole texts reads: ``auto`` becomes "mean" where the checkpoint says so, else "cls"."""
    if chosen != "auto":
        return chosen
    return "mean" if says_mean(load_config(base), checkpoint_file(resolve(base), POOLING_FILE)) else "cls"


def is_sentence_encoder(base: str) -> bool:
    """Whether a base reads a text by its mean and was saved without a language-model head, as its config says."""
    classes = getattr(load_config(base), "architectures", None) or ()
    return bool(classes) and all(str(name).endswith("Model") for name in classes) and head_input(base, "auto") == "mean"


def load(base: str, kind: Kind, labels: Sequence[str] | None = None, head: HeadInput = "cls") -> Loaded:
    """Load a backbone and its tokenizer: float32 on CPU, bfloat16 on CUDA whatever the checkpoint's dtype.

    No code of the checkpoint is run (``trust_remote_code`` stays off). ``labels`` are the classes of a sequence- or
    token-classification head; ``head``: what a head for whole texts reads (see ``head_input``). Raises: ModelError
    for an unreadable checkpoint, one without the language-model head that ``kind`` needs, or a tokenizer without a
    usable padding piece.
    """
    classes = None if labels is None else tuple(labels)
    return cached(lambda: (base_sha256(base), base, kind, classes, head), lambda: _load(base, kind, labels, head))


def _load(base: str, kind: Kind, labels: Sequence[str] | None, head: HeadInput) -> Loaded:
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
                ignore_mismatched_sizes=kind in HEADS or kind == "sentence-encoder",
                output_loading_info=True,
            )
        except (SafetensorError, UnpicklingError, EOFError, IndexError) as error:
            raise ModelError(
                "the model's weights are damaged",
                where=damaged_file(base),
                found=str(error) or type(error).__name__,
                fix="copy or download the checkpoint again",
            ) from error
        except MemoryError:
            raise
        except Exception as error:
            raise unreadable(base, error) from error
    missing = [*report["missing_keys"], *(entry[0] for entry in report["mismatched_keys"])]
    new_modules = _new_modules(base, kind, model.base_model_prefix, missing)
    if kind == "sentence-encoder":
        new_modules = ()  # neither head nor pooler is used
    elif head == "mean":
        read_by_mean(model)
        new_modules = trains_without(new_modules)
    if torch.cuda.is_available():
        model.to("cuda")
    pieces = tokenizer(base)
    return Loaded(base, kind, family(config), _fitting(model.eval(), pieces, base), pieces, new_modules)


def outline(base: str, kind: Kind, labels: Sequence[str] | None = None, head: HeadInput = "cls") -> Loaded | None:
    """A backbone of the right shape without weights, and its tokenizer, to ask what would be possible; None for an
    architecture that cannot be made so. Raises: ModelError, as ``load`` does, but for the weights."""
    config, pieces = load_config(base), tokenizer(base)
    if labels is not None:
        config.id2label = dict(enumerate(labels))
    try:
        with torch.device("meta"), quiet():
            model = _CLASSES[kind].from_config(config, trust_remote_code=False).eval()
    except Exception:  # the library's: what is wrong is told where the model is loaded
        return None
    if head == "mean":
        read_by_mean(model)
    return Loaded(base, kind, family(config), _fitting(model, pieces, base), pieces, ())


def _fitting(model: PreTrainedModel, pieces: PreTrainedTokenizerBase, base: str) -> PreTrainedModel:
    embeddings = model.get_input_embeddings()
    if isinstance(embeddings, nn.Embedding):
        require_embeddings(pieces, embeddings.num_embeddings, base)
    return model


def tokenizer(base: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a backbone, able to pad. Raises: ModelError when none can be loaded, or it cannot pad."""
    require_tokenizer_files(base)
    with loading(base, "tokenizer"), quiet():
        found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(resolve(base), trust_remote_code=False)
    require_vocabulary(found, base)
    longest: object = found.model_max_length
    if isinstance(longest, bool) or not isinstance(longest, int | float) or not longest >= 1:
        raise ModelError(
            "the tokenizer does not say how long a text may be",
            where=f"{base}: tokenizer_config.json",
            found=f"model_max_length {longest!r}",
            expected="a number, 1 or more; left out where there is no limit",
            fix="correct model_max_length in tokenizer_config.json",
        )
    if found.pad_token_id is None:
        # An invented id would be a word of the vocabulary. The end piece is safe: padding is hidden by the attention
        # mask, and labels are set per position, never by comparing with the padding id.
        if found.eos_token_id is None or family(load_config(base)) == "encoder":
            raise ModelError(
                "the tokenizer has no padding token",
                where=base,
                found=f"special tokens {found.special_tokens_map}",
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


def longest_input(model: nn.Module, pieces: PreTrainedTokenizerBase) -> int:
    """How many pieces the model takes, special ones included (RoBERTa's positions start after the padding's)."""
    config: Any = model.config
    config = config if config.is_encoder_decoder else config.get_text_config()
    names = ("max_position_embeddings", "max_seq_len")
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
            "the decoder's first token is not known",
            where=type(model).__name__,
            found=str(error),
            expected="decoder_start_token_id and pad_token_id in config.json",
            fix="set them in the checkpoint's config.json (T5: both the padding's id)",
        ) from error
    return shifted


def _new_modules(base: str, kind: Kind, prefix: str, missing: Iterable[str]) -> tuple[str, ...]:
    """The outermost new module of each missing weight: the head, or a pooler that masked-LM checkpoints lack."""
    names = set()
    for key in missing:
        path = key.split(".")[:-1]
        headed = kind in HEADS or kind == "sentence-encoder"
        if headed and path[0] != prefix:
            names.add(path[0])
        elif headed and "pooler" in path:
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
