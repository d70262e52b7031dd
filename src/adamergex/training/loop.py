"""The training loop: transformers' Trainer in one or several processes, with a fixed sequence of batches.

The seed fixes the order of all batches before the first step, so a resumed run sees the same batches as an
uninterrupted one; only complete checkpoints are resumed from.

With several processes, each takes a share of the rows of every batch, and DistributedDataParallel averages their
gradients. A share's loss is a mean over its own n_r labelled positions, so it is weighted: with R processes and
N = Σ n_r, (1/R) Σ_r (R·n_r/N)·loss_r is the mean over all N positions of the batch, as in one process. If the loss
compares the rows of a batch (``coupled``), every process takes all of them. The parts of a divided batch
(``accumulation``) are weighted alike.
"""

from __future__ import annotations

import json
import math
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations.integration_utils import TensorBoardCallback

from adamergex.adapters import loaded_adapter
from adamergex.adapters.saving import unwritable
from adamergex.errors import AdapterFileError, ConfigError, TrainingError
from adamergex.files.hashing import file_sha256
from adamergex.files.inputs import Json, read_json_object
from adamergex.files.outputs import remove
from adamergex.files.tensor_files import LARGEST
from adamergex.jobs.optimisation import Optimisation
from adamergex.jobs.settings import TrainJob
from adamergex.tasks import Examples
from adamergex.training.accumulation import checkpointed, divided, divides, require_divisible, rows_of
from adamergex.training.numerics import autocasts, computing
from adamergex.training.processes import Team
from adamergex.training.progress import Progress

LOG_EVERY = 20  # steps
MANIFEST = "complete.json"


def batches(lengths: Sequence[int], size: int, steps: int, seed: int) -> list[list[int]]:
    """The example indices of every step of a run: a new order in each epoch, similar lengths together.

    Lengths are sorted only within groups of 8 batches, so that batches differ between epochs.
    """
    result: list[list[int]] = []
    for epoch in range(steps):
        generator = np.random.default_rng([seed % 2**32, epoch])
        order = generator.permutation(len(lengths))
        groups = [order[start : start + 8 * size] for start in range(0, len(order), 8 * size)]
        order = np.concatenate([group[np.argsort(-np.asarray(lengths)[group], kind="stable")] for group in groups])
        epoch_batches = [order[start : start + size].tolist() for start in range(0, len(order), size)]
        result += [epoch_batches[index] for index in generator.permutation(len(epoch_batches))]
        if len(result) >= steps:
            break
    return result[:steps]


def require_rows(job: TrainJob, team: Team) -> None:
    """Raises: ConfigError: a batch has fewer rows than there are processes."""
    size = job.optimisation.batch_size
    if size < team.size:
        raise ConfigError(
            "a batch has fewer rows than there are processes",
            where="batch_size",
            found=f"{size} rows for {team.size} processes",
            expected=f"{team.size} or more",
            fix="raise batch_size or start fewer processes",
        )


def fit(
    job: TrainJob,
    *,
    adapter: loaded_adapter.LoadedAdapter,
    examples: Examples,
    folder: Path,
    team: Team,
    progress: bool,
    callbacks: Sequence[TrainerCallback],
) -> Mapping[str, Json]:
    """Train from the last checkpoint in ``folder``; returns steps, tokens and losses for the lineage."""
    settings, lengths = job.optimisation, examples.lengths
    require_divisible(settings, examples)
    steps = settings.steps or math.ceil(settings.epochs * math.ceil(len(lengths) / settings.batch_size))
    plan = batches(lengths, settings.batch_size, steps, job.seed)
    resume = team.agree(str(_last_complete(folder) or "") if team.first else "")
    loop_callbacks, writer = [_Checkpoints(team), *([Progress(job)] if progress and team.first else [])], None
    if team.first:
        from torch.utils.tensorboard import SummaryWriter

        (folder / "logs").mkdir(parents=True, exist_ok=True)
        writer = SummaryWriter(str(folder / "logs"))
        loop_callbacks.append(TensorBoardCallback(writer))  # type: ignore[no-untyped-call]
    arguments = _arguments(job, folder, steps)
    try:
        numerics, recomputed = computing(adapter.model, settings), checkpointed(adapter.model, job)
        with _restored(adapter.model), numerics, recomputed, _failures_of_threads() as failures:
            steps_data, all_callbacks = _Steps(examples, plan, team, settings), [*loop_callbacks, *callbacks]
            trainer = _Trainer(adapter, steps_data, args=arguments, callbacks=all_callbacks)
            trainer.remove_callback(PrinterCallback)
            adapter.model.train()
            if team.rank:  # rows of different processes need different dropout masks
                torch.manual_seed(job.seed + team.rank)
            trainer.train(resume_from_checkpoint=resume or None)
            trainer.require_finite("a trained weight", *trainer.trainable)
            if writer is not None:
                writer.close()
    finally:
        if writer is not None:
            writer.close()
    if failures:
        raise failures[0]
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {
        "steps": steps,
        "examples": len(lengths),
        "tokens": sum(lengths[index] for batch in plan for index in batch),
        "parameters": sum(parameter.numel() for parameter in trainer.trainable),
        "first_loss": losses[0],
        "loss": losses[-1],
    } | ({"processes": team.size} if team.size > 1 else {})


