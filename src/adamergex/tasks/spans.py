"""Spans of a context that answer a question, by an encoder's span head: windows over long contexts, offsets back.

Devlin et al. 2019, BERT (arXiv 1810.04805) §4.2, with one change: a window's logits become log p over its context and
the opening piece, which stands for "not in this window"; so scores of different windows compare. The opening piece is
a target in training and never an answer.
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
from adamergex.tasks import pieces_of
from adamergex.tasks.answering.prompts import Pieces
from adamergex.tasks.answering.reading import by_length
from adamergex.tasks.sequences import Sequences, on_device, pair_frame, require_fast

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Offsets = list[tuple[int, int]]


class Window(NamedTuple):
    """Which row it reads, where its context begins among the input's pieces, and its pieces' characters."""

    row: int
    begin: int
    offsets: Offsets


class Answer(NamedTuple):
    """The best span: its text, where it begins (characters), and log p(first piece) + log p(last piece)."""

    text: str
    start: int
    score: float


@dataclass(frozen=True)
class SpanExamples:
    """Windows of questions and contexts. ``spans``: first and last piece of the answer, 0 and 0 where it is elsewhere.

    ``truncated``: rows that took more than one window; nothing is lost."""

    sequences: Sequences
    windows: list[Window]
    spans: list[tuple[int, int]]
    truncated: int

    @property
    def lengths(self) -> Sequence[int]:
        return self.sequences.lengths

    def inputs(self, indices: Sequence[int]) -> tuple[dict[str, Tensor], Tensor]:
        """The model's inputs, and where an answer may be: bool [windows, length], context and opening piece."""
        inputs = self.sequences.inputs(indices)
        allowed = torch.zeros(inputs["input_ids"].shape, dtype=torch.bool)
        allowed[:, 0] = True
        for place, index in enumerate(indices):
            window = self.windows[index]
            allowed[place, window.begin : window.begin + len(window.offsets)] = True
        return inputs, allowed

    def batch(self, indices: Sequence[int], step: int) -> dict[str, Tensor]:
        """Padded only to the longest window of the batch."""
        inputs, allowed = self.inputs(indices)
        return {**inputs, "allowed": allowed, "spans": torch.tensor([self.spans[index] for index in indices])}

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """Mean over windows of (−log p(first) − log p(last)) / 2 (nats)."""
        inputs = {name: tensor for name, tensor in batch.items() if name not in ("allowed", "spans")}
        first, last = _log_probabilities(model(**inputs), batch["allowed"])
        spans = batch["spans"]
        return (functional.nll_loss(first, spans[:, 0]) + functional.nll_loss(last, spans[:, 1])) / 2

    def labelled(self, batch: Mapping[str, Tensor]) -> int:
        """How many windows the loss is a mean over."""
        return len(batch["spans"])


def span_examples(
    task: SpanAnswering, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, longest: int
) -> SpanExamples:
    """Windows of at most ``max_length`` pieces: question, then a part of the context; ``stride`` pieces are shared.

    Raises: ModelError: no offsets; ConfigError: a question leaves no room for the context.
    """
    require_fast(tokenizer, "span answering")
    frame = pair_frame(tokenizer)
    questions = pieces_of(tokenizer, [str(row["question"]) for row in rows])
    contexts = tokenizer(
        [str(row["context"]) for row in rows], add_special_tokens=False, return_offsets_mapping=True, verbose=False
    )
    windows: list[Window] = []
    spans: list[tuple[int, int]] = []
    ids: list[Pieces] = []
    types: list[Pieces] = []
    several = 0
    for number, (row, question) in enumerate(zip(rows, questions, strict=True)):
        pieces, offsets = list(contexts["input_ids"][number]), _trimmed(contexts["offset_mapping"][number], row)
        starts = list(_starts(len(pieces), task, min(task.max_length, longest) - frame.size - len(question)))
        several += len(starts) > 1
        for begin, end in starts:
            window = Window(number, len(frame.before) + len(question) + len(frame.between), offsets[begin:end])
            windows.append(window)
            spans.append(_target(row, window))
            ids.append(frame.ids(question, pieces[begin:end]))
            types.append(frame.types(question, pieces[begin:end]))
    made = Sequences(ids, types if frame.segments else None, int(tokenizer.pad_token_id))
    return SpanExamples(made, windows, spans, several)


