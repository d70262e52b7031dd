"""Extractive question answering with an encoder's span head, in overlapping windows over long contexts.

Devlin et al. 2019, BERT (arXiv 1810.04805) §4.2, with one change: a window's logits become log p over its context and
the opening token, which means "not in this window", so that the scores of different windows are comparable. The opening
token is a target in training and never an answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from adamergex.data.values import Row, texts
from adamergex.errors import ConfigError
from adamergex.jobs.settings import SpanAnswering
from adamergex.tasks import token_ids
from adamergex.tasks.answering.prompts import TokenIds
from adamergex.tasks.answering.reading import by_length
from adamergex.tasks.sequences import Sequences, on_device, pair_frame, require_fast

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Offsets = list[tuple[int, int]]


class Window(NamedTuple):
    """One window: its row, the position of its first context token in the input, and its tokens' character offsets."""

    row: int
    begin: int
    offsets: Offsets


class AnswerSpan(NamedTuple):
    """A span of the context: its text, its start (characters), and log p(first token) + log p(last token)."""

    text: str
    start: int
    score: float


@dataclass(frozen=True)
class SpanExamples:
    """Windows of questions and contexts. ``answer_spans``: first and last token of the answer, 0 and 0 if elsewhere.

    ``truncated``: rows that need more than one window; no text is lost."""

    sequences: Sequences
    windows: list[Window]
    answer_spans: list[tuple[int, int]]
    truncated: int

    @property
    def lengths(self) -> Sequence[int]:
        return self.sequences.lengths

    def inputs(self, indices: Sequence[int]) -> tuple[dict[str, Tensor], Tensor]:
        """The model's inputs, and the allowed answer tokens: bool [windows, length], context and opening token."""
        inputs = self.sequences.inputs(indices)
        allowed = torch.zeros(inputs["input_ids"].shape, dtype=torch.bool)
        allowed[:, 0] = True
        for row, index in enumerate(indices):
            window = self.windows[index]
            allowed[row, window.begin : window.begin + len(window.offsets)] = True
        return inputs, allowed

    def batch(self, indices: Sequence[int], step: int) -> dict[str, Tensor]:
        """Inputs padded to the longest window of the batch, allowed tokens and answer spans."""
        inputs, allowed = self.inputs(indices)
        answer_spans = torch.tensor([self.answer_spans[index] for index in indices])
        return {**inputs, "allowed": allowed, "answer_spans": answer_spans}

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """Mean over windows of (−log p(first) − log p(last)) / 2 (nats)."""
        inputs = {name: tensor for name, tensor in batch.items() if name not in ("allowed", "answer_spans")}
        first, last = _log_probabilities(model(**inputs), batch["allowed"])
        answer_spans = batch["answer_spans"]
        return (functional.nll_loss(first, answer_spans[:, 0]) + functional.nll_loss(last, answer_spans[:, 1])) / 2

    def labelled(self, batch: Mapping[str, Tensor]) -> int:
        """Number of windows that the loss averages over."""
        return len(batch["answer_spans"])


def span_examples(
    task: SpanAnswering, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, longest: int
) -> SpanExamples:
    """Windows of at most ``max_length`` tokens: the question, then a part of the context; they overlap by ``stride``.

    Raises: ModelError: no offsets; ConfigError: a question leaves no room for the context.
    """
    require_fast(tokenizer, "span answering")
    frame = pair_frame(tokenizer)
    questions = token_ids(tokenizer, [str(row["question"]) for row in rows])
    contexts = tokenizer(
        [str(row["context"]) for row in rows], add_special_tokens=False, return_offsets_mapping=True, verbose=False
    )
    windows: list[Window] = []
    answer_spans: list[tuple[int, int]] = []
    ids: list[TokenIds] = []
    types: list[TokenIds] = []
    several = 0
    for number, (row, question) in enumerate(zip(rows, questions, strict=True)):
        tokens, offsets = list(contexts["input_ids"][number]), _trimmed(contexts["offset_mapping"][number], row)
        starts = list(_starts(len(tokens), task, min(task.max_length, longest) - frame.size - len(question)))
        several += len(starts) > 1
        for begin, end in starts:
            window = Window(number, len(frame.before) + len(question) + len(frame.between), offsets[begin:end])
            windows.append(window)
            answer_spans.append(_target(row, window))
            ids.append(frame.ids(question, tokens[begin:end]))
            types.append(frame.types(question, tokens[begin:end]))
    sequences = Sequences(ids, types if frame.segments else None, int(tokenizer.pad_token_id))
    return SpanExamples(sequences, windows, answer_spans, several)


