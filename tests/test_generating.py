"""Greedy answers: those of transformers' own generate on single prompts; and the examples that teach answers."""

from __future__ import annotations

import pytest
import torch

from adamergex.backbones import loading
from adamergex.backbones.logits import IGNORE
from adamergex.errors import ConfigError, DataError
from adamergex.tasks.answering.generating import answer_examples, generate
from adamergex.tasks.answering.prompts import Prompt
from adamergex.tasks.classification import AnswerExamples, PromptExamples
from family_models import FAMILIES, SENTENCES
from test_choosing import adapted, loaded

PROMPTS = ["A ferry", SENTENCES[0], "The", SENTENCES[30], f"{SENTENCES[10]}\nTopic:"]
CHAT = (
    "{{ bos_token }}{% for m in messages %}{{ m['role'] }} {{ m['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}bot {% endif %}"
)


def own(model: torch.nn.Module, tokenizer, prompt: str, most: int, *, special: bool = True) -> list[int]:
    """The new pieces of transformers' generate, the end piece left out."""
    bare = model.get_base_model() if hasattr(model, "get_base_model") else model
    given = tokenizer(prompt, return_tensors="pt", add_special_tokens=special, return_token_type_ids=False)
    length = given["input_ids"].shape[1]
    more = {}
    if bare.config.is_encoder_decoder:
        opening = loading.decoder_opening(bare, tokenizer)
        more["decoder_input_ids"], length = torch.tensor([opening]), len(opening)
    out = model.generate(**given, **more, max_new_tokens=most, do_sample=False, num_beams=1)[0, length:].tolist()
    end = tokenizer.eos_token_id
    return out[: out.index(end)] if end in out else out


@pytest.mark.parametrize("kind", [None, "lora", "ia3", "prefix"])
@pytest.mark.parametrize("name", FAMILIES)
def test_answers_are_those_of_generate(families: dict[str, str], name: str, kind: str | None) -> None:
    found = loaded(families[name])
    model = found.model
    if kind is not None:
        model = adapted(loading.load(families[name], found.kind).model, kind)
    answers, cut = generate(model, PROMPTS, found.tokenizer, max_new_tokens=12, stop=(), longest=96, batch_tokens=200)
    expected = [own(model, found.tokenizer, prompt, 12) for prompt in PROMPTS]
    texts = [
        found.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False).strip()
        for ids in expected
    ]
    assert cut == 0 and answers == texts
    assert len(set(answers)) > 1 and max(map(len, expected)) == 12  # the prompts matter, and something is said


@pytest.mark.parametrize("name", FAMILIES)
def test_rows_end_at_the_end_piece_and_at_stop_strings(families: dict[str, str], name: str) -> None:
    found = loaded(families[name])
    model, tokenizer = loading.load(families[name], found.kind).model, found.tokenizer
    settings = {"max_new_tokens": 12, "longest": 96, "batch_tokens": 10_000}
    whole, _ = generate(model, PROMPTS, tokenizer, stop=(), **settings)
    marks = (whole[0][2:4], whole[1][3:5])
    stopped, _ = generate(model, PROMPTS, tokenizer, stop=marks, **settings)
    for text, short in zip(whole, stopped, strict=True):
        ends = [text.find(mark) for mark in marks if mark in text]
        assert short == (text[: min(ends)].strip() if ends else text)
    assert stopped[0] != whole[0]
    # Another end piece, as chat models name several: one that is said in the middle of some answer.
    said = own(model, tokenizer, PROMPTS[1], 12)
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, said[4]]
    ended, _ = generate(model, PROMPTS, tokenizer, stop=(), **settings)
    ids = said[: said.index(said[4])]
    assert ended[1] == tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False).strip()


