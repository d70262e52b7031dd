"""The one training path: every task, structure and family, on transformers' Trainer.

What is added to it: the order of all batches is fixed by the seed before the first step (so a resumed run sees exactly
what an uninterrupted one sees), only complete checkpoints are resumed from, and nothing global is left changed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import random
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.integrations.integration_utils import TensorBoardCallback

from adamergex import data
from adamergex.adapters import resident
from adamergex.adapters.weights_backed import InWeights
from adamergex.checkpoint import staged_directory
from adamergex.errors import ModelError
from adamergex.hashing import file_sha256
from adamergex.lineage import Lineage, package_versions, require_base
from adamergex.models import HEADS, Loaded, quiet
from adamergex.progress import Progress
from adamergex.settings import TrainJob, first_phase
from adamergex.tasks import Examples, kinds
from adamergex.tasks.rows import read, source

LOG_EVERY = 20  # steps
MANIFEST = "complete.json"
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
    """Train one adapter and write its directory: PEFT's two files (of a bottleneck: AdapterHub's layout, a head in
    files of its own; of a full or sparse fine-tuning: its difference to the base), lineage.json, README.md, logs/
    (TensorBoard). The adapters of ``job.below`` stay as they are.

    Two runs of one job give the same bytes on one machine's CPU; the logs alone differ. ``workdir`` keeps checkpoints,
    from which a stopped run goes on to bitwise the same weights. ``backbone`` saves loading it (see ``load_for``); it
    is given back as it was. Raises: AdapterFileError, DataError, ModelError, ConfigError.
    """
    output = Path(output)
    with contextlib.ExitStack() as stack:
        stage = stack.enter_context(staged_directory(output))
        stack.enter_context(_own_randomness(job.seed))
        stack.enter_context(quiet())
        loaded = _fitting(job, backbone)
        parents = _parents(job, loaded)
        rows = read(job.task, job.rows, job.language)
        examples = examples_of(job, loaded, rows)
        adapter = resident.attach(
            loaded.model,
            job.structure,
            below=job.below,
            task_head=loaded.kind in HEADS,
            base_sha256=loaded.sha256,
            seed=job.seed,
            fresh=loaded.fresh,
        )
        stack.callback(adapter.detach)
        start = adapter.start_sha256()
        content = data.content_hash(rows)
        if workdir is None:
            workdir = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder = Path(workdir) / _identity(job, loaded, content, parents)
        outcome = _phases(job, adapter, examples, folder, progress, callbacks)
        lineage = _lineage(job, loaded, examples, start, {"sha256": content, "rows": len(rows)}, outcome)
        adapter.save(stage, replace(lineage, parents=parents))
        shutil.copytree(folder / "logs", stage / "logs")
    shutil.rmtree(folder, ignore_errors=True)


def load_for(job: TrainJob) -> Loaded:
    """The backbone that a job needs; jobs of one base, task and number of labels can share it."""
    return kinds.load_for(job.task, job.base)


def _fitting(job: TrainJob, backbone: Loaded | None) -> Loaded:
    if backbone is None:
        return load_for(job)
    kind = kinds.model_kind(job.task, job.base)
    if (backbone.base, backbone.kind) != (job.base, kind):
        raise ModelError(
            "the given backbone is not the one that the job needs",
            found=f"{backbone.base}, {backbone.kind}",
            expected=f"{job.base}, {kind}",
            fix="load it with adamergex.training.load_for(job)",
        )
    return backbone


def examples_of(job: TrainJob, loaded: Loaded, rows: Sequence[Mapping[str, Any]]) -> Examples:
    """The training examples that a job makes of its rows. Raises: DataError, ConfigError."""
    taken = job.structure.virtual_tokens if job.structure.kind == "prefix" else 0  # they stand before the text
    where = source(job.rows, job.language)
    return kinds.examples(job.task, rows, loaded, where=where, seed=job.seed, taken=taken)


def batches(lengths: Sequence[int], size: int, steps: int, seed: int) -> list[list[int]]:
    """The examples of every step of a run: each epoch in a new order, similar lengths together.

    Lengths are sorted within groups of 8 batches only, so that batches still differ from epoch to epoch.
    """
    result: list[list[int]] = []
    for epoch in range(steps):
        generator = np.random.default_rng([seed % 2**32, epoch])
        order = generator.permutation(len(lengths))
        groups = [order[at : at + 8 * size] for at in range(0, len(order), 8 * size)]
        order = np.concatenate([group[np.argsort(-np.asarray(lengths)[group], kind="stable")] for group in groups])
        epoch_batches = [order[at : at + size].tolist() for at in range(0, len(order), size)]
        result += [epoch_batches[index] for index in generator.permutation(len(epoch_batches))]
        if len(result) >= steps:
            break
    return result[:steps]


def _phases(
    job: TrainJob,
    adapter: resident.Resident,
    examples: Examples,
    folder: Path,
    progress: bool,
    callbacks: Sequence[TrainerCallback],
) -> dict[str, Any]:
    """Train once; or, to choose what a sparse difference changes, twice. What came out of it, for the lineage."""
    if not isinstance(adapter, InWeights) or not adapter.chooses:
        return _fit(job, adapter, examples, folder, progress, callbacks)
    choice = folder / CHOICE
    if choice.is_file():
        first = adapter.read_choice(choice)
    else:
        before = job.model_copy(update={"optimisation": first_phase(job.structure, job.optimisation)})
        first = _fit(before, adapter, examples, folder / "first", progress, callbacks)
        adapter.choose()
        adapter.write_choice(choice, first)
    shutil.rmtree(folder / "first", ignore_errors=True)
    outcome = _fit(job, adapter, examples, folder, progress, callbacks)
    tokens = outcome["tokens"] + first["tokens"]
    return outcome | {"tokens": tokens, "parameters": adapter.moving, "first_phase": first}


def _fit(
    job: TrainJob,
    adapter: resident.Resident,
    examples: Examples,
    folder: Path,
    progress: bool,
    callbacks: Sequence[TrainerCallback],
) -> dict[str, Any]:
    """Run the optimisation; what came out of it, for the lineage."""
    from torch.utils.tensorboard import SummaryWriter

    settings, lengths = job.optimisation, examples.lengths
    steps = settings.steps or math.ceil(settings.epochs * math.ceil(len(lengths) / settings.batch_size))
    plan = batches(lengths, settings.batch_size, steps, job.seed)
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    resume = _last_complete(folder)
    writer = SummaryWriter(str(folder / "logs"))
    config: Any = adapter.model.config
    use_cache = getattr(config, "use_cache", None)
    trainer = _Trainer(
        adapter,
        _Steps(examples, plan),
        args=_arguments(job, folder, steps),
        callbacks=[
            _Checkpoints(),
            TensorBoardCallback(writer),  # type: ignore[no-untyped-call]
            *([Progress(job)] if progress else []),
            *callbacks,
        ],
    )
    trainer.remove_callback(PrinterCallback)
    adapter.model.train()
    try:
        trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    finally:
        writer.close()
        if use_cache is not None:
            config.use_cache = use_cache
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {
        "steps": steps,
        "examples": len(lengths),
        "tokens": sum(lengths[index] for batch in plan for index in batch),
        "parameters": sum(parameter.numel() for parameter in trainer.trainable),
        "first_loss": losses[0],
        "loss": losses[-1],
    }


def _arguments(job: TrainJob, folder: Path, steps: int) -> TrainingArguments:
    settings, cuda = job.optimisation, torch.cuda.is_available()
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=1,  # an item of the data set is a whole batch
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.schedule,
        warmup_steps=math.ceil(settings.warmup * steps),
        max_grad_norm=settings.max_grad_norm,
        weight_decay=settings.weight_decay,
        logging_steps=LOG_EVERY,
        save_strategy="steps" if steps > settings.checkpoint_every else "no",
        save_steps=settings.checkpoint_every,
        save_total_limit=2,  # the last one may be cut short by a kill: one whole one stays before it
        seed=job.seed % 2**32,
        use_cpu=not cuda,
        bf16=cuda,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        remove_unused_columns=False,
    )


class _Steps(Dataset[dict[str, Tensor]]):
    """Item i is the batch of step i of the whole run, so skipping to a step is exact and costs nothing."""

    def __init__(self, examples: Examples, plan: list[list[int]]) -> None:
        self.examples, self.plan = examples, plan

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, step: int) -> dict[str, Tensor]:
        return self.examples.batch(self.plan[step], step)


class _Trainer(Trainer):
    """Trainer with the task's own loss, batches made beforehand, and strict adapter files as checkpoints."""

    def __init__(self, adapter: resident.Resident, steps: _Steps, **settings: Any) -> None:
        self.adapter, self.steps = adapter, steps
        self.trainable = [parameter for parameter in adapter.model.parameters() if parameter.requires_grad]
        super().__init__(model=adapter.model, train_dataset=steps, **settings)

    def get_train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        return DataLoader(self.steps, batch_size=1, shuffle=False, collate_fn=_alone)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        return self.steps.examples.loss(model, inputs)

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        # Without Trainer's model.train(), which walks every module at every step; once before the first is enough.
        with self.compute_loss_context_manager():
            loss = self.compute_loss(model, self._prepare_inputs(inputs))
        self.accelerator.backward(loss)
        return loss.detach()

    def _clip_grad_norm(self, model: Any) -> Tensor:
        return torch.nn.utils.clip_grad_norm_(self.trainable, self.args.max_grad_norm)

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: Any) -> None:
        """The loss is a mean over its own labels already."""

    def floating_point_ops(self, inputs: Any) -> int:
        return 0  # counting walks all parameters every step

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        # PEFT's own saving asks the hub about the base at every checkpoint.
        self.adapter.write_tensors(Path(output_dir or str(self.args.output_dir)))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        self.adapter.replace(resident.read_tensors(Path(resume_from_checkpoint)), where=resume_from_checkpoint)


