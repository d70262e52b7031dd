"""Cross-lingual-thought prompting (XLT, Huang et al. 2023, 2305.07004, figure 1 and table 8): one prompt for all tasks.

    I want you to act as a {expert} expert for {language}.
    {the task's input}
    You should {retell the input} in English.
    You should {goal}.
    You should step-by-step answer the request.
    You should tell me {output} in this format '{mark}'.

The model generates its answer, and the text after the mark is parsed. MGSM, XCOPA, XNLI and XLSum use the paper's
words. XQuAD, table descriptions and topics are not in the paper: their words are ours. Topics are scored by
log-likelihood after the mark, as they are without XLT.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from adamergex.errors import ConfigError
from adamergex.jobs.settings import Target
from adamergex.tasks.kinds import kind_of, labelled_kinds

_TEMPLATE = (
    "I want you to act as {article} {form.expert} expert for {language}.\n{form.request}\n"
    "You should {form.retell} in English.\nYou should {form.goal}.\nYou should step-by-step answer the request.\n"
    "You should tell me {output} in this format '{form.mark}'."
)
_NAMES = {
    "bn": "Bengali",
    "ht": "Haitian",
    "mi": "Maori",
    "nb": "Norwegian",
    "quy": "Quechua",
}  # where CLDR's name differs
_LONGER = 512  # tokens that the template and the steps to the answer may add


def asked_with_xlt(task: Target, language: str) -> Target:
    """The task with XLT's prompt for a language; the answer follows the form's mark.

    Raises: ConfigError: a kind of task without an XLT form.
    """
    kind = kind_of(task)
    if kind.xlt is None:
        raise ConfigError(
            f"there is no XLT prompt for a {task.kind} task",
            where=task.name,
            expected=f"one of {', '.join(name for name, known in labelled_kinds().items() if known.xlt)}",
            fix="omit the methods xlt and xlt_english_tuning",
        )
    form = kind.xlt(task)
    name = language_name(language)
    prompt = _TEMPLATE.format(
        article="an" if form.expert[0] in "aeiou" else "a",
        form=form,
        language=name,
        output=form.output.replace("{language}", name),
    )
    if not form.written:
        return task.model_copy(update={"prompt": f"{prompt}\n{form.mark}", "max_length": task.max_length + _LONGER})
    # Room for the input, and for its retelling before the answer.
    changes = {"prompt": prompt, "answer_after": form.mark, "max_length": 2 * task.max_length + _LONGER}
    return task.model_copy(update=changes)


def language_name(code: str) -> str:
    """A language's English name (Unicode CLDR, through babel), as in the paper; an unknown code is returned as it is.

    ``code``: ISO 639-1 or 639-3, with or without script and region ("sw", "swh_Latn", "zh-Hant").
    """
    from babel import Locale
    from babel.core import get_global

    language = re.split("[-_]", code)[0].lower()
    short = str(get_global("language_aliases").get(language, language)).partition("_")[0]
    names: Mapping[str, str] = {**Locale("en").languages, **_NAMES}
    return names.get(language) or names.get(short) or code
