"""The weights, tokenizers, vectors and texts that the package ships, byte for byte: results in the documents depend on
them. `python tests/test_shipped_files.py` writes the list anew after a change that is meant."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import adamergex

ROOT = Path(adamergex.__file__).parent
GOLDEN = Path(__file__).parent / "goldens" / "shipped_files.json"
CODE = {".py", ".pyc", ".j2", ".css", ".js", ".md", ".typed"}


def shipped() -> dict[str, str]:
    """SHA-256 of each file of the package that is neither code nor prose."""
    files = sorted(path for path in ROOT.rglob("*") if path.is_file() and path.suffix not in CODE)
    return {path.relative_to(ROOT).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_what_is_shipped_is_what_was_measured() -> None:
    assert shipped() == json.loads(GOLDEN.read_text(encoding="utf-8"))


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(shipped(), indent=1) + "\n", encoding="utf-8")
