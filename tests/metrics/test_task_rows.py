"""Rows of every task: from a small data folder, from a hub dataset (a local one, read by ``datasets``), and from the
real data where ADAMERGEX_DATA names the folder."""

from __future__ import annotations

import gzip
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from adamergex.errors import DataError
from adamergex.jobs.settings import TaskRows
from adamergex.tasks import rows as task_rows
from adamergex.tasks.datasets import mgsm, ner, sib200, tata, xcopa, xlsum, xnli, xquad
from adamergex.tasks.grouping import groups
from adamergex.tasks.kinds import kind_of

COPA = {"premise": "P", "choice1": "one", "choice2": "two"}
TAGGED = {"id": "n0", "tokens": ["Amina", "analala"], "tags": ["B-PER", "O"]}
FILES: dict[str, list[dict[str, Any]]] = {
    "mgsm/sw.test": [{"id": "m0", "question": "3 na 4?", "answer": "7"}],
    "gsm8k/en.train": [{"id": "g0", "question": "3 and 4?", "answer": "1,007", "rationale": "3 + 4 = 7."}],
    "xcopa/th.test": [{"id": "c0", **COPA, "question": "effect", "question_en": "cause", "label": 0}],
    "xcopa/th.val": [{"id": "c0", **COPA, "question": "effect", "question_en": "reason", "label": 0}],
    "xnli/sw.dev": [{"id": "x0", "premise": "P", "hypothesis": "H", "label": "neutral"}],
    "xnli/sw.test": [{"id": "x0", "premise": "P", "hypothesis": "H", "label": "maybe"}],
    "xnli/sw.train": [{"id": "t0", "premise": "P", "hypothesis": "H", "label": "contradiction"}],
    "multinli/en.train": [{"id": "x0", "premise": "P", "hypothesis": "H", "label": "entailment"}],
    "americasnli/ay.test": [{"id": "a0", "premise": "P", "hypothesis": "H", "label": "contradiction"}],
    "sib200/yo.test": [{"id": "s0", "text": "T", "label": "sports"}],
    "xquad/en.contexts": [
        {"context_id": "a0", "fold": 0, "context": "In 1932."},
        {"context_id": "a3", "fold": 3, "context": "Since 1958."},
    ],
    "xquad/en.test": [
        {"id": "q0", "context_id": "a0", "question": "When?", "answers": [{"text": "1932", "start": 3}]},
        {"id": "q3", "context_id": "a3", "question": "Since?", "answers": [{"text": "1958", "start": 6}]},
    ],
    "xlsum/sw.test": [{"id": "l0", "title": "T", "text": "X", "summary": "S"}],
    "tata/sw.dev": [{"id": "t0", "input": "I", "targets": ["one", "two"]}, {"id": "t1", "input": "I", "targets": []}],
    "masakhaner/sw.test": [TAGGED],
    "uner/de.test": [{**TAGGED, "tags": ["O", "I-LOC"]}],
    "uner/pt.test": [{**TAGGED, "tags": ["O", "B-DATE"]}],
    "uner/zh.test": [{"id": "n0", "tokens": ["a"], "tags": []}],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    for name, rows in FILES.items():
        path = root / f"{name}.jsonl.gz"
        path.parent.mkdir(exist_ok=True)
        with gzip.open(path, "wt", encoding="utf-8") as stream:
            stream.writelines(json.dumps({"lang": name[-7:-5], **row}, ensure_ascii=False) + "\n" for row in rows)
    return root


@pytest.mark.parametrize(
    ("module", "language", "split", "files"),
    [
        (mgsm, "sw", "test", ["mgsm/sw.test"]),
        (xcopa, "th", "test", ["xcopa/th.test"]),
        (xnli, "sw", "validation", ["xnli/sw.dev"]),
        (sib200, "yo", "test", ["sib200/yo.test"]),
        (xquad, "en", "test", ["xquad/en.contexts", "xquad/en.test"]),
        (xlsum, "sw", "test", ["xlsum/sw.test"]),
        (tata, "sw", "train", ["tata/sw.dev"]),
        (ner, "sw", "test", ["masakhaner/sw.test"]),
    ],
)
@pytest.mark.parametrize("null", [False, True], ids=["missing", "null"])
def test_a_row_without_a_column_is_named_or_needs_none(
    module: Any, language: str, split: str, files: list[str], null: bool, tmp_path: Path
) -> None:
    refused = 0
    for changed in files:
        for column in FILES[changed][0]:
            for name in files:
                path = tmp_path / f"{name}.jsonl.gz"
                path.parent.mkdir(exist_ok=True)
                rows = [dict(row) for row in FILES[name]]
                for row in rows if name == changed else ():
                    row.pop(column)
                    row |= {column: None} if null else {}
                with gzip.open(path, "wt", encoding="utf-8") as stream:
                    stream.writelines(json.dumps(row) + "\n" for row in rows)
            try:
                assert module.rows(tmp_path, language, split)
            except DataError as error:
                refused += 1
                assert all(part in str(error) for part in re.split("[/.]", changed)), column
    assert refused  # of every file some columns are needed


def test_maths(folder: Path) -> None:
    assert mgsm.rows(folder, "sw") == [{"id": "m0", "language": "sw", "question": "3 na 4?", "answer": "7"}]
    (row,) = mgsm.rows(folder, "en", "train")
    assert (row["answer"], row["rationale"]) == ("1007", "3 + 4 = 7.")
    assert mgsm.prompt(row) == "Let's think step by step.\nQuestion: 3 and 4?"


@pytest.mark.parametrize(
    ("language", "question", "rationale"),
    [
        ("en", "Question: 3 and 4?", "Step-by-Step Answer: 3 + 4 = 7. The answer is 7."),
        ("de", "Frage: 3 and 4?", "Schritt-für-Schritt-Antwort: 3 + 4 = 7. Die Antwort lautet 7."),
        ("fr", "Question : 3 and 4?", "Réponse étape par étape : 3 + 4 = 7. La réponse est 7."),
        ("ja", "問題：3 and 4?", "ステップごとの答え：3 + 4 = 7. 答えは7個です。"),
        ("sw", "Question: 3 and 4?", "Step-by-Step Answer: 3 + 4 = 7. Jibu ni 7"),
        ("sw", "Swali:3 and 4?", "Jibu la Hatua kwa Hatua: 3 + 4 = 7."),
    ],
)
def test_exemplars_lose_their_own_prefixes(language: str, question: str, rationale: str, tmp_path: Path) -> None:
    """The prompt and the taught answer have "Question:" and "The answer is" already."""
    (tmp_path / "mgsm").mkdir()
    row = {"id": "e0", "question": question, "answer": "7", "rationale": rationale}
    for split in ("exemplars", "test"):
        with gzip.open(tmp_path / "mgsm" / f"{language}.{split}.jsonl.gz", "wt", encoding="utf-8") as stream:
            stream.write(json.dumps(row) + "\n")
        (found,) = task_rows.read(mgsm.TASK, TaskRows(task="mgsm", data=str(tmp_path), split=split), language)
        asked = kind_of("generation").writing
        assert asked.prompt(mgsm.TASK, found).whole == "Let's think step by step.\nQuestion: 3 and 4?"
        if split == "exemplars":
            assert asked.answers(mgsm.TASK, found) == ["3 + 4 = 7. The answer is 7."]


def test_a_chain_of_thought_that_is_no_exemplar_stays_whole(folder: Path) -> None:
    for text in ("The answer is 5 and 6.", "3 + 4 = 7. The answer is 7.", "A question: why?"):
        assert mgsm.without_own_words(text, "en") == text


def test_choices_carry_the_english_question(folder: Path) -> None:
    (row,) = xcopa.rows(folder, "th")
    assert row == {"id": "c0", "language": "th", **COPA, "question": "cause", "label": 0}
    assert "What is the cause? (A) one (B) two" in xcopa.prompt(row)


def test_inference_of_three_corpora(folder: Path) -> None:
    found = [xnli.rows(folder, *where)[0] for where in (("sw", "validation"), ("en", "train"), ("ay", "test"))]
    assert [row["label"] for row in found] == ["neutral", "entailment", "contradiction"]
    assert [row["id"] for row in xnli.rows(folder, "sw", "train")] == ["t0"]  # not MultiNLI's own
    assert xnli.prompt(found[0]).endswith("given the premise. Premise: P Hypothesis: H")


def test_topics(folder: Path) -> None:
    assert sib200.rows(folder, "yo") == [{"id": "s0", "language": "yo", "text": "T", "label": "sports"}]
    assert "geography? Text: T" in sib200.prompt({"text": "T"})


def test_questions_are_joined_with_their_contexts_and_divided_by_fold(folder: Path) -> None:
    ids = {split: [row["id"] for row in xquad.rows(folder, "en", split)] for split in xquad.FOLDS}
    assert ids == {"train": ["q0"], "held-out": ["q3"], "test": ["q0", "q3"]}
    assert [row["id"] for row in xquad.rows(folder, "en", "folds 2 3")] == ["q3"]
    (row,) = xquad.rows(folder, "en", "train", folds=(3,))
    assert row["answers"] == ["1958"]
    assert row["starts"] == [6]
    assert xquad.prompt(row) == "Since 1958. Question: Since?"


def test_what_rows_share() -> None:
    passages = [{"context": "A", "question": "1"}, {"context": "B", "question": "2"}, {"context": "A", "question": "3"}]
    first, alone, third = groups(passages)
    assert first == third is not None and alone is None
    premises = [{"premise": "P", "hypothesis": name} for name in "abc"]
    assert len(set(groups(premises))) == 1 and groups(premises)[0] is not None
    named = [{"text": "x", "group": 7}, {"text": "y", "context_id": "7"}, {"text": "z", "group": None}, {"text": "z"}]
    assert groups(named) == ["7", "7", None, None]
    assert groups([{"context": "A", "group": 1}, {"context": "A", "group": 2}]) == [None, None]  # the column decides
    assert groups([]) == []


def test_texts(folder: Path) -> None:
    (summary,) = xlsum.rows(folder, "sw")
    assert xlsum.prompt(summary) == "Summarize the context in one sentence. Title: T Context: X"
    (table,) = tata.rows(folder, "sw", "train")
    assert table == {"id": "t0", "language": "sw", "input": "I", "targets": ["one", "two"]}


def test_tags(folder: Path) -> None:
    assert ner.rows(folder, "sw") == [{**TAGGED, "language": "sw"}]
    assert ner.rows(folder, "de", broken="repair")[0]["tags"] == ["O", "B-LOC"]


@pytest.mark.parametrize(
    ("task", "arguments", "message"),
    [
        (mgsm, ("sw", "train"), "no language 'sw'"),
        (mgsm, ("sw", "tests"), "perhaps 'test'"),
        (mgsm, ("de",), "does not exist"),
        (xcopa, ("th", "validation"), "no question 'reason'"),
        (xcopa, ("th", "train"), "no language 'th'"),
        (xnli, ("sw",), "label is not known"),
        (xnli, ("th", "train"), "does not exist"),
        (xnli, ("ay", "train"), "no language 'ay'"),
        (xquad, ("en", "fold 4"), "no split 'fold 4'"),
        (xquad, ("en", "validation"), "no split 'validation'"),
        (xquad, ("en", "test", (7,)), "no rows in these folds"),
        (tata, ("sw", "validation"), "no split"),
        (xlsum, ("xx",), "no language 'xx'"),
        (ner, ("de",), "an I continues nothing"),
        (ner, ("pt",), "type is not known"),
        (ner, ("zh",), "does not have one tag per token"),
        (ner, ("yo",), "no such file"),
        (ner, ("sw", "test", "conll"), "no corpus 'conll'"),
    ],
)
def test_what_is_wrong_is_said(folder: Path, task: Any, arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        task.rows(folder, *arguments)


def hub(root: Path, configs: Mapping[str, Mapping[str, list[dict[str, Any]]]], features: Any = None) -> str:
    """A dataset repository as on the hub: parquet files, and a card that names the configs."""
    from datasets import Dataset

    card = []
    for config, splits in configs.items():
        for split, rows in splits.items():
            file = root / config / split / "0000.parquet"
            file.parent.mkdir(parents=True)
            Dataset.from_list(rows, features=features).to_parquet(str(file))
        files = [{"split": split, "path": f"{config}/{split}/*"} for split in splits]
        card.append({"config_name": config, "data_files": files})
    (root / "README.md").write_text("---\n" + json.dumps({"configs": card}) + "\n---\n", encoding="utf-8")
    return str(root)


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "repository"


def test_xcopa_on_the_hub_takes_the_question_of_a_language_where_it_is_right(
    cached: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    thai = [{**COPA, "question": "effect", "label": number % 2, "idx": number} for number in range(3)]
    estonian = [{**row, "question": "cause"} for row in reversed(thai)]
    place = hub(cached, {"th": {"test": thai}, "et": {"test": estonian}})
    monkeypatch.setitem(xcopa.HUB, "test", xcopa.HUB["test"].model_copy(update={"hub": place}))
    found = xcopa.rows("hub", "th")
    assert [(row["id"], row["question"], row["label"]) for row in found] == [
        ("copa-test-0", "cause", 0),
        ("copa-test-1", "cause", 1),
        ("copa-test-2", "cause", 0),
    ]
    with pytest.raises(DataError, match="not on the hub"):
        xcopa.rows("hub", "en")


def test_gsm8k_on_the_hub_gives_number_and_thought(cached: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = "She sold 48/2 = <<48/2=24>>24 clips.\n#### 1,024"
    place = hub(cached, {"main": {"train": [{"question": "How many?", "answer": answer}]}})
    monkeypatch.setitem(mgsm.HUB, "train", mgsm.HUB["train"].model_copy(update={"hub": place}))
    (row,) = mgsm.rows("hub", "en", "train")
    assert (row["answer"], row["rationale"]) == ("1024", "She sold 48/2 = 24 clips.")


def test_xquad_on_the_hub(cached: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"id": "q", "context": "ปี 1932", "question": "?", "answers": {"text": ["1932"], "answer_start": [3]}}
    place = hub(cached, {"xquad.th": {"validation": [row]}})
    monkeypatch.setitem(xquad.HUB, "test", xquad.HUB["test"].model_copy(update={"hub": place, "revision": None}))
    (found,) = xquad.rows("hub", "th")
    assert (found["answers"], found["starts"]) == (["1932"], [3])
    with pytest.raises(DataError, match="no such rows"):
        xquad.rows("hub", "th", "train")


def test_folds_of_the_hub_are_articles(cached: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two questions a paragraph, five paragraphs an article, six articles."""
    answers = {"text": ["1932"], "answer_start": [3]}
    rows = [
        {"id": f"{paragraph // 5}-{paragraph}-{number}", "context": f"In 1932, {paragraph}", "question": "?"}
        | {"answers": answers}
        for paragraph in range(30)
        for number in range(2)
    ]
    place = hub(cached, {"xquad.en": {"validation": rows}})
    monkeypatch.setitem(xquad.HUB, "test", xquad.HUB["test"].model_copy(update={"hub": place, "revision": None}))
    articles = {split: {row["id"][0] for row in xquad.rows("hub", "en", split)} for split in ("folds 0 1", "fold 3")}
    assert articles == {"folds 0 1": set("0145"), "fold 3": {"3"}}
    assert len(xquad.rows("hub", "en", "fold 2")) == 10 and len(xquad.rows("hub", "en")) == 60
    with pytest.raises(DataError, match="no such rows"):
        xquad.rows("hub", "en", "train", (0,))


def test_tags_on_the_hub_are_named_by_the_dataset(cached: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from datasets import ClassLabel, Features, List, Value

    names = ["O", "B-PER", "I-PER"]
    features = Features(
        {"id": Value("string"), "tokens": List(Value("string")), "ner_tags": List(ClassLabel(names=names))}
    )
    rows = {code: [{"id": code, "tokens": ["Amina", "O."], "ner_tags": [1, 2]}] for code in ("swa", "hau")}
    place = hub(cached, {code: {"test": found} for code, found in rows.items()}, features)
    (cached / "README.md").unlink()  # the hub's parquet copies have no card: a folder is a language
    monkeypatch.setitem(ner.HUB, "masakhaner", {"path": place, "data_dir": "{language}"})
    expected = [{"id": "swa", "language": "sw", "tokens": ["Amina", "O."], "tags": ["B-PER", "I-PER"]}]
    assert ner.rows("hub", "sw", corpus="masakhaner") == expected
    with pytest.raises(DataError, match="cannot be loaded"):
        ner.rows("hub", "yo", corpus="masakhaner")


def test_summaries_on_the_hub_are_of_the_language_asked_for(cached: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"id": "1", "url": "u", "title": "T", "text": "X", "summary": "S"}
    place = hub(cached, {"swahili": {"test": [row]}, "thai": {"test": [{**row, "summary": "ส"}]}})
    (cached / "README.md").unlink()
    monkeypatch.setattr(xlsum, "HUB", {"path": place})
    assert [found["summary"] for found in xlsum.rows("hub", "th")] == ["ส"]


def test_tata_on_the_hub_holds_all_languages_in_one_config(cached: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"example_id": f"AS75-{code}-1", "linearized_input": code, "table_text": ["x"]} for code in ("sw", "yo")]
    place = hub(cached, {"default": {"test": rows}})
    monkeypatch.setitem(tata.HUB, "test", tata.HUB["test"].model_copy(update={"hub": place, "revision": None}))
    assert [row["input"] for row in tata.rows("hub", "yo")] == ["yo"]
    with pytest.raises(DataError, match="no rows"):
        tata.rows("hub", "ha")


REAL = os.environ.get("ADAMERGEX_DATA")
SIZES = [
    (mgsm, "th", "test", 250),
    (mgsm, "bn", "exemplars", 8),
    (mgsm, "en", "train", 7473),
    (xcopa, "th", "test", 500),
    (xcopa, "sw", "validation", 100),
    (xcopa, "en", "train", 800),
    (xnli, "sw", "test", 5010),
    (xnli, "gn", "test", 750),
    (xnli, "oto", "validation", 222),
    (xnli, "en", "train", 6000),
    (xquad, "zh", "test", 1190),
    (xquad, "th", "test", 1190),
    (xquad, "ar", "test", 1190),
    (sib200, "yo", "test", 204),
    (sib200, "en", "train", 701),
    (tata, "sw", "test", 95),
    (tata, "en", "train", 99),
    (ner, "sw", "test", 300),
    (ner, "zh", "test", 500),
    (ner, "en", "train", 1725),
]
REFERENCE = {mgsm: "answer", xquad: "answers", tata: "targets", ner: "tags", xlsum: "summary"}


@pytest.mark.skipif(REAL is None, reason="ADAMERGEX_DATA names no data folder")
@pytest.mark.parametrize(
    ("task", "language", "split", "size"), SIZES, ids=lambda value: getattr(value, "__name__", str(value))
)
def test_the_real_data_are_read_and_their_gold_scores_100(task: Any, language: str, split: str, size: int) -> None:
    found = task.rows(str(REAL), language, split)
    assert len(found) == size
    assert len({row["id"] for row in found}) == size
    references = [row[REFERENCE.get(task, "label")] for row in found]
    several = task in (xquad, tata)
    gold = [answers[0] for answers in references] if several else references
    assert task.score(gold, references, language) == dict.fromkeys(task.METRICS, pytest.approx(100))
    empty = [""] * size if task is not ner else [[]] * size
    assert task.score(empty, references, language) == dict.fromkeys(task.METRICS, 0)
    if task is not ner:
        prompts = [task.prompt(row) for row in found]
        assert not any("{" in prompt for prompt in prompts[:20])
        echo = {"prompts": prompts} if task in (mgsm, xquad, tata) else {}
        assert task.score(prompts, references, language, **echo) == dict.fromkeys(task.METRICS, 0)


@pytest.mark.skipif(REAL is None, reason="ADAMERGEX_DATA names no data folder")
@pytest.mark.parametrize(("task", "language", "least", "most"), [(xquad, "th", 230, 240), (xnli, "sw", 1660, 1680)])
def test_the_real_questions_and_hypotheses_are_grouped(task: Any, language: str, least: int, most: int) -> None:
    """XQuAD has 240 paragraphs, XNLI 1,670 premises with three hypotheses each."""
    found = groups(task.rows(str(REAL), language, "test"))
    assert least <= len(set(found)) <= most and found[0] == found[1] is not None


@pytest.mark.skipif(REAL is None, reason="ADAMERGEX_DATA names no data folder")
@pytest.mark.parametrize("language", mgsm.LANGUAGES)
def test_the_real_exemplars_have_no_prefixes(language: str) -> None:
    exemplars = mgsm.rows(str(REAL), language, "exemplars")
    assert not any(re.search("[:：]", row["question"][:12] + row["rationale"][:30]) for row in exemplars)
    assert all(
        mgsm.without_own_words(row["question"], language) == row["question"] for row in mgsm.rows(str(REAL), language)
    )


@pytest.mark.skipif(REAL is None, reason="ADAMERGEX_DATA names no data folder")
def test_samples_of_the_real_rows_are_parallel_and_of_all_genres() -> None:
    """The first 1,000 rows are 334 premises; a sample of as many has more than twice as many of them."""

    def ids(language: str, **chosen: int) -> list[str]:
        place = TaskRows(task="xnli", data=str(REAL), **chosen)
        return [row["id"] for row in task_rows.read(xnli.TASK, place, language)]

    english = ids("en", sample=1000)
    assert english == ids("sw", sample=1000) and len(set(english)) == 1000
    assert english != ids("en", sample=1000, seed=1) and english != ids("en", limit=1000)
    premises = {row["premise"] for row in xnli.rows(str(REAL), "en") if row["id"] in english}
    assert len(premises) > 2 * 334


@pytest.mark.skipif(REAL is None, reason="ADAMERGEX_DATA names no data folder")
def test_the_real_questions_of_thai_are_those_of_english_and_folds_share_no_article() -> None:
    thai, english = (xcopa.rows(str(REAL), language) for language in ("th", "en"))
    assert [row["question"] for row in thai] == [row["question"] for row in english]
    train, held_out = (xquad.rows(str(REAL), "en", split) for split in ("train", "held-out"))
    assert len(train) + len(held_out) == 1190
    assert not {row["context"] for row in train} & {row["context"] for row in held_out}


@pytest.mark.skipif(REAL is None, reason="ADAMERGEX_DATA names no data folder")
@pytest.mark.parametrize("language", xquad.LANGUAGES)
def test_the_order_of_paragraphs_tells_the_fold(language: str) -> None:
    """The folds of the hub, which names no article, are those of the data folder, which does."""
    found = xquad.rows(str(REAL), language, "test")
    told = xquad._in_folds([dict(row) for row in found], range(4))
    assert [row["fold"] for row in told] == [row["fold"] for row in found]
