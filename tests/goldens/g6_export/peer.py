"""What `adapters` 1.3.0 computes with the exported adapters. Run in its environment, in this folder: python peer.py"""

import json
from pathlib import Path

import torch
import transformers
from adapters.composition import Stack
from safetensors.torch import load_file, save_file

import adapters
from adapters import AutoAdapterModel

HERE = Path(__file__).parent
STACKS = {"none": (), "sw": ("sw",), "task": ("task",), "sw+task": ("sw", "task")}


def inputs(case, config):
    generator = torch.Generator().manual_seed(5)
    batch = {"input_ids": torch.randint(5, config.vocab_size, (2, 7), generator=generator)}
    batch["attention_mask"] = torch.ones(2, 7, dtype=torch.int64)
    if not case.startswith(("llama", "mistral")):
        batch["attention_mask"][1, -2:] = 0
    if config.is_encoder_decoder:
        batch["decoder_input_ids"] = torch.randint(5, config.vocab_size, (2, 5), generator=generator)
    return batch


def base(case):
    folder = json.loads((HERE / "cases.json").read_text())[case]
    return HERE.parent / "g1_madx" / "bases" / folder if "/" in folder else HERE / "bases" / folder


def static(case):
    """transformers' own class, as adapters.init changes it: no inverse before the output projection."""
    config = transformers.AutoConfig.from_pretrained(base(case))
    model = getattr(transformers, config.architectures[0]).from_pretrained(base(case))
    adapters.init(model)
    return model


def flexible(case):
    """adapters' own class, whose language-model head has the inverse; the checkpoint's head is its head "default"."""
    model = AutoAdapterModel.from_pretrained(base(case))
    weights = load_file(base(case) / "model.safetensors")
    bias = weights.get("lm_head.bias", weights.get("cls.predictions.bias"))
    if bias is not None:  # of XLM-R's and BERT's heads the library leaves this one tensor out
        model.heads["default"][3].bias.data.copy_(bias)
    return model


def load(model, case):
    for name in ("sw", "task"):
        folder = HERE / case / name
        loaded = model.load_adapter(str(folder), use_safetensors=(folder / "adapter.safetensors").exists())
        assert loaded == name, loaded


def run(model, case, prefix, head=None, stacks=STACKS):
    batch, results = inputs(case, model.config), {}
    for key, names in stacks.items():
        model.set_active_adapters(Stack(*names) if names else None)
        if head:
            model.active_head = head
        with torch.no_grad():
            output = model(**batch, output_hidden_states=True)
        states = getattr(output, "hidden_states", None) or output.encoder_hidden_states + output.decoder_hidden_states
        for number, state in enumerate(states):
            results[f"{prefix}.{key}.hidden.{number}"] = state.contiguous().clone()
        results[f"{prefix}.{key}.logits"] = output.logits.contiguous().clone()
    return results


def main():
    for case in json.loads((HERE / "cases.json").read_text()):
        results = {}
        for prefix, make in (("static", static), ("flexible", flexible)):
            model = make(case).eval()
            load(model, case)
            head = "task" if "task" in getattr(model, "heads", {}) else "default" if prefix == "flexible" else None
            results |= run(model.eval(), case, prefix, head)
            change = (results[f"{prefix}.sw+task.logits"] - results[f"{prefix}.none.logits"]).abs().max().item()
            print(f"{case}: {prefix}, head {head}: the stack changes logits by up to {change:.2f}")
        results |= {f"in.{name}": value for name, value in inputs(case, model.config).items()}
        save_file(results, HERE / case / "expected.safetensors")


if __name__ == "__main__":
    main()