@torch.inference_mode()
def span_answers(
    task: SpanAnswering, rows: Sequence[Row], model: nn.Module, examples: SpanExamples, batch_tokens: int
) -> list[AnswerSpan]:
    """The best span of every row over its windows: at most ``longest_answer`` tokens, never empty."""
    best: dict[int, AnswerSpan] = {}
    for indices in by_length(examples.lengths, batch_tokens):
        inputs, allowed = examples.inputs(indices)
        first, last = _log_probabilities(model(**on_device(model, inputs)), allowed)
        for row, index in enumerate(indices):
            window = examples.windows[index]
            context = slice(window.begin, window.begin + len(window.offsets))
            candidate = _best(first[row, context].cpu(), last[row, context].cpu(), window, task.longest_answer)
            if candidate is not None and (window.row not in best or candidate[2] > best[window.row].score):
                start, end, score = candidate
                best[window.row] = AnswerSpan(str(rows[window.row]["context"])[start:end], start, score)
    return [best.get(number, AnswerSpan("", 0, float("-inf"))) for number in range(len(rows))]


def _best(first: Tensor, last: Tensor, window: Window, longest: int) -> tuple[int, int, float] | None:
    """Start and end (characters) and score of the best span in a window; the first one among equal scores."""
    # Tokens without characters (a lone space) neither begin nor end an answer.
    real = torch.tensor([end > start for start, end in window.offsets])
    if not bool(real.any()):
        return None
    scores = first.masked_fill(~real, -torch.inf)[:, None] + last.masked_fill(~real, -torch.inf)[None, :]
    scores = scores.masked_fill(~torch.ones_like(scores, dtype=torch.bool).triu().tril(longest - 1), -torch.inf)
    row, column = divmod(int(scores.argmax()), scores.shape[1])
    return window.offsets[row][0], window.offsets[column][1], float(scores[row, column])


def _log_probabilities(output: Any, allowed: Tensor) -> tuple[Tensor, Tensor]:
    """log p(first token), log p(last token) [windows, length] over the allowed tokens."""
    excluded = ~allowed.to(output.start_logits.device)
    first, last = (
        logits.float().masked_fill(excluded, -torch.inf).log_softmax(-1)
        for logits in (output.start_logits, output.end_logits)
    )
    return first, last


def _starts(count: int, task: SpanAnswering, room: int) -> Iterator[tuple[int, int]]:
    """Begin and end of the windows of ``room`` tokens over a context; consecutive windows share ``stride`` tokens."""
    if room < 2:
        raise ConfigError("a question leaves no room for its context", where="max_length", found=f"{room} tokens",
                          expected="more", fix="raise max_length")  # fmt: skip
    step = max(room - task.stride, room // 2)  # a stride as long as the window would never advance
    begin = 0
    while True:
        yield begin, min(begin + room, count)
        if begin + room >= count:
            return
        begin += step


def _target(row: Row, window: Window) -> tuple[int, int]:
    """First and last token of the first gold answer in a window; 0, 0 unless the window holds all of it."""
    start = int(texts(row["starts"])[0])
    end = start + len(texts(row["answers"])[0])
    inside = [index for index, (begin, stop) in enumerate(window.offsets) if begin < end and stop > start]
    if not inside or window.offsets[inside[0]][0] > start or window.offsets[inside[-1]][1] < end:
        return 0, 0
    return window.begin + inside[0], window.begin + inside[-1]


def _trimmed(offsets: Sequence[tuple[int, int]], row: Row) -> Offsets:
    """Offsets without the spaces that some tokenizers include in a token."""
    context, result = str(row["context"]), []
    for start, end in offsets:
        part = context[start:end]
        spaces = len(part) - len(part.lstrip())
        result.append((start + spaces, max(start + len(part.rstrip()), start + spaces)))
    return result
