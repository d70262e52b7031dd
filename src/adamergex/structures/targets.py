"""Resolves the expressions in ``adapter_config.json`` in bounded time: the adapted modules, their rank and α."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from adamergex.errors import AdapterFileError
from adamergex.files.patterns import Patterns

_LAYER = r"(?:^|.*?\.){}\.(\d+)\."


class Ranks:
    """(rank, α) of a module, as PEFT reads ``rank_pattern`` and ``alpha_pattern``: the first key that matches the
    whole name, or its ending after a dot, as a regular expression.

    Raises: AdapterFileError for a config without r and lora_alpha, or patterns that cannot be read.
    """

    def __init__(self, config: Mapping[str, Any], where: object = "adapter_config.json") -> None:
        self._rank, self._alpha = config.get("r"), config.get("lora_alpha")
        for name, value in (("r", self._rank), ("lora_alpha", self._alpha)):
            if type(value) not in (int, float):
                raise AdapterFileError(
                    "rank or alpha cannot be read from the config",
                    where=f"{where}: {name}",
                    found=value,
                    expected="a number, as PEFT writes",
                    fix="save the adapter again with save_pretrained",
                )
        self._ranks: Mapping[str, int] = config.get("rank_pattern") or {}
        self._alphas: Mapping[str, float] = config.get("alpha_pattern") or {}
        self._rank_keys = _patterns(self._ranks, "rank_pattern", where, ending=True)
        self._alpha_keys = _patterns(self._alphas, "alpha_pattern", where, ending=True)

    def __call__(self, module: str) -> tuple[int, float]:
        """Raises: AdapterFileError for patterns that take too long."""
        rank, alpha = self._rank_keys.first(module), self._alpha_keys.first(module)
        return (
            self._rank if rank is None else self._ranks[rank],  # type: ignore[return-value]
            float(self._alpha if alpha is None else self._alphas[alpha]),  # type: ignore[arg-type]
        )


class Targets:
    """The modules that PEFT adapts by ``target_modules``, ``exclude_modules``, ``layers_to_transform`` and
    ``layers_pattern``. Source: PEFT 0.21, ``check_target_module_exists``.

    ``known``: whether the config decides it; None and "all-linear" depend on the model.
    """

    def __init__(self, config: Mapping[str, Any], where: object = "adapter_config.json") -> None:
        targets, layers = config.get("target_modules"), config.get("layers_to_transform")
        self.known = bool(targets) and targets != "all-linear"
        self._wanted = Names(targets, "target_modules", where)
        self._excluded = Names(config.get("exclude_modules"), "exclude_modules", where)
        # PEFT ignores the layers if the modules are an expression.
        listed = isinstance(targets, list) and layers not in (None, [])
        self._layers = {layers} if type(layers) is int else set(layers or ()) if listed else None
        patterns = config.get("layers_pattern") or []
        named = [patterns] if isinstance(patterns, str) else patterns
        forms = [_LAYER.format(name) for name in named] or [r".*?\.[^.]*\.(\d+)\."]
        self._forms = _patterns([f"{form}.*" for form in forms], "layers_pattern", where) if listed else None
        self._counts = [_patterns([form], "layers_pattern", where) for form in forms] if listed else []

    def __contains__(self, module: str) -> bool:
        """Raises: AdapterFileError for expressions that take too long."""
        if module in self._excluded or module not in self._wanted:
            return False
        return self._layers is None or self._layer(module) in self._layers

    def _layer(self, module: str) -> int | None:
        assert self._forms is not None
        if self._forms.first(module) is None:
            return None
        # The first number in the name that an expression ends just after: PEFT's search is lazy.
        parts = module.split(".")
        for patterns in self._counts:
            for index, part in enumerate(parts[:-1]):
                if part.isdecimal() and patterns.first(".".join(parts[: index + 1]) + ".") is not None:
                    return int(part)
        return None


class Names:
    """A setting with an expression for whole names, or a list of names and name endings."""

    def __init__(self, setting: str | list[str] | None, what: str, where: object) -> None:
        self._pattern = _patterns([setting], what, where) if isinstance(setting, str) and setting else None
        self._names = frozenset(setting) if isinstance(setting, list) else frozenset()

    def __contains__(self, module: str) -> bool:
        if self._pattern is not None:
            return self._pattern.first(module) is not None
        if module in self._names:
            return True
        parts = module.split(".")
        return any(".".join(parts[index:]) in self._names for index in range(1, len(parts)))


def _patterns(texts: Iterable[str], what: str, where: object, *, ending: bool = False) -> Patterns:
    return Patterns(texts, ending=ending, what=what, error=AdapterFileError, where=where)


def require_targeted(config: Mapping[str, Any], modules: Iterable[str], where: object) -> None:
    """Require that PEFT will use the tensors of these modules.

    Raises: AdapterFileError for a module that the config does not target: PEFT would ignore its tensors.
    """
    targets = Targets(config, where)
    ignored = [module for module in modules if module not in targets] if targets.known else []
    if ignored:
        excluded = config.get("exclude_modules")
        raise AdapterFileError(
            "the config does not target a module with tensors in the adapter, and PEFT would ignore them",
            where=f"{where}: {ignored[0]}" + (f" and {len(ignored) - 1} more" if len(ignored) > 1 else ""),
            found=f"target_modules {config['target_modules']}" + (f", exclude_modules {excluded}" if excluded else ""),
            expected="a config whose target_modules match every adapted module",
            fix="config and tensors belong to different adapters: save the adapter again",
        )
