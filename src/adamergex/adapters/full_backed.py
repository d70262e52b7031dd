"""Fine-tuning of the weights themselves, all of them (``full``) or a few (``sparse``), kept as differences to the base.

The base's parameters are put aside and float32 copies stand in their place until ``detach``: the base is never written.

Sparse: LT-SFT, Ansell et al. 2022 (2110.07560), §3. With θ⁰ the start (the base, and the differences below), train all
weights to θ¹; choose the K that moved most, |θ¹ − θ⁰| ≥ the K-th largest (entries that tie with it are chosen as well,
as in the paper's code); go back to θ⁰; train the chosen ones alone to θ². The difference is θ² − θ⁰; a head of the task
is no part of it, it is trained in both phases and stored whole. In both phases the loss is L + l1 · mean |θ − θ⁰| over
the N entries that can be chosen.

The output matrix of a language model is frozen; where it is the embeddings' own tensor it gets a copy of its own first
(``untie_output``), as in the paper's code, else the K entries are spent on predicting tokens. Wherever a sparse
difference is added to such a model, the output matrix stays the base's too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open

from adamergex.adapters.bottleneck.language_part import in_language_part
from adamergex.adapters.heads import draw, head_modules, head_parameters
from adamergex.adapters.own_parameters import is_a_norm, named, part_output, put_aside
from adamergex.adapters.saving import save_tensors, write_adapter
from adamergex.adapters.sparse import (
    PEER,
    TENSORS,
    SparseDifference,
    SparseTensor,
    apply_difference,
    most_moved,
    read_difference,
    untie_output,
    write_file,
)
from adamergex.errors import AdapterFileError, ConfigError, IncompatibleAdaptersError
from adamergex.files.inputs import Json
from adamergex.files.tensor_files import require_same
from adamergex.structures.card import write_beside
from adamergex.structures.settings import Sparse

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from adamergex.adapters.loaded_adapter import NewAdapter
    from adamergex.files.lineage import Lineage
    from adamergex.structures.settings import Structure

Tensors = Mapping[str, torch.Tensor]
_TASK_TYPES = {
    "SequenceClassification": "SEQ_CLS", "TokenClassification": "TOKEN_CLS", "QuestionAnswering": "QUESTION_ANS",
}  # fmt: skip


class InWeights:
    """A model whose own weights are trained, or to which differences were added."""

    def __init__(self, model: PreTrainedModel, structure: Structure | None, new_modules: tuple[str, ...]) -> None:
        self.model, self.structure, self.new_modules = model, structure, new_modules
        self._head = set(head_parameters(model, new_modules))
        self._base = named(model)
        self._aside = put_aside(model)
        self._own = named(model)
        self._head_modules: tuple[str, ...] = ()
        self._new_head: dict[str, torch.Tensor] = {}  # name -> where it starts
        self._start: dict[str, torch.Tensor] = {}
        self._chosen: dict[str, torch.Tensor] = {}
        self._count = 0
        self.parted = False  # whether the output matrix was the embeddings' and is now one of its own

    def add(self, path: Path, *, lower: bool) -> SparseDifference:
        """θ ← θ + δ; whole tensors take the place of the model's. Of a ``lower`` difference, what belongs to a head is
        left out: this model has another one. Raises: AdapterFileError, IncompatibleAdaptersError."""
        found = read_difference(path)
        if lower:
            found = SparseDifference(self._of_backbone(found.sparse), self._of_backbone(found.whole))
        if found.sparse:
            self.parted |= untie_output(self.model)
        apply_difference(self.model, found)
        return found

    def draw_head(self, heads: Sequence[str], seed: int) -> None:
        """Name the modules of the head that trains; the new ones among them are drawn from a seed."""
        draw(self.model, [module for module in heads if module in self.new_modules], seed)
        self._head_modules = tuple(heads)
        self.keep_head_start()

    def head_modules(self) -> list[torch.nn.Module]:
        """The modules of the head that trains, in the model's order."""
        return [module for name, module in self.model.named_modules() if name in self._head_modules]

    def keep_head_start(self) -> None:
        """What the head holds now is what both phases start from."""
        inside = tuple(f"{module}." for module in self._head_modules)
        self._new_head = {name: own.detach().clone() for name, own in self._own.items() if name.startswith(inside)}

    def begin(self) -> None:
        """Let train what the structure trains, from where the weights stand now.

        Raises: ConfigError for K; ModelError where the output matrix cannot be frozen."""
        if self._sparse:
            self.parted |= part_output(self.model)
        names = self._trained()
        for name, parameter in self._own.items():
            parameter.requires_grad_(name in names)
        if self._sparse:
            self._start = {name: self._own[name].detach().clone() for name in self._entries()}
            for name in self._start:
                self._own[name].register_post_accumulate_grad_hook(self._guard(name))  # type: ignore[no-untyped-call]
            self._count = self._wanted()

    @property
    def chooses(self) -> bool:
        """Whether training has two phases, with ``choose`` between them."""
        return self._sparse

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """The parameters that train, by their names in the model."""
        return {name: self._own[name] for name in self._trained()}

    @property
    def moving(self) -> int:
        """How many numbers the training changes."""
        whole = sum(self._own[name].numel() for name in self._trained() - self._start.keys())
        return whole + sum(int(mask.sum()) for mask in self._chosen.values())

    @torch.no_grad()
    def choose(self) -> None:
        """Choose the K entries that moved most, and put every trained weight back to where it started."""
        moved = {name: (self._own[name] - start).abs_() for name, start in self._start.items()}
        self._chosen = most_moved(moved, self._count)
        for name, start in (self._start | self._new_head).items():
            self._own[name].copy_(start)

    def write_choice(self, path: Path, about: Mapping[str, Json]) -> None:
        """Keep the choice, and what the first phase came to, for a run that is stopped in the second."""
        partial = path.with_suffix(".partial")
        save_tensors(
            {name: mask.cpu() for name, mask in self._chosen.items()},
            partial,
            {"about": json.dumps(about, sort_keys=True)},
        )
        partial.replace(path)

    def read_choice(self, path: Path) -> dict[str, Json]:
        """Take a choice that was kept; what the first phase came to."""
        with safe_open(path, "pt") as file:
            self._chosen = {name: file.get_tensor(name).to(start.device) for name, start in self._start.items()}
            about: dict[str, Json] = json.loads(file.metadata()["about"])
        return about

    def start_sha256(self) -> str:
        """SHA-256 of names and shapes of what trains: every difference starts at zero."""
        shapes = {name: list(self._own[name].shape) for name in sorted(self._trained())}
        return hashlib.sha256(json.dumps(shapes, sort_keys=True).encode()).hexdigest()

    def tensors(self) -> dict[str, torch.Tensor]:
        """What trains, as it stands."""
        return {name: self._own[name].detach() for name in sorted(self._trained())}

    @torch.no_grad()
    def replace(self, contents: Tensors, *, where: object) -> None:
        """Overwrite what trains, in place. Raises: AdapterFileError unless just that is there,
        IncompatibleAdaptersError for another shape."""
        own = self.tensors()
        require_same(contents, own, where, fix="start without this checkpoint", unlike=IncompatibleAdaptersError)
        for name, tensor in own.items():
            tensor.copy_(contents[name])

    def write_tensors(self, directory: Path) -> None:
        """Write what trains, for a checkpoint."""
        write_adapter(directory, self.tensors())

    def difference(self) -> SparseDifference:
        """What the training changed. Full: every tensor that is not the base's, whole, since base + (θ − base) is not
        bitwise θ. Sparse: θ − θ⁰ at the chosen entries; the task's head whole."""
        if not self._sparse:
            return SparseDifference({}, {
                name: own.detach() for name, own in self._own.items()
                if name in self._new_head or not torch.equal(own, self._base[name].float())
            })  # fmt: skip
        sparse = {}
        for name, mask in self._chosen.items():
            indices = mask.view(-1).nonzero().view(-1)
            if len(indices):
                change = (self._own[name].detach() - self._start[name]).view(-1)[indices]
                sparse[name] = SparseTensor(tuple(mask.shape), indices, change)
        return SparseDifference(sparse, {name: self._own[name].detach() for name in sorted(self._new_head)})

    def save(self, directory: Path, lineage: Lineage) -> None:
        """Write sparse_difference.safetensors, lineage.json and the card into a directory that is there.

        Raises: AdapterFileError when a weight is not finite.
        """
        found = self.difference()
        values = {**{name: entry.values for name, entry in found.sparse.items()}, **found.whole}
        for name, tensor in values.items():
            if not torch.isfinite(tensor).all():
                raise AdapterFileError(
                    "the training left a weight that is not a number", where=name, fix="lower the learning rate"
                )
        write_file(directory, found)
        task_type = _TASK_TYPES.get(type(self.model).__name__.partition("For")[2])
        if task_type is None and self.model.can_generate():
            task_type = "SEQ_2_SEQ_LM" if self.model.config.is_encoder_decoder else "CAUSAL_LM"
        write_beside(directory, lineage, task_type=task_type)

    def detach(self) -> PreTrainedModel:
        """The model with its own parameters again, in evaluation mode."""
        for module, name, parameter in self._aside:
            module._parameters[name] = parameter
        self._own, self._start, self._chosen, self._new_head = {}, {}, {}, {}  # hooks hold on to this object
        self.model.train(False)
        return self.model

    @property
    def _sparse(self) -> bool:
        return isinstance(self.structure, Sparse)

    def _trained(self) -> set[str]:
        ours = in_language_part(self.model)
        return {*self._entries(), *self._new_head} if self._sparse else {name for name in self._own if ours(name)}

    def _entries(self) -> list[str]:
        """The parameters of which entries can be chosen: the backbone's, not those of the output layer, and of layer
        norms only where the structure says so."""
        assert isinstance(self.structure, Sparse)
        outputs = self.model.get_output_embeddings()  # type: ignore[no-untyped-call]
        left = {id(parameter) for parameter in outputs.parameters()} if outputs is not None else set()
        if self.structure.freeze_norms:
            norms = filter(is_a_norm, self.model.modules())
            left |= {id(parameter) for norm in norms for parameter in norm.parameters()}
        taken = self._head | self._new_head.keys()
        ours = in_language_part(self.model)
        return [name for name, own in self._own.items() if name not in taken and id(own) not in left and ours(name)]

    def _wanted(self) -> int:
        assert isinstance(self.structure, Sparse)
        wanted, there = self.structure.entries, sum(tensor.numel() for tensor in self._start.values())
        count = int(wanted * there) if wanted < 1 else int(wanted)
        if not 1 <= count <= there:
            raise ConfigError(
                "a sparse fine-tuning cannot change so many weights",
                where="structure.entries",
                found=wanted,
                expected=f"1 to {there}, or a share of them below 1",
                fix="correct entries",
            )
        return count

    def _guard(self, name: str) -> Callable[[torch.Tensor], None]:
        """After every backward pass: the penalty's gradient is added, and entries that are not chosen get 0."""
        assert isinstance(self.structure, Sparse)
        pull = self.structure.l1 / sum(tensor.numel() for tensor in self._start.values())

        def guard(parameter: torch.Tensor) -> None:
            assert parameter.grad is not None
            if pull:
                parameter.grad.add_(torch.sign(parameter.detach() - self._start[name]), alpha=pull)
            if self._chosen:
                parameter.grad.masked_fill_(~self._chosen[name], 0.0)

        return guard

    def _of_backbone(self, contents: Mapping[str, Any]) -> dict[str, Any]:
        prefix = f"{self.model.base_model_prefix}."
        absent = {name for name in contents if name not in self._own and not name.startswith(prefix)}
        return {name: item for name, item in contents.items() if name not in absent | self._new_head.keys()}