def test_prompts_are_cut_in_their_text_alone(families: dict[str, str]) -> None:
    found = loaded(families["llama"])
    prompt = Prompt.of("Question: {question} Answer:", {"question": "bread and butter " * 30}, cut="question")
    answers, cut = generate(
        found.model, [prompt], found.tokenizer, max_new_tokens=8, stop=(), longest=60, batch_tokens=99
    )
    kept = max(n for n in range(400) if len(found.tokenizer(prompt.cut(n)).input_ids) <= 52)
    ids = own(found.model, found.tokenizer, prompt.cut(kept), 8)
    assert cut == 1 and answers == [found.tokenizer.decode(ids, skip_special_tokens=True).strip()]


def test_a_chat_uses_the_template_once(families: dict[str, str]) -> None:
    found = loading.load(families["llama"], "causal-lm")
    settings = {"max_new_tokens": 6, "stop": (), "longest": 96, "batch_tokens": 99, "chat": True}
    with pytest.raises(ConfigError, match="no chat template"):
        generate(found.model, ["A ferry"], found.tokenizer, **settings)
    found.tokenizer.chat_template = CHAT
    answers, _ = generate(found.model, ["A ferry"], found.tokenizer, **settings)
    ids = own(found.model, found.tokenizer, "<s>user A ferry bot ", 6, special=False)
    assert answers == [found.tokenizer.decode(ids, skip_special_tokens=True).strip()]


@pytest.mark.parametrize("name", FAMILIES)
def test_only_the_answer_and_its_end_are_learned(families: dict[str, str], name: str) -> None:
    found = loaded(families[name])
    tokenizer = found.tokenizer
    prompts = [f"Question: {'bread and butter ' * 20}Answer:", "A ferry"]
    answers = ["The cook baked fresh bread again", "seven"]
    made = answer_examples(prompts, answers, tokenizer, max_length=50, longest=96, family=found.family)
    assert made.truncated == 1
    batch = made.batch([0, 1], 0)
    end = tokenizer(answers[0]).input_ids[-2:] if name == "mbart" else [tokenizer.eos_token_id]
    for row, (prompt, answer) in enumerate(zip(made.prompts, made.answers, strict=True)):
        labels = batch["labels"][row][batch["labels"][row] != IGNORE].tolist()
        if isinstance(made, PromptExamples):
            assert batch["input_ids"][row][: len(prompt) + len(answer)].tolist() == prompt + answer
            assert len(prompt) + len(answer) <= 50 and labels == answer
            whole = tokenizer(f"{prompts[1]} {answers[1]}").input_ids
            assert row == 0 or prompt + answer == whole + end
        else:
            assert isinstance(made, AnswerExamples)
            assert len(prompt) <= 50 and labels == answer == tokenizer(answers[row]).input_ids
            assert prompt[-1] == tokenizer("x").input_ids[-1]
        assert tokenizer.decode(answer, skip_special_tokens=True).strip() == answers[row]
        assert answer[-len(end) :] == end
        assert tokenizer.decode(prompt, skip_special_tokens=True).endswith(("Answer:", "A ferry"))


