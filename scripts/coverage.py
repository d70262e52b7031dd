"""How many words of a test's texts does the reference task's text contain? Share of the words, in percent.

    python scripts/coverage.py data/ntrex/{language}.train.jsonl.gz data/sib200/{language}.dev.jsonl.gz ha ig rw

A word: a run of letters, apostrophes and hyphens inside it, in lower case. Words of five letters and more, which carry
most of a topic, are shown apart. Only texts are read, no labels.
"""

from __future__ import annotations

import re
import sys

from adamergex.data import reader
from adamergex.data.sources import Rows

WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")
LONG = 5


def words(pattern: str, language: str) -> list[str]:
    """All words of a file's texts."""
    rows = reader.read(Rows(path=pattern), language, ("text",))
    return [word for row in rows for word in WORD.findall(row["text"].lower())]


def share(found: list[str], known: set[str]) -> float:
    """Percent of the words that are known."""
    return 100 * sum(word in known for word in found) / len(found)


def main(arguments: list[str]) -> None:
    """One line per language."""
    reference, test, *languages = arguments
    print("language  words  all   five letters and more")
    for language in languages:
        known, found = set(words(reference, language)), words(test, language)
        long = [word for word in found if len(word) >= LONG]
        print(f"{language:8}  {len(known):5}  {share(found, known):4.1f}  {share(long, known):4.1f}")


if __name__ == "__main__":
    main(sys.argv[1:])