@contextmanager
def _failures_of_threads() -> Iterator[list[BaseException]]:
    """Collect exceptions of other threads (TensorBoard's writer), which would otherwise only be printed."""
    failures: list[BaseException] = []
    before = threading.excepthook
    threading.excepthook = lambda hook: failures.append(hook.exc_value or RuntimeError("a thread failed"))
    try:
        yield failures
    finally:
        threading.excepthook = before


@contextmanager
def _restored(model: nn.Module) -> Iterator[None]:
    """Undo what the Trainer and accelerate set on a model (autocast around ``forward``, ``use_cache``), since the
    backbone is reused after training. The adapter itself removes its hooks and parameters."""
    config: Any = model.config
    before, settings = dict(vars(model)), dict(vars(config))
    try:
        yield
    finally:
        for current, original in ((vars(model), before), (vars(config), settings)):
            for name in current.keys() - original.keys():
                del current[name]
            current.update(original)


def _arguments(job: TrainJob, folder: Path, steps: int) -> TrainingArguments:
    settings = job.optimisation
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=1,  # each item of the data set is a whole batch
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.schedule,
        warmup_steps=math.ceil(settings.warmup * steps),
        max_grad_norm=settings.max_grad_norm,
        weight_decay=settings.weight_decay,
        logging_steps=LOG_EVERY,
        logging_nan_inf_filter=False,  # would hide NaN from require_finite
        save_strategy="steps" if steps > settings.checkpoint_every else "no",
        save_steps=settings.checkpoint_every,
        save_total_limit=2,  # a kill may truncate the last one: keep a complete one before it
        seed=job.seed % 2**32,
        use_cpu=not torch.cuda.is_available(),
        bf16=autocasts(settings.precision),
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        remove_unused_columns=False,
        ddp_static_graph=True,  # the same parameters are unused in every step
        ddp_find_unused_parameters=False,
        ddp_broadcast_buffers=False,  # buffers never change
    )
    if settings.precision == "float32":
        arguments.mixed_precision = "no"  # overrides the launcher's environment
    arguments._n_gpu = min(arguments.n_gpu, 1)  # a process that sees several GPUs uses one: no DataParallel
    return arguments


class _Part(TypedDict):
    """Tensors that are computed at once, and the weight of their loss in the step."""

    batch: dict[str, Tensor]
    weight: float


class _Steps(Dataset[list[_Part]]):
    """Data set whose item i is the batch of step i of the run, so that skipping to a step is exact and free.

    An item is a list of parts; with several processes, this process's share of each. Masks are those of the whole
    batch. A share is every R-th row, because rows are sorted by length."""

    def __init__(self, examples: Examples, plan: list[list[int]], team: Team, settings: Optimisation) -> None:
        self.examples, self.plan, self.team, self.settings = examples, plan, team, settings
        self.whole = getattr(examples, "coupled", False) or (team.size == 1 and not divides(settings))
        self.lengths = [] if self.whole else examples.lengths

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, step: int) -> list[_Part]:
        indices, team = self.plan[step], self.team
        batch = self.examples.batch(indices, step)
        if self.whole:
            return [{"batch": batch, "weight": 1.0}]
        parts = divided([self.lengths[index] for index in indices], self.settings, team.size)
        whole = max(self.examples.labelled(batch), 1)
        return [self._share(batch, part, whole) for part in parts]

    def _share(self, batch: dict[str, Tensor], part: slice, whole: int) -> _Part:
        """This process's rows of a part. If a part has fewer rows than processes, the others take a row of weight 0."""
        team = self.team
        idle = part.start + team.rank >= part.stop
        share = rows_of(batch, slice(part.start + (0 if idle else team.rank), part.stop, team.size))
        return {"batch": share, "weight": 0.0 if idle else team.size * self.examples.labelled(share) / whole}


