"""All tables of a study as steps over one store; steps that several tables need are shared."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path

from adamergex.config.study import Study
from adamergex.config.transfer import TransferConfig
from adamergex.errors import AdamergexError, ConfigError
from adamergex.graph.steps import Step, canonical, in_order
from adamergex.jobs.settings import AnyRows, Task
from adamergex.methods.cell import Content, Facts
from adamergex.methods.given import GivenAdapter
from adamergex.tables.plan import Plan, absolute, facts, languages_of
from adamergex.tables.sketch import assumed_adapter, assumed_facts, needs_references, placeholder_hash
from adamergex.tasks.rows import source


class StudyPlan:
    """The plans of a study's tables, and the steps of all of them.

    References have the same number of segments in all tables with one base and one text, so that each is trained once.
    With ``assume`` anything missing on this machine is assumed and listed in ``notes``; such a plan is for estimates.
    """

    def __init__(self, study: Study, *, assume: bool = False) -> None:
        self.study = study
        self.absent: dict[str, list[str]] = {}  # what is not on this machine -> the tables or languages that need it
        tables = {name: absolute(config) for name, config in study.tables.items()}
        needing = {name: config for name, config in tables.items() if needs_references(config)}
        content: Content | None = None
        segments: dict[str, int | None] = {}
        self.tables: dict[str, Plan] = {}
        for name, config in tables.items():
            group, languages = _reference(config), _languages(needing.values(), config)
            if segments.get(group) is not None and name in needing:
                reference = config.reference.model_copy(update={"segments": segments[group]})
                config = config.model_copy(update={"reference": reference})
            known = self._facts(name, config, languages) if assume else facts(config, languages)
            content = content or (self._lenient(known.content) if assume else known.content)
            if name in needing:
                segments.setdefault(group, known.segments)
            self.tables[name] = Plan(config, known._replace(content=content))

    @property
    def notes(self) -> list[str]:
        """What is not on this machine, and the tables or languages that need it."""
        return [f"{what} ({_some(names)})" for what, names in self.absent.items()]

    @property
    def wanted(self) -> list[Step]:
        return [step for plan in self.tables.values() for step in plan.wanted]

    @cached_property
    def steps(self) -> list[Step]:
        """All steps of the study without duplicates, inputs first."""
        return in_order(self.wanted)

    def users(self, step: Step) -> list[str]:
        """The tables that need a step."""
        return [name for name, keys in self._keys.items() if step.key in keys]

    @cached_property
    def _keys(self) -> dict[str, set[str]]:
        return {name: {step.key for step in in_order(plan.wanted)} for name, plan in self.tables.items()}

    def matching(self, pattern: str) -> list[Step]:
        """The steps whose kind equals the pattern or whose label matches or contains it (``*``: all), and all steps
        that depend on them.

        Raises:
            ConfigError: no step matches.
        """
        chosen: dict[str, Step] = {}
        for step in self.steps:
            matches = pattern == step.kind or pattern in step.label or fnmatch.fnmatch(step.label, pattern)
            if matches or any(parent.key in chosen for parent in step.inputs.values()):
                chosen[step.key] = step
        if not chosen:
            examples = "; ".join(f"{step.kind} ({step.label})" for step in self.steps[:3])
            raise ConfigError("no step of the study matches", where="--force", found=pattern, expected=f"as {examples}")
        return list(chosen.values())

    def _facts(self, name: str, config: TransferConfig, languages: Iterable[str]) -> Facts:
        try:
            known = facts(config, languages)
        except AdamergexError as error:
            self.absent.setdefault(_what(error), []).append(name)
            return assumed_facts(config, self.study.assumed)
        return known if known.given is None else known._replace(given=self._lenient_given(known.given, name))

    def _lenient_given(self, given: Callable[[str], GivenAdapter], name: str) -> Callable[[str], GivenAdapter]:
        def read(language: str) -> GivenAdapter:
            try:
                return given(language)
            except AdamergexError as error:
                tables = self.absent.setdefault(_what(error), [])
                tables.extend([name] if name not in tables else [])
                return assumed_adapter(language)

        return read

    def _lenient(self, content: Content) -> Content:
        absent: dict[tuple[str, str], str] = {}

        def hashed(task: Task, rows: AnyRows, language: str, labelled: bool = True) -> str:
            key = rows.model_dump_json(), language
            if key not in absent:
                try:
                    return content(task, rows, language, labelled)
                except AdamergexError:
                    where = source(rows, language)
                    self.absent.setdefault(f"rows of {where}", []).append(language)
                    absent[key] = placeholder_hash(key)
            return absent[key]

        return hashed


def _what(error: AdamergexError) -> str:
    return error.problem + ("" if error.where is None else f": {error.where}")


def _some(names: list[str], shown: int = 4) -> str:
    rest = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + rest


def _reference(config: TransferConfig) -> str:
    return canonical([str(Path(config.base)), config.reference.model_dump(mode="json")])


def _languages(tables: Iterable[TransferConfig], config: TransferConfig) -> list[str]:
    """All languages that the tables with this base and reference text need."""
    same = [table for table in tables if _reference(table) == _reference(config)]
    return list(dict.fromkeys(language for table in same or [config] for language in languages_of(table)))
