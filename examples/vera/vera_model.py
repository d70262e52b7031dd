"""VeRA on a model, through PEFT."""

from __future__ import annotations

from typing import Any

import torch
from peft import VeraConfig

from adamergex.adapters import peft_backed
from adamergex.adapters.heads import head_modules
from adamergex.adapters.in_peft import InPeft as InPeft
from adamergex.adapters.in_peft import load as load
from adamergex.adapters.in_peft import modules as modules
from adamergex.adapters.in_peft import place as place
from adamergex.adapters.loaded_adapter import NewAdapter
from adamergex.adapters.sites import targets


def attach(model: Any, structure: Any, base_adapters: Any, new: NewAdapter) -> InPeft:
    """Put a new VeRA on a model. All of one base share A and B: they are drawn from the base's hash."""
    config = VeraConfig(
        r=structure.rank,
        target_modules=targets(model, structure).modules,
        modules_to_save=head_modules(model, new.new_modules) if new.task_head else None,
        projection_prng_key=int(new.base_sha256[:8], 16),
        save_projection=False,
    )
    return InPeft(peft_backed.put(model, config, _start, identity="vera", seed=new.seed, new_modules=new.new_modules))


def _start(name: str, parameter: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return torch.full(parameter.shape, 0.1 if ".vera_lambda_d" in name else 0.0)
