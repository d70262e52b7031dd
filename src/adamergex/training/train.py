"""Training of every task, structure and model family, from a job to an adapter directory.

The training loop is ``loop.fit``, on transformers' Trainer. Global state is restored afterwards.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from transformers import TrainerCallback

from adamergex.adapters import loaded_adapter
from adamergex.adapters.full_backed import TunedModel
from adamergex.backbones.loading import HEADS, Loaded, frame, head_input, longest_input, quiet
from adamergex.data import reader
from adamergex.data.values import Row
from adamergex.errors import AdapterFileError, ConfigError, ModelError
from adamergex.files.hashing import file_sha256
from adamergex.files.inputs import Json
from adamergex.files.lineage import Lineage, package_versions, require_base
from adamergex.files.outputs import staged_directory
from adamergex.graph.versions import version
from adamergex.jobs.settings import TrainJob, first_phase
from adamergex.tasks import Examples, running
from adamergex.tasks.catalogue import identity
from adamergex.tasks.rows import read, source
from adamergex.training.loop import fit, require_rows
from adamergex.training.probe import start_head
from adamergex.training.processes import Team, joined

CHOICE = "chosen.safetensors"  # between the phases of a sparse fine-tuning


def train(
    job: TrainJob,
    output: Path,
    *,
    workdir: Path | None = None,
    progress: bool = False,
    backbone: Loaded | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> None:
    """Train one adapter and write its directory: PEFT's two files (bottlenecks: AdapterHub's layout, with the head in
    separate files; full or sparse fine-tuning: the difference to the base), lineage.json, README.md, logs/
    (TensorBoard). The adapters of ``job.base_adapters`` stay frozen.

    Two runs of one job give the same bytes on one machine's CPU, except for the logs. ``workdir`` keeps checkpoints,
    from which an interrupted run resumes to bitwise the same weights. ``backbone``: an already loaded one (see
    ``load_for``); it is restored afterwards.

    Under torchrun or accelerate, each process takes a share of every batch and the first one writes; the adapter equals
    that of a single process up to rounding (with dropout: other masks). All processes return once it is written.
    Raises: AdapterFileError, DataError, ModelError, ConfigError.
    """
    output = Path(output)
    with contextlib.ExitStack() as stack:
        team = stack.enter_context(joined())
        require_rows(job, team)
        stage = stack.enter_context(staged_directory(output)) if team.first else None
        stack.enter_context(own_randomness(job.seed))
        stack.enter_context(quiet())
        loaded = _fitting(job, backbone)
        parents = _parents(job, loaded)
        rows = read(job.task, job.rows, job.language)
        examples = examples_of(job, loaded, rows)
        adapter = loaded_adapter.attach(
            loaded.model,
            job.structure,
            base_adapters=job.base_adapters,
            task_head=loaded.kind in HEADS,
            base_sha256=loaded.sha256,
            seed=job.seed,
            new_modules=loaded.new_modules,
        )
        stack.callback(adapter.detach)
        start = adapter.start_sha256()
        content = reader.content_hash(rows)
        if workdir is None:
            temporary = stack.enter_context(tempfile.TemporaryDirectory()) if team.first else ""
            workdir = Path(team.agree(temporary))
        folder = Path(workdir) / _identity(job, loaded, content, parents)
        probed = start_head(job, adapter, examples, folder, team)
        train_phase = partial(
            fit, adapter=adapter, examples=examples, team=team, progress=progress, callbacks=callbacks
        )
        outcome = {**probed, **_train_phases(job, adapter, folder, team, train_phase)}
        if stage is not None:
            lineage = _lineage(job, loaded, examples, start, {"sha256": content, "rows": len(rows)}, outcome)
            adapter.save(stage, replace(lineage, parents=parents))
            shutil.copytree(folder / "logs", stage / "logs")
    if team.first:
        shutil.rmtree(folder, ignore_errors=True)


def load_for(job: TrainJob) -> Loaded:
    """The backbone of a job; jobs with the same base, task and number of labels can share it."""
    return running.load_for(job.task, job.base)


def _fitting(job: TrainJob, backbone: Loaded | None) -> Loaded:
    if backbone is None:
        return load_for(job)
    kind = running.model_kind(job.task, job.base)
    if (backbone.base, backbone.kind) != (job.base, kind):
        raise ModelError(
            "the given backbone is not the one that the job needs",
            found=f"{backbone.base}, {backbone.kind}",
            expected=f"{job.base}, {kind}",
            fix="load it with adamergex.training.train.load_for(job)",
        )
    return backbone


def examples_of(job: TrainJob, loaded: Loaded, rows: Sequence[Row]) -> Examples:
    """The training examples of a job's rows. Raises: DataError, ConfigError."""
    taken = require_room(job, loaded)
    where = source(job.rows, job.language)
    return running.train_examples(job.task, rows, loaded, where=where, seed=job.seed, taken=taken)


