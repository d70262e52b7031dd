"""Train a masked-LM head for an encoder without one: ``adamergex train`` of kind masked-lm-head.

The body is frozen, or changed by low-rank matrices that are folded into it ("recovery"). In the latter case a second
loss term preserves the encoder's knowledge: hold · E‖m(x) - m₀(x)‖² / Var(m₀), with the mean vectors m of unmasked text
and m₀ of the original body.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from adamergex.backbones.base_files import base_sha256
from adamergex.backbones.head_file import FILE, HEAD_RECORD, HeadFile, origin, write_base
from adamergex.backbones.heads import BodyUpdate, calibrate, with_new_head
from adamergex.backbones.loading import longest_input, quiet, tokenizer
from adamergex.backbones.logits import labelled, labelled_loss
from adamergex.data import reader
from adamergex.errors import ConfigError, DataError
from adamergex.files.directory import TENSORS
from adamergex.files.inputs import Json
from adamergex.files.lineage import package_versions
from adamergex.files.outputs import staged_directory
from adamergex.jobs.settings import Full, LanguageModeling, Optimisation, Rows, TrainJob
from adamergex.tasks.language_modeling import Segments, segments
from adamergex.training.loop import fit
from adamergex.training.processes import joined
from adamergex.training.train import own_randomness

if TYPE_CHECKING:
    from transformers import PreTrainedModel

HELD_OUT = 16
"""Held-out segments per language (at most a tenth) for the losses before and after training."""
_CALIBRATION = 8  # batches


@dataclass(frozen=True)
class HeadSettings:
    """Settings of a head's training; see ``config.train.MaskedLmHeadTraining``. ``rank`` 0: the body is frozen."""

    base: str
    languages: tuple[str, ...]
    text: Rows
    task: LanguageModeling
    optimisation: Optimisation
    seed: int = 0
    rank: int = 0
    alpha: float = 32.0
    hold: float = 1.0

    def job(self) -> TrainJob:
        """The settings as a job for the training loop."""
        return TrainJob(
            base=self.base,
            structure=Full(),
            task=self.task,
            language="masked-lm-head" if len(self.languages) > 1 else self.languages[0],
            rows=self.text,
            optimisation=self.optimisation,
            seed=self.seed,
        )

    def as_json(self) -> dict[str, Json]:
        """The settings as JSON."""
        return {
            "languages": list(self.languages),
            "optimisation": self.optimisation.model_dump(mode="json"),
            "recovery": {"rank": self.rank, "alpha": self.alpha, "hold": self.hold} if self.rank else None,
            "seed": self.seed,
            "task": self.task.model_dump(mode="json"),
        }


