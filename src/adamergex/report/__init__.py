"""The report: results -> Markdown, CSV, LaTeX and one self-contained HTML page."""

from __future__ import annotations

from adamergex.report.page import report, write_report
from adamergex.report.results import Results
from adamergex.report.results_file import load, parse, save

__all__ = ["Results", "load", "parse", "report", "save", "write_report"]
