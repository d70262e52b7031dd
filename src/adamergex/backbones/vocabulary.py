"""Checks that a checkpoint has a tokenizer, and that it fits the embeddings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adamergex.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_OTHER_INPUTS = ("image", "audio", "video", "boi", "eoi", "boa", "eoa")  # names of special tokens of other modalities


def require_vocabulary(tokenizer: PreTrainedTokenizerBase, base: str) -> None:
    """Raises: ModelError: the tokenizer has no text tokens, like the one that transformers creates for a checkpoint
    without tokenizer files."""
    special = set(tokenizer.all_special_ids)
    words = [token for token, number in tokenizer.get_vocab().items() if number not in special and token.strip("▁Ġ ")]
    if len(words) < 2:
        raise ModelError(
            "the checkpoint has no tokenizer",
            where=base,
            found=f"{type(tokenizer).__name__} with {len(tokenizer)} entries, {len(words)} of them for text",
            expected="tokenizer.json, or the vocabulary file of the model's tokenizer, beside config.json",
            fix="save the tokenizer into the checkpoint: tokenizer.save_pretrained(folder)",
        )


def require_embeddings(tokenizer: PreTrainedTokenizerBase, rows: int, base: str) -> None:
    """Raises: ModelError: the tokenizer has entries beyond the ``rows`` of the model's embeddings.

    Special tokens of other modalities may be beyond: the text model of a multimodal family keeps its tokenizer.
    """
    named = tokenizer.special_tokens_map.items()
    other = {str(token) for name, token in named if name.removesuffix("_token").split("_")[0] in _OTHER_INPUTS}
    beyond = {token: number for token, number in tokenizer.get_vocab().items() if number >= rows and token not in other}
    if beyond:
        first = min(beyond, key=beyond.__getitem__)
        raise ModelError(
            "the tokenizer has more entries than the model has embeddings",
            where=base,
            found=f"{max(beyond.values()) + 1} entries, {rows} embeddings; the first without one is {first!r}",
            expected=f"at most {rows} entries",
            fix="name the checkpoint that the tokenizer belongs to, or save the model after "
            "model.resize_token_embeddings(len(tokenizer))",
        )
