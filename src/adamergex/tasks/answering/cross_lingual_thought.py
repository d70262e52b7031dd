"""Cross-lingual-thought prompting (XLT, Huang et al. 2023, 2305.07004, figure 1 and table 8): one prompt for all tasks.

    I want you to act as a {expert} expert for {language}.
    {the task's input}
    You should {retell the input} in English.
    You should {goal}.
    You should step-by-step answer the request.
    You should tell me {output} in this format '{mark}'.

The answer is written, and what follows the mark is read. MGSM, XCOPA, XNLI and XLSum have the paper's words.
XQuAD, texts about tables and topics are not in the paper: their words are ours; topics are scored as they are without
XLT, after the mark.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from adamergex.errors import ConfigError
from adamergex.jobs.settings import (
    Classification,
    Generation,
    MultipleChoice,
    PairClassification,
    Target,
)


class Form(NamedTuple):
    """What the template is filled with for a task."""

    expert: str
    request: str
    retell: str
    goal: str
    output: str
    mark: str


_TEMPLATE = (
    "I want you to act as {article} {form.expert} expert for {language}.\n{form.request}\n"
    "You should {form.retell} in English.\nYou should {form.goal}.\nYou should step-by-step answer the request.\n"
    "You should tell me {output} in this format '{form.mark}'."
)
_NLI = (
    "judge whether the hypothesis is true (entailment), false (contradiction), or undetermined (neutral) given the "
    "premise. The relationship can be chosen from {labels}"
)
_NLI_ORDER = ("entailment", "contradiction", "neutral")
_PICK = "Help me pick the more plausible option: "
_SUMMARY = (
    "retell the input text", "think step-by-step to summarize the entire text in a maximum of two sentences",
    "the summary", "Summary:",
)  # fmt: skip
_FORMS = {
    "mgsm": Form(
        "arithmetic reasoning", "Request: {question}", "retell the request",
        "do step-by-step answer to obtain a number answer", "the answer", "Answer:",
    ),
    "pair-classification": Form(
        "natural language inference", "Premise: {premise}\nHypothesis: {hypothesis}",
        "retell the premise and hypothesis", _NLI, "the relationship", "Relationship:",
    ),
    "multiple-choice": Form(
        "commonsense reasoning", "", "retell the premise and the options",
        "do step-by-step answer to pick a choice", "the choice number", "Choice number:",
    ),
    "span": Form(
        "question answering", "{context}\nQuestion: {question}", "retell the question",
        "answer the question with words of the text", "the answer in {language}", "Answer:",
    ),
    "xlsum": Form("multilingual summarization", "{text}", *_SUMMARY),
    "generation": Form("multilingual summarization", "", *_SUMMARY),
    "classification": Form(
        "text classification", "{text}", "retell the text", "choose the topic of the text from {labels}",
        "the topic", "Topic:",
    ),
}  # fmt: skip
_NAMES = {
    "bn": "Bengali",
    "ht": "Haitian",
    "mi": "Maori",
    "nb": "Norwegian",
    "quy": "Quechua",
}  # where CLDR has another
_LONGER = 512  # pieces that the template and the steps to the answer may add


def asked_with_xlt(task: Target, language: str) -> Target:
    """The task with XLT's prompt for a language, its answer written after the form's mark.

    Raises: ConfigError: a kind of task that the template has no words for.
    """
    form = _FORMS.get(task.name) or _FORMS.get(task.kind)
    if form is None:
        raise ConfigError(
            f"there is no XLT prompt for a {task.kind} task",
            where=task.name,
            expected=f"one of {', '.join(_FORMS)}",
            fix="leave out the methods xlt and xlt_english_tuning",
        )
    if isinstance(task, MultipleChoice):
        form = form._replace(request=_options(task))
    elif isinstance(task, Generation) and not form.request:
        form = form._replace(request=task.prompt)
    name = language_name(language)
    form = form._replace(goal=form.goal.replace("{labels}", _listed(task)))
    prompt = _TEMPLATE.format(
        article="an" if form.expert[0] in "aeiou" else "a",
        form=form,
        language=name,
        output=form.output.replace("{language}", name),
    )
    if isinstance(task, Classification):
        return task.model_copy(update={"prompt": f"{prompt}\n{form.mark}", "max_length": task.max_length + _LONGER})
    # The input, and its retelling before the answer.
    changes = {"prompt": prompt, "answer_after": form.mark, "max_length": 2 * task.max_length + _LONGER}
    return task.model_copy(update=changes)


def language_name(code: str) -> str:
    """A language's English name (Unicode CLDR, through babel), as the paper writes it; an unknown code names itself.

    ``code``: ISO 639-1 or 639-3, with script and region or without ("sw", "swh_Latn", "zh-Hant").
    """
    from babel import Locale
    from babel.core import get_global

    language = re.split("[-_]", code)[0].lower()
    short = str(get_global("language_aliases").get(language, language)).partition("_")[0]
    names: Mapping[str, str] = {**Locale("en").languages, **_NAMES}
    return names.get(language) or names.get(short) or code


def _options(task: MultipleChoice) -> str:
    """The paper's words for a premise, what is asked of it, and its choices."""
    options = ", ".join(f"-choice{number}: {{{name}}}" for number, name in enumerate(task.choices, 1))
    premise, _, question = task.context.partition(" ")
    if question == "What is the {question}?":
        return f"Here is a premise: {premise}. {question} {_PICK}{options}"
    return f"Here is a premise: {task.context}\n{_PICK}{options}"


def _listed(task: Target) -> str:
    """What the labels of a task are called, in a sentence; the paper's order where they are XNLI's."""
    if isinstance(task, PairClassification):
        ordered = _NLI_ORDER if set(task.labels) == set(_NLI_ORDER) else task.labels
        *first, last = (task.words.get(label, label) for label in ordered)
        return ", ".join(first) + (f", and {last}" if len(first) > 1 else f" and {last}" if first else last)
    labels = list(getattr(task, "labels", ()))
    return ", ".join(labels[:-1]) + (f" and {labels[-1]}" if labels else "")
