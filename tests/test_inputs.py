"""The door for files and names from outside: strict, bounded, one error each."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from adamergex.errors import ConfigError, printable
from adamergex.files import inputs, names

WHAT = {"what": "the settings file", "error": ConfigError}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"a": NaN}', "NaN is not a JSON number"),
        ('{"a": -Infinity}', "Infinity"),
        ('{"a": 1e999}', "too large"),
        ('{"a": 1, "a": 2}', "'a' occurs twice"),
        ('{"a": "\\ud800"}', "surrogate"),
        ('{"\\udc00": 1}', "surrogate"),
        ("[" * 100_000 + "]" * 100_000, "nested"),
        ("[" * 70 + "]" * 70, "nested"),
        ('{"a": ' + "9" * 5000 + "}", "digits"),
        (b"\xff\xfe{}", "UTF-8"),
        ("{} {}", "Extra data"),
        ("", "Expecting value"),
    ],
)
def test_json_that_is_refused(text: str | bytes, reason: str) -> None:
    with pytest.raises(inputs.Malformed, match=reason):
        inputs.parse_json(text)


def test_json_that_is_read() -> None:
    assert inputs.parse_json('{"a": [1, 2.5, "\\ud83d\\ude00", null, true]}') == {"a": [1, 2.5, "😀", None, True]}
    assert inputs.parse_json("[" * 64 + "]" * 64)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: 1\na: 2\n", "'a' occurs twice, in line 1 and in line 2"),
        ("x: {b: 1, b: 2}", "'b' occurs twice"),
        ("a: !!int x", "cannot be read"),
        ("a: !!python/name:os.system", "could not determine a constructor"),
        ("a: !!timestamp 2021-99-99", "is not supported"),
        ("a: " + "9" * 5000, "digits"),
        ("x: " + "[" * 3000 + "]" * 3000, "nested more than 64 deep"),
        ("x: " + "{a: " * 3000 + "1" + "}" * 3000, "nested more than 64 deep"),
        ("x: " + "- " * 200 + "a", "nested more than 64 deep|not allowed"),
        ("a: &a [1, *a]", "contains itself"),
        ("a: .nan", "number"),
        ("a: .inf", "number"),
        ("? [1, 2]\n: x", "neither a text nor a whole number"),
        ("2.5: x", "neither a text nor a whole number"),
        ('a: "\\ud800"', "surrogate"),
        ("a: [1", "expected"),
        ("a: 1\n--- \nb: 2", "single document"),
    ],
)
def test_yaml_that_is_refused(text: str, reason: str) -> None:
    with pytest.raises(inputs.Malformed, match=reason):
        inputs.parse_yaml(text)


def test_aliases_are_counted_as_often_as_they_stand_for_something() -> None:
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    for before, name in zip("abcde", "bcdef", strict=True):
        lines.append(f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]")
    with pytest.raises(inputs.Malformed, match="100,000 values"):
        inputs.parse_yaml("\n".join(lines))


def test_yaml_follows_the_core_schema() -> None:
    text = (
        "targets: [no, sw]\nrate: 5e-4\nwhen: 2021-99-99\nclock: 1:30\non: true\nnothing: ~\nempty:\nhex: 0x10\n7: x\n"
    )
    assert inputs.parse_yaml(text) == {
        "targets": ["no", "sw"],
        "rate": 5e-4,
        "when": "2021-99-99",
        "clock": "1:30",
        "on": True,
        "nothing": None,
        "empty": None,
        "hex": 16,
        7: "x",
    }


def test_yaml_merge_keys_and_aliases_work() -> None:
    text = "base: &base {r: 4, alpha: 8}\none: {<<: *base, r: 16}\ntwo: *base\n"
    document = inputs.parse_yaml(text)
    assert document["one"] == {"r": 16, "alpha": 8}
    assert document["two"] == {"r": 4, "alpha": 8}


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/zero")
    for name, found in (("pipe", "a pipe"), ("link", "a device"), (".", "a folder|directory"), ("none", "nothing")):
        with pytest.raises(ConfigError, match=found):
            inputs.read_text(tmp_path / name, **WHAT)
    with pytest.raises(ConfigError, match="null byte"):
        inputs.read_text("a\0b", **WHAT)


def test_files_are_bounded(tmp_path: Path) -> None:
    path = tmp_path / "large.json"
    path.write_bytes(b"1" * 101)
    with pytest.raises(ConfigError, match="more than 100 bytes"):
        inputs.read_json(path, **WHAT, limit=100)
    path.write_bytes(b"[]")
    with pytest.raises(ConfigError, match="not a JSON object"):
        inputs.read_json_object(path, **WHAT)
    path.write_bytes(b"\xef\xbb\xbfa: \xff")
    with pytest.raises(ConfigError, match="not UTF-8"):
        inputs.read_yaml(path, **WHAT)


@pytest.mark.parametrize("name", ["sw", "pt-BR", "zh_Hans", "a", "A1"])
def test_plain_names_become_path_parts(name: str) -> None:
    assert names.path_part(name, what="the language", error=ConfigError) == name


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "../x", "a\\b", "a b", "-a", "a.", "ä", "a\n", "a\0", "CON", "lpt1", "a" * 101, "~"]
)
def test_other_names_do_not(name: str) -> None:
    with pytest.raises(ConfigError, match="the language cannot be part of a file name"):
        names.path_part(name, what="the language", error=ConfigError)


def test_messages_can_be_read_and_move_no_cursor() -> None:
    assert printable("\x1b[2Jowned\x07 \u202ereversed \x9b1m a\nb é") == (
        "\\x1b[2Jowned\\x07 \\u202ereversed \\x9b1m a\nb é"
    )
    assert len(printable("x" * 10**6)) < 2_100
    error = ConfigError("wrong\x1b[1m", where="\x1b[2J", found="y" * 10**6)
    assert "\x1b" not in str(error)
    assert len(str(error)) < 2_400
    assert (error.problem, error.where) == ("wrong\x1b[1m", "\x1b[2J")
