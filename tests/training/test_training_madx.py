"""Training bottleneck adapters: alone, as language adapters, and as task adapters on frozen language adapters."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from stopping import StopAfter
from transformers import TrainerCallback

from adamergex import attach, evaluation
from adamergex.adapters import loaded_adapter
from adamergex.adapters.bottleneck import bottleneck_backed
from adamergex.adapters.formats.adapterhub import read_adapter, read_head
from adamergex.adapters.heads import load_head
from adamergex.backbones import loading
from adamergex.data import reader
from adamergex.errors import AdapterFileError, ConfigError, IncompatibleAdaptersError, ModelError
from adamergex.files import lineage
from adamergex.jobs.settings import (
    Classification,
    EvaluateJob,
    LanguageModeling,
    Optimisation,
    Rows,
    Structure,
    TrainJob,
)
from adamergex.search import tuning
from adamergex.training import train

TASK = Classification(name="topics", labels=("food", "sports", "travel"))
TEXT = LanguageModeling(segment=24, segments=40)
LANGUAGE = Structure(kind="bottleneck", reduction=2, invertible=True)
UPPER = Structure(kind="bottleneck", reduction=4)
FILES = ("adapter_config.json", "adapter_model.safetensors", "lineage.json", "README.md")


def job(base: str, rows: Path, task: Any, structure: Structure, **changes: Any) -> TrainJob:
    own = {name: changes.pop(name) for name in ("language", "base_adapters", "seed") if name in changes}
    fast = {"learning_rate": 5e-3, "batch_size": 8, "max_grad_norm": 1.0, "steps": 12}
    return TrainJob(
        base=base,
        structure=structure,
        task=task,
        rows=Rows(path=str(rows)),
        optimisation=Optimisation(**(fast | changes)),
        **({"language": "en", "seed": 1} | own),
    )


def hashes(model: torch.nn.Module) -> dict[str, str]:
    """Of every parameter and buffer: name -> SHA-256 of its bytes."""
    tensors = model.state_dict(keep_vars=False)
    return {name: hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest() for name, tensor in tensors.items()}


class Watched(TrainerCallback):
    """The hashes of the whole model before the first step and after the last."""

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.before = hashes(model)

    def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.after = hashes(model)

    @property
    def moved(self) -> set[str]:
        return {name for name in self.before if self.before[name] != self.after[name]}


FAMILIES = ("xlm-r", "bert", "llama", "mt5", "t5", "bart", "mbart")
ENCODERS = ("xlm-r", "bert")


@pytest.fixture(scope="module")
def bases(checkpoints: dict[str, str], families: dict[str, str]) -> dict[str, str]:
    """T5 learns a language by span corruption; the others of two towers have no sentinels and continue a text. "mt5"
    has an output projection of its own."""
    return {**checkpoints, "mt5": checkpoints["t5"], **{name: families[name] for name in ("t5", "bart", "mbart")}}


@pytest.fixture(scope="module")
def languages(bases: dict[str, str], plain: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Family -> a language adapter trained on it."""
    root = tmp_path_factory.mktemp("languages")
    for name in FAMILIES:
        train.train(job(bases[name], plain, TEXT, LANGUAGE), root / name)
    return {name: root / name for name in FAMILIES}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_language_adapter_learns_and_nothing_else_moves(
    bases: dict[str, str], plain: Path, tmp_path: Path, name: str
) -> None:
    wanted, watched = job(bases[name], plain, TEXT, LANGUAGE, steps=20), Watched()
    backbone = train.load_for(wanted)
    untouched = hashes(backbone.model)
    train.train(wanted, tmp_path / "sw", backbone=backbone, callbacks=[watched])
    assert hashes(backbone.model) == untouched
    assert all(parameter.requires_grad for parameter in backbone.model.parameters())
    # Every tensor of the adapter moved, the coupling functions of the invertible block too; no other one did.
    own = {key for key in watched.before if key.startswith("adapter_stack.")}
    assert watched.moved == own and any(".invertible.G." in key for key in own)
    examples = train.examples_of(wanted, backbone, reader.read(wanted.rows, "en"))
    batch = examples.batch(range(40), 0)
    with torch.inference_mode():
        bare = examples.loss(backbone.model, batch).item()
        attach(backbone.model, tmp_path / "sw")
        assert examples.loss(backbone.model, batch).item() < bare
        # The output projection reads what the inverse gives: without it the loss is another one.
        backbone.model.detach()
        attach(backbone.model, tmp_path / "sw", invert_head=False)
        without = examples.loss(backbone.model, batch).item()
        backbone.model.detach()
        attach(backbone.model, tmp_path / "sw")
        assert abs(examples.loss(backbone.model, batch).item() - without) > 1e-6


