"""Every kind of task on every family that can do it: trains, answers, is measured; and what each promises."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from topic_sentences import TOPICS, sentences
from torch import nn

from adamergex import evaluation, statistics
from adamergex.adapters import peft_backed
from adamergex.backbones import loading
from adamergex.errors import ConfigError, DataError, ModelError
from adamergex.files import tensor_files
from adamergex.jobs.settings import (
    EvaluateJob,
    Generation,
    LanguageModeling,
    MultipleChoice,
    Optimisation,
    PairClassification,
    Rows,
    SpanAnswering,
    Structure,
    Tagging,
    Target,
    TrainJob,
)
from adamergex.search import tuning
from adamergex.tasks import measuring
from adamergex.tasks.answering.choice_heads import choice_examples, pair_examples
from adamergex.tasks.answering.written import read_entities, written_entities
from adamergex.tasks.rows import read
from adamergex.tasks.sequences import pair_frame
from adamergex.tasks.spans import span_answers, span_examples
from adamergex.tasks.tagging import predicted_tags, tag_examples, tag_names
from adamergex.training import train

TASKS: dict[str, Target] = {
    "pair-classification": PairClassification(labels=("same", "other"), prompt="{premise} {hypothesis} Topic:"),
    "multiple-choice": MultipleChoice(prompt="{premise} Topic:"),
    "span": SpanAnswering(max_length=72, stride=16, max_new_tokens=8, prompt="{context} {question}"),
    "tagging": Tagging(types=("PER", "LOC"), max_new_tokens=24, prompt="{text} Topic:"),
    "generation": Generation(prompt="{text} Topic:", max_length=72, max_new_tokens=6),
}
FAMILIES = dict.fromkeys(TASKS, ("xlm-r", "bert", "llama", "t5")) | {"generation": ("llama", "t5")}
NAMES = {"cook": "B-PER", "team": "B-PER", "runner": "B-PER", "coast": "B-LOC", "island": "B-LOC", "quiet": "O"}


def rows_of(kind: str) -> list[dict[str, Any]]:
    """36 rows that a small model can learn by heart."""
    found, topics = [], list(TOPICS)
    for number, text in enumerate(sentences()[::2]):
        topic = topics[number * 3 // 36]
        words = text.split()
        found.append(
            {
                "pair-classification": {"premise": text, "hypothesis": "quiet island" if number % 2 else "bread",
                                        "label": "same" if number % 2 else "other"},
                "multiple-choice": {"premise": text, "choice1": topic if number % 2 else "bread",
                                    "choice2": "bread" if number % 2 else topic, "label": (number + 1) % 2},
                "span": {"context": f"{text}. A ferry", "question": "Topic:", "answers": [" ".join(words[:2])],
                         "starts": [0]},
                "tagging": {"tokens": words, "tags": [NAMES.get(word, "O") for word in words]},
                "generation": {"text": text, "target": topic},
            }[kind]
        )  # fmt: skip
    return found


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("rows")

    def path(kind: str) -> Path:
        place = folder / f"{kind}.jsonl"
        place.write_text("".join(json.dumps(row) + "\n" for row in rows_of(kind)), encoding="utf-8")
        return place

    return path


@pytest.fixture(scope="module")
def trained(checkpoints: dict[str, str], files: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(kind, family) -> the adapter of a short train, made once."""
    root = tmp_path_factory.mktemp("adapters")

    def get(kind: str, family: str) -> Path:
        output = root / f"{kind}-{family}"
        if not output.exists():
            job = TrainJob(
                base=checkpoints[family],
                structure=Structure(rank=4, dropout=0.0),
                task=TASKS[kind],
                language="en",
                rows=Rows(path=str(files(kind))),
                optimisation=Optimisation(steps=60, learning_rate=1e-2, batch_size=12, max_grad_norm=1.0),
            )
            train.train(job, output)
        return output

    return get


def job_of(checkpoints: dict[str, str], kind: str, family: str, path: Path, **changes: Any) -> EvaluateJob:
    rows = Rows(path=str(path))
    return EvaluateJob(base=checkpoints[family], task=TASKS[kind], language="en", rows=rows, **changes)


