"""The page in headless Chromium: it opens, sorts, and has nothing to say on the console."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adamergex.report import write_report

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--enable-logging=stderr"),
    *("--allow-file-access-from-files", "--window-size=500,900"),
]
PROBE = """<script>
addEventListener("load", () => {
  const frame = document.querySelector("iframe").contentDocument;
  const table = frame.querySelector("table");
  const read = () => [...table.tBodies[0].rows].map((row) => row.cells[0].dataset.v).join();
  const button = table.tHead.rows[0].cells[1].querySelector("button");
  const seen = [read()];
  button.click(); seen.push(read());
  button.click(); seen.push(read());
  seen.push(button.parentElement.getAttribute("aria-sort"));
  seen.push(frame.documentElement.scrollWidth <= 390 ? "fits" : "too wide");
  const drawn = (svg) => svg.getBoundingClientRect().width > 50;
  seen.push([...frame.querySelectorAll("svg")].every(drawn) ? "drawn" : "empty");
  document.body.dataset.seen = seen.join(" / ");
});
</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium binary")
def test_opens_on_a_phone_sorts_and_is_silent(sample: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    assert CHROMIUM is not None
    write_report(sample(text=" <script>alert(1)</script>" + "long" * 40), tmp_path)
    probe = tmp_path / "probe.html"
    probe.write_text(f'<body><iframe src="report.html" style="border:0;width:390px;height:800px"></iframe>{PROBE}')
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}"]
    done = subprocess.run(
        [*command, "--dump-dom", probe.as_uri()], capture_output=True, text=True, timeout=60, check=True
    )
    assert [line for line in done.stderr.splitlines() if "CONSOLE" in line] == []
    found = re.search(r'data-seen="([^"]*)"', done.stdout)
    assert found is not None
    first, down, up, state, width, drawn = found[1].split(" / ")
    assert first == "Vanilla,Eng-FT,AriMerge,AdaMergeX (factors)"
    assert down == "AdaMergeX (factors),Eng-FT,AriMerge,Vanilla" and up == ",".join(reversed(down.split(",")))
    assert (state, width, drawn) == ("ascending", "fits", "drawn")
