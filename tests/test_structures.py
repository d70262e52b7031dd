"""A structure is one file that is registered once; another package adds one without an edit here."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from pydantic import ValidationError
from safetensors.numpy import load_file

from adamergex import structures
from adamergex.errors import ConfigError
from adamergex.files.registry import STRUCTURES
from adamergex.jobs.settings import Structure, TrainJob
from adamergex.structures.kind import StructureKind

VERA = Path(__file__).parents[1] / "examples" / "vera"


def installed(folder: Path) -> dict[str, str]:
    """The environment of a process in which the example's package is installed."""
    for file in VERA.glob("*.py"):
        shutil.copy(file, folder)
    project = tomllib.loads((VERA / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    about = folder / "adamergex_vera-0.1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    points = [f"[{group}]\n" + "".join(f"{name} = {path}\n" for name, path in found.items())
              for group, found in project["entry-points"].items()]  # fmt: skip
    (about / "entry_points.txt").write_text("".join(points))
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), *sys.path])}


def test_a_structure_of_another_package_trains_merges_and_evaluates(
    tiny_encoder: Path, small_data: Path, tmp_path: Path
) -> None:
    """Two files and an entry point; then its name in the settings of a table is all that is said."""
    (tmp_path / "site").mkdir()
    environment = installed(tmp_path / "site")
    quick = {"steps": 3, "batch_size": 8, "learning_rate": 1e-1}
    data = f"{small_data}/{{language}}"
    table: dict[str, Any] = {
        "base": str(tiny_encoder),
        "structure": {"kind": "vera", "rank": 4},
        "proxy": "fr",
        "targets": ["sw"],
        "methods": ["english_tuning", "average", "adamergex"],
        "task": {"train": f"{data}.train.tsv", "validation": f"{data}.validation.tsv", "test": f"{data}.test.tsv",
                 "optimisation": quick},
        "reference": {"text": f"{data}.txt", "segment": 16, "optimisation": quick},
        "merge": {"grid": [0.5, 1.0]},
        "output": str(tmp_path / "run"),
    }  # fmt: skip
    (tmp_path / "table.yaml").write_text(yaml.safe_dump(table), encoding="utf-8")
    command = [sys.executable, "-m", "adamergex", "transfer", str(tmp_path / "table.yaml")]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    results = json.loads((tmp_path / "run" / "results.json").read_text(encoding="utf-8"))
    cells = {cell["method"]: cell for cell in results["cells"]}
    assert all(0 <= cell["score"] <= 100 for cell in cells.values()) and len(cells) == 3
    merged = tmp_path / "run" / cells["adamergex"]["adapter"]
    lineage = json.loads((merged / "lineage.json").read_text(encoding="utf-8"))
    assert lineage["structure"]["kind"] == "vera" and lineage["structure"]["rank"] == 4
    weight = lineage["merge"]["weight"]
    parts = {role: load_file(Path(parent["path"]) / "adapter_model.safetensors", )
             for role, parent in lineage["parents"].items()}  # fmt: skip
    found, changed = load_file(merged / "adapter_model.safetensors"), 0
    for name in (name for name in found if ".vera_lambda_" in name):
        task, target, source = (parts[role][name] for role in ("task", "target_reference", "source_reference"))
        np.testing.assert_allclose(found[name], task + weight * (target - source), rtol=1e-5, atol=1e-6)
        changed += not np.array_equal(target, source)
    assert changed
    again = subprocess.run(
        [sys.executable, "-c", f"from adamergex import inspect; print(inspect({str(merged)!r}))"],
        env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert "structure   vera" in again.stdout, again.stderr


def test_every_structure_is_one_record() -> None:
    assert [kind.name for kind in structures.every()] == ["lora", "ia3", "bottleneck", "prefix", "full", "sparse"]
    for kind in structures.every():
        shape = Structure(kind=kind.name)  # type: ignore[call-arg]
        assert type(shape) is kind.settings_class and shape.kind == kind.name
        assert Structure.model_validate(shape.model_dump(mode="json")) == shape
        assert (kind.rule is None) == (not kind.adapter)


def test_a_name_is_registered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(STRUCTURES, "_registered", {})
    mine = StructureKind("mine", "adamergex.structures.settings:Full", "adamergex.adapters.full_backed")
    assert structures.register(mine) is structures.find("mine") is structures.register(mine)
    assert list(STRUCTURES)[-1] == "mine"
    for taken in ("lora", "mine"):
        with pytest.raises(ConfigError, match=f"this name is taken[\\s\\S]*{taken}"):
            structures.register(StructureKind(taken, "x:X", "x"))


def test_a_package_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    """One line on it, where its structure is asked for; the others go on."""
    environment = installed(tmp_path)
    (tmp_path / "vera_structure.py").write_text("import nothing_of_this_name\n")
    code = (
        "from adamergex import structures\nfrom adamergex.errors import ConfigError\n"
        "assert structures.find('lora').name == 'lora' and structures.find('vers') is None\n"
        "try:\n    structures.find('vera')\nexcept ConfigError as error:\n    print(error)"
    )
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    for part in ("installed package cannot be used", "adamergex-vera", "structures.vera", "nothing_of_this_name"):
        assert part in run.stdout


@pytest.mark.parametrize("kind", ["vera", "os:system", "../lora", "", 5, None])
def test_a_name_in_data_names_no_code(kind: object) -> None:
    """What no installed package offers is no structure, whatever could be imported by it."""
    with pytest.raises(ValidationError, match="Input should be 'lora', 'ia3', 'bottleneck', 'prefix', 'full' or 'spar"):
        Structure.model_validate({"kind": kind})


def test_what_steps_hold_is_what_they_held() -> None:
    """The JSON of structures is part of the keys of steps: field by field as before there was a class for each."""
    held = {
        "lora": {"rank": 8, "alpha": 16.0, "dropout": 0.05, "modules": "paper"},
        "ia3": {"rank": 8, "alpha": 16.0, "dropout": 0.05, "modules": "paper"},
        "bottleneck": {"layout": "pfeiffer", "reduction": 16.0, "activation": None, "leave_out": [],
                       "invertible": False, "dropout": 0.0},
        "prefix": {"virtual_tokens": 20},
        "full": {},
        "sparse": {"entries": 0.0511, "l1": 0.0, "freeze_norms": False, "first_epochs": None, "first_steps": None},
    }  # fmt: skip
    for kind, fields in held.items():
        job = TrainJob.model_validate({
            "base": "x", "structure": {"kind": kind}, "task": {"kind": "language-modeling"}, "language": "en",
            "rows": {"path": "x"}, "optimisation": {},
        })  # fmt: skip
        assert job.model_dump(mode="json")["structure"] == {"kind": kind, **fields}