@pytest.mark.parametrize(("kind", "family"), [(kind, family) for kind in TASKS for family in FAMILIES[kind]])
def test_every_task_trains_and_is_measured(
    checkpoints: dict[str, str], files: Any, trained: Any, tmp_path: Path, kind: str, family: str
) -> None:
    adapter, path = trained(kind, family), files(kind)
    losses = json.loads((adapter / "lineage.json").read_text())["settings"]["training"]
    assert losses["loss"] < losses["first_loss"]
    job = job_of(checkpoints, kind, family, path)
    scores = evaluation.evaluate(job, adapter, tmp_path / "out")
    items = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    assert scores.n == len(items) == 36 and scores.truncated <= 1
    metric = TASKS[kind].metric
    assert scores.scores == pytest.approx(measuring.scores(TASKS[kind], items, "en"))
    assert scores.score == pytest.approx(scores.scores[metric])
    assert scores.interval[0] <= scores.score <= scores.interval[1]
    again = evaluation.evaluate(
        job.model_copy(update={"batch_tokens": 400 if family == "t5" else 1}), adapter, tmp_path / "alone"
    )
    assert again == scores
    same = evaluation.paired_difference(tmp_path / "out" / "predictions.jsonl", items)
    assert (same["difference"], same["p"]) == (0, 1) and same["interval"][0] < 0 < same["interval"][1]


@pytest.mark.parametrize(
    ("kind", "family", "least"),
    [
        ("pair-classification", "bert", 60),
        ("multiple-choice", "xlm-r", 80),
        ("span", "xlm-r", 60),
        ("tagging", "xlm-r", 80),
        ("generation", "llama", 60),
        ("span", "llama", 40),
    ],
)
def test_training_shows_in_the_score(
    checkpoints: dict[str, str], files: Any, trained: Any, kind: str, family: str, least: float
) -> None:
    scores = evaluation.evaluate(job_of(checkpoints, kind, family, files(kind)), trained(kind, family))
    assert scores.score > least


@pytest.mark.parametrize("kind", ["pair-classification", "multiple-choice"])
def test_choices_can_be_written_too(checkpoints: dict[str, str], files: Any, trained: Any, kind: str) -> None:
    job = job_of(checkpoints, kind, "llama", files(kind))
    task = job.task.model_copy(update={"answer_by": "generate"})
    scores = evaluation.evaluate(job.model_copy(update={"task": task}), trained(kind, "llama"))
    scored = evaluation.evaluate(job, trained(kind, "llama"))
    assert scores.unparsable <= 36 and scored.unparsable == 0
    assert scores.score <= 100


def test_the_search_of_lambda_takes_the_tasks_metric(
    checkpoints: dict[str, str], files: Any, trained: Any, plain: Path, tmp_path: Path
) -> None:
    for language in ("en", "fr"):
        job = TrainJob(
            base=checkpoints["xlm-r"], structure=Structure(rank=4, dropout=0.0),
            task=LanguageModeling(segment=24, segments=10), language=language, rows=Rows(path=str(plain)),
            optimisation=Optimisation(steps=4, learning_rate=1e-2, batch_size=4), seed=len(language + "fr"),
        )  # fmt: skip
        train.train(job.model_copy(update={"seed": int(language == "fr")}), tmp_path / language)
    found = tuning.tune(
        task=trained("tagging", "xlm-r"), target_reference=tmp_path / "fr", source_reference=tmp_path / "en",
        job=job_of(checkpoints, "tagging", "xlm-r", files("tagging")), grid=(0.5, 8.0),
    )  # fmt: skip
    scores = evaluation.evaluate(job_of(checkpoints, "tagging", "xlm-r", files("tagging")), trained("tagging", "xlm-r"))
    assert found.metric == "f1" and found.curve[0].score == scores.score
    assert found.curve[0].interval == scores.interval


@pytest.mark.parametrize("kind", ["span", "tagging", "multiple-choice"])
def test_all_linear_leaves_heads_to_train_as_they_are(
    checkpoints: dict[str, str], files: Any, tmp_path: Path, kind: str
) -> None:
    """PEFT's own "all-linear" also wraps qa_outputs and the token classifier, which then do not learn."""
    job = TrainJob(
        base=checkpoints["bert"], structure=Structure(rank=2, modules="all-linear"), task=TASKS[kind], language="en",
        rows=Rows(path=str(files(kind))), optimisation=Optimisation(steps=3, learning_rate=1e-2, batch_size=4),
    )  # fmt: skip
    train.train(job, tmp_path / "adapter")
    tensors = tensor_files.read_directory(tmp_path / "adapter")
    heads = {name for name in tensors if "lora_" not in name}
    assert heads and not any("lora_" in name for name in tensors if "encoder" not in name)
    saved = peft_backed.read_config(tmp_path / "adapter")["modules_to_save"]
    assert all(any(f".{module}." in name for name in heads) for module in saved)
    loaded = train.load_for(job)
    fresh = peft_backed.attach(
        loaded.model, job.structure, task_head=True, base_sha256=loaded.sha256, seed=0, new_modules=loaded.new_modules
    )
    start = peft_backed.tensors(fresh)
    assert any(not torch.equal(start[name], tensors[name]) for name in heads if name.endswith("weight"))


