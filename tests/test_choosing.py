"""Choices: the sums of one forward pass a choice, without cache, padding or sharing; and what is cut."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from adamergex.adapters import peft_backed
from adamergex.backbones import loading
from adamergex.errors import ConfigError, DataError
from adamergex.jobs.settings import Structure
from adamergex.tasks.answering import choosing
from adamergex.tasks.answering.choosing import choice_scores
from adamergex.tasks.answering.prompts import Prompt
from adamergex.tasks.answering.reading import prefill
from family_models import FAMILIES, SENTENCES

CONTEXTS = [f"{text}\nTopic:" for text in (SENTENCES[0], SENTENCES[20], "A ferry", SENTENCES[40])]
CHOICES = [["food", "travel today"], ["sports"], ["food", "food again and again", "The coast"], ["travel", "seven"]]


@cache
def loaded(folder: str) -> loading.Loaded:
    return loading.load(folder, loading.kind_for(folder, labelled=True))


def oracle(model: torch.nn.Module, tokenizer, context: str, choice: str) -> float:
    """log p(choice | context) in float64, read whole; encoder-decoders make decoder inputs from the labels."""
    bare = model.get_base_model() if hasattr(model, "get_base_model") else model
    if bare.config.is_encoder_decoder:
        labels = tokenizer(choice).input_ids
        pieces = tokenizer(choice, add_special_tokens=False).input_ids
        output = model(
            input_ids=torch.tensor([tokenizer(context).input_ids]), labels=torch.tensor([labels]), use_cache=False
        )
        start = next(at for at in range(len(labels)) if labels[at : at + len(pieces)] == pieces)
        places, ids = range(start, start + len(pieces)), labels
    else:
        read, ids = tokenizer(context).input_ids, tokenizer(f"{context} {choice}").input_ids
        assert ids[: len(read)] == read
        output = model(input_ids=torch.tensor([ids]))
        places = range(len(read), len(ids))
    found = output.logits[0].double().log_softmax(-1)
    shift = 0 if bare.config.is_encoder_decoder else 1
    return sum(float(found[place - shift, ids[place]]) for place in places)


def adapted(model: torch.nn.Module, kind: str) -> torch.nn.Module:
    """Random adapters, so that one that is left out shows."""
    torch.manual_seed(1)
    shape = Structure(kind="prefix", virtual_tokens=5) if kind == "prefix" else Structure(kind=kind, dropout=0)
    wrapped = peft_backed.attach(model, shape, task_head=False, base_sha256="0")
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return wrapped.eval()


@pytest.mark.parametrize("kind", [None, "lora", "ia3", "prefix"])
@pytest.mark.parametrize("name", FAMILIES)
def test_scores_are_sums_of_whole_readings(families: dict[str, str], name: str, kind: str | None) -> None:
    if kind is None:
        found = loaded(families[name])
        model = found.model
    else:  # a model of its own: PEFT changes it in place
        found = loading.load(families[name], loading.kind_for(families[name], labelled=True))
        model = adapted(found.model, kind)
    scores, cut = choice_scores(model, CONTEXTS, CHOICES, found.tokenizer, longest=96, batch_tokens=150)
    assert cut == 0 and [len(row) for row in scores] == [len(row) for row in CHOICES]
    assert all(row.dtype == np.float64 for row in scores)
    with torch.inference_mode():
        for context, choices, row in zip(CONTEXTS, CHOICES, scores, strict=True):
            expected = [oracle(model, found.tokenizer, context, choice) for choice in choices]
            np.testing.assert_allclose(row, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_batches_change_nothing_and_characters_normalise(families: dict[str, str], name: str) -> None:
    found = loaded(families[name])
    ways = [
        choice_scores(found.model, CONTEXTS, CHOICES, found.tokenizer, longest=96, batch_tokens=tokens, **more)[0]
        for tokens, more in ((1, {}), (10_000, {}), (10_000, {"normalised": True}))
    ]
    for alone, together, divided, choices in zip(*ways, CHOICES, strict=True):
        np.testing.assert_allclose(alone, together, rtol=1e-5, atol=1e-4)
        np.testing.assert_allclose(divided, together / np.array([len(choice) for choice in choices]), rtol=1e-12)


@pytest.mark.parametrize("name", ["llama", "t5", "bart"])
def test_only_the_named_part_is_cut(families: dict[str, str], name: str) -> None:
    """The score is that of the prompt with a shorter premise; the hypothesis and the choice stay whole."""
    found = loaded(families[name])
    template = "Premise: {premise} Hypothesis: {hypothesis} Answer:"
    fields = {"premise": "bread and butter " * 12, "hypothesis": "A {ferry} today"}
    choices = [["food again", "travel"]]
    scores, cut = choice_scores(
        found.model, [Prompt.of(template, fields, cut="premise")], choices, found.tokenizer, longest=60, batch_tokens=99
    )
    assert cut == 1

    def fits(premise: str) -> bool:
        whole = template.format(premise=premise, hypothesis=fields["hypothesis"])
        longest = (
            "" if name != "llama" else f" {max(choices[0], key=lambda text: len(found.tokenizer(text).input_ids))}"
        )
        return len(found.tokenizer(whole + longest).input_ids) <= 60

    kept = max((size for size in range(len(fields["premise"])) if fits(fields["premise"][:size])), default=0)
    assert 10 < kept < len(fields["premise"])
    whole = template.format(premise=fields["premise"][:kept], hypothesis=fields["hypothesis"])
    with torch.inference_mode():
        expected = [oracle(found.model, found.tokenizer, whole, choice) for choice in choices[0]]
    np.testing.assert_allclose(scores[0], expected, rtol=1e-5, atol=1e-4)


def test_a_plain_context_keeps_its_end(families: dict[str, str]) -> None:
    found = loaded(families["llama"])
    long = f"{'bread and butter ' * 20}\n{CONTEXTS[0]}"
    scores, cut = choice_scores(found.model, [long], [["food"]], found.tokenizer, longest=50, batch_tokens=99)
    kept = next(long[at:] for at in range(len(long)) if len(found.tokenizer(f"{long[at:]} food").input_ids) <= 50)
    assert cut == 1 and kept.endswith(CONTEXTS[0])
    with torch.inference_mode():
        assert scores[0][0] == pytest.approx(oracle(found.model, found.tokenizer, kept, "food"), abs=1e-4)


def test_a_space_at_the_end_of_a_context_is_the_choices(families: dict[str, str]) -> None:
    found = loaded(families["llama"])
    one, other = (
        choice_scores(found.model, [context], [["food", "sports"]], found.tokenizer, longest=96, batch_tokens=99)[0][0]
        for context in ("A ferry Topic:", "A ferry Topic: ")
    )
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("contexts", "choices", "longest", "error", "message"),
    [
        (["a"], [[]], 96, DataError, "has no choices"),
        (["a", "b"], [["x"], ["y", " "]], 96, DataError, r"a choice is empty[\s\S]*row 2"),
        (["a", "b"], [["x"]], 96, ConfigError, "differ in number"),
        ([Prompt.of("{a} " + "word " * 40, {"a": "text"}, cut="a")], [["x"]], 40, ConfigError, "leaves no room"),
    ],
)
def test_what_cannot_be_scored_is_explained(
    families: dict[str, str], contexts, choices, longest, error, message
) -> None:
    found = loaded(families["llama"])
    with pytest.raises(error, match=message):
        choice_scores(found.model, contexts, choices, found.tokenizer, longest=longest, batch_tokens=99)


@pytest.mark.parametrize("kind", choosing._ANY_MASK)
def test_choices_beside_each_other_score_as_choices_after_a_cache(families: dict[str, str], kind: str) -> None:
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    config = AutoConfig.for_model(kind, vocab_size=60, intermediate_size=48, head_dim=16, pad_token_id=1, **size)
    config.sliding_window = None
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    prompts, choices = (
        [[5, 6, 7, 8], [9], [10, 11]],
        [[[3, 4], [12]], [[13, 14, 15, 16]], [[20], [21, 22, 23], [24, 25]]],
    )
    assert choosing._supports_any_mask(model)
    with torch.inference_mode():
        beside = choosing._side_by_side(model, prompts, choices)
        after = choosing._from_cache(prefill(model, prompts, loaded(families["llama"]).tokenizer), choices)
    torch.testing.assert_close(beside, after, rtol=1e-5, atol=1e-4)
    config.sliding_window = 4
    assert not choosing._supports_any_mask(model)
