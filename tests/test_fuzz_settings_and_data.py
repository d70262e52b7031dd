"""The fuzzer of settings and data files, a short fixed form of it: see docs/reliability.md."""

from __future__ import annotations

from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[1] / "scripts" / "fuzz"


@pytest.mark.parametrize("verb", ["settings", "data"])
def test_damaged_inputs_end_in_one_clear_error(verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import settings_and_data

    settings_and_data.import_all()
    found = [settings_and_data.attempt(verb, seed) for seed in range(120)]
    assert [problem for outcome, problem in found if outcome == "complaint"] == []
    assert {outcome for outcome, _ in found} == {"accepted", "refused"}


def test_the_fuzzer_complains(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import settings_and_data

    def crash(*_: object) -> tuple[str, object]:
        return "x", lambda: {}["missing"]

    monkeypatch.setitem(settings_and_data.CASES, "data", crash)
    assert settings_and_data.attempt("data", 0) == ("complaint", "KeyError: 'missing' (x)")