def test_families_that_cannot_are_told_so(checkpoints: dict[str, str], files: Any) -> None:
    with pytest.raises(ConfigError, match="cannot do a generation task"):
        train.load_for(
            TrainJob(base=checkpoints["xlm-r"], structure=Structure(), task=TASKS["generation"], language="en",
                     rows=Rows(path="x.jsonl"), optimisation=Optimisation())
        )  # fmt: skip
    with pytest.raises(ConfigError, match=r"cannot do a span task without a trained head[\s\S]*vanilla"):
        evaluation.evaluate(job_of(checkpoints, "span", "xlm-r", files("span")), None)


def test_a_bare_encoder_fills_a_pairs_label_into_a_cloze(checkpoints: dict[str, str], files: Any) -> None:
    scores = evaluation.evaluate(
        job_of(checkpoints, "pair-classification", "xlm-r", files("pair-classification")), None
    )
    assert scores.n == 36


@pytest.mark.parametrize("family", ["xlm-r", "bert"])
def test_what_must_not_be_cut_is_not(checkpoints: dict[str, str], family: str) -> None:
    tokenizer = loading.tokenizer(checkpoints[family])
    rows = [{"premise": "bread and " * 60, "hypothesis": "The team won the match", "label": "same"}]
    made = pair_examples(TASKS["pair-classification"], rows, tokenizer, 40, None)  # type: ignore[arg-type]
    hypothesis = tokenizer("The team won the match", add_special_tokens=False).input_ids
    after = pair_frame(tokenizer).after
    assert made.truncated == 1 and made.lengths == [40]
    assert made.sequences.ids[0][-len(hypothesis) - len(after) :] == [*hypothesis, *after]
    short = [{"premise": "A soup", "choice1": "The team", "choice2": "A ferry", "label": 1}]
    choices = choice_examples(TASKS["multiple-choice"], short, tokenizer, 40, None)  # type: ignore[arg-type]
    assert choices.sequences.ids[1] == tokenizer("A soup", "A ferry").input_ids
    assert choices.batch([0], 0)["input_ids"].shape[:2] == (1, 2)
    with pytest.raises(ConfigError, match="leaves no room"):
        pair_examples(TASKS["pair-classification"], rows, tokenizer, len(hypothesis) + 2, None)  # type: ignore[arg-type]


def test_segments_are_the_tokenizers(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "c"]
    inner = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer = BertTokenizerFast(tokenizer_object=inner)
    frame = pair_frame(tokenizer)
    expected = tokenizer("a c a", "b c")
    assert frame.ids([5, 7, 5], [6, 7]) == expected.input_ids
    assert frame.types([5, 7, 5], [6, 7]) == expected.token_type_ids


class Oracle(nn.Module):
    """Knows the labels of the examples' inputs, and says them as logits."""

    def __init__(self, answers: dict[tuple[int, ...], Any], classes: int = 0) -> None:
        super().__init__()
        self.answers, self.classes, self.place = answers, classes, nn.Parameter(torch.zeros(1))

    def forward(self, input_ids: Any, attention_mask: Any, token_type_ids: Any = None) -> Any:
        found = [
            self.answers[tuple(row[mask.bool()].tolist())] for row, mask in zip(input_ids, attention_mask, strict=True)
        ]
        shape = input_ids.shape
        if self.classes:
            logits = torch.zeros(*shape, self.classes)
            for number, labels in enumerate(found):
                for place, label in enumerate(labels):
                    logits[number, place, max(label, 0)] = 9
            return SimpleNamespace(logits=logits)
        start, end = torch.zeros(shape), torch.zeros(shape)
        for number, (first, last) in enumerate(found):
            start[number, first], end[number, last] = 9, 9
        return SimpleNamespace(start_logits=start, end_logits=end)