def attach(
    model: PreTrainedModel, structure: Structure, base_adapters: Sequence[str | Path], new: NewAdapter
) -> InWeights:
    """Let the weights of a model train, from the base plus the differences of ``base_adapters``, in float32.

    Raises: ModelError, AdapterFileError, IncompatibleAdaptersError, ConfigError.
    """
    heads = head_modules(model, new.new_modules) if new.task_head else []
    tuned = InWeights(model, structure, new.new_modules)
    try:
        tuned.draw_head(heads, new.seed)
        for path in base_adapters:
            tuned.add(Path(path), lower=True)
        tuned.begin()
    except BaseException:
        tuned.detach()
        raise
    return tuned


def modules(model: PreTrainedModel, structure: Structure) -> list[str]:
    """None: the weights themselves train."""
    return []


def load(model: PreTrainedModel, directories: Sequence[Path], *, new_modules: tuple[str, ...] = ()) -> InWeights:
    """Add saved differences to a model, in order; the last brings its head.

    ``new_modules``: modules that the base lacks, so that the last difference must bring them.
    Raises: AdapterFileError for unreadable files or no head, IncompatibleAdaptersError.
    """
    *base_adapters, top = directories
    tuned = InWeights(model, None, new_modules)
    try:
        tuned.draw_head(new_modules, 0)
        for path in base_adapters:
            tuned.add(path, lower=True)
        found = tuned.add(top, lower=False)
        _require_head(model, found, new_modules, top)
    except BaseException:
        tuned.detach()
        raise
    model.train(False)
    return tuned


def holds_difference(directory: Path) -> bool:
    """Whether a directory holds a full or sparse fine-tuning."""
    return any((Path(directory) / name).is_file() for name in (TENSORS, PEER))


def _require_head(model: PreTrainedModel, found: SparseDifference, new_modules: Sequence[str], where: Path) -> None:
    """A head that the base lacks must be there."""
    inside = tuple(f"{module}." for module in new_modules)
    absent = [name for name, _ in model.named_parameters() if name.startswith(inside) and name not in found.whole]
    if new_modules and absent:
        raise AdapterFileError(
            "the difference has no classification head, and the base has none either",
            where=where,
            found=f"nothing for {absent[0]}",
            expected="a difference trained on a task with labels",
            fix="name the task's difference, last in the stack",
        )
