"""Chat templates are downloaded programs: what they say against a prompt is told, and their work has bounds."""

from __future__ import annotations

import sys
import time

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from adamergex.backbones import chat
from adamergex.base_names import folder
from adamergex.errors import ConfigError
from adamergex.tasks.answering.prompts import framed

EVERY = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
FAILING = {
    "raises": ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
    "raises-later": (EVERY + "{% if messages|length < 2 %}{{ raise_exception('two, please') }}{% endif %}", "two, ple"),
    "syntax": ("{% for m in messages %}", "[Uu]nexpected end of template"),
    "undefined": ("{{ messages[0].tool.name }}", "has no attribute"),
    "type": ("{{ messages + 1 }}", "TypeError"),
    "key": ("{{ messages[7]['content'] }}", "messages|has no element|undefined"),
    "zero": ("{{ 1 / 0 }}", "ZeroDivisionError"),
    "no-filter": ("{{ messages | nothing }}", "nothing"),
    "unsafe": ("{{ messages.__class__.__mro__[1].__subclasses__() }}", "unsafe|undefined|no attribute"),
    "changes": ("{{ messages.append(1) }}", "unsafe|not safely callable"),
    "recursion": ("{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}", "RecursionError"),
    "nested": ("{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}", "RecursionError|nested|MemoryError"),
    "long": ("x" * (1 << 20) + EVERY, "characters"),
    "power": ("{{ 7 ** 7 ** 12 }}", "powers of numbers"),
    "range": ("{% for i in range(10000000) %}{% endfor %}", "[Rr]ange"),
    "loops": ("{% for i in range(90000) %}{% for j in range(90000) %}{% endfor %}{% endfor %}", "more than"),
    "filters": ("{% for i in range(90000) %}{{ range(90000)|map('string')|join|length }}{% endfor %}", "more than"),
    "doubling": (
        "{% set n = namespace(s='aaaaaaaaaaaaaaaa') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
        "more than 1 GiB|MemoryError|Overflow",
    ),
    "times": ("{{ 'a' * 99999999999 }}", "more than 1 GiB|MemoryError"),
}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(folder("nano-causal"))


@pytest.mark.parametrize("case", FAILING.values(), ids=FAILING)
def test_a_template_that_fails_says_why(
    tokenizer: PreTrainedTokenizerBase, case: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer.chat_template, wanted = case
    # What meets the bound of memory must not meet that of time first, on a machine that is busy.
    monkeypatch.setattr(chat, "SECONDS", 5.0 if "1 GiB" in wanted else 0.3)
    begun = time.thread_time()
    with pytest.raises(ConfigError, match=rf"chat template does not write[\s\S]*({wanted})") as raised:
        framed(["What is it?"], tokenizer, chat=True)[0][0].whole  # noqa: B018
    assert time.thread_time() - begun < 10 and len(str(raised.value)) < 2000


def test_a_template_that_works_is_transformers_own(tokenizer: PreTrainedTokenizerBase) -> None:
    for template in (
        EVERY,
        EVERY.replace("{{ m['content'] }}", "{% generation %}{{ m['content'] }}{% endgeneration %}"),
    ):
        tokenizer.chat_template = template + "{% if add_generation_prompt %}<assistant>{% endif %}"
        before = sys.gettrace()
        found = framed(["What is it?  "], tokenizer, chat=True)[0][0].whole
        assert found == "<user>What is it?<assistant>" and sys.gettrace() is before
        message = [{"role": "user", "content": "What is it?"}]
        assert found == tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=False)


def test_no_template_is_told(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = None
    with pytest.raises(ConfigError, match="has no chat template"):
        framed(["What?"], tokenizer, chat=True)[0][0].whole  # noqa: B018
    tokenizer.chat_template = {"tool_use": EVERY}
    with pytest.raises(ConfigError, match="chat template"):
        framed(["What?"], tokenizer, chat=True)[0][0].whole  # noqa: B018
