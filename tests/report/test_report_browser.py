"""The page in headless Chromium: it opens, sorts, and has nothing to say on the console."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adamergex.report import parse, report, write_report

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


pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium binary: `make browser` installs Debian's")


def chromium(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(CHROMIUM), *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)


def seen(tmp_path: Path, page: str, probe: str) -> tuple[list[str], list[str]]:
    """What a probe found in the page on a phone's screen, and what the console said."""
    file = tmp_path / "probe.html"
    file.write_text(f'<body><iframe src="{page}" style="border:0;width:390px;height:800px"></iframe>{probe}')
    done = chromium(tmp_path, "--virtual-time-budget=3000", "--dump-dom", file.as_uri())
    found = re.search(r'data-seen="([^"]*)"', done.stdout)
    assert found is not None
    return found[1].split(" / "), [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def test_opens_on_a_phone_sorts_and_is_silent(sample: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    write_report(parse(sample(text=" <script>alert(1)</script>" + "long" * 40)), tmp_path)
    (first, down, up, state, width, drawn), console = seen(tmp_path, "report.html", PROBE)
    assert console == []
    assert first == "Vanilla,Eng-FT,AriMerge,AdaMergeX (factors)"
    assert down == "AdaMergeX (factors),Eng-FT,AriMerge,Vanilla" and up == ",".join(reversed(down.split(",")))
    assert (state, width, drawn) == ("ascending", "fits", "drawn")


CELL = """<script>
addEventListener("load", () => {
  const view = document.querySelector("iframe").contentWindow, frame = view.document;
  const seen = [frame.querySelectorAll("table").length, frame.querySelectorAll("svg").length];
  const focusable = [...frame.querySelectorAll("a[href], button, summary, [tabindex='0']")];
  seen.push(focusable.every((one) => one.tabIndex >= 0) ? "keyboard" : "unreachable");
  seen.push([...frame.querySelectorAll("svg")].every((one) => one.querySelector("title, desc")) ? "told" : "mute");
  seen.push(frame.documentElement.scrollWidth <= 390 ? "fits" : "too wide");
  const links = [...frame.querySelectorAll("#run1-scores td a")];
  const last = links.at(-1), target = frame.getElementById(last.hash.slice(1));
  seen.push(target.closest("details").open ? "open" : "shut");
  last.click();
  setTimeout(() => {
    const box = target.getBoundingClientRect();
    const shown = target.closest("details").open && box.height > 0 && box.top < 800;
    seen.push(shown ? "revealed" : "hidden");
    seen.push(target.querySelector("b").textContent, target.querySelectorAll("li").length);
    document.body.dataset.seen = seen.join(" / ");
  }, 300);
});
</script>"""


def test_a_cell_of_a_real_report_leads_to_what_is_behind_it(runs: list[Path], tmp_path: Path) -> None:
    report(runs, tmp_path)
    found, console = seen(tmp_path, "report.html", CELL)
    assert console == []
    tables, pictures, *rest = found
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert (int(tables), int(pictures)) == (text.count("<table"), text.count("<svg")) and int(pictures) > 30
    # Of AdaMergeX in delta space: the merge and its three parents, for two seeds.
    wanted = ["keyboard", "told", "fits", "shut", "revealed", "AdaMergeX (delta) in tr", "8"]
    assert rest == wanted


@pytest.mark.parametrize("width", [390, 1280])
def test_screenshots_in_light_dark_and_print(runs: list[Path], tmp_path: Path, width: int) -> None:
    page = report(runs, tmp_path)
    pictures = {}
    for name, scheme in (("light", 1), ("dark", 0)):
        shot = tmp_path / f"{name}.png"
        size = f"--window-size={max(width, 500)},1600"  # headless Chromium has no narrower window
        chromium(
            tmp_path, size, f"--blink-settings=preferredColorScheme={scheme}", f"--screenshot={shot}", page.as_uri()
        )
        pictures[name] = shot.read_bytes()
        header = pictures[name][:24]
        assert header[:8] == b"\x89PNG\r\n\x1a\n" and int.from_bytes(header[16:20]) == max(width, 500)
        assert len(pictures[name]) > 30_000  # something is drawn
    assert pictures["light"] != pictures["dark"]
    chromium(tmp_path, f"--print-to-pdf={tmp_path / 'print.pdf'}", page.as_uri())
    assert (tmp_path / "print.pdf").read_bytes().startswith(b"%PDF")
