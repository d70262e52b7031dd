"""Fine-tuning of the base's parameters, all (``full``) or a few (``sparse``), saved as differences to the base.

Float32 copies replace the base's parameters until ``detach``, so the base is never written.

Sparse: LT-SFT, Ansell et al. 2022 (2110.07560), §3. From the start θ⁰ (the base plus the differences under it), train
all parameters to θ¹; choose the K entries that moved most, |θ¹ − θ⁰| ≥ the K-th largest (ties are chosen too, as in the
paper's code); reset to θ⁰; train only the chosen entries to θ². The difference is θ² − θ⁰. The task's head is not part
of it: the head trains in both phases and is stored whole. In both phases the loss is L + l1 · mean |θ − θ⁰| over the N
entries that can be chosen.

The output matrix of a language model is frozen. If it is tied to the embeddings, it is untied first (``untie_output``),
as in the paper's code; otherwise the K entries would be spent on predicting tokens. When a sparse difference is added
to such a model, the output matrix stays the base's too.
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
from adamergex.adapters.own_parameters import is_any_norm, named, put_aside, separate_output
from adamergex.adapters.saving import save_tensors, write_adapter_tensors
from adamergex.adapters.sparse import (
    SFT_FILE,
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


class TunedModel:
    """A model whose own parameters train, or to which differences were added."""

    def __init__(self, model: PreTrainedModel, structure: Structure | None, new_modules: tuple[str, ...]) -> None:
        self.model, self.structure, self.new_modules = model, structure, new_modules
        self._head = set(head_parameters(model, new_modules))
        self._base = named(model)
        self._aside = put_aside(model)
        self._parameters = named(model)
        self._head_modules: tuple[str, ...] = ()
        self._new_head: dict[str, torch.Tensor] = {}  # name -> where it starts
        self._start: dict[str, torch.Tensor] = {}
        self._chosen: dict[str, torch.Tensor] = {}
        self._count = 0
        self.output_untied = False  # whether the output matrix was tied to the embeddings and now is not

    def add(self, path: Path, *, lower: bool) -> SparseDifference:
        """Add a saved difference, θ ← θ + δ, and copy its whole tensors. The head of a ``lower`` difference is skipped:
        this model has its own. Raises: AdapterFileError, IncompatibleAdaptersError."""
        difference = read_difference(path)
        if lower:
            difference = SparseDifference(self._of_backbone(difference.sparse), self._of_backbone(difference.whole))
        if difference.sparse:
            self.output_untied |= untie_output(self.model)
        apply_difference(self.model, difference)
        return difference

    def draw_head(self, heads: Sequence[str], seed: int) -> None:
        """Set the modules of the trained head, and draw the new ones among them from a seed."""
        draw(self.model, [module for module in heads if module in self.new_modules], seed)
        self._head_modules = tuple(heads)
        self.keep_head_start()

    def head_modules(self) -> list[torch.nn.Module]:
        """The modules of the trained head, in the model's order."""
        return [module for name, module in self.model.named_modules() if name in self._head_modules]

    def keep_head_start(self) -> None:
        """Let both phases start from the head's current values."""
        inside = tuple(f"{module}." for module in self._head_modules)
        head = {name: tensor for name, tensor in self._parameters.items() if name.startswith(inside)}
        self._new_head = {name: tensor.detach().clone() for name, tensor in head.items()}

    def begin(self) -> None:
        """Unfreeze what the structure trains, from its current values.

        Raises: ConfigError for an invalid K; ModelError when the output matrix cannot be frozen."""
        if self._sparse:
            self.output_untied |= separate_output(self.model)
        names = self._trained()
        for name, parameter in self._parameters.items():
            parameter.requires_grad_(name in names)
        if self._sparse:
            self._start = {name: self._parameters[name].detach().clone() for name in self._entries()}
            for name in self._start:
                self._parameters[name].register_post_accumulate_grad_hook(self._guard(name))  # type: ignore[no-untyped-call]
            self._count = self._entries_to_change()

    @property
    def chooses(self) -> bool:
        """Whether training has two phases, with ``choose`` between them."""
        return self._sparse

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """The trained parameters by their names in the model."""
        return {name: self._parameters[name] for name in self._trained()}

    @property
    def moving(self) -> int:
        """The number of entries that training changes."""
        whole = sum(self._parameters[name].numel() for name in self._trained() - self._start.keys())
        return whole + sum(int(mask.sum()) for mask in self._chosen.values())

    @torch.no_grad()
    def choose(self) -> None:
        """Choose the K entries that moved most, and reset every trained parameter to its start."""
        moved = {name: (self._parameters[name] - start).abs_() for name, start in self._start.items()}
        self._chosen = most_moved(moved, self._count)
        for name, start in (self._start | self._new_head).items():
            self._parameters[name].copy_(start)

    def write_choice(self, path: Path, about: Mapping[str, Json]) -> None:
        """Save the choice and the first phase's results, so that a run stopped in the second phase can resume."""
        partial = path.with_suffix(".partial")
        save_tensors(
            {name: mask.cpu() for name, mask in self._chosen.items()},
            partial,
            {"about": json.dumps(about, sort_keys=True)},
        )
        partial.replace(path)

    def read_choice(self, path: Path) -> dict[str, Json]:
        """Load a saved choice; returns the first phase's results."""
        with safe_open(path, "pt") as file:
            self._chosen = {name: file.get_tensor(name).to(start.device) for name, start in self._start.items()}
            about: dict[str, Json] = json.loads(file.metadata()["about"])
        return about

    def start_sha256(self) -> str:
        """SHA-256 of the names and shapes of the trained parameters: every difference starts at zero."""
        shapes = {name: list(self._parameters[name].shape) for name in sorted(self._trained())}
        return hashlib.sha256(json.dumps(shapes, sort_keys=True).encode()).hexdigest()

    def tensors(self) -> dict[str, torch.Tensor]:
        """The trained parameters' current values."""
        return {name: self._parameters[name].detach() for name in sorted(self._trained())}

    @torch.no_grad()
    def replace(self, contents: Tensors, *, where: object) -> None:
        """Overwrite the trained parameters in place. Raises: AdapterFileError for missing or extra tensors,
        IncompatibleAdaptersError for another shape."""
        current = self.tensors()
        require_same(contents, current, where, fix="start without this checkpoint", unlike=IncompatibleAdaptersError)
        for name, tensor in current.items():
            tensor.copy_(contents[name])

    def write_tensors(self, directory: Path) -> None:
        """Write the trained parameters, for a checkpoint."""
        write_adapter_tensors(directory, self.tensors())

    def difference(self) -> SparseDifference:
        """What training changed. Full: every changed tensor, whole, because base + (θ − base) is not bitwise θ.
        Sparse: θ − θ⁰ at the chosen entries, and the task's head whole."""
        if not self._sparse:
            return SparseDifference({}, {
                name: tensor.detach() for name, tensor in self._parameters.items()
                if name in self._new_head or not torch.equal(tensor, self._base[name].float())
            })  # fmt: skip
        sparse = {}
        for name, mask in self._chosen.items():
            indices = mask.view(-1).nonzero().view(-1)
            if len(indices):
                change = (self._parameters[name].detach() - self._start[name]).view(-1)[indices]
                sparse[name] = SparseTensor(tuple(mask.shape), indices, change)
        return SparseDifference(sparse, {name: self._parameters[name].detach() for name in sorted(self._new_head)})

    def save(self, directory: Path, lineage: Lineage) -> None:
        """Write sparse_difference.safetensors, lineage.json and the card into an existing directory.

        Raises: AdapterFileError when a value is not finite.
        """
        difference = self.difference()
        for name, tensor in difference.values().items():
            if not torch.isfinite(tensor).all():
                raise AdapterFileError(
                    "training left a value that is not finite", where=name, fix="lower the learning rate"
                )
        write_file(directory, difference)
        task_type = _TASK_TYPES.get(type(self.model).__name__.partition("For")[2])
        if task_type is None and self.model.can_generate():
            task_type = "SEQ_2_SEQ_LM" if self.model.config.is_encoder_decoder else "CAUSAL_LM"
        write_beside(directory, lineage, task_type=task_type)

    def detach(self) -> PreTrainedModel:
        """The model with its own parameters again, in evaluation mode."""
        for module, name, parameter in self._aside:
            module._parameters[name] = parameter
        self._parameters, self._start, self._chosen, self._new_head = {}, {}, {}, {}  # hooks hold on to this object
        self.model.train(False)
        return self.model

    @property
    def _sparse(self) -> bool:
        return isinstance(self.structure, Sparse)

    def _trained(self) -> set[str]:
        if self._sparse:
            return {*self._entries(), *self._new_head}
        return set(filter(in_language_part(self.model), self._parameters))

    def _entries(self) -> list[str]:
        """The parameters whose entries can be chosen: the backbone's without the output layer, and without layer norms
        if the structure freezes them."""
        assert isinstance(self.structure, Sparse)
        outputs = self.model.get_output_embeddings()  # type: ignore[no-untyped-call]
        frozen = {id(parameter) for parameter in outputs.parameters()} if outputs is not None else set()
        if self.structure.freeze_norms:
            norms = filter(is_any_norm, self.model.modules())
            frozen |= {id(parameter) for norm in norms for parameter in norm.parameters()}
        head = self._head | self._new_head.keys()
        is_language = in_language_part(self.model)
        return [
            name
            for name, parameter in self._parameters.items()
            if name not in head and id(parameter) not in frozen and is_language(name)
        ]

    def _entries_to_change(self) -> int:
        assert isinstance(self.structure, Sparse)
        wanted, available = self.structure.entries, sum(tensor.numel() for tensor in self._start.values())
        count = int(wanted * available) if wanted < 1 else int(wanted)
        if not 1 <= count <= available:
            raise ConfigError(
                "a sparse fine-tuning cannot change this many entries",
                where="structure.entries",
                found=wanted,
                expected=f"1 to {available}, or a share of them below 1",
                fix="correct entries",
            )
        return count

    def _guard(self, name: str) -> Callable[[torch.Tensor], None]:
        """A hook that adds the penalty's gradient after a backward pass and zeroes the entries that are not chosen."""
        assert isinstance(self.structure, Sparse)
        penalty = self.structure.l1 / sum(tensor.numel() for tensor in self._start.values())

        def guard(parameter: torch.Tensor) -> None:
            assert parameter.grad is not None
            if penalty:
                parameter.grad.add_(torch.sign(parameter.detach() - self._start[name]), alpha=penalty)
            if self._chosen:
                parameter.grad.masked_fill_(~self._chosen[name], 0.0)

        return guard

    def _of_backbone(self, contents: Mapping[str, Any]) -> dict[str, Any]:
        prefix = f"{self.model.base_model_prefix}."
        absent = {name for name in contents if name not in self._parameters and not name.startswith(prefix)}
        return {name: item for name, item in contents.items() if name not in absent | self._new_head.keys()}


