"""How close do a merge's predictions for texts come to the task adapter's for their translations into the source?

    python scripts/agreement.py BASE TASK SOURCE_REFERENCE TEXTS en ha=REFERENCE ig=REFERENCE ...

BASE as in ``adamergex evaluate``; TASK and the references: adapter directories, as the store of a study has them.
TEXTS: a pattern with {language}, whose rows have ids. Prints, for λ = 0, 0.5 and 1 of ``adamergex_delta`` on all
modules, the mean of KL(p(label | translation) ‖ p(label | text)) in nats, and how often both give the same label
(percent). No label is read.
"""

from __future__ import annotations

import sys
from contextlib import closing

import numpy as np
from torch import nn

from adamergex.adapters import loaded_adapter
from adamergex.backbones.loading import Loaded
from adamergex.data import reader
from adamergex.data.sources import Rows
from adamergex.evaluation import load_for, predict
from adamergex.files import lineage
from adamergex.jobs.settings import Classification, EvaluateJob
from adamergex.merging.prepare import MergeSpec, prepare
from adamergex.search.tuning import on_model

GRID = (0.0, 0.5, 1.0)
MOST = 120
"""Texts of a language."""


def texts(pattern: str, language: str) -> dict[str, str]:
    """Texts by id."""
    return {str(row["id"]): row["text"] for row in reader.read(Rows(path=pattern), language, also=("id",))}


def log_p(job: EvaluateJob, loaded: Loaded, model: nn.Module, lines: list[str]) -> np.ndarray:
    """log p(label | text) [texts, labels]; a row needs a label, and nothing here looks at it."""
    labels = job.task.labels
    items = predict(job, loaded, model, [{"text": line, "label": labels[0]} for line in lines]).items
    scores = np.array([[item["scores"][label] for label in labels] for item in items])
    return scores - np.logaddexp.reduce(scores, axis=1, keepdims=True)


def agreement(wanted: np.ndarray, found: np.ndarray) -> tuple[float, float]:
    """Mean KL divergence of ``found`` from ``wanted`` (nats), and percent of equal labels."""
    divergence = (np.exp(wanted) * (wanted - found)).sum(1).mean()
    return float(divergence), 100 * float((wanted.argmax(1) == found.argmax(1)).mean())


def main(arguments: list[str]) -> None:
    """One line per language, then the means."""
    base, task, source, pattern, source_language, *given = arguments
    told = lineage.read(task)
    assert told is not None and told.task is not None
    known = {name: value for name, value in told.task.items() if name in Classification.model_fields}
    job = EvaluateJob(
        base=base, task=Classification.model_validate(known), language=source_language, rows=Rows(path=pattern)
    )
    translations = texts(pattern, source_language)
    loaded, found = load_for(job, bare=False), []
    print("language  " + "  ".join(f"λ={weight:g}: KL, same label" for weight in GRID))
    for language, _, reference in (item.partition("=") for item in given):
        own = texts(pattern, language)
        ids = sorted(own.keys() & translations.keys())[:MOST]
        adapter = loaded_adapter.load(loaded.model, [task], new_modules=loaded.new_modules)
        wanted = log_p(job, loaded, adapter.model, [translations[item] for item in ids])
        adapter.detach()
        spec = MergeSpec(space="delta", modules="all")
        prepared = prepare(spec, task=task, target_reference=reference, source_reference=source)
        row = []
        with closing(on_model(prepared, GRID, loaded)) as steps:
            for _, placed in steps:
                row.append(agreement(wanted, log_p(job, loaded, placed.model, [own[item] for item in ids])))
        found.append(row)
        print(f"{language:8}  {shown(row)}", flush=True)
    print(f"mean      {shown(np.mean(found, axis=0))}")


def shown(row: object) -> str:
    """KL and agreement for each λ."""
    return "  ".join(f"{divergence:7.3f}  {same:11.1f}" for divergence, same in row)


if __name__ == "__main__":
    main(sys.argv[1:])