def train_head(settings: HeadSettings, output: Path, *, workdir: Path, progress: bool = False) -> None:
    """Write a base directory: the encoder with its new head, the head's small file, and the measured losses.

    Two runs of the same settings give the same bytes on one machine's CPU. ``workdir`` keeps checkpoints to resume an
    interrupted run. Raises: ModelError, DataError, ConfigError, AdapterFileError.
    """
    with contextlib.ExitStack() as stack:
        team = stack.enter_context(joined())
        if team.size > 1:
            raise ConfigError(
                "a masked-LM head is trained by one process", found=team.size, fix="start adamergex itself"
            )
        stage = stack.enter_context(staged_directory(output))
        stack.enter_context(own_randomness(settings.seed))
        stack.enter_context(quiet())
        model, new = with_new_head(settings.base)
        text = _read(settings, model)
        examples = _Examples(text.train, settings.hold)
        start = calibrate(model, new, examples.first(_CALIBRATION, settings.optimisation.batch_size), text.counts)
        if settings.rank:
            examples.low_rank = BodyUpdate(model, settings.rank, settings.alpha)
            examples.measure_spread(model, settings.optimisation.batch_size)
        before = _losses(model, text)
        head = _Head(model, new, examples.low_rank)
        folder = workdir / _identity(settings, text)
        outcome = fit(
            settings.job(), adapter=head, examples=examples, folder=folder, team=team, progress=progress, callbacks=()
        )
        model.eval()
        record = _record(settings, text, outcome, start, before, _losses(model, text), examples.drift(model, text))
        original, rows = origin(settings.base)
        factors = {} if examples.low_rank is None else dict(examples.low_rank.factors)
        scale = 1.0 if examples.low_rank is None else examples.low_rank.scale
        HeadFile(settings.base, base_sha256(settings.base), new, factors, scale, original, rows).write(stage / FILE)
        if examples.low_rank is not None:
            examples.low_rank.fold()
        write_base(model, settings.base, stage)
        (stage / HEAD_RECORD).write_text(json.dumps(record, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        (stage / "README.md").write_text(_card(record), encoding="utf-8")
    shutil.rmtree(workdir, ignore_errors=True)


@dataclass(frozen=True)
class _Text:
    """Training segments, equally many per language; held-out segments by language; token counts; data hashes."""

    train: Segments
    held_out: Mapping[str, Segments]
    counts: Tensor
    sources: Mapping[str, Mapping[str, Json]]


def _read(settings: HeadSettings, model: PreTrainedModel) -> _Text:
    base_tokenizer = tokenizer(settings.base)
    by_language, held_out = list[Segments](), dict[str, Segments]()
    sources: dict[str, Mapping[str, Json]] = {}
    for language in settings.languages:
        rows = reader.read(settings.text, language, also=())
        all_segments = segments(
            [str(row["text"]) for row in rows],
            base_tokenizer,
            settings.task,
            masked=True,
            seed=settings.seed,
            longest=longest_input(model, base_tokenizer),
            where=reader.source(settings.text, language),
        )
        # Neighbouring segments come from one text: shuffle before holding some out.
        ids = all_segments.ids[np.random.default_rng(settings.seed).permutation(len(all_segments.ids))]
        count = min(HELD_OUT, len(ids) // 10)
        if not count:
            raise DataError(
                "there is too little text to hold some out",
                where=reader.source(settings.text, language),
                found=f"{len(ids)} segments of {settings.task.segment} tokens",
                expected="10 or more",
                fix="give more text, or shorter segments",
            )
        held_out[language] = Segments(ids[:count], all_segments.masking, settings.seed + 1)
        by_language.append(Segments(ids[count:], all_segments.masking, settings.seed))
        sources[language] = {"segments": len(ids), "sha256": reader.content_hash(rows), "text": len(rows)}
    most = max(len(item.ids) for item in by_language)
    ids = np.concatenate([item.ids[np.arange(most) % len(item.ids)] for item in by_language])
    vocabulary_size = len(next(model.get_input_embeddings().parameters()))
    counts = torch.from_numpy(np.bincount(ids.ravel(), minlength=vocabulary_size))
    return _Text(Segments(ids, by_language[0].masking, settings.seed), held_out, counts, sources)


class _Examples:
    """Segments with their unmasked ids, and the loss with both terms."""

    def __init__(self, text: Segments, hold: float) -> None:
        self.text, self.hold, self.spread = text, hold, 1.0
        self.low_rank: BodyUpdate | None = None

    @property
    def lengths(self) -> Sequence[int]:
        return self.text.lengths

    def batch(self, indices: Sequence[int], step: int) -> dict[str, Tensor]:
        return self.text.batch(indices, step) | {"whole": torch.from_numpy(self.text.ids[list(indices)])}

    def first(self, count: int, size: int) -> Iterator[dict[str, Tensor]]:
        """The first ``count`` batches of a shuffled order, for measurements before training."""
        order = np.random.default_rng(self.text.seed).permutation(len(self.text.ids))[: count * size]
        for step, at in enumerate(range(0, len(order), size)):
            yield self.batch(order[at : at + size].tolist(), step)

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        ids = batch["input_ids"]
        loss = labelled_loss(
            model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, batch["labels"], shift=False
        )
        if self.low_rank is None or not self.hold:
            return loss
        return loss + self.hold * self.distance(model, batch["whole"])

    def labelled(self, batch: Mapping[str, Tensor]) -> int:
        return labelled(batch["labels"], shift=False)

    def distance(self, model: nn.Module, ids: Tensor) -> Tensor:
        """Mean squared distance of mean vectors to those of the original body, relative to their variance."""
        assert self.low_rank is not None
        with self.low_rank.off(), torch.no_grad():
            before = _mean_vectors(model, ids)
        return (_mean_vectors(model, ids) - before).square().sum(-1).mean() / self.spread

    def measure_spread(self, model: nn.Module, size: int) -> None:
        """Store the variance of the original body's mean vectors."""
        assert self.low_rank is not None
        with self.low_rank.off(), torch.no_grad():
            vectors = torch.cat([_mean_vectors(model, batch["whole"]) for batch in self.first(_CALIBRATION, size)])
        self.spread = float((vectors - vectors.mean(0)).square().sum(-1).mean().clamp(min=1e-12))

    def drift(self, model: nn.Module, text: _Text) -> float | None:
        """Mean ``distance`` on the held-out segments of all languages; None for a frozen body."""
        if self.low_rank is None:
            return None
        with torch.no_grad():
            distances = [float(self.distance(model, torch.from_numpy(item.ids))) for item in text.held_out.values()]
        return sum(distances) / len(distances)


def _mean_vectors(model: Any, ids: Tensor) -> Tensor:
    ids = ids.to(model.device)
    hidden: Tensor = model.base_model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
    return hidden.float().mean(1)


def _losses(model: PreTrainedModel, text: _Text) -> dict[str, float]:
    """Loss (nats per masked token) on the held-out segments of each language, with fixed masks."""
    losses = {}
    with torch.no_grad():
        for language, item in text.held_out.items():
            batch = {name: tensor.to(model.device) for name, tensor in item.batch(range(len(item.ids)), 0).items()}
            ids = batch["input_ids"]
            inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            losses[language] = float(labelled_loss(model, inputs, batch["labels"], shift=False))
    return losses


@dataclass
class _Head:
    """The trainable head, for the training loop and its checkpoints."""

    model: PreTrainedModel
    new: Mapping[str, nn.Parameter]
    low_rank: BodyUpdate | None
    tensors: dict[str, nn.Parameter] = field(init=False)

    def __post_init__(self) -> None:
        self.tensors = dict(self.new)
        for name, pair in (self.low_rank.factors if self.low_rank else {}).items():
            self.tensors |= {f"low_rank.{name}.{part}": factor for part, factor in zip("ab", pair, strict=True)}

    def start_sha256(self) -> str:
        return ""

    def parameters(self) -> Mapping[str, nn.Parameter]:
        return self.tensors

    def write_tensors(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        save_file({name: item.detach().contiguous() for name, item in self.tensors.items()}, directory / TENSORS)

    def replace(self, contents: Mapping[str, Tensor], *, where: object) -> None:
        with torch.no_grad():
            for name, parameter in self.tensors.items():
                parameter.copy_(contents[name])

    def save(self, directory: Path, lineage: object) -> None:
        self.write_tensors(directory)  # the base directory has its own record

    def detach(self) -> object:
        return self.model


def _identity(settings: HeadSettings, text: _Text) -> str:
    """A name for the run's folder, unique to settings, base, text and versions, so that no other run resumes it."""
    facts = [settings.as_json(), base_sha256(settings.base), text.sources, package_versions()]
    return "run-" + hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def _record(
    settings: HeadSettings,
    text: _Text,
    outcome: Mapping[str, Json],
    start: float,
    before: Mapping[str, float],
    after: Mapping[str, float],
    drift: float | None,
) -> dict[str, Any]:
    return {
        "base": {"name": settings.base, "sha256": base_sha256(settings.base)},
        "data": text.sources,
        "format": "adamergex-masked-lm-head/1",
        "measured": {"calibrated": start, "before": dict(before), "after": dict(after), "drift": drift},
        "settings": settings.as_json(),
        "training": outcome,
        "versions": package_versions(),
    }


def _card(record: Mapping[str, Any]) -> str:
    measured, recovery, base = record["measured"], record["settings"]["recovery"], record["base"]
    rows = "\n".join(
        f"| {language} | {measured['before'][language]:.2f} | {measured['after'][language]:.2f} |"
        for language in measured["after"]
    )
    body = "The body is the base's, unchanged."
    if recovery is not None:
        moved = f"the mean vectors of held-out text moved by {100 * measured['drift']:.1f} % of their variance."
        body = f"The body is changed by matrices of rank {recovery['rank']}, folded in; {moved}"
    command = f"adamergex backbones head --base {base['name']} --head {FILE} --output DIR"
    return (
        f"# {base['name']} with a masked-LM head\n\n"
        f"Made by adamergex from `{base['name']}`, SHA-256 `{base['sha256']}`. {body}\n\n"
        f"`{FILE}` holds what is new; with the base it makes this directory again:\n\n```bash\n{command}\n```\n\n"
        "Masked-LM loss on held-out segments, in nats a token, before and after training:\n\n"
        f"| language | before | after |\n|---|---:|---:|\n{rows}\n"
    )
