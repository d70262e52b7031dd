"""The command line: errors without tracebacks, exit codes, and every verb reachable."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from adamergex.cli.main import main
from test_pipeline import settings


def test_help_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    text = capsys.readouterr().out
    assert all(
        verb in text
        for verb in (
            "merge",
            "divergence",
            "inspect",
            "convert",
            "train",
            "transfer",
            "report",
            "study",
            "runs",
            "gc",
            "evaluate",
            "demo",
        )
    )


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    from adamergex import __version__

    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"adamergex {__version__}\n"


def test_a_wrong_path_is_one_message_and_exit_code_2(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "adamergex", "merge", "--task", str(tmp_path / "none"), "--weight", "0.5"]
    command += ["--target-reference", "b", "--source-reference", "c", "--output", str(tmp_path / "out")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr.startswith("adamergex: ") and "none" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("verb", ["transfer", "train", "study"])
def test_a_folder_is_no_settings_file(verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "a folder" in error and str(tmp_path) in error


@pytest.mark.parametrize("column", ["text", "=sentence", "text="])
def test_a_column_is_a_pair(column: str, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--base", "nano", "--adapter", "a", "--test", "b", "--language", "en", "--output", "c"]
    with pytest.raises(SystemExit):
        main(["evaluate", *given, "--column", column])
    assert "OURS=THEIRS" in capsys.readouterr().err


def test_transfer_then_inspect_merge_and_evaluate(
    tiny_encoder: Path, small_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = settings(
        tiny_encoder, small_data, tmp_path / "run", methods=["english_tuning", "adamergex"], targets=["sw"]
    )
    file = tmp_path / "topics.yaml"
    file.write_text(yaml.safe_dump(wanted), encoding="utf-8")
    assert main(["transfer", str(file)]) == 0
    assert "report:" in capsys.readouterr().out
    trained = {}
    for path in (tmp_path / "run" / "store" / "train").iterdir():
        assert main(["inspect", str(path)]) == 0
        text = capsys.readouterr().out
        assert "lora" in text
        name = (
            "task"
            if "classification" in text
            else next(code for code in ("sw", "fr", "en") if f"language: {code}" in text or f" {code}" in text)
        )
        trained[name] = path
    references = {code: trained[code] for code in ("sw", "en")}
    arguments = ["--target-reference", str(references["sw"]), "--source-reference", str(references["en"])]
    merged = tmp_path / "merged"
    assert main(["merge", "--task", str(trained["task"]), *arguments, "--weight", "0.5", "--output", str(merged)]) == 0
    vector, applied = tmp_path / "vector", tmp_path / "applied"
    assert main(["divergence", *arguments, "--output", str(vector)]) == 0
    given = ["--divergence", str(vector), "--weight", "0.5", "--output", str(applied)]
    assert main(["merge", "--task", str(trained["task"]), *given]) == 0
    name = "adapter_model.safetensors"
    assert (merged / name).read_bytes() == (applied / name).read_bytes()
    test = str(small_data / "sw.test.tsv")
    given = ["--base", str(tiny_encoder), "--adapter", str(merged), "--test", test, "--language", "sw"]
    assert main(["evaluate", *given, "--output", str(tmp_path / "scores")]) == 0
    assert "on 24 items" in capsys.readouterr().out
    assert main(["evaluate", *given, "--output", str(tmp_path / "scores")]) == 2
    assert "exists already" in capsys.readouterr().err
