"""Cosines of divergences: against float64 on whole tensors, their laws, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from adapter_files import (
    edit_tensors,
    ia3_config,
    ia3_tensors,
    lora_config,
    lora_tensors,
    near,
    read,
    save,
    tensors_of,
)

from adamergex.errors import AdapterFileError, ConfigError, IncompatibleAdaptersError
from adamergex.merging import divergence, similarity

LANGUAGES = ("es", "sw", "tr")


def references(path: Path, kind: str, dtype: str = "F32", width: int = 24) -> tuple[Path, dict[str, Path]]:
    """A source reference and three target references of one start."""
    start = lora_tensors(0, width=width) if kind == "lora" else ia3_tensors(0)
    config = lora_config() if kind == "lora" else ia3_config()
    source = save(path / "en", near(start, 9), config, dtype)
    return source, {name: save(path / name, near(start, seed), config, dtype) for seed, name in enumerate(LANGUAGES)}


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F64"])
@pytest.mark.parametrize(("kind", "rule"), [("lora", "additive"), ("ia3", "multiplicative")])
def test_against_float64(tmp_path: Path, kind: str, rule: str, dtype: str) -> None:
    width = 20_000 if (kind, dtype) == ("lora", "F32") else 24  # more than a chunk of a tensor
    source, targets = references(tmp_path, kind, dtype, width)
    found = similarity(source, targets)
    base = read(source)
    flat = []
    for path in targets.values():
        tensors = read(path)
        parts = [tensors[name] - base[name] if kind == "lora" else tensors[name] / base[name] - 1 for name in base]
        flat.append(np.concatenate([part.ravel() for part in parts]))
    norms = [np.linalg.norm(one) for one in flat]
    wanted = [
        [one @ two / (a * b) for two, b in zip(flat, norms, strict=True)] for one, a in zip(flat, norms, strict=True)
    ]
    assert (found.languages, found.rule) == (LANGUAGES, rule)
    np.testing.assert_allclose(np.array(found.cosines, float), wanted, rtol=0, atol=2e-6)
    np.testing.assert_allclose(found.norms, norms, rtol=2e-6)
    assert np.array_equal(np.array(found.cosines), np.array(found.cosines).T)
    assert abs(wanted[0][1]) > 0.01  # the shared source shows


def test_norms_are_those_of_the_saved_divergence(tmp_path: Path) -> None:
    source, targets = references(tmp_path, "lora")
    report = divergence(target_reference=targets["sw"], source_reference=source, output=tmp_path / "vector")
    norm = sum(item.divergence**2 for item in report.modules) ** 0.5
    assert similarity(source, targets).norms[1] == pytest.approx(norm, rel=1e-6)


def test_opposite_same_and_nothing(tmp_path: Path) -> None:
    start = lora_tensors(0)
    step = {name: value - start[name] for name, value in near(start, 3).items()}
    moved = {name: {key: start[key] + factor * step[key] for key in start} for name, factor in
             (("one", 1.0), ("double", 2.0), ("back", -1.0), ("still", 0.0))}  # fmt: skip
    source = save(tmp_path / "en", start, lora_config())
    targets = {name: save(tmp_path / name, tensors, lora_config()) for name, tensors in moved.items()}
    found = similarity(source, targets)
    assert found.cosines[0][1] == pytest.approx(1, abs=1e-6) and found.cosines[0][2] == pytest.approx(-1, abs=1e-6)
    assert found.cosines[3] == (None,) * 4 and found.norms[3] == 0
    assert found.norms[1] == pytest.approx(2 * found.norms[0], rel=1e-5)


def test_what_has_no_common_divergence_is_refused(tmp_path: Path) -> None:
    source, targets = references(tmp_path, "lora")
    with pytest.raises(ConfigError, match="no divergence"):
        similarity(source, {})
    with pytest.raises(AdapterFileError, match="no adapter directory"):
        similarity(source, {"xx": tmp_path / "none"})
    other = save(tmp_path / "other", lora_tensors(0, rank=2), lora_config(rank=2))
    with pytest.raises(IncompatibleAdaptersError):
        similarity(source, {**targets, "xx": other})
    apart = save(tmp_path / "apart", lora_tensors(77), lora_config())
    with pytest.raises(IncompatibleAdaptersError, match="start"):
        similarity(source, {"xx": apart})
    assert len(similarity(source, {"xx": apart}, allow_different_start=True).norms) == 1
    broken = tensors_of(targets["sw"])
    next(iter(broken.values())).view(-1)[3] = float("nan")
    edit_tensors(targets["sw"], broken)
    with pytest.raises(AdapterFileError, match="not finite"):
        similarity(source, targets)
