"""Chat templates: downloaded programs, run in transformers' sandbox with bounded time and memory."""

from __future__ import annotations

import functools
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, TemplateError, nodes

from adamergex.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SECONDS = 2.0
"""Maximum CPU time of a template for one prompt."""
_MEMORY = 1 << 30  # bytes that rendering may allocate on top of the process's memory
_LONGEST = 1 << 20  # characters of a template
_EVERY = 500  # traced events between two checks of the clock
_GENERATION = re.compile(r"\{%-?\s*(?:end)?generation\s*-?%\}")


class _TooLongError(Exception):
    """A template exceeds its time limit."""


def in_chat(tokenizer: PreTrainedTokenizerBase, content: str) -> str:
    """A prompt with one user message in the tokenizer's chat template.

    Raises: ConfigError: there is no template, or it rejects the message, fails, or takes too much time or memory.
    """
    template = _template(tokenizer)
    try:
        _require_bounded(template)
        with _bounded():
            message = [{"role": "user", "content": content}]
            return str(tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=False))
    except _TooLongError:
        raise _failed(tokenizer, f"more than {SECONDS:g} s for one prompt") from None
    except MemoryError:
        raise _failed(tokenizer, f"more than {_MEMORY >> 30} GiB for one prompt") from None
    except TemplateError as error:
        raise _failed(tokenizer, error.message or type(error).__name__) from error
    except Exception as error:  # an untrusted program may raise anything
        raise _failed(tokenizer, f"{type(error).__name__}: {str(error)[:200]}") from error


def _template(tokenizer: PreTrainedTokenizerBase) -> str:
    if not tokenizer.chat_template:
        raise ConfigError(
            "the tokenizer has no chat template",
            where=tokenizer.name_or_path,
            found="chat: true",
            fix="prompt without chat, or choose a model that was tuned for chats",
        )
    try:
        return str(tokenizer.get_chat_template())
    except ValueError as error:  # several templates without a default
        raise _failed(tokenizer, (str(error).splitlines() or [""])[0]) from error


@functools.lru_cache(maxsize=8)
def _require_bounded(template: str) -> None:
    """Raises: TemplateError for a single operation that may run long, where the clock is not checked."""
    if len(template) > _LONGEST:
        raise TemplateError(f"{len(template):,} characters, more than {_LONGEST:,}")
    parsed = Environment(extensions=["jinja2.ext.loopcontrols"], autoescape=False).parse(_GENERATION.sub("", template))
    if parsed.find(nodes.Pow) is not None:
        raise TemplateError("powers of numbers (**), which have no bounds")


@contextmanager
def _bounded() -> Iterator[None]:
    """Raises: _TooLongError after ``SECONDS`` of CPU time; MemoryError, on Linux, for more than ``_MEMORY``."""
    deadline, before, events = time.thread_time() + SECONDS, sys.gettrace(), 0

    def trace(frame: Any, event: str, argument: Any) -> Any:
        nonlocal events
        events += 1
        if events % _EVERY == 0 and time.thread_time() > deadline:
            raise _TooLongError
        return trace

    with _limited_memory():
        sys.settrace(trace)
        try:
            yield
        finally:
            sys.settrace(before)


@contextmanager
def _limited_memory() -> Iterator[None]:
    try:
        import resource

        taken = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    except (ImportError, OSError):  # not Linux
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    wanted = taken + _MEMORY
    lower = soft == resource.RLIM_INFINITY or wanted < soft
    if lower:
        resource.setrlimit(resource.RLIMIT_AS, (wanted, hard))
    try:
        yield
    finally:
        if lower:
            resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _failed(tokenizer: PreTrainedTokenizerBase, reason: str) -> ConfigError:
    return ConfigError(
        "the tokenizer's chat template does not write this prompt",
        where=tokenizer.name_or_path,
        found=reason,
        expected="a template that takes one message of a user",
        fix="prompt without chat, or correct chat_template in the checkpoint",
    )
