"""A short form of the fuzzers in scripts/fuzz; docs/reliability.md has the figures of the long one."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts" / "fuzz"))

import adapters
import loading


@pytest.mark.parametrize("first", range(0, 300, 50))
def test_damaged_adapters_are_refused_or_merged_right(first: int) -> None:
    wrong = [outcome for outcome in adapters.outcomes(adapters.mutant, range(first, first + 50)) if outcome.complaint]
    assert not wrong


@pytest.mark.parametrize("first", range(0, 120, 40))
def test_damaged_adapters_are_refused_or_loaded_right(first: int) -> None:
    wrong = [outcome for outcome in adapters.outcomes(loading.mutant, range(first, first + 40)) if outcome.complaint]
    assert not wrong


def test_the_fuzzer_sees_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a merge that forgets the divergence, and one that dies, it complains."""
    from adamergex.merging import stream
    from adamergex.merging.rules import registry

    wrong = registry.RULES["additive"]._replace(shift=lambda task, divergence, weight, out=None: task * 1.01)
    monkeypatch.setitem(registry.RULES, "additive", wrong)
    seen = [outcome.complaint for outcome in adapters.outcomes(adapters.mutant, range(60))]
    assert any("is off by" in complaint for complaint in seen)
    monkeypatch.undo()
    monkeypatch.setattr(stream, "tensor_runs", lambda *_: 1 / 0)
    seen = [outcome.complaint for outcome in adapters.outcomes(adapters.mutant, range(60))]
    assert any(complaint.startswith("exit 1: ") for complaint in seen)