def test_an_oracle_of_spans_finds_every_answer_through_windows(checkpoints: dict[str, str]) -> None:
    tokenizer = loading.tokenizer(checkpoints["xlm-r"])
    context = " ".join(sentences())
    answers = ["The cook baked", "beans and onions", "quiet island today", "every year"]
    rows = [
        {
            "context": context,
            "question": " ".join(["Topic:"] * number),
            "answers": [answer],
            "starts": [context.index(answer)],
        }
        for number, answer in enumerate(answers, 1)
    ]
    task = SpanAnswering(max_length=64, stride=12)
    made = span_examples(task, rows, tokenizer, 96)
    assert made.truncated == 4 and max(made.lengths) <= 64
    for number in range(4):  # windows cover the context, and each shares 12 pieces with the next
        windows = [window for window in made.windows if window.row == number]
        assert windows[0].offsets[0][0] == 0 and windows[-1].offsets[-1][1] == len(context)
        for one, other in zip(windows, windows[1:], strict=False):
            assert one.offsets[-12:] == other.offsets[:12]
    knows = {tuple(ids): span for ids, span in zip(made.sequences.ids, made.answer_spans, strict=True)}
    found = span_answers(task, rows, Oracle(knows), made, 400)
    assert [answer.text for answer in found] == answers
    assert [answer.start for answer in found] == [row["starts"][0] for row in rows]


def test_a_span_is_never_null_and_never_too_long(checkpoints: dict[str, str]) -> None:
    tokenizer = loading.tokenizer(checkpoints["xlm-r"])
    row = {"context": sentences()[0], "question": "Topic:", "answers": ["cook"], "starts": [4]}
    task = SpanAnswering(max_length=64, longest_answer=2)
    made = span_examples(task, [row], tokenizer, 96)
    begin = made.windows[0].begin
    says_null = Oracle({tuple(made.sequences.ids[0]): (0, 0)})
    (found,) = span_answers(task, [row], says_null, made, 400)
    assert found.text
    says_long = Oracle({tuple(made.sequences.ids[0]): (begin, begin + 6)})
    (found,) = span_answers(task, [row], says_long, made, 400)
    assert 0 < len(tokenizer(found.text, add_special_tokens=False).input_ids) <= 2


def test_an_oracle_of_tags_tags_every_token_of_long_sentences(checkpoints: dict[str, str]) -> None:
    tokenizer = loading.tokenizer(checkpoints["xlm-r"])
    task = Tagging(types=("PER", "LOC"), max_length=24)
    rows = [{"tokens": row["tokens"] * 4, "tags": row["tags"] * 4} for row in rows_of("tagging")[:9]]
    made = tag_examples(task, rows, tokenizer, 96)
    assert made.truncated == 0 and max(made.lengths) <= 24 and len(made.parts) > len(rows)
    for ids, labels, part in zip(made.sequences.ids, made.labels, made.parts, strict=True):
        assert [place for place, label in enumerate(labels) if label >= 0] == part.positions  # first sub-words alone
        tokens = [[rows[part.row]["tokens"][token]] for token in part.words]
        alone = tokenizer(tokens, is_split_into_words=True, add_special_tokens=False).input_ids
        assert [ids[place] for place in part.positions] == [pieces[0] for pieces in alone]
    knows = {tuple(ids): labels for ids, labels in zip(made.sequences.ids, made.labels, strict=True)}
    model = Oracle(knows, len(tag_names(task)))
    assert predicted_tags(task, rows, model, made, 200) == [row["tags"] for row in rows]


