"""Loading of backbones with their tokenizers; families and kinds of models."""

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
from adamergex.backbones.pooling import POOLING_FILE, HeadInput, read_by_mean, uses_mean_pooling, without_poolers
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
    # Only the encoder's backbone is used; its modules have the same names as with a head.
    "sentence-encoder": AutoModelForSequenceClassification,
}
HEADS: tuple[Head, ...] = get_args(Head)
"""Kinds whose head is missing from masked-LM checkpoints: newly initialised, and trained with the adapter."""


@dataclass(frozen=True)
class Loaded:
    """A loaded backbone. ``new_modules``: newly initialised modules, missing from the checkpoint (a task head)."""

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
    """The family of an architecture, by transformers' architecture mappings.

    Raises: ModelError: the architecture has neither a masked nor a causal language-model head.
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
    """The configuration of a backbone. Raises: ModelError: it cannot be read."""
    require_config(base)
    with loading(base):
        config: PreTrainedConfig = AutoConfig.from_pretrained(resolve(base), trust_remote_code=False)
    return config


def vocabulary_size(base: str) -> int:
    """The number of rows of a backbone's embeddings, from its config. Raises: ModelError: the config lacks it."""
    size = getattr(load_config(base), "vocab_size", None)
    if type(size) is not int or size < 1:
        raise ModelError(
            "the model's config has no valid number of tokens",
            where=f"{base}: config.json",
            found=f"vocab_size {size!r}",
            expected="a whole number, 1 or more",
            fix="use a text model whose config has vocab_size",
        )
    return size


def skeleton(base: str, automatic: Any) -> Any:
    """A base's model by one of transformers' Auto classes, without weights (device "meta").

    Raises: ModelError: its config cannot be read, or does not define a model.
    """
    config = load_config(base)
    with loading(base), torch.device("meta"), quiet():
        return automatic.from_config(config, trust_remote_code=False)


def kind_for(base: str, *, labelled: bool, head: Head = "sequence-classification") -> Kind:
    """The kind of model for training: an encoder with labels gets ``head``, else the language-model head."""
    base_family = family(load_config(base))
    if base_family == "encoder-decoder":
        return "sequence-to-sequence"
    if base_family == "decoder":
        return "causal-lm"
    return head if labelled else "masked-lm"


def head_input(base: str, chosen: HeadInput) -> HeadInput:
    """The input of a head for whole texts: ``auto`` becomes "mean" if the checkpoint uses mean pooling, else "cls"."""
    if chosen != "auto":
        return chosen
    return "mean" if uses_mean_pooling(load_config(base), checkpoint_file(resolve(base), POOLING_FILE)) else "cls"


def is_sentence_encoder(base: str) -> bool:
    """Whether a base uses mean pooling and was saved without a language-model head, according to its config."""
    classes = getattr(load_config(base), "architectures", None) or ()
    return bool(classes) and all(str(name).endswith("Model") for name in classes) and head_input(base, "auto") == "mean"


def load(base: str, kind: Kind, labels: Sequence[str] | None = None, head: HeadInput = "cls") -> Loaded:
    """Load a backbone and its tokenizer: float32 on CPU, bfloat16 on CUDA, independent of the checkpoint's dtype.

    Never runs code of the checkpoint (``trust_remote_code`` stays off). ``labels``: the classes of a sequence- or
    token-classification head; ``head``: the input of a head for whole texts (see ``head_input``). Raises: ModelError:
    an unreadable checkpoint, one without the language-model head that ``kind`` needs, or a tokenizer without a usable
    padding token.
    """
    classes = None if labels is None else tuple(labels)
    return cached(lambda: (base_sha256(base), base, kind, classes, head), lambda: _load(base, kind, labels, head))


def _load(base: str, kind: Kind, labels: Sequence[str] | None, head: HeadInput) -> Loaded:
    config = load_config(base)
    if labels is not None:
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: index for index, label in enumerate(labels)}
    # A missing head is initialised here at random, and again from the job's seed when an adapter is attached.
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
        new_modules = without_poolers(new_modules)
    if torch.cuda.is_available():
        model.to("cuda")
    base_tokenizer = tokenizer(base)
    _require_fitting(model, base_tokenizer, base)
    return Loaded(base, kind, family(config), model.eval(), base_tokenizer, new_modules)