def attach(
    model: PreTrainedModel, structure: Structure, base_adapters: Sequence[str | Path], new: NewAdapter
) -> TunedModel:
    """Train the model's own parameters in float32, from the base plus the differences of ``base_adapters``.

    Raises: ModelError, AdapterFileError, IncompatibleAdaptersError, ConfigError.
    """
    heads = head_modules(model, new.new_modules) if new.task_head else []
    tuned = TunedModel(model, structure, new.new_modules)
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
    """No modules: the base's own parameters train."""
    return []


def load(model: PreTrainedModel, directories: Sequence[Path], *, new_modules: tuple[str, ...] = ()) -> TunedModel:
    """Add saved differences to a model, in order; the last one provides the head.

    ``new_modules``: modules that the base lacks, so the last difference must contain them.
    Raises: AdapterFileError for unreadable files or no head, IncompatibleAdaptersError.
    """
    *base_adapters, top = directories
    tuned = TunedModel(model, None, new_modules)
    try:
        tuned.draw_head(new_modules, 0)
        for path in base_adapters:
            tuned.add(path, lower=True)
        difference = tuned.add(top, lower=False)
        _require_head(model, difference, new_modules, top)
    except BaseException:
        tuned.detach()
        raise
    model.train(False)
    return tuned


def holds_difference(directory: Path) -> bool:
    """Whether a directory holds a full or sparse fine-tuning."""
    return any((Path(directory) / name).is_file() for name in (TENSORS, SFT_FILE))


def _require_head(
    model: PreTrainedModel, difference: SparseDifference, new_modules: Sequence[str], where: Path
) -> None:
    """Require the head that the base lacks."""
    inside = tuple(f"{module}." for module in new_modules)
    absent = [name for name, _ in model.named_parameters() if name.startswith(inside) and name not in difference.whole]
    if new_modules and absent:
        raise AdapterFileError(
            "neither the difference nor the base has a classification head",
            where=where,
            found=f"nothing for {absent[0]}",
            expected="a difference trained on a task with labels",
            fix="name the task's difference, last in the stack",
        )
