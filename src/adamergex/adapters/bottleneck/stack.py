"""Stacks of adapters on a model: several loaded, any of them active in order, switched without touching the base."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import PreTrainedModel

from adamergex.adapters.bottleneck.invertible import Nice
from adamergex.adapters.bottleneck.modules import BottleneckAdapter, BottleneckConfig
from adamergex.adapters.bottleneck.places import WHERES, Place, find_places
from adamergex.adapters.bottleneck.plans import Active, Change, Couple, Hook, Plan, Project, key_of, make_plan
from adamergex.adapters.bottleneck.projections import PeftAdapter, is_peft, read_peft
from adamergex.adapters.formats.adapterhub import AdapterFiles, read_adapter, write_adapter
from adamergex.adapters.precision import in_float32
from adamergex.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

Source = str | Path | BottleneckConfig | BottleneckAdapter | AdapterFiles | PeftAdapter
Stack = tuple[str, ...]


def attach(
    model: PreTrainedModel, *adapters: Source, names: Sequence[str] | None = None, invert_head: bool | None = None
) -> PreTrainedModel:
    """Put adapters on a model, in place, and make them its stack: the first lowest, nearest to the base.

        post-norm layer, s = x + r:  for A_i of the stack: s <- s + A_i(LN(s));  the layer goes on with LN(s)
        pre-norm layer:              the same with LN = identity;  houlsby: x <- x + A_i(x)
        linear module y = W(x), in the stack's order:  LoRA: y <- y + (α/r)·B·A·x;  (IA)³: y <- y ⊙ l, or x <- x ⊙ l

    ``adapters`` are directories (AdapterHub's, ours, or PEFT's LoRA and (IA)³), configurations of new adapters, or
    adapters in memory; ``names`` are theirs, by default the files' own, or the directory's where a file has none. A
    head in a PEFT directory answers in place of the model's while its adapter is active. The first bottleneck adapter's
    invertible part changes the embeddings, and its inverse what the output projection reads, unless ``invert_head`` is
    false (default: true, or as the model's stack has it). All weights, the base's too, are frozen:
    ``model.adapter_stack.train_only`` opens what should learn. On a model that has a stack, more are added to it; a
    name that is there already, and another ``invert_head`` than the stack's, are refused. The model gains
    ``adapter_stack`` (an AdapterStack, with ``add`` and all else), ``set_stack``, ``using`` and ``detach``.

    Raises: AdapterFileError, IncompatibleAdaptersError, ConfigError, ModelError. Source: METHOD.md §2 (MAD-X).
    """
    if names is not None and len(names) != len(adapters):
        raise ConfigError("attach needs one name for each adapter", found=len(names), expected=len(adapters))
    present = getattr(model, "adapter_stack", None)
    if not isinstance(present, AdapterStack):
        stack = AdapterStack(model, invert_head=invert_head is not False)
    elif invert_head in (None, present.invert_head):
        stack = present
    else:
        raise ConfigError(
            "the model's stack is of another invert_head",
            found=f"invert_head={invert_head}",
            expected=f"{present.invert_head}, as when the first adapters were attached",
            fix="leave it out, or detach the stack first",
        )
    added: list[str] = []
    try:
        for position, adapter in enumerate(adapters):
            added.append(stack.add(adapter, names[position] if names else None))
        stack.set_stack(*added)
    except BaseException:
        # All or nothing: a model is never left with half of what was asked for.
        if stack is not present:
            stack.detach()
        else:
            for name in added:
                stack.remove(name)
        raise
    return model


class AdapterStack(nn.Module):
    """The adapters of one model and which of them are active. Kept on the model as ``model.adapter_stack``.

    Its weights are the model's (``.to``, DDP and optimizers see them); the base's modules, names and tensors stay as
    they were. Hooks are placed only where an adapter is loaded. One forward at a time: the active stack is state.
    """

    _model: PreTrainedModel

    def __init__(self, model: PreTrainedModel, invert_head: bool = True) -> None:
        super().__init__()
        self.places = find_places(model)
        self.adapters = nn.ModuleDict()
        self.invert_head = invert_head
        self._active: Stack = ()
        self._running = Active()
        self._plans: dict[Stack, Plan] = {}
        self._rows: tuple[Stack, ...] = ()
        self._handles: dict[object, Any] = {}
        self._lifted: list[tuple[nn.Module, torch.dtype, RemovableHandle]] = []
        self._trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        model.requires_grad_(False)
        model.adapter_stack = self
        # A registered parent would make the model its own descendant.
        object.__setattr__(self, "_model", model)
        for shortcut in ("set_stack", "using", "detach"):
            setattr(model, shortcut, getattr(self, shortcut))

    @property
    def names(self) -> Stack:
        """All loaded adapters."""
        return tuple(self.adapters)

    @property
    def active(self) -> Stack:
        """The active stack, lowest first; empty for the bare base, and while rows have stacks of their own."""
        return self._active

    def add(self, adapter: Source, name: str | None = None) -> str:
        """Load one more adapter, without activating it; its name.

        Raises: AdapterFileError, IncompatibleAdaptersError, ModelError, as ``attach``; ConfigError for a bad name.
        """
        where: object = adapter if isinstance(adapter, str | Path) else "adapter"
        if isinstance(adapter, str | Path) and is_peft(adapter):
            name, adapter = name or Path(adapter).resolve().name, read_peft(adapter, self._model)
        elif isinstance(adapter, str | Path):
            adapter = read_adapter(adapter)
        if isinstance(adapter, AdapterFiles):
            name, files = name or adapter.name, adapter
            adapter = BottleneckAdapter(files.config, self.places)
            adapter.load(files.tensors, where)
        elif isinstance(adapter, BottleneckConfig):
            adapter = BottleneckAdapter(adapter, self.places)
        name = self._free_name(name)
        self._place_hooks(adapter)
        self.adapters[name] = adapter.requires_grad_(False).train(self._model.training)
        return name

    def remove(self, name: str) -> None:
        """Take one adapter off; stacks that hold it are given up."""
        self._known((name,))
        if name in self._active or any(name in row for row in self._rows):
            self.set_stack()
        self._plans = {stack: plan for stack, plan in self._plans.items() if name not in stack}
        del self.adapters[name]

    def set_stack(self, *names: str | Sequence[str]) -> None:
        """Activate loaded adapters, names or a list of them, the first lowest; none for the bare base.

        Raises: ConfigError for a name that is not loaded; IncompatibleAdaptersError for an order that cannot be.
        """
        stack = tuple(name for given in names for name in ((given,) if isinstance(given, str) else given))
        self._running.use(self._planned(stack))
        self._active, self._rows = stack, ()

    def set_rows(self, rows: Sequence[Sequence[str]]) -> None:
        """Give each row of the next batches its own stack: ``rows[i]`` for row i, in one forward pass.

        A batch k times as long (beams, choices) takes each stack k times in a row. Raises: as ``set_stack``.
        """
        stacks = tuple(tuple(row) for row in rows)
        if not stacks:
            raise ConfigError("a mixed batch needs the stack of each row", found="no rows", fix="use set_stack instead")
        groups = {stack: [row for row, own in enumerate(stacks) if own == stack] for stack in dict.fromkeys(stacks)}
        self._running.use_rows([(self._planned(stack), numbers) for stack, numbers in groups.items()])
        self._active, self._rows = (), stacks

    @contextmanager
    def using(
        self, *names: str | Sequence[str], rows: Sequence[Sequence[str]] | None = None
    ) -> Iterator[PreTrainedModel]:
        """``with model.using("sw", "ner-en"): ...`` or ``using(rows=[("sw", "ner-en"), ("tr", "ner-en")])``; afterwards
        the stack before it is active again."""
        active, before = self._active, self._rows
        if rows is None:
            self.set_stack(*names)
        else:
            self.set_rows(rows)
        try:
            yield self._model
        finally:
            if before:
                self.set_rows(before)
            else:
                self.set_stack(*active)

    def train_only(self, *names: str, also: Sequence[str] = ()) -> None:
        """Let these adapters learn, and the base's modules named in ``also`` (a classifier); freeze all else.

        The output projection stays frozen whether it is tied or not: the inverse has to meet the weights that the
        embeddings were made with. What learns becomes float32; ``detach`` gives modules of ``also`` their dtype back.
        Raises: ConfigError for an unknown name, or a module that holds the projection.
        """
        self._known(names)
        modules = dict(self._model.named_modules())
        kept = {id(parameter) for part in self._vocabulary() for parameter in part.parameters()}
        for module in also:
            if module not in modules:
                raise self._unknown("module", module, tuple(modules))
            if any(id(parameter) in kept for parameter in modules[module].parameters()):
                raise ConfigError(
                    "this module holds the embeddings or the output projection, which stay frozen",
                    where=module,
                    fix="leave it out, or train adapters without an invertible part by hand",
                )
        self._model.requires_grad_(False)
        for name in names:
            in_float32(self.adapters[name])
        for module in also:
            self._lift(modules[module])
        for part in [*(self.adapters[name] for name in names), *(modules[module] for module in also)]:
            part.requires_grad_(True)

    def save(self, name: str, directory: str | Path, **metadata: object) -> Path:
        """Write one adapter as a directory of ours (``adapterhub.write_adapter``), or of PEFT's if it came from one."""
        self._known((name,))
        adapter = self._adapter(name)
        if isinstance(adapter, PeftAdapter):
            return adapter.save(directory, **metadata)
        base = {"hidden_size": self.places.layers[0].width, "model_type": self._model.config.model_type}
        base |= {"model_name": self._model.config.name_or_path, "model_class": type(self._model).__name__}
        tensors = {key: tensor.detach().cpu() for key, tensor in adapter.state_dict().items()}
        return write_adapter(directory, AdapterFiles(name, adapter.config, tensors, metadata=base | metadata))

    def detach(self) -> PreTrainedModel:
        """The model as it was before ``attach``, its ``requires_grad`` included; the adapters go with this object."""
        self.set_stack()
        for handle in self._handles.values():
            handle.remove()
        self._handles.clear()
        for module, dtype, handle in self._lifted:
            handle.remove()
            module.to(dtype)
        self._lifted.clear()
        model: PreTrainedModel = self._model
        for name in ("adapter_stack", "set_stack", "using", "detach"):
            delattr(model, name)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in self._trainable)
        return model

    def _lift(self, module: nn.Module) -> None:
        dtype = next((one.dtype for one in module.parameters() if one.is_floating_point()), torch.float32)
        handle = in_float32(module)
        if handle is not None:
            self._lifted.append((module, dtype, handle))

    def _planned(self, names: Stack) -> Plan:
        plan = self._plans.get(names)
        if plan is None:
            self._known(names)
            adapters = [self._adapter(name) for name in names]
            plan = self._plans[names] = make_plan(adapters, self.places.layers)
        return plan

    def _place_hooks(self, adapter: BottleneckAdapter | PeftAdapter) -> None:
        if isinstance(adapter, PeftAdapter):
            for path, part in adapter.at():
                module = self._model.get_submodule(path)
                self._hook((path, part.side), Place(module, part.side), Project(self._running, (path, part.side)))
            return
        # All places are found before the first hook is placed: a model that lacks one is left as it was.
        wanted = [
            (key_of(layer, where, adapter.config.reuse_norm), layer.place(where, adapter.config.reuse_norm))
            for layer in self.places.layers
            for where in WHERES
            if adapter.at(layer, where) is not None
        ]
        if adapter.invertible is not None:
            self._require_width(adapter.invertible)
        for key, place in wanted:
            self._hook(key, place, Change(self._running, key, place.norm))
        if adapter.invertible is not None:
            self._hook("embedding", self.places.embedding, Couple(self._running, inverse=False))
            if self.invert_head and self.places.head is not None:
                self._hook("head", Place(self.places.head, "input"), Couple(self._running, inverse=True))

    def _hook(self, key: object, place: Place, hook: Hook) -> None:
        if key not in self._handles:
            self._handles[key] = hook.place(place)

    def _require_width(self, block: Nice) -> None:
        head, width = self.places.head, sum(block.halves)
        read = getattr(head, "in_features", width)
        if self.invert_head and read != width:
            raise ModelError(
                "the inverse of the invertible adapter does not fit the output projection",
                where=type(self._model).__name__,
                found=f"a projection that reads {read}",
                expected=f"{width}, as wide as the embeddings",
                fix="use attach(..., invert_head=False), or adapters without an invertible part",
            )

    def _vocabulary(self) -> list[nn.Module]:
        parts = (self._model.get_input_embeddings(), self.places.head)
        return [part for part in parts if isinstance(part, nn.Module)]

    def _adapter(self, name: str) -> BottleneckAdapter | PeftAdapter:
        adapter = self.adapters[name]
        assert isinstance(adapter, BottleneckAdapter | PeftAdapter)
        return adapter

    def _known(self, names: Sequence[str]) -> None:
        for name in names:
            if name not in self.adapters:
                raise self._unknown("adapter", name, self.names)

    def _unknown(self, what: str, name: str, known: Sequence[str]) -> ConfigError:
        near = difflib.get_close_matches(name, known)
        expected = ", ".join(near or known) or "none is loaded"
        return ConfigError(f"there is no such {what}", found=repr(name), expected=expected, fix="correct the name")

    def _free_name(self, name: str | None) -> str:
        if not name or "." in name or name in self.adapters or hasattr(self.adapters, name):
            raise ConfigError(
                "this adapter needs a name of its own",
                found=repr(name),
                expected=f"a name without dots, other than {', '.join(self.names) or 'those of torch containers'}",
                fix="give it in names=[...]",
            )
        return name