@pytest.mark.parametrize("name", FAMILIES)
def test_the_loss_is_the_mean_over_answer_pieces(families: dict[str, str], name: str) -> None:
    """Against transformers' own loss of single rows; labels are views, as slices of a larger batch would be."""
    found = loaded(families[name])
    prompts, answers = ["A ferry\nTopic:", SENTENCES[0]], ["travel", "food again today"]
    made = answer_examples(prompts, answers, found.tokenizer, max_length=90, longest=96, family=found.family)
    batch = made.batch([0, 1], 0)
    wide = torch.full((2, 2 * batch["labels"].shape[1]), IGNORE)
    wide[:, ::2] = batch["labels"]
    batch["labels"] = wide[:, ::2]
    assert not batch["labels"].is_contiguous()
    total, count = 0.0, 0
    opening = len(loading.frame(found.tokenizer)[0]) if found.family == "encoder-decoder" else 0
    with torch.inference_mode():
        loss = float(made.loss(found.model, batch))
        for prompt, answer in zip(made.prompts, made.answers, strict=True):
            if found.family == "decoder":
                logits = found.model(input_ids=torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
            else:
                given = {"input_ids": torch.tensor([prompt]), "labels": torch.tensor([answer])}
                logits = found.model(**given).logits[0, opening:]
            learned = torch.tensor(answer[opening:])
            total += float(torch.nn.functional.cross_entropy(logits.double(), learned, reduction="sum"))
            count += len(learned)
    assert loss == pytest.approx(total / count, rel=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_an_answer_is_never_cut(families: dict[str, str], name: str) -> None:
    found = loaded(families[name])
    with pytest.raises(DataError, match=r"leaves no room[\s\S]*en\.jsonl, row 2"):
        answer_examples(
            ["a", "b"], ["food", "bread " * 60], found.tokenizer, max_length=40, longest=96, where="en.jsonl",
            family=found.family,
        )  # fmt: skip
    with pytest.raises(DataError, match="an answer is empty"):
        answer_examples(["a"], [" "], found.tokenizer, max_length=40, longest=96, family=found.family)
    with pytest.raises(ConfigError, match="an encoder cannot generate"):
        answer_examples(["a"], ["b"], found.tokenizer, max_length=40, longest=96, family="encoder")


@pytest.mark.parametrize("name", FAMILIES)
def test_answers_that_are_too_long_can_be_left_out(families: dict[str, str], name: str) -> None:
    found = loaded(families[name])
    answers = ["seven", "The cook baked fresh bread again " * 20, "a ferry"]
    settings = {"max_length": 40, "longest": 96, "family": found.family}
    made = answer_examples(PROMPTS[:3], answers, found.tokenizer, leave_out=True, **settings)
    alone = answer_examples([PROMPTS[0], PROMPTS[2]], [answers[0], answers[2]], found.tokenizer, **settings)
    assert (made.prompts, made.answers, made.left_out) == (alone.prompts, alone.answers, 1) and alone.left_out == 0
    with pytest.raises(DataError, match="leaves no room for its prompt.*(\n.*)*row 1"):
        answer_examples(PROMPTS[1:2], answers[1:2], found.tokenizer, leave_out=True, **settings)


def test_trained_answers_come_back(families: dict[str, str]) -> None:
    """Train a little by hand on two prompts; greedy decoding says what was learned, prompt and end left out."""
    for name in FAMILIES:
        kind = loading.kind_for(families[name], labelled=True)
        found = loading.load(families[name], kind)
        prompts, answers = ["A ferry\nTopic:", "The cook baked fresh bread\nTopic:"], ["travel today", "food"]
        made = answer_examples(prompts, answers, found.tokenizer, max_length=90, longest=96, family=found.family)
        optimizer = torch.optim.Adam(found.model.parameters(), 3e-3)
        for step in range(80):
            made.loss(found.model, made.batch([0, 1], step)).backward()
            optimizer.step()
            optimizer.zero_grad()
        said, _ = generate(found.model, prompts, found.tokenizer, max_new_tokens=12, longest=96, batch_tokens=999)
        assert said == answers


@pytest.mark.parametrize("name", FAMILIES)
def test_a_retelling_has_room_before_the_answer(families: dict[str, str], name: str) -> None:
    """Each row's cap is its prompt's length plus the answer's, at least ``thought``; a decoder's window holds both."""
    found = loaded(families[name])
    model, tokenizer = loading.load(families[name], found.kind).model, found.tokenizer
    options = {"stop": (), "batch_tokens": 200}
    thought, cut = generate(model, PROMPTS, tokenizer, max_new_tokens=5, thought=12, longest=96, **options)
    lengths = [len(tokenizer(prompt, add_special_tokens=False).input_ids) for prompt in PROMPTS]
    assert cut == 0 and max(lengths) + 5 > 12
    for prompt, length, text in zip(PROMPTS, lengths, thought, strict=True):
        (alone,), _ = generate(model, [prompt], tokenizer, max_new_tokens=max(length + 5, 12), longest=96, **options)
        assert text == alone
    long = Prompt("The cook baked bread " * 30, str)
    (whole,), cut = generate(model, [long], tokenizer, max_new_tokens=5, thought=12, longest=60, **options)
    assert cut == 1 and isinstance(whole, str)