class _Checkpoints(TrainerCallback):
    """Marks a checkpoint complete, last and atomically, with the hashes of its files."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        # Losses are logged before a save and at the end, so that a resumed run reports the same means.
        if control.should_save or state.global_step >= state.max_steps:
            control.should_log = True
        return control

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        hashes = {path.name: file_sha256(path) for path in sorted(folder.iterdir())}
        partial = folder / f"{MANIFEST}.partial"
        partial.write_text(json.dumps(hashes, indent=1), encoding="utf-8")
        partial.replace(folder / MANIFEST)


def _last_complete(folder: Path) -> Path | None:
    """The latest checkpoint whose files are all there and unchanged; later, broken ones are removed."""
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: -int(path.name.rpartition("-")[2]))
    for path in found:
        try:
            hashes = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
            if all(file_sha256(path / name) == value for name, value in hashes.items()):
                return path
        except (OSError, ValueError):
            pass
        shutil.rmtree(path, ignore_errors=True)
    return None


def _parents(job: TrainJob, loaded: Loaded) -> dict[str, dict[str, Any]]:
    """The frozen adapters below. Raises: ModelError for one of another base."""
    parents = {}
    for number, path in enumerate(job.below, 1):
        found = require_base(path, loaded.base, loaded.sha256)
        parents["below" if number == 1 else f"below_{number}"] = {
            "path": path,
            "sha256": file_sha256(resident.tensors_path(Path(path))),
            "language": found.language if found else None,
        }
    return parents


def _identity(job: TrainJob, loaded: Loaded, content: str, parents: Mapping[str, Mapping[str, Any]]) -> str:
    """A name for the run's folder: another job, base, text, stack or library version never resumes it."""
    below = [parent["sha256"] for parent in parents.values()]
    own = job.model_dump(mode="json", exclude={"rows", "below"})
    facts = [own, loaded.sha256, content, *([below] if below else []), package_versions()]
    return "run-" + hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def _lineage(
    job: TrainJob, loaded: Loaded, examples: Examples, start: str, found: dict[str, Any], outcome: dict[str, Any]
) -> Lineage:
    task = job.task.model_dump(mode="json")
    if job.task.kind == "language-modeling":
        task["segments"] = len(examples.lengths)
    shape = job.structure.model_dump(mode="json")
    if job.structure.kind == "ia3":
        shape = {name: shape[name] for name in ("kind", "modules")}
    settings = job.optimisation.model_dump(mode="json") | {"seed": job.seed, "training": outcome}
    truncated = getattr(examples, "truncated", None)
    return Lineage(
        base={"name": job.base, "sha256": loaded.sha256},
        structure=shape,
        start=start,
        task=task,
        language=job.language,
        data=found | {"source": source(job.rows, job.language)} | ({"truncated": truncated} if truncated else {}),
        settings=settings,
        versions=package_versions(),
    )


@contextlib.contextmanager
def _own_randomness(seed: int) -> Iterator[None]:
    """Every generator seeded inside, and put back afterwards."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def _alone(items: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return items[0]