@torch.inference_mode()
def span_answers(
    task: SpanAnswering, rows: Sequence[Row], model: nn.Module, examples: SpanExamples, batch_tokens: int
) -> list[Answer]:
    """The best span of every row over its windows: at most ``longest_answer`` pieces, never empty."""
    best: dict[int, Answer] = {}
    for indices in by_length(examples.lengths, batch_tokens):
        inputs, allowed = examples.inputs(indices)
        first, last = _log_probabilities(model(**on_device(model, inputs)), allowed)
        for place, index in enumerate(indices):
            window = examples.windows[index]
            inside = slice(window.begin, window.begin + len(window.offsets))
            found = _best(first[place, inside].cpu(), last[place, inside].cpu(), window, task.longest_answer)
            if found is not None and (window.row not in best or found[2] > best[window.row].score):
                start, end, score = found
                best[window.row] = Answer(str(rows[window.row]["context"])[start:end], start, score)
    return [best.get(number, Answer("", 0, float("-inf"))) for number in range(len(rows))]


def _best(first: Tensor, last: Tensor, window: Window, longest: int) -> tuple[int, int, float] | None:
    """Characters and score of the best span in a window; of equal scores the first span wins."""
    # Pieces without characters (a lone blank) begin and end no answer.
    real = torch.tensor([end > start for start, end in window.offsets])
    if not bool(real.any()):
        return None
    scores = first.masked_fill(~real, -torch.inf)[:, None] + last.masked_fill(~real, -torch.inf)[None, :]
    scores = scores.masked_fill(~torch.ones_like(scores, dtype=torch.bool).triu().tril(longest - 1), -torch.inf)
    row, column = divmod(int(scores.argmax()), scores.shape[1])
    return window.offsets[row][0], window.offsets[column][1], float(scores[row, column])


def _log_probabilities(output: Any, allowed: Tensor) -> tuple[Tensor, Tensor]:
    """log p(first piece), log p(last piece) [windows, length] over the allowed pieces."""
    closed = ~allowed.to(output.start_logits.device)
    first, last = (
        logits.float().masked_fill(closed, -torch.inf).log_softmax(-1)
        for logits in (output.start_logits, output.end_logits)
    )
    return first, last


def _starts(count: int, task: SpanAnswering, room: int) -> Iterator[tuple[int, int]]:
    """Where windows of ``room`` pieces over a context begin and end; each shares ``stride`` pieces with the next."""
    if room < 2:
        raise ConfigError("a question leaves no room for its context", where="max_length", found=f"{room} tokens",
                          expected="more", fix="raise max_length")  # fmt: skip
    step = max(room - task.stride, room // 2)  # a stride as long as the window would stand still
    begin = 0
    while True:
        yield begin, min(begin + room, count)
        if begin + room >= count:
            return
        begin += step


def _target(row: Row, window: Window) -> tuple[int, int]:
    """First and last piece of the first gold answer in a window; 0, 0 unless it holds all of it."""
    start = int(texts(row["starts"])[0])
    end = start + len(texts(row["answers"])[0])
    inside = [index for index, (begin, stop) in enumerate(window.offsets) if begin < end and stop > start]
    if not inside or window.offsets[inside[0]][0] > start or window.offsets[inside[-1]][1] < end:
        return 0, 0
    return window.begin + inside[0], window.begin + inside[-1]


def _trimmed(offsets: Sequence[tuple[int, int]], row: Row) -> Offsets:
    """Without the blanks that some tokenizers count into a piece."""
    context, result = str(row["context"]), []
    for start, end in offsets:
        part = context[start:end]
        blanks = len(part) - len(part.lstrip())
        result.append((start + blanks, max(start + len(part.rstrip()), start + blanks)))
    return result
