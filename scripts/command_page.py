"""docs/cli.md, from the parser of the command line."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from adamergex.cli.main import parser

Verb = tuple[str, str, argparse.ArgumentParser]


def verbs(top: argparse.ArgumentParser, before: str = "") -> Iterator[Verb]:
    """Name, help and parser of every verb, those of a verb (``backbones trim``) after it."""
    for action in top._actions:
        if isinstance(action, argparse._SubParsersAction):
            told = {choice.dest: choice.help or "" for choice in action._choices_actions}
            for name, verb in action.choices.items():
                yield f"{before}{name}", told.get(name, ""), verb
                yield from verbs(verb, f"{before}{name} ")


def command_page(made: str) -> str:
    """All verbs with their arguments."""
    top = parser()
    found = list(verbs(top))
    parts = [
        f"# Command line\n\n    adamergex demo --output runs/demo\n\n{top.description} Every command has `--help`. The "
        "exit code is 0 for success, 2 for a problem that you can fix (one message names it), 130 after Ctrl-C and 1 "
        f"for a bug in adamergex. {made}",
        table("command", ((f"[`{name}`](#{name.replace(' ', '-')})", about) for name, about, _ in found)),
    ]
    return "\n\n".join(parts + [section(name, verb) for name, _, verb in found]) + "\n"


def section(name: str, verb: argparse.ArgumentParser) -> str:
    """One verb."""
    about = (verb.description or "").strip()
    actions = [
        action for action in verb._actions if not isinstance(action, argparse._HelpAction | argparse._SubParsersAction)
    ]
    parts = [f"## {name}", f"{about[:1].upper()}{about[1:].rstrip('.')}.", f"```text\n{usage(name, actions)}\n```"]
    if actions:
        rows = ((f"`{written(action)}`", default(action), action.help or "") for action in actions)
        parts.append(table("argument", rows, "default"))
    return "\n\n".join(parts)


def usage(name: str, actions: list[argparse.Action]) -> str:
    """What must be given."""
    words = [written(action) for action in actions if action.required]
    return " ".join(["adamergex", name, *words, *(["[options]"] if len(words) < len(actions) else [])])


def written(action: argparse.Action) -> str:
    """An argument as a user writes it."""
    value = action.metavar or ("|".join(action.choices) if action.choices else action.dest.upper())
    if not action.option_strings:
        return f"{value} ..." if action.nargs == "+" else str(value)
    if action.nargs == 0:
        return action.option_strings[0]
    shape = {"?": f"[{value}]", "+": f"{value} ..."}.get(str(action.nargs), str(value))
    return f"{action.option_strings[0]} {shape}"


def default(action: argparse.Action) -> str:
    if action.required:
        return "required"
    values = action.default if isinstance(action.default, list) else [action.default]
    return " ".join(f"`{value}`" for value in values if value not in (None, False))


def table(first: str, rows: Iterator[tuple[str, ...]], *more: str) -> str:
    """A Markdown table whose last column has no title."""
    lines = [" | ".join(cell.replace("|", "\\|") for cell in row) for row in rows]
    titles = [first, *more, ""]
    return "\n".join([f"| {' | '.join(titles)} |", f"|{'---|' * len(titles)}", *(f"| {line} |" for line in lines)])