class _Trainer(Trainer):
    """Trainer with the task's loss, precomputed batches, and strict adapter files as checkpoints."""

    def __init__(self, adapter: loaded_adapter.LoadedAdapter, steps: _Steps, **settings: Any) -> None:
        self.adapter, self.steps = adapter, steps
        self.trainable = [parameter for parameter in adapter.model.parameters() if parameter.requires_grad]
        super().__init__(model=adapter.model, train_dataset=steps, **settings)

    def get_train_dataloader(self) -> DataLoader[list[_Part]]:
        return DataLoader(self.steps, batch_size=1, shuffle=False, collate_fn=lambda items: items[0])

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: object = None
    ) -> Tensor:
        loss = self.steps.examples.loss(model, inputs["batch"])
        return loss if inputs["weight"] == 1 else loss * inputs["weight"]

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: object = None) -> Tensor:
        # Without Trainer's model.train(), which walks all modules at every step; once before the first step is enough.
        # The loss may call the model's encoder directly, outside accelerate's autocast around ``forward``.
        total = torch.zeros((), device=self.args.device)
        for part in inputs:
            with self.compute_loss_context_manager(), self.accelerator.autocast():
                loss = self.compute_loss(model, self._prepare_inputs(part))
            self.accelerator.backward(loss)
            total = total + loss.detach()
        self.require_finite("the loss", total)
        return total

    def _clip_grad_norm(self, model: nn.Module) -> Tensor:
        norm = torch.nn.utils.clip_grad_norm_(self.trainable, self.args.max_grad_norm)
        self.require_finite("the gradient's norm", norm)
        return norm

    def require_finite(self, what: str, *tensors: Tensor) -> None:
        """Raises: TrainingError with the step's number."""
        for tensor in tensors:
            if tensor.numel() and not tensor.detach().abs().max() <= LARGEST:  # also true for NaN
                raise TrainingError(
                    "the training diverged",
                    where=f"step {min(self.state.global_step + 1, self.args.max_steps)} of {self.args.max_steps}",
                    found=f"{what} is {tensor.item()}" if tensor.ndim == 0 else f"{what} is not finite, or too large",
                    expected=f"finite numbers up to {LARGEST:g}",
                    fix="lower the learning rate; where the first step fails, check that the base's weights are finite",
                )

    def _get_num_items_in_batch(self, batch_samples: list[object], device: object) -> None:
        """None: the loss is already a mean over its labels."""

    def floating_point_ops(self, inputs: object) -> int:
        return 0  # counting walks all parameters every step

    def _save(self, output_dir: str | None = None, state_dict: object = None) -> None:
        # PEFT's save_pretrained queries the hub about the base at every checkpoint.
        if self.steps.team.first:
            self.adapter.write_tensors(Path(output_dir or str(self.args.output_dir)))

    def _save_checkpoint(self, *arguments: Any, **settings: Any) -> None:
        try:
            super()._save_checkpoint(*arguments, **settings)
        except RuntimeError as error:  # raised by torch.save on a full disk
            raise unwritable(str(self.args.output_dir), error) from error

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: object = None) -> None:
        self.adapter.replace(loaded_adapter.read_tensors(Path(resume_from_checkpoint)), where=resume_from_checkpoint)


class _Checkpoints(TrainerCallback):
    """Marks each checkpoint complete with the hashes of its files, in a last, atomic write."""

    def __init__(self, team: Team) -> None:
        self.team = team

    def on_step_end(
        self, args: object, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> TrainerControl:
        # Log losses before a save and at the end, so that a resumed run reports the same means.
        if control.should_save or state.global_step >= state.max_steps:
            control.should_log = True
        return control

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        self.team.wait()  # every process writes the state of its random generators
        if not self.team.first:
            return
        folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        hashes = {path.name: file_sha256(path) for path in sorted(folder.iterdir())}
        partial = folder / f"{MANIFEST}.partial"
        partial.write_text(json.dumps(hashes, indent=1), encoding="utf-8")
        partial.replace(folder / MANIFEST)


def _last_complete(folder: Path) -> Path | None:
    """The latest complete and unchanged checkpoint; removes later, broken ones."""
    paths = [path for path in folder.glob("checkpoint-*") if _CHECKPOINT(path.name)]
    for path in sorted(paths, key=lambda path: int(path.name.rpartition("-")[2]), reverse=True):
        if _is_complete(path):
            return path
        remove(path)
    return None


_CHECKPOINT = re.compile(r"checkpoint-[0-9]{1,12}").fullmatch


def _is_complete(path: Path) -> bool:
    try:
        hashes = read_json_object(path / MANIFEST, what="the checkpoint's manifest", error=AdapterFileError)
        present = {item.name for item in path.iterdir() if item.is_file() and not item.is_symlink()} - {MANIFEST}
        return set(hashes) == present and all(file_sha256(path / name) == value for name, value in hashes.items())
    except (AdapterFileError, OSError):
        return False
