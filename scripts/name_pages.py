"""The pages of docs/reference/, from signatures and docstrings: one for each public name, one for each room."""

from __future__ import annotations

import inspect
import json
import re
import textwrap
from collections.abc import Iterable, Mapping
from importlib import import_module
from typing import Any

import adamergex

WIDTH = 100
SECTIONS = ("Args", "Returns", "Raises")
HEADINGS = {"Args": "Arguments"}


def index(made: str, rooms: Iterable[str]) -> str:
    """The page that leads to all others."""
    names = [(f"[`{name}`](reference/{name}.md)", first_line(getattr(adamergex, name))) for name in adamergex.__all__]
    names.append(("[errors](reference/errors.md)", "what every function raises"))
    inside = ", ".join(f"[{room}](reference/inside/{room}.md)" for room in rooms)
    return (
        "# Reference\n\n```python\nfrom adamergex import merge, transfer\n```\n\nEvery public name of `adamergex` has "
        "a page. See also the [command line](cli.md) and the [settings](settings.md) of its files. "
        f"{made}\n\n| | |\n|---|---|\n"
        + "\n".join(f"| {name} | {line.replace('|', chr(92) + '|')} |" for name, line in names)
        + "\n\nThe interfaces between the packages of the [architecture](architecture.md), which extensions use too: "
        f"{inside}.\n"
    )


def name_page(name: str, verbs: Iterable[str]) -> str:
    """The page of one public name; ``verbs``: those of the command line."""
    thing = getattr(adamergex, name)
    code = f"from adamergex import {name}\n\n\n{definition(name, thing)}"
    parts = [f"# {name}", fenced(code), described(thing, 2)]
    if name in verbs:
        parts.append(f"## Command line\n\n[`adamergex {name}`](../cli.md#{name})")
    return "\n\n".join(parts) + "\n"


def errors_page(names: Iterable[str]) -> str:
    """All errors on one page."""
    module = import_module("adamergex.errors")
    parts = ["# Errors", marked(inspect.getdoc(module) or "")]
    parts += [f"## {name}\n\n{described(getattr(module, name), 3)}" for name in names]
    return "\n\n".join(parts) + "\n"


def room_page(room: str, modules: Mapping[str, Iterable[str]]) -> str:
    """What the modules of a room offer to rooms above it and to extensions."""
    public = {id(getattr(adamergex, name)): name for name in adamergex.__all__}
    parts = [f"# {room}"]
    for path, members in modules.items():
        module = import_module(path)
        parts.append(f"## {path.removeprefix('adamergex.')}\n\n{marked(inspect.getdoc(module) or '')}")
        for member in members:
            thing = getattr(module, member)
            own = public.get(id(thing))
            shown = [fenced(definition(member, thing)), described(thing, 4)]
            told = f"See [{own}](../{own}.md)." if own else "\n\n".join(shown)
            parts.append(f"### {member}\n\n{told}")
    return "\n\n".join(parts) + "\n"


def definition(name: str, thing: Any) -> str:
    """A function or class as it is written, on lines of their own where its arguments do not fit on one."""
    signature, words = inspect.signature(thing), []
    for parameter in signature.parameters.values():
        starred = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
        if parameter.kind is parameter.KEYWORD_ONLY and not any(word.startswith("*") for word in words):
            words.append("*")
        value = parameter.default
        given = "" if value is parameter.empty else f" = {default(value)}"
        words.append(f"{starred}{parameter.name}{annotation(parameter.annotation)}{given}")
    if isinstance(thing, type):
        return "\n".join([f"class {name}:", *(f"    {word}" for word in words if word not in ("*", "/"))])
    result = annotation(signature.return_annotation).replace(": ", " -> ", 1)
    line = f"def {name}({', '.join(words)}){result}: ..."
    return (
        line
        if len(line) <= WIDTH
        else "\n".join([f"def {name}(", *(f"    {word}," for word in words), f"){result}: ..."])
    )


def annotation(value: Any) -> str:
    """An annotation with its colon; nothing where there is none."""
    if value is inspect.Signature.empty:
        return ""
    text = (
        value
        if isinstance(value, str)
        else getattr(value, "__forward_arg__", None) or getattr(value, "__name__", str(value))
    )
    return f": {quoted(text)}"


def default(value: Any) -> str:
    """A default; functions by their names, what is made anew for each as ``...``."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    text = re.sub(r"<(?:built-in )?function (\w+)[^>]*>", r"\1", repr(value))
    return "..." if "<" in text else quoted(text)


def quoted(text: str) -> str:
    """Code with double quotation marks, as the formatter writes them."""
    return text if '"' in text else text.replace("'", '"')


def described(thing: Any, level: int) -> str:
    """A docstring in Markdown: its text, then a heading for each of its sections."""
    text, sections = parted(inspect.getdoc(thing) or "")
    parts = [marked(text)] if text else []
    for name, content in sections:
        heading = f"{'#' * level} {HEADINGS.get(name, name)}"
        parts.append(f"{heading}\n\n{listed(content) if name != 'Returns' else marked(content)}")
    return "\n\n".join(parts)


def parted(docstring: str) -> tuple[str, list[tuple[str, str]]]:
    """The text of a docstring, and its sections: what is indented below ``Args:``, or follows on its line."""
    text: list[str] = []
    sections: list[tuple[str, list[str]]] = []
    current = text
    for line in docstring.splitlines():
        if match := re.match(rf"({'|'.join(SECTIONS)}):(.*)", line):
            current = [match[2].strip()]
            sections.append((match[1], current))
            continue
        if line and not line.startswith(" "):
            current = text
        current.append(line)
    return "\n".join(text).strip(), [(name, "\n".join(lines).strip("\n")) for name, lines in sections]


def listed(content: str) -> str:
    """Lines of ``name: what it is``, continued where indented further, as a list; anything else as text."""
    items: list[str] = []
    for line in textwrap.dedent(content).splitlines():
        if line.startswith(" ") and items:
            items[-1] += f" {line.strip()}"
        elif line:
            items.append(line)
    named = [re.fullmatch(r"([\w, ]+): (.+)", item) for item in items]
    if not all(named):
        return marked(" ".join(items))
    return "\n".join(
        f"- {', '.join(f'`{name}`' for name in item[1].split(', '))}: {marked(item[2])}" for item in named if item
    )


def marked(text: str) -> str:
    """A docstring's text in Markdown: code in single back quotes, signs that mean something there escaped."""
    return "\n\n".join(part if part.startswith("    ") else _marked(part) for part in text.split("\n\n"))


def _marked(paragraph: str) -> str:
    parts = re.split(r"(``.+?``)", paragraph, flags=re.DOTALL)
    return "".join(part[1:-1] if part.startswith("``") else re.sub(r"([*<])(?=\S)", r"\\\1", part) for part in parts)


def fenced(code: str) -> str:
    return f"```python\n{code}\n```"


def first_line(thing: Any) -> str:
    """The first sentence of a docstring."""
    paragraph = marked(" ".join((inspect.getdoc(thing) or "").split("\n\n")[0].split()))
    return re.split(r"(?<=\w)[.;] ", paragraph)[0].rstrip(".")