@pytest.mark.parametrize("name", ["xlm-r", "bert", "llama", "mt5", "bart"])
def test_a_task_adapter_learns_on_a_frozen_language(
    bases: dict[str, str], labelled: Path, languages: dict[str, Path], tmp_path: Path, name: str
) -> None:
    steps = 300 if name in ("llama", "bart") else 100
    below = (str(languages[name]),)
    wanted = job(bases[name], labelled, TASK, UPPER, base_adapters=below, steps=steps, learning_rate=1e-2)
    watched, backbone = Watched(), train.load_for(wanted)
    untouched = hashes(backbone.model)
    train.train(wanted, tmp_path / "topics", backbone=backbone, callbacks=[watched])
    assert hashes(backbone.model) == untouched
    heads = () if name not in ENCODERS else ("classifier.", *(("bert.pooler.",) if name == "bert" else ()))
    may_move = {key for key in watched.before if key.startswith(("adapter_stack.adapters.top.", *heads))}
    assert watched.moved == may_move and any("base-1" in key for key in watched.before)
    found = lineage.read(tmp_path / "topics")
    assert found is not None and found.structure == {
        "kind": "bottleneck", "layout": "pfeiffer", "reduction": 4.0, "activation": None, "leave_out": [],
        "invertible": False, "dropout": 0.0,
    }  # fmt: skip
    weights = (languages[name] / "adapter_model.safetensors").read_bytes()
    digest = hashlib.sha256(weights).hexdigest()
    assert found.parents == {"base_adapter": {"path": str(languages[name]), "sha256": digest, "language": "en"}}
    evaluated = EvaluateJob(base=bases[name], task=TASK, language="en", rows=wanted.rows)
    scores = evaluation.evaluate(evaluated, [languages[name], tmp_path / "topics"])
    outcome = found.settings["training"]
    assert outcome["loss"] < outcome["first_loss"] and scores.n == 72
    # Of three topics. A random T5 passes too little of the text on to its decoder for a bottleneck behind it to learn.
    assert scores.score > 60 or name == "mt5"