@pytest.mark.parametrize("kind", ["span", "tagging"])
def test_slow_tokenizers_are_explained(
    checkpoints: dict[str, str], files: Any, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = loading.tokenizer(checkpoints["xlm-r"])
    monkeypatch.setattr(type(tokenizer), "is_fast", property(lambda self: False))
    make: Any = span_examples if kind == "span" else tag_examples
    with pytest.raises(ModelError, match="character offsets"):
        make(TASKS[kind], rows_of(kind), tokenizer, 96)


tags = st.lists(st.sampled_from(["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]), min_size=1, max_size=9)


@given(tags)
def test_written_entities_are_read_back(marks: list[str]) -> None:
    from adamergex.metrics.entities import repaired

    marks = repaired(marks)
    tokens = [f"w{number}" for number in range(len(marks))]
    assert read_entities(tokens, ("PER", "LOC"), written_entities(tokens, marks)) == (marks, True)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("PER: Amina O.; LOC: Kisumu", (["B-PER", "I-PER", "I-PER", "O", "B-LOC"], True)),
        ("per: AminaO.; ORG: Kisumu", (["B-PER", "I-PER", "I-PER", "O", "O"], False)),
        ("LOC: Kisumu; LOC: Kisumu", (["O", "O", "O", "O", "B-LOC"], False)),
        ("none", (["O"] * 5, True)),
        ("", (["O"] * 5, False)),
        ("I do not know", (["O"] * 5, False)),
    ],
)
def test_other_forms_of_entities(text: str, expected: Any) -> None:
    assert read_entities(["Amina", "O", ".", "from", "Kisumu"], ("PER", "LOC"), text) == expected


@settings(max_examples=20)
@given(st.lists(st.tuples(tags, tags), min_size=1, max_size=5))
def test_tallies_add_up_to_entity_f1(pairs: list[tuple[list[str], list[str]]]) -> None:
    from adamergex.metrics.entities import repaired

    items = [{"gold": repaired(gold), "predicted": repaired((found * 9)[: len(gold)])} for gold, found in pairs]
    made = measuring.tallied(TASKS["tagging"], items, "en")
    found = evaluation.score(made)
    assert found.score == pytest.approx(measuring.scores(TASKS["tagging"], items, "en")["f1"])
    assert found.interval[0] <= found.score + 1e-9 and found.score <= found.interval[1] + 1e-9 or len(items) < 4


def test_resampled_scores_are_those_of_a_plain_bootstrap() -> None:
    import numpy as np

    generator = np.random.default_rng(1)
    a = np.stack([generator.random(60), generator.integers(1, 4, 60)], 1)
    b = np.stack([np.clip(a[:, 0] - generator.random(60) / 3, 0, 1), a[:, 1]], 1)
    ours, theirs = ([[statistics.Sample.of_tallies(tallies)]] for tallies in (a, b))
    found = statistics.compare(ours, theirs)
    plain = []
    for _ in range(4000):
        chosen = generator.integers(60, size=60)
        plain.append(100 * a[chosen, 0].sum() / a[chosen, 1].sum() - 100 * b[chosen, 0].sum() / b[chosen, 1].sum())
    low, high = np.percentile(plain, [2.5, 97.5])
    assert found.difference == pytest.approx(100 * (a[:, 0].sum() - b[:, 0].sum()) / a[:, 1].sum())
    assert found.interval() == pytest.approx([low, high], abs=0.4)
    assert found.p < 0.01 and statistics.compare(theirs, ours).p == found.p
    right = np.stack([np.arange(100) < 80, np.ones(100)], 1).astype(float)
    assert statistics.interval(statistics.Sample.of_tallies(right)) == pytest.approx([72, 87.5], abs=1)


@pytest.mark.parametrize(
    ("task", "row", "message"),
    [
        (
            TASKS["multiple-choice"],
            {"premise": "a", "choice1": "b", "choice2": "c", "label": 2},
            "position of a choice",
        ),
        (TASKS["multiple-choice"], {"premise": "a", "choice1": "b", "label": 0}, "no column 'choice2'"),
        (TASKS["span"], {"context": "a b", "question": "c", "answers": ["b"], "starts": [0]}, "not at its start"),
        (TASKS["span"], {"context": "a b", "question": "c", "answers": ["x"]}, "not in its context"),
        (TASKS["tagging"], {"tokens": ["a", "b"], "tags": ["O"]}, "does not have one tag per token"),
        (TASKS["tagging"], {"tokens": ["a"], "tags": ["I-PER"]}, "an I continues nothing"),
        (TASKS["tagging"], {"tokens": ["a"], "tags": ["B-ORG"]}, "entity type is not known"),
        (TASKS["generation"], {"text": "a", "target": " "}, "a reference is empty"),
        (TASKS["pair-classification"], {"premise": "a", "hypothesis": "", "label": "same"}, "a hypothesis is empty"),
    ],
)
def test_broken_rows_are_explained(tmp_path: Path, task: Target, row: dict[str, Any], message: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=message):
        read(task, Rows(path=str(path)), "en")


def test_tables_hold_tokens_and_answers_too(tmp_path: Path) -> None:
    (tmp_path / "tags.csv").write_text("tokens,tags\nAmina O .,B-PER I-PER O\n", encoding="utf-8")
    (row,) = read(TASKS["tagging"], Rows(path=str(tmp_path / "tags.csv")), "en")
    assert row == {"tokens": ["Amina", "O", "."], "tags": ["B-PER", "I-PER", "O"]}
    (tmp_path / "spans.csv").write_text("context,frage,answers,start\na b,c,b,2\n", encoding="utf-8")
    rows = Rows(path=str(tmp_path / "spans.csv"), columns={"question": "frage"})
    (row,) = read(TASKS["span"], rows, "en")
    assert (row["answers"], row["starts"]) == (["b"], [2])
    ignoring = Tagging(types=("PER",), other_types="ignore")
    (tmp_path / "more.csv").write_text("tokens,tags\nAmina Kisumu .,B-PER B-LOC O\n", encoding="utf-8")
    (row,) = read(ignoring, Rows(path=str(tmp_path / "more.csv")), "en")
    assert (row["tags"], row["ignored"]) == (["B-PER", "O", "O"], 1)
