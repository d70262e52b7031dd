"""Reading and writing of adapter directories, sound and damaged, and that a killed write leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from adapter_files import DTYPES, lora_config, lora_tensors, save
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from adamergex.errors import AdamergexError, AdapterFileError
from adamergex.files.directory import (
    CHUNK,
    AdapterDirectory,
    Encoder,
    SafetensorsWriter,
    TensorInfo,
    TensorReader,
)
from adamergex.files.outputs import staged_directory as staged


@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_reads_what_the_library_wrote(dtype: str, tmp_path: Path) -> None:
    shapes = {"a": torch.randn(3, 5), "b": torch.randn(CHUNK + 7), "d": torch.tensor(2.5)}
    tensors = {f"base_model.model.{name}": values for name, values in shapes.items()}
    directory = AdapterDirectory.open(save(tmp_path / "x", tensors, lora_config(), dtype))
    assert directory.metadata == {"format": "pt"}
    with TensorReader(directory) as reader:
        for name, value in tensors.items():
            found = reader.load(directory.tensors[name])
            want = value.to(DTYPES[dtype])
            assert found.dtype == (np.float64 if dtype == "F64" else np.float32)
            np.testing.assert_array_equal(found, (want if dtype == "F64" else want.float()).numpy())


def test_writes_the_bytes_of_the_library(tmp_path: Path) -> None:
    """Also the order, mixed dtypes, and the header: byte for byte the file that safetensors makes."""
    tensors = {"b": torch.randn(4, 3), "a": torch.randn(5).half(), "c": torch.arange(3), "é": torch.randn(2)}
    save_file(tensors, tmp_path / "theirs", metadata={"format": "pt"})
    names = {torch.float32: "F32", torch.float16: "F16", torch.int64: "I64"}
    infos = [TensorInfo(name, names[value.dtype], tuple(value.shape)) for name, value in tensors.items()]
    writer = SafetensorsWriter(tmp_path / "ours", infos)
    for info in writer.order:
        writer.write(tensors[info.name].numpy().reshape(-1))
    writer.close()
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(values=st.lists(FLOATS, min_size=1, max_size=200))
def test_rounding_is_that_of_torch(values: list[float]) -> None:
    array = np.array(values, np.float32)
    encode, tensor = Encoder(), torch.from_numpy(array)
    ours = torch.from_numpy(encode(array, "BF16").copy()).view(torch.bfloat16)
    assert torch.equal(ours.view(torch.int16), tensor.to(torch.bfloat16).view(torch.int16))
    with np.errstate(over="ignore"):
        half = torch.from_numpy(encode(array, "F16"))
    assert torch.equal(half.view(torch.int16), tensor.half().view(torch.int16))


def test_ties_go_to_even() -> None:
    bits = np.array([0x3F808000, 0x3F818000, 0x3F808001, 0xBF808000, 0x3F807FFF], np.uint32)
    assert Encoder()(bits.view(np.float32), "BF16").tolist() == [0x3F80, 0x3F82, 0x3F81, 0xBF80, 0x3F80]


def test_a_pickle_is_never_read(tmp_path: Path) -> None:
    path = save(tmp_path / "x", lora_tensors(0), lora_config())
    (path / "adapter_model.safetensors").rename(path / "adapter_model.bin")
    with pytest.raises(AdapterFileError, match="no safetensors file") as caught:
        AdapterDirectory.open(path)
    assert "safe_serialization=True" in str(caught.value)
    assert "adapter_model.bin" in str(caught.value)


def test_missing_parts_are_named(tmp_path: Path) -> None:
    with pytest.raises(AdapterFileError, match="no adapter directory"):
        AdapterDirectory.open(tmp_path / "nowhere")
    path = save(tmp_path / "x", lora_tensors(0), lora_config())
    (path / "adapter_config.json").write_text("{")
    with pytest.raises(AdapterFileError, match="config is not valid JSON"):
        AdapterDirectory.open(path)
    (path / "adapter_config.json").write_text("[]")
    with pytest.raises(AdapterFileError, match="not a JSON object"):
        AdapterDirectory.open(path)
    (path / "adapter_config.json").unlink()
    with pytest.raises(AdapterFileError, match="has no config"):
        AdapterDirectory.open(path)


def file_with(tmp_path: Path, header: object, data: bytes = b"") -> Path:
    path = tmp_path / "x"
    path.mkdir()
    (path / "adapter_config.json").write_text("{}")
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    (path / "adapter_model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def entry(shape: list[int], start: int, end: int, dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


@pytest.mark.parametrize(
    ("header", "data", "pattern"),
    [
        ({"a": entry([2], 0, 8)}, 4, "truncated"),
        ({"a": entry([2], 0, 8)}, 12, "longer than its header"),
        ({"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, 12, "overlap"),
        ({"a": entry([2], 0, 8), "b": entry([2], 12, 20)}, 20, "leave a hole"),
        ({"a": entry([3], 0, 8)}, 8, "do not fit its shape"),
        ({"a": entry([-2], 0, 8)}, 8, "not valid"),
        ({"a": entry([2.0], 0, 8)}, 8, "not valid"),  # type: ignore[list-item]
        ({"a": entry([True, 2], 0, 8)}, 8, "not valid"),
        ({"a": {"dtype": "F32"}}, 8, "not valid"),
        ({"a": [1]}, 8, "not valid"),
        ({"a": entry([2], 0, 8, "F31")}, 8, "dtype of a is not known"),
        (b"[1, 2]", 0, "header is not valid"),
        (b"{not json", 0, "header is not valid"),
        (b'{"a": "\xff"}', 0, "header is not valid"),
    ],
)
def test_damaged_headers(header: object, data: int, pattern: str, tmp_path: Path) -> None:
    path = file_with(tmp_path, header, b"\0" * data)
    with pytest.raises(AdapterFileError, match=pattern) as caught:
        AdapterDirectory.open(path)
    assert "adapter_model.safetensors" in str(caught.value)


def test_a_header_longer_than_the_file(tmp_path: Path) -> None:
    path = file_with(tmp_path, {})
    (path / "adapter_model.safetensors").write_bytes(struct.pack("<Q", 2**62) + b"{}")
    with pytest.raises(AdapterFileError, match="truncated or not one"):
        AdapterDirectory.open(path)


@settings(max_examples=60)
@given(data=st.data())
def test_truncated_and_flipped_files_give_typed_errors_or_other_numbers(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever the damage: a typed error or finite work, never a crash or a read outside of the file."""
    path = save(tmp_path_factory.mktemp("x") / "x", lora_tensors(0, layers=1), lora_config())
    file = path / "adapter_model.safetensors"
    sound = file.read_bytes()
    if data.draw(st.booleans()):
        file.write_bytes(sound[: data.draw(st.integers(0, len(sound) - 1))])
        with pytest.raises(AdapterFileError):
            AdapterDirectory.open(path)
        return
    place = data.draw(st.integers(0, 2000))
    damaged = bytearray(sound)
    damaged[place] ^= 1 << data.draw(st.integers(0, 7))
    file.write_bytes(damaged)
    try:
        directory = AdapterDirectory.open(path)
        with TensorReader(directory) as reader:
            for info in directory.tensors.values():
                if info.dtype in DTYPES:
                    reader.load(info)
    except AdamergexError:
        pass