def test_the_directory_is_read_by_attach_and_gives_the_predictions(
    checkpoints: dict[str, str], labelled: Path, languages: dict[str, Path], tmp_path: Path
) -> None:
    wanted = job(checkpoints["bert"], labelled, TASK, UPPER, base_adapters=(str(languages["bert"]),), steps=20)
    train.train(wanted, tmp_path / "topics")
    assert {path.name for path in (tmp_path / "topics").iterdir()} == {
        *FILES, "head_config.json", "model_head.safetensors", "logs",
    }  # fmt: skip
    assert read_adapter(tmp_path / "topics").name == "topics-en" and read_adapter(languages["bert"]).name == "en"
    card = (tmp_path / "topics" / "README.md").read_text(encoding="utf-8")
    assert "AutoModelForSequenceClassification" in card and "load_head" in card and "peft" not in card
    evaluated = EvaluateJob(base=checkpoints["bert"], task=TASK, language="en", rows=wanted.rows)
    evaluation.evaluate(evaluated, [languages["bert"], tmp_path / "topics"], tmp_path / "scores")
    lines = (tmp_path / "scores" / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    stored = torch.tensor([list(json.loads(line)["scores"].values()) for line in lines[:8]])
    backbone = loading.load(checkpoints["bert"], "sequence-classification", TASK.labels)
    model = attach(backbone.model, languages["bert"], tmp_path / "topics")
    head = read_head(tmp_path / "topics")
    assert head is not None and {key.split(".")[0] for key in head.tensors} == {"bert", "classifier"}
    load_head(model, head, new_modules=backbone.new_modules)
    texts = [row["text"] for row in reader.read(wanted.rows, "en")[:8]]
    inputs = backbone.tokenizer(texts, padding=True, return_tensors="pt")
    inputs.pop("token_type_ids", None)
    with torch.inference_mode():
        logits = model(**inputs).logits
    torch.testing.assert_close(logits.log_softmax(-1), stored.log_softmax(-1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["xlm-r", "llama"])
@pytest.mark.parametrize("stacked", [True, False])
def test_two_runs_are_bitwise_equal_and_so_is_a_resumed_one(
    checkpoints: dict[str, str], labelled: Path, plain: Path, languages: dict[str, Path], tmp_path: Path,
    name: str, stacked: bool,
) -> None:  # fmt: skip
    below = {"base_adapters": (str(languages[name]),)} if stacked else {}
    rows, task, structure = (labelled, TASK, UPPER) if stacked else (plain, TEXT, LANGUAGE)
    wanted = job(checkpoints[name], rows, task, structure, steps=20, checkpoint_every=7, **below)
    torch.manual_seed(1)
    train.train(wanted, tmp_path / "one")
    work = tmp_path / "work"
    for stop in (9, 16):
        with pytest.raises(KeyboardInterrupt):
            train.train(wanted, tmp_path / "two", workdir=work, callbacks=[StopAfter(stop)])
    assert [path.name for path in sorted(work.glob("run-*/checkpoint-*"))] == ["checkpoint-14", "checkpoint-7"]
    torch.manual_seed(2)
    train.train(wanted, tmp_path / "two", workdir=work)
    files = [path.name for path in (tmp_path / "one").iterdir() if path.is_file()]
    assert set(FILES) <= set(files)
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes(), file


def test_another_stack_below_does_not_resume_this_run(
    checkpoints: dict[str, str], labelled: Path, plain: Path, languages: dict[str, Path], tmp_path: Path
) -> None:
    train.train(job(checkpoints["xlm-r"], plain, TEXT, LANGUAGE, steps=3), tmp_path / "other")
    first = job(
        checkpoints["xlm-r"], labelled, TASK, UPPER, base_adapters=(str(languages["xlm-r"]),), checkpoint_every=5
    )
    with pytest.raises(KeyboardInterrupt):
        train.train(first, tmp_path / "one", workdir=tmp_path / "work", callbacks=[StopAfter(6)])
    began: list[int] = []

    class Begun(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            began.append(state.global_step)

    second = first.model_copy(update={"base_adapters": (str(tmp_path / "other"),)})
    train.train(second, tmp_path / "two", workdir=tmp_path / "work", callbacks=[Begun()])
    # The same adapter elsewhere is the same run: its key is its content.
    (tmp_path / "moved").mkdir()
    for path in languages["xlm-r"].iterdir():
        if path.is_file():
            (tmp_path / "moved" / path.name).write_bytes(path.read_bytes())
    moved = first.model_copy(update={"base_adapters": (str(tmp_path / "moved"),)})
    train.train(moved, tmp_path / "one", workdir=tmp_path / "work", callbacks=[Begun()])
    assert began == [0, 5]


def test_all_adapters_of_one_base_and_shape_start_alike(
    checkpoints: dict[str, str], languages: dict[str, Path]
) -> None:
    def start(name: str, kind: loading.Kind, structure: Structure, seed: int, below: tuple[Path, ...] = ()) -> str:
        labels = TASK.labels if kind == "sequence-classification" else None
        backbone = loading.load(checkpoints[name], kind, labels)
        adapter = loaded_adapter.attach(
            backbone.model, structure, base_adapters=below, task_head=labels is not None, base_sha256=backbone.sha256,
            seed=seed, new_modules=backbone.new_modules,
        )  # fmt: skip
        found = adapter.start_sha256()
        for tensor in bottleneck_tensors(adapter):
            assert bool((tensor == 0).all()) or 0.01 < tensor.std() < 0.03
        adapter.detach()
        return found

    def bottleneck_tensors(adapter: Any) -> list[torch.Tensor]:
        return [parameter.detach() for parameter in adapter.adapter.parameters()]

    one = start("xlm-r", "masked-lm", UPPER, 1)
    assert one == start("xlm-r", "sequence-classification", UPPER, 2, (languages["xlm-r"],))
    others = {
        start("bert", "masked-lm", UPPER, 1),
        start("xlm-r", "masked-lm", Structure(kind="bottleneck", reduction=8), 1),
        start("xlm-r", "masked-lm", Structure(kind="bottleneck", reduction=4, layout="houlsby"), 1),
    }
    assert one not in others and len(others) == 3


def test_left_out_layers_and_houlsby_reach_the_files(checkpoints: dict[str, str], plain: Path, tmp_path: Path) -> None:
    shape = Structure(kind="bottleneck", layout="houlsby", reduction=8, activation="gelu", leave_out=(1,), dropout=0.1)
    train.train(job(checkpoints["xlm-r"], plain, TEXT, shape, steps=2), tmp_path / "out")
    found = read_adapter(tmp_path / "out")
    assert {key.rpartition(".")[0] for key in found.tensors} == {
        f"layers.0.{where}.{part}" for where in ("attention", "output") for part in ("down", "up")
    }
    assert found.config == bottleneck_backed.config_of(shape)
    assert (found.config.activation, found.config.dropout, found.config.reuse_norm) == ("gelu", 0.1, False)
    for wrong in ((0, 1), (2,)):
        bad = Structure(kind="bottleneck", leave_out=wrong)
        with pytest.raises(ConfigError, match="cannot be left out"):
            train.train(job(checkpoints["xlm-r"], plain, TEXT, bad), tmp_path / "bad")


def test_an_adapter_of_another_base_is_refused(
    checkpoints: dict[str, str], labelled: Path, languages: dict[str, Path], tmp_path: Path
) -> None:
    wanted = job(checkpoints["xlm-r"], labelled, TASK, UPPER, base_adapters=(str(languages["bert"]),))
    with pytest.raises(ModelError, match="trained on another base"):
        train.train(wanted, tmp_path / "out")
    train.train(wanted.model_copy(update={"base_adapters": (str(languages["xlm-r"]),)}), tmp_path / "out")
    evaluated = EvaluateJob(base=checkpoints["xlm-r"], task=TASK, language="en", rows=wanted.rows)
    with pytest.raises(ModelError, match="trained on another base"):
        evaluation.evaluate(evaluated, [languages["bert"], tmp_path / "out"])
    with pytest.raises(AdapterFileError, match="neither the adapter nor the base has a classification head"):
        evaluation.evaluate(evaluated, [tmp_path / "out", languages["xlm-r"]])
    other = evaluated.model_copy(update={"task": Classification(labels=("travel", "food", "sports"))})
    with pytest.raises(IncompatibleAdaptersError, match="labels in another order"):
        evaluation.evaluate(other, [languages["xlm-r"], tmp_path / "out"])


def test_settings_of_another_kind_and_impossible_stacks_are_refused(checkpoints: dict[str, str], plain: Path) -> None:
    with pytest.raises(ValidationError, match="rank: not a setting of kind 'bottleneck'"):
        Structure(kind="bottleneck", rank=4)
    with pytest.raises(ValidationError, match="reduction: not a setting of kind 'lora'"):
        Structure(reduction=4)
    with pytest.raises(ValidationError, match="only a bottleneck adapter can have them"):
        job(checkpoints["xlm-r"], plain, TEXT, Structure(), base_adapters=("en",))
    with pytest.raises(ValidationError, match="only the lowest adapter's is used"):
        job(checkpoints["xlm-r"], plain, TEXT, LANGUAGE, base_adapters=("en",))
    # What is stored of LoRA is what was stored before there were other kinds: keys of steps stay.
    assert Structure().model_dump() == {"kind": "lora", "rank": 8, "alpha": 16.0, "dropout": 0.05, "modules": "paper"}
    assert Structure.model_validate(UPPER.model_dump(mode="json")) == UPPER


@pytest.mark.parametrize("name", ["xlm-r", "llama"])
def test_tensors_placed_and_replaced_in_memory_predict_what_their_directory_predicts(
    checkpoints: dict[str, str], labelled: Path, tmp_path: Path, name: str
) -> None:
    """What the search of λ does with A(λ), for a structure that PEFT does not know."""
    for seed, steps in ((1, 20), (2, 5)):
        train.train(job(checkpoints[name], labelled, TASK, UPPER, seed=seed, steps=steps), tmp_path / f"{seed}")
    evaluated = EvaluateJob(
        base=checkpoints[name], task=TASK, language="en", rows=Rows(path=str(labelled)), batch_tokens=4096
    )
    rows, backbone = reader.read(evaluated.rows, "en"), evaluation.load_for(evaluated, bare=False)
    contents = [loaded_adapter.read_tensors(tmp_path / number) for number in "12"]
    config = json.loads((tmp_path / "1" / "adapter_config.json").read_text())
    candidate = tuning.Candidate(0.0, config, contents[0])
    placed = loaded_adapter.place(
        backbone.model, candidate.config, candidate.tensors, where=tmp_path, new_modules=backbone.new_modules
    )
    found = []
    for tensors in (contents[0], contents[1]):
        placed.replace(tensors, where="memory")
        found.append(evaluation.predict(evaluated, backbone, placed.model, rows)[0])
    with pytest.raises(AdapterFileError, match="missing"):
        placed.replace({}, where="memory")
    placed.detach()
    assert not hasattr(backbone.model, "adapter_stack")
    for number, predictions in zip("12", found, strict=True):
        evaluation.evaluate(evaluated, tmp_path / number, tmp_path / f"scores-{number}")
        lines = (tmp_path / f"scores-{number}" / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
        assert predictions == [json.loads(line) for line in lines]
    head = load_file(tmp_path / "1" / "model_head.safetensors") if name == "xlm-r" else {}
    assert set(head) <= set(contents[0]) and bool(head) == (name == "xlm-r")
