"""adamergex: give a model a skill in a language that has no labelled data for it, by merging small adapters."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adamergex.adapters.bottleneck.stack import attach
    from adamergex.adapters.formats.conversion import convert
    from adamergex.evaluation import evaluate_directory as evaluate
    from adamergex.merging import divergence, merge
    from adamergex.merging.inspection import inspect
    from adamergex.report.results_file import load as load_results
    from adamergex.search.tuning import tune
    from adamergex.tables.study import study_of as study
    from adamergex.tables.transfer import run_training as train
    from adamergex.tables.transfer import run_transfer as transfer

__version__ = "0.1.0"
__all__ = [
    "attach",
    "convert",
    "divergence",
    "evaluate",
    "inspect",
    "load_results",
    "merge",
    "study",
    "train",
    "transfer",
    "tune",
]

# Looked up on first use: `import adamergex` costs nothing, and merging never imports torch.
_HOMES = {
    "attach": ("adamergex.adapters.bottleneck.stack", "attach"),
    "convert": ("adamergex.adapters.formats.conversion", "convert"),
    "divergence": ("adamergex.merging", "divergence"),
    "evaluate": ("adamergex.evaluation", "evaluate_directory"),
    "inspect": ("adamergex.merging.inspection", "inspect"),
    "load_results": ("adamergex.report.results_file", "load"),
    "merge": ("adamergex.merging", "merge"),
    "study": ("adamergex.tables.study", "study_of"),
    "train": ("adamergex.tables.transfer", "run_training"),
    "transfer": ("adamergex.tables.transfer", "run_transfer"),
    "tune": ("adamergex.search.tuning", "tune"),
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'adamergex' has no attribute {name!r}")
    module, attribute = _HOMES[name]
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