def test_a_file_that_shrinks_while_it_is_read(tmp_path: Path) -> None:
    directory = AdapterDirectory.open(save(tmp_path / "x", lora_tensors(0), lora_config()))
    with TensorReader(directory) as reader:
        os.truncate(directory.tensors_path, 5000)
        with pytest.raises(AdapterFileError, match="file ends within"):
            for info in directory.tensors.values():
                reader.load(info)


def test_an_exception_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), staged(tmp_path / "out") as stage:
        (stage / "half").write_text("half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_the_output_appears_at_once_and_whole(tmp_path: Path) -> None:
    with staged(tmp_path / "deep" / "out") as stage:
        (stage / "file").write_text("whole")
        assert not (tmp_path / "deep" / "out").exists()
    assert (tmp_path / "deep" / "out" / "file").read_text() == "whole"
    assert len(list((tmp_path / "deep").iterdir())) == 1


@pytest.mark.parametrize("taken", ["file", "directory", "link"])
def test_an_output_in_use(taken: str, tmp_path: Path) -> None:
    output = tmp_path / "out"
    if taken == "file":
        output.write_text("x")
    elif taken == "directory":
        output.mkdir()
        (output / "x").write_text("x")
    else:
        output.symlink_to(tmp_path / "nowhere")
    with pytest.raises(AdapterFileError, match="exists already"), staged(output):
        pass


def test_an_output_taken_meanwhile_is_kept(tmp_path: Path) -> None:
    with pytest.raises(AdapterFileError, match="exists already"), staged(tmp_path / "out") as stage:
        (stage / "file").write_text("ours")
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "file").write_text("theirs")
    assert (tmp_path / "out" / "file").read_text() == "theirs"
    assert len(list(tmp_path.iterdir())) == 1


def test_an_empty_directory_is_free(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with staged(tmp_path / "out") as stage:
        (stage / "file").write_text("x")
    assert (tmp_path / "out" / "file").exists()


def test_an_output_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(AdapterFileError, match="cannot be written"), staged(tmp_path / "file" / "out"):
        pass


def test_a_killed_write_leaves_no_output_and_blocks_nothing(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys\nfrom adamergex.files.outputs import staged_directory\n"
        "with staged_directory(sys.argv[1]) as stage:\n"
        "    (stage / 'half').write_text('half')\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run([sys.executable, "-c", code, str(tmp_path / "out")], env=environment, check=False)
    assert run.returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    with staged(tmp_path / "out") as stage:
        (stage / "file").write_text("whole")
    assert (tmp_path / "out" / "file").read_text() == "whole"


def test_the_library_reads_what_we_write(tmp_path: Path) -> None:
    writer = SafetensorsWriter(tmp_path / "x", [TensorInfo("a", "BF16", (2, 2))])
    writer.write(Encoder()(np.array([1, 2, 3, 4], np.float32), "BF16"))
    writer.close()
    assert load_file(tmp_path / "x")["a"].tolist() == [[1, 2], [3, 4]]