def outline(base: str, kind: Kind, labels: Sequence[str] | None = None, head: HeadInput = "cls") -> Loaded | None:
    """A backbone without weights, and its tokenizer, for checks before training; None for an architecture that cannot
    be built this way. Raises: ModelError, as ``load``, except for the weights."""
    config, base_tokenizer = load_config(base), tokenizer(base)
    if labels is not None:
        config.id2label = dict(enumerate(labels))
    try:
        with torch.device("meta"), quiet():
            model = _CLASSES[kind].from_config(config, trust_remote_code=False).eval()
    except Exception:  # the library's; loading the model reports the problem
        return None
    if head == "mean":
        read_by_mean(model)
    _require_fitting(model, base_tokenizer, base)
    return Loaded(base, kind, family(config), model, base_tokenizer, ())


def _require_fitting(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, base: str) -> None:
    embeddings = model.get_input_embeddings()
    if isinstance(embeddings, nn.Embedding):
        require_embeddings(tokenizer, embeddings.num_embeddings, base)


def tokenizer(base: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a backbone, able to pad. Raises: ModelError: none can be loaded, or it cannot pad."""
    require_tokenizer_files(base)
    with loading(base, "tokenizer"), quiet():
        result: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(resolve(base), trust_remote_code=False)
    require_vocabulary(result, base)
    longest: object = result.model_max_length
    if isinstance(longest, bool) or not isinstance(longest, int | float) or not longest >= 1:
        raise ModelError(
            "the tokenizer has no valid maximum length of a text",
            where=f"{base}: tokenizer_config.json",
            found=f"model_max_length {longest!r}",
            expected="a number, 1 or more; omitted if there is no limit",
            fix="correct model_max_length in tokenizer_config.json",
        )
    if result.pad_token_id is None:
        # A new id would be a word of the vocabulary. The end token is safe: the attention mask hides padding, and
        # labels are set per position, never by comparison with the padding id.
        if result.eos_token_id is None or family(load_config(base)) == "encoder":
            raise ModelError(
                "the tokenizer has no padding token",
                where=base,
                found=f"special tokens {result.special_tokens_map}",
                fix="set pad_token in the checkpoint's tokenizer_config.json",
            )
        result.pad_token = result.eos_token
    return result


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Context that silences transformers' load reports and progress bars; our own checks raise errors instead."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def longest_input(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> int:
    """Maximum input tokens of the model, with special tokens (RoBERTa's positions start after the padding's)."""
    config: Any = model.config
    config = config if config.is_encoder_decoder else config.get_text_config()
    names = ("max_position_embeddings", "max_seq_len")
    limit = next((value for name in names if (value := getattr(config, name, None))), 10**9)
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            limit = module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
            break
    return min(int(limit), int(tokenizer.model_max_length))


def frame(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The special tokens that the tokenizer puts before and after one text."""
    inner = tokenizer("a", add_special_tokens=False)["input_ids"]
    outer = tokenizer("a")["input_ids"]
    for start in range(len(outer) - len(inner) + 1):
        if outer[start : start + len(inner)] == inner:
            return outer[:start], outer[start + len(inner) :]
    return [], []


def decoder_opening(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that an encoder-decoder's decoder reads before the first token of an answer.

    T5's decoder start token (its padding), BART's end token and ``<s>``, mBART's language token: all follow from
    shifting a text of one token as the model itself shifts labels.
    """
    before, after = frame(tokenizer)
    text = next(token for token in range(len(tokenizer)) if token not in tokenizer.all_special_ids)
    shifted = decoder_inputs(model, torch.tensor([before + [text] + after]))
    return [int(token) for token in shifted[0, : 1 + len(before)]]


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
    """The outermost module of each missing weight: the head, or a pooler that masked-LM checkpoints lack."""
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
                else "choose a complete checkpoint, with its language-model head",
            )
    return tuple(sorted(names))
