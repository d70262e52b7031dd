"""A dot plot as SVG from a CSV of figures: python scripts/dots.py FIGURES.csv PICTURE.svg "Title" "Axis"

Columns: group, label, value, low, high (an interval, or empty), in the order of the rows. Zero is a line.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

from adamergex.report.svg import element, label, line, picture, ticks

LEFT, WIDTH, ROW, TOP = 330, 720, 24, 64
STYLE = (
    "text{font:13px system-ui,sans-serif;fill:#222}.g{font-weight:600}.h{font-size:15px;font-weight:600}.s{fill:#555}"
    ".grid{stroke:#ddd}.zero{stroke:#222}.range{stroke:#1f5fa8;stroke-width:2}.dot{fill:#1f5fa8}.below{fill:#b3470b}"
    ".range-below{stroke:#b3470b;stroke-width:2}"
)


def number(text: str) -> float | None:
    """A number, or None of an empty field."""
    return float(text) if text.strip() else None


def drawn(rows: list[dict[str, str]], title: str, axis: str) -> str:
    """The picture."""
    values = [value for row in rows for name in ("value", "low", "high") if (value := number(row[name])) is not None]
    marks = ticks(min([*values, 0.0]), max([*values, 0.0]), 6)
    low, high = marks[0], marks[-1]

    def x(value: float) -> float:
        return LEFT + (value - low) / (high - low) * (WIDTH - LEFT - 70)

    groups = len({row["group"] for row in rows})
    height = TOP + ROW * (len(rows) + groups) + 40
    bottom = height - 34
    parts = [element("style", STYLE), element("rect", x=0, y=0, width=WIDTH, height=height, fill="#fff")]
    parts += [label(12, 26, title, class_="h"), label(LEFT, bottom + 30, axis, class_="s")]
    for mark in marks:
        parts.append(line(x(mark), TOP - 14, x(mark), bottom, "zero" if mark == 0 else "grid"))
        parts.append(label(x(mark), bottom + 14, f"{mark:+g}" if mark else "0", text_anchor="middle", class_="s"))
    y, group = TOP, None
    for row in rows:
        if row["group"] != group:
            group = row["group"]
            parts.append(label(12, y + 5, group, class_="g"))
            y += ROW
        value, ends = number(row["value"]), (number(row["low"]), number(row["high"]))
        assert value is not None
        side = "below" if value < 0 else "dot"
        parts.append(label(24, y + 5, row["label"]))
        if ends[0] is not None and ends[1] is not None:
            parts.append(line(x(ends[0]), y, x(ends[1]), y, "range-below" if value < 0 else "range"))
        parts.append(element("circle", cx=x(value), cy=y, r=4.5, class_=side))
        shown = f"{value:+.1f}".replace("-", "−") if round(value, 1) else "0.0"
        reach = [end for end in (value, *ends) if end is not None]
        edge, anchor = (x(min(reach)) - 9, "end") if value < 0 else (x(max(reach)) + 9, "start")
        parts.append(label(edge, y + 5, shown, class_="s", text_anchor=anchor))
        y += ROW
    said = "; ".join(f"{row['group']}, {row['label']}: {row['value']}" for row in rows)
    return picture("dots", (WIDTH, height), title, said, "".join(parts)) + "\n"


def main(figures: str, output: str, title: str, axis: str) -> None:
    """Write the picture."""
    with Path(figures).open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(line for line in lines if not line.startswith("#")))
    Path(output).write_text(drawn(rows, title, axis), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