def require_room(job: TrainJob, loaded: Loaded) -> int:
    """The input tokens used by the job's prefix. Raises: ConfigError: no tokens are left for text."""
    taken = job.structure.context
    longest, special = longest_input(loaded.model, loaded.tokenizer), sum(map(len, frame(loaded.tokenizer)))
    if longest - taken <= special:
        raise ConfigError(
            "the prefix leaves no room for text" if taken else "the model's inputs have no room for text",
            where="structure.virtual_tokens" if taken else job.base,
            found=f"{taken} virtual tokens and {special} special ones" if taken else f"inputs of {longest} tokens",
            expected=f"fewer than the {longest} tokens that the model reads" if taken else f"more than {special}",
            fix="lower virtual_tokens" if taken else "correct model_max_length in the tokenizer's configuration",
        )
    return taken


def _train_phases(
    job: TrainJob,
    adapter: loaded_adapter.LoadedAdapter,
    folder: Path,
    team: Team,
    train_phase: Callable[..., Mapping[str, Json]],
) -> Mapping[str, Json]:
    """Train once; twice for sparse fine-tuning, whose first phase selects parameters. Returns the lineage's record."""
    if not isinstance(adapter, TunedModel) or not adapter.chooses:
        return train_phase(job, folder=folder)
    choice = folder / CHOICE
    if not choice.is_file():
        before = job.model_copy(update={"optimisation": first_phase(job.structure, job.optimisation)})
        first = train_phase(before, folder=folder / "first")
        adapter.choose()
        if team.first:
            adapter.write_choice(choice, first)
        team.wait()
    first = _read_choice(adapter, choice)  # the same in all processes
    if team.first:
        shutil.rmtree(folder / "first", ignore_errors=True)
    outcome = train_phase(job, folder=folder)
    tokens = int(str(outcome["tokens"])) + int(str(first["tokens"]))
    parted = {"output_matrix": "frozen, parted from the embeddings"} if adapter.output_untied else {}
    return {**outcome, "tokens": tokens, "parameters": adapter.moving, "first_phase": first, **parted}


def _read_choice(adapter: TunedModel, path: Path) -> dict[str, Json]:
    """Restore the first phase's choice; returns its record. Raises: AdapterFileError: the file is damaged."""
    try:
        return adapter.read_choice(path)
    except (SafetensorError, OSError, ValueError, LookupError, TypeError) as error:
        raise AdapterFileError(
            "the parameters that an interrupted run had chosen to train are damaged",
            where=path,
            found=error,
            fix="remove this file and run the same command again, which repeats the first phase",
        ) from None


def _parents(job: TrainJob, loaded: Loaded) -> dict[str, dict[str, Json]]:
    """Records of the frozen base adapters. Raises: ModelError for an adapter of another base."""
    parents: dict[str, dict[str, Json]] = {}
    for number, path in enumerate(job.base_adapters, 1):
        lineage = require_base(path, loaded.base, loaded.sha256)
        parents["base_adapter" if number == 1 else f"base_adapter_{number}"] = {
            "path": path,
            "sha256": file_sha256(loaded_adapter.tensors_path(Path(path))),
            "language": lineage.language if lineage else None,
        }
    return parents


def _identity(job: TrainJob, loaded: Loaded, content: str, parents: Mapping[str, Mapping[str, Json]]) -> str:
    """A name for the run's folder, unique to job, base, text, stack and versions, so that no other run resumes it."""
    hashes = [parent["sha256"] for parent in parents.values()]
    settings = job.model_dump(mode="json", exclude={"rows", "base_adapters"})
    facts = [settings, loaded.sha256, content, *([hashes] if hashes else []), package_versions(), version("train")]
    return "run-" + hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def _lineage(
    job: TrainJob, loaded: Loaded, examples: Examples, start: str, data: dict[str, Json], outcome: dict[str, Json]
) -> Lineage:
    task = job.task.model_dump(mode="json")
    if task.get("measured_as"):
        task["measured_as"] = identity(task["measured_as"])  # the hash of a user's file: no adapter names code
    if "head" in task:
        task["head"] = head_input(job.base, job.task.head)  # type: ignore[union-attr]  # resolves "auto"
    if job.task.kind == "language-modeling":
        task["segments"] = len(examples.lengths)
    settings = job.optimisation.model_dump(mode="json") | {"seed": job.seed, "training": outcome}
    counts = {name: getattr(examples, name, 0) for name in ("truncated", "left_out")}
    return Lineage(
        base={"name": job.base, "sha256": loaded.sha256},
        structure=job.structure.described(),
        start=start,
        task=task,
        language=job.language,
        data=data
        | {"source": source(job.rows, job.language)}
        | {name: count for name, count in counts.items() if count},
        settings=settings,
        versions=package_versions(),
    )


@contextlib.contextmanager
def own_randomness(seed: int) -> Iterator[None]:
    """Context with all random generators seeded; their states are restored afterwards."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[torch.cuda.current_device()] if torch.cuda.is_available() else []):
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
