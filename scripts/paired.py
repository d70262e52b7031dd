"""One method against another, of two tables with the same items, languages and seeds, on the mean of the languages.

    python scripts/paired.py TABLE_A METHOD_A TABLE_B METHOD_B

A table is a folder of a run, with results.json. Prints the difference in points, its plain 95 % interval over seeds and
items, and p: no correction for other comparisons.
"""

from __future__ import annotations

import sys
from pathlib import Path

from adamergex import load_results
from adamergex.files.records import read_predictions
from adamergex.statistics import Sample, compare


def samples(table: Path, method: str) -> list[list[Sample]]:
    """By seed, a sample per language."""
    results = load_results(table / "results.json")
    cells = {(cell.seed, cell.language): cell for cell in results.cells if cell.method == method}
    return [
        [Sample.read(read_predictions(table / str(cells[seed, language].predictions))) for language in results.targets]
        for seed in results.seeds
    ]


def main(table_a: str, method_a: str, table_b: str, method_b: str) -> None:
    """One line."""
    comparison = compare(samples(Path(table_a), method_a), samples(Path(table_b), method_b))
    low, high = comparison.interval()
    print(f"{comparison.difference:+.2f} points [{low:+.2f}, {high:+.2f}], p = {comparison.p:.4f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
