"""``adamergex runs`` and ``gc``: list and clean a store."""

from __future__ import annotations

import argparse

from adamergex.cli.arguments import add_verb
from adamergex.cli.ending import say
from adamergex.errors import AdamergexError


def runs(arguments: argparse.Namespace) -> None:
    from pathlib import Path

    from adamergex.graph.inventory import contents, describe
    from adamergex.graph.steps import Store

    store = Store(Path(arguments.store))
    say(describe(contents(store), store.root))


def gc(arguments: argparse.Namespace) -> None:
    from pathlib import Path

    from adamergex.graph.inventory import collect_garbage, forget_study, garbage, listing, megabytes, studies
    from adamergex.graph.steps import Store

    store = Store(Path(arguments.store))
    if arguments.forget:
        forget_study(store, arguments.forget)
    elif not studies(store):
        raise AdamergexError(
            "no study has recorded what it needs, so everything would be removed",
            where=store.root,
            fix="run the study or transfer once more (finished steps are not run again), or delete the folder yourself",
        )
    unneeded = garbage(store)
    if not unneeded.entries and not unneeded.leftovers:
        say("nothing to remove: a study needs every result")
        return
    say(listing(unneeded.entries))
    say(f"{len(unneeded.leftovers)} leftovers of stopped runs or damaged results; {megabytes(unneeded.bytes)} together")
    if not arguments.yes and not _agreed("remove these? [y/N] "):
        say("nothing removed")
        return
    removed = collect_garbage(store, unneeded)
    say(f"removed: {len(removed.entries)} results, {len(removed.leftovers)} leftovers, {megabytes(unneeded.bytes)}")


def _agreed(question: str) -> bool:
    try:
        return input(question).strip().lower() in ("y", "yes")
    except EOFError:  # not interactive
        return False


def add(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The verbs and their arguments."""
    verb = add_verb(verbs, "runs", runs, "list a store: kind, label, size, date, and the studies that need it")
    verb.add_argument("store", metavar="STORE", help="OUTPUT/store of a run, unless its settings name another")

    verb = add_verb(verbs, "gc", gc, "remove from a store what no study needs, asking first")
    verb.add_argument("store", metavar="STORE", help="OUTPUT/store of a run, unless its settings name another")
    verb.add_argument("--forget", metavar="STUDY", help="first forget this study: its title or output folder")
    verb.add_argument("--yes", action="store_true", help="do not ask")
