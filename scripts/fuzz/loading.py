"""Damaged adapters put on a model: through PEFT, into a stack, and out of pickles; refused, or what the files say.

    python scripts/fuzz/loading.py --seed 0 --count 2000

Right is an error of adamergex, or modules whose ΔW is that of the files (``adapters.py`` says how those are read).
"""

from __future__ import annotations

import random
import sys
import traceback
import warnings
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from adamergex import attach
from adamergex.adapters import peft_backed
from adamergex.adapters.formats.conversion import convert
from adamergex.errors import AdamergexError
from adapters import SECONDS, Late, Outcome, as_peft_reads, delta, far, limited, tried
from mutants import CONFIG, LINEAGE, PREFIX, TENSORS, damaged, decoded, trio, unpacked

_DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}


def tiny() -> LlamaForCausalLM:
    """A Llama whose modules are those of the small adapters."""
    sizes = {"hidden_size": 6, "intermediate_size": 8, "num_hidden_layers": 2, "vocab_size": 11}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 4, "max_position_embeddings": 32}
    return LlamaForCausalLM(LlamaConfig(**sizes, **heads)).eval()


MODEL = tiny()


def mutant(seed: int, room: Path) -> Outcome:
    """Make and try the mutant of a seed in an empty folder."""
    chance = random.Random(seed)
    kind, verb = chance.choice(("lora", "lora", "ia3", "prefix")), chance.choice(("load", "load", "attach", "convert"))
    kind = "lora" if verb == "attach" and kind == "prefix" else kind
    folder = room / "task"
    folder.mkdir()
    for name, content in trio(kind, "F32", chance.random() < 0.3, False)["task"].items():
        (folder / name).write_bytes(content)
    what = f"{verb} {kind}: {damaged(folder, chance)}"
    if verb == "convert":
        what += _pickled(folder, chance)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with limited():
                complaint = {"load": _load, "attach": _attach, "convert": _convert}[verb](folder, kind)
        return Outcome(seed, what, 0, complaint)
    except Late:
        return Outcome(seed, what, None, f"no answer in {SECONDS} s")
    except AdamergexError as error:
        left = (room / "out").exists()
        return Outcome(seed, what, 2, "left behind: out" if left else "" if len(str(error)) < 8000 else "too long")
    except Exception:
        return Outcome(seed, what, -1, traceback.format_exc().strip().splitlines()[-1][:160])


def _load(folder: Path, kind: str) -> str:
    wrapped = peft_backed.load(MODEL, folder)
    try:
        tensors = as_peft_reads(folder, kind)
        found = peft_backed.tensors(wrapped)
        for name, tensor in tensors.items():
            if name not in found:
                return f"{name} was not loaded"
            if complaint := far(name, found[name].detach().double().numpy(), decoded(tensor), "F32"):
                return complaint
        for name, module in wrapped.named_modules():
            if kind == "lora" and hasattr(module, "lora_A") and "default" in module.lora_A:
                wanted = delta(tensors, name, folder)
                own = module.scaling["default"] * module.lora_B["default"].weight @ module.lora_A["default"].weight
                if complaint := far(name, own.detach().double().numpy(), wanted, "F32"):
                    return complaint
        return ""
    finally:
        peft_backed.detach(wrapped)


def _attach(folder: Path, kind: str) -> str:
    attach(MODEL, folder)
    try:
        tensors = as_peft_reads(folder, kind)
        for path, part in MODEL.adapter_stack.adapters["task"].at():
            if kind == "lora":
                wanted = delta(tensors, PREFIX + path, folder)
                own = (part.scaling * part.lora_B.weight @ part.lora_A.weight).detach().double().numpy()
            else:
                wanted = decoded(tensors[f"{PREFIX}{path}.ia3_l"])
                own = part.ia3_l.detach().double().numpy()
            if complaint := far(path, own, wanted, "F32"):
                return complaint
        return ""
    finally:
        MODEL.detach()


def _pickled(folder: Path, chance: random.Random) -> str:
    """The tensors as PEFT's pickle, now and then with a bit turned."""
    if not (folder / TENSORS).is_file():
        return ""
    try:
        tensors = unpacked((folder / TENSORS).read_bytes())
        stored = {
            tensor.name: torch.frombuffer(bytearray(tensor.data), dtype=_DTYPES[tensor.dtype]).view(tensor.shape)
            for tensor in tensors
            if tensor.data
        }
    except Exception:  # what is no sound file cannot be made a pickle of
        return ""
    (folder / TENSORS).unlink()
    path = folder / "adapter_model.bin"
    torch.save(stored, path)
    if chance.random() < 0.5:
        content = bytearray(path.read_bytes())
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        path.write_bytes(content)
        return ", a bit of the pickle"
    return ", as a pickle"


def _convert(folder: Path, kind: str) -> str:
    out = folder.parent / "out"
    convert(folder, out)
    left = sorted(path.name for path in out.iterdir() if path.name not in (CONFIG, TENSORS, LINEAGE))
    stored = torch.load(folder / "adapter_model.bin", weights_only=True)
    found = as_peft_reads(out, kind)
    if len(found) != len(stored) or left:
        return f"{len(stored)} tensors became {len(found)}; {left}"
    values = sorted(float(tensor.double().sum()) for tensor in stored.values())
    written = sorted(float(decoded(tensor).sum()) for tensor in found.values())
    return (
        "" if all(abs(a - b) < 1e-6 * max(1, abs(a)) for a, b in zip(values, written, strict=True)) else "other values"
    )


if __name__ == "__main__":
    sys.exit(tried(mutant, __doc__ or ""))
