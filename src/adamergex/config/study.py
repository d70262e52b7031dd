"""The YAML of a study: common settings of all tables, and the changes of each task and variant."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Annotated

from pydantic import Field

from adamergex.config.changes import SettingChange, check_removal, parse_change
from adamergex.config.problems import invalid_settings, place_of, typed
from adamergex.config.references import TextReference
from adamergex.config.transfer import TransferConfig, read_yaml, validated
from adamergex.files.strict import Count, Name, PathText, Settings, hint, shown
from adamergex.structures.settings import Lora

Raw = dict[str, object]


class Assumed(Settings):
    """The assumptions of ``--dry-run`` if the base or the data are not on this machine."""

    parameters: Annotated[float, Field(gt=0, le=1e15)] | None = Field(
        default=None, description="parameters of the base without embeddings; default: from its configuration"
    )
    rows: Count = Field(default=10_000, description="labelled training rows")
    test_rows: Count = Field(default=1_000, description="rows per test or validation set")
    tokens: Count = Field(default=128, description="tokens per labelled row, including its answer")
    segments: Count = Field(default=10_000, description="segments of reference text per language")


class StudyConfig(Settings):
    """Tables over one store. All other names at the top level are settings of all tables (see ``TransferConfig``)."""

    title: PathText = "Study"
    output: PathText = Field(default="runs/study", description="folder of study.json and of one folder per table")
    store: PathText | None = Field(
        default=None, description="folder of the reusable results of all steps; default: OUTPUT/store"
    )
    tasks: dict[Name, dict[str, object]] = Field(
        min_length=1, description="name -> settings of this task: 'task' and, if needed, proxy, targets, methods, …"
    )
    variants: dict[Name, dict[str, object]] = Field(
        default_factory=dict,
        description="name -> settings that this ablation changes; 'only' limits it to the named tasks",
    )
    assumed: Assumed = Field(default=Assumed(), description="assumptions of --dry-run")
    folder: str = "."


class Study(Settings):
    """A validated study: ``tables`` by name (the task, or task and variant)."""

    title: str
    output: str
    store: str
    tables: dict[str, TransferConfig]
    assumed: Assumed


def load_study(path: Path, changes: Sequence[str] = ()) -> Study:
    """The study of a YAML file, with changes (``NAME=VALUE``, see ``parse_study``); paths of data and base are relative
    to the file's folder.

    Raises:
        ConfigError: the file is missing, is not valid YAML, or has problems; lists all of them.
    """
    return parse_study(read_yaml(path), str(path), [parse_change(text) for text in changes])


def parse_study(
    settings: Mapping[str, object], where: str = "settings", changes: Sequence[SettingChange] = ()
) -> Study:
    """A validated study.

    Changes of settings that only a study has (``tasks.topics.proxy``, ``output``) change the file; changes of a table's
    settings (``task.optimisation.steps``) override the task and the variant in every table.

    Raises:
        ConfigError: one error that lists every problem of every table once.
    """
    of_study = [item for item in changes if item.place[0] in StudyConfig.model_fields]
    of_tables = [item for item in changes if item not in of_study]
    for item in of_study:
        check_removal([settings], item)
        settings = item.of(settings)
    problems = list(_unknown_names(settings))
    config = typed(StudyConfig, {name: value for name, value in settings.items() if name in StudyConfig.model_fields})
    if isinstance(config, list):
        raise invalid_settings(where, problems + config)
    problems += [*_unknown_tasks(config), *_equal_tables(config)]
    common = {name: value for name, value in settings.items() if name in TransferConfig.model_fields}
    store = config.store or str(Path(config.output) / "store")
    raw_tables = {name: reduce(inherited, layers, common) for name, layers in _tables(config)}
    for item in of_tables:
        check_removal(raw_tables.values(), item)
        raw_tables = {name: item.of(table) for name, table in raw_tables.items()}
    tables: dict[str, TransferConfig] = {}
    affected: dict[str, list[str]] = {}  # problem -> tables
    for name, table in raw_tables.items():
        fixed = {"title": f"{config.title}: {name}", "output": str(Path(config.output) / name), "store": store}
        checked = validated(table | fixed | {"folder": config.folder})
        if isinstance(checked, list):
            for sentence in checked:
                affected.setdefault(sentence, []).append(name)
        else:
            tables[name] = checked
    for text, names in affected.items():  # a problem of the common settings is in all tables: list it once
        problems.append(text if len(names) == len(raw_tables) else f"{', '.join(names)}: {text}")
    if problems:
        raise invalid_settings(where, problems)
    return Study(title=config.title, output=config.output, store=store, tables=tables, assumed=config.assumed)


def inherited(common: Mapping[str, object], changes: Mapping[str, object]) -> Raw:
    """``common`` with ``changes``: mappings are merged recursively, all other values replaced.

    A mapping of another ``kind`` replaces the whole mapping; null removes an inherited setting.
    """
    result = dict(common)
    for name, value in changes.items():
        before = result.get(name)
        if value is None:
            result.pop(name, None)
        elif isinstance(value, Mapping) and isinstance(before, Mapping) and _same_kind(name, before, value):
            result[name] = inherited(before, value)
        else:
            result[name] = value
    return result


def _same_kind(name: str, before: Mapping[str, object], value: Mapping[str, object]) -> bool:
    if "kind" not in value:
        return True
    return bool(before.get("kind", _UNNAMED_KIND.get(name, value["kind"])) == value["kind"])


_UNNAMED_KIND = {"structure": Lora().kind, "reference": TextReference.model_fields["kind"].default}
"""The kind of a mapping without ``kind``."""


def _tables(config: StudyConfig) -> Iterator[tuple[str, list[Raw]]]:
    """Name and changes of every table: each task alone, then with each of its variants."""
    for task, changes in config.tasks.items():
        settings = changes.get("task")
        named = {"task": {"name": task, **settings}} if isinstance(settings, Mapping) else {}
        yield task, [{**changes, **named}]
        for variant, change in config.variants.items():
            if task in _only(change, config.tasks):
                rest = {name: value for name, value in change.items() if name != "only"}
                yield f"{task}-{variant}", [{**changes, **named}, rest]


def _only(change: Mapping[str, object], tasks: Mapping[str, object]) -> Sequence[object]:
    """The tasks of a variant."""
    only = change.get("only", list(tasks))
    return only if isinstance(only, list) else [only]


def _unknown_names(settings: Mapping[str, object]) -> Iterator[str]:
    known = [*StudyConfig.model_fields, *TransferConfig.model_fields]
    for name in settings:
        if name not in known:
            yield f"{place_of((name,))}: no such setting{hint(name, known)}"


def _unknown_tasks(config: StudyConfig) -> Iterator[str]:
    for variant, change in config.variants.items():
        for task in _only(change, config.tasks):
            if not isinstance(task, str) or task not in config.tasks:
                yield f"variants.{variant}.only: there is no task {shown(task)}{hint(task, config.tasks)}"


def _equal_tables(config: StudyConfig) -> Iterator[str]:
    """Tables with equal names, and so folders: task a-b, and task a with variant b."""
    names = [name for name, _ in _tables(config)]
    for name in dict.fromkeys(name for name in names if names.count(name) > 1):
        yield f"tasks, variants: two tables have the name '{name}'; rename a task or a variant"
