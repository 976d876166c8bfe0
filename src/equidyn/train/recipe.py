"""Recipes: one typed YAML file is one experiment.

    name: nbody-egno-paper          # run folder: runs/<name>
    system: egno                    # a name of `equidyn list`
    seed: 1
    model: {...}                    # arguments of the system's class; what the data family can tell may be left out
    data: {dataset: nbody, ...}     # arguments of the data family
    task: {name: trajectory, ...}   # arguments of the task
    train: {...}                    # `TrainOptions`
    published: {...}                # optional, shown beside ours: {label: {f_mse: ..., a_mse: ...}}; of properties
                                    # {label: {target: MAE}}, of classes {label: {accuracy: ...}}

Every key is checked against the signature it ends up in; the command line overrides any of them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, is_dataclass, replace
from importlib import resources
from inspect import signature
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace
from torch import nn

from equidyn.core.catalogue import Entry
from equidyn.core.errors import InputError, unknown_name
from equidyn.data import DATASETS
from equidyn.models import SYSTEMS
from equidyn.tasks import TASKS


@dataclass(frozen=True)
class Plateau:
    """When the learning rate falls.

    Attributes:
        factor: what it is multiplied by.
        patience: evaluations without improvement before it falls.
        threshold: relative improvement that counts.
    """

    factor: float = 0.8
    patience: int = 50
    threshold: float = 1e-4


@dataclass(frozen=True)
class StageTwo:
    """The last part of a training, with other weights and a constant learning rate.

    Attributes:
        epoch: where it begins, counted from 0.
        lr: its learning rate.
        task: options of the task that change, `{energy: 1000}`.
    """

    epoch: int
    lr: float
    task: dict[str, Any] = field(default_factory=dict)


@dataclass
class TrainOptions:
    """How a model is trained.

    Attributes:
        epochs: passes over the training samples.
        batch_size: samples per step and process; the last incomplete batch of an epoch is dropped.
        batch_atoms: most atoms in a batch, for structures of different sizes; 0 for no limit.
        batch_edges: most edges in a batch; 0 for no limit.
        lr: learning rate of Adam.
        lr_factors: factors of the learning rate by pattern of the parameter's name, `{layers.0.*: 0.1}`; the last one
            that matches counts, 0 leaves the parameters as they are.
        weight_decay: L2 term of Adam ("adam") or decoupled ("adamw", "soap").
        decay_only: patterns of the names of the parameters that decay; all if there are none.
        optimizer: "adam", "adamw", or "soap" (`equidyn.train.soap`), which learns more from each step and takes longer
            for it; its cost grows with the cube of a layer's width.
        amsgrad: Adam with the largest second moment so far.
        schedule: constant learning rate; a cosine to zero at the last epoch, after a linear warm-up; or "plateau",
            which falls where the validation error does not.
        plateau: factor, patience (in evaluations) and threshold of that.
        stage_two: from an epoch on other options of the task and a constant learning rate,
            `{epoch: 60, lr: 1.0e-3, task: {energy: 1000}}`; the epoch kept is then one of these.
        init_from: run folder whose weights the training starts from; its model section replaces that of the recipe.
        warmup: epochs of the warm-up.
        halve_every: epochs after which the learning rate is halved, again and again; 0 for never.
        drop_at: epochs from which on it is a tenth of what it was before.
        clip: largest norm of the gradient; 0 for no limit.
        ema: decay of the averaged weights that are evaluated and kept, less in the first steps; 0 to use the last
            weights.
        noise: normal noise on the input states of the training, as a share of their velocities (see
            `equidyn.data.states.noisy`); a model that has seen wrong states rolls on more safely from its own.
        eval_every: epochs between evaluations on the validation samples.
        patience: evaluations without improvement after which training stops; 0 for never.
        precision: "32", "64", or "bf16" (autocast).
        compile: torch.compile the training step; where that does not work (forces and stress are learned by
            differentiating twice, which PyTorch 2.13 does not compile), a warning, and training without. It costs half
            a minute at the start, and pays for runs of more than some minutes.
        threads: CPU threads; 0 for all.
        devices: processes (CPU) or devices (GPU) to train on, each with its own batches: a step sees
            `devices * batch_size` samples, the same ones in the same epoch as one process with that batch size would,
            and ends at the same weights, to rounding. Every process evaluates all validation samples.
        accelerator: "auto", "cpu", "gpu" ...

    Raises:
        InputError: a value out of range.
    """

    epochs: int = 100
    batch_size: int = 100
    batch_atoms: int = 0
    batch_edges: int = 0
    lr: float = 1e-3
    lr_factors: dict[str, float] = field(default_factory=dict)
    weight_decay: float = 0.0
    decay_only: tuple[str, ...] = ()
    optimizer: Literal["adam", "adamw", "soap"] = "adam"
    amsgrad: bool = False
    schedule: Literal["constant", "cosine", "plateau"] = "constant"
    plateau: Plateau = field(default_factory=Plateau)
    stage_two: StageTwo | None = None
    init_from: str | None = None
    warmup: float = 0.0
    halve_every: int = 0
    drop_at: tuple[int, ...] = ()
    clip: float = 0.0
    ema: float = 0.0
    noise: float = 0.0
    eval_every: int = 5
    patience: int = 0
    precision: Literal["32", "64", "bf16"] = "32"
    compile: bool = False
    threads: int = 0
    devices: int = 1
    accelerator: str = "auto"

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "eval_every", "devices"):
            self._require(name, getattr(self, name) >= 1, "at least 1")
        self._require("eval_every", self.eval_every <= self.epochs, f"at most the {self.epochs} epochs")
        counts = ("weight_decay", "warmup", "halve_every", "clip", "noise", "patience", "threads")
        for name in (*counts, "batch_atoms", "batch_edges"):
            self._require(name, 0 <= getattr(self, name) < float("inf"), "0 or more")
        self._require("lr", 0 < self.lr < float("inf"), "more than 0")
        self._require("ema", 0 <= self.ema < 1, "0 or more and less than 1")
        self._require("amsgrad", not (self.amsgrad and self.optimizer == "soap"), "false with optimizer: soap")
        self._require("warmup", not self.warmup or self.schedule != "plateau", "0 with schedule: plateau")
        self._require("drop_at", all(epoch > 0 for epoch in self.drop_at), "epochs above 0")
        self._require("lr_factors", all(0 <= f < float("inf") for f in self.lr_factors.values()), "0 or more")
        second = self.stage_two
        self._require("stage_two", second is None or (second.epoch > 0 and second.lr > 0), "epoch and lr above 0")

    def _require(self, name: str, right: bool, expected: str) -> None:
        if not right:
            raise InputError("value out of range", where=f"train.{name}", expected=expected, got=getattr(self, name))


@dataclass
class Recipe:
    """A checked recipe.

    Attributes:
        name: name of the run.
        system: the catalogue entry.
        seed: of initial weights and order of samples.
        model, data, task: keyword arguments of the system's class, of the data family and of the task.
        train: training options.
        config: everything as plain values, as it is written to `config.yaml`.
        left: arguments of the model that the recipe leaves to the data.
        task_left: options of the task that it leaves to the training samples.
    """

    name: str
    system: Entry
    seed: int
    model: dict[str, Any]
    data: dict[str, Any]
    task: dict[str, Any]
    train: TrainOptions
    config: dict[str, Any] = field(repr=False)
    left: tuple[str, ...] = ()
    task_left: tuple[str, ...] = ()

    def build_data(self) -> Any:
        """The data family."""
        return DATASETS[self.config["data"]["dataset"]](**self.data)

    def completed(self, values: Mapping[str, Any]) -> Recipe:
        """The same recipe with the arguments of the model that it left to the data.

        Raises:
            InputError: the model looks farther than the data's neighbours reach.
        """
        model = self.config["model"] | {name: _plain(values[name]) for name in self.left}
        reach = self.data.get("cutoff")
        if reach is not None and model.get("cutoff", reach) > reach:
            got = f"model.cutoff {model['cutoff']}"
            raise InputError("cutoff", where=self.name, expected=f"at most data.cutoff {reach}", got=got)
        built = build_arguments(self.system.model, model)
        return replace(self, model=built, config=self.config | {"model": model}, left=())

    def task_completed(self, values: Mapping[str, Any]) -> Recipe:
        """The same recipe with the options of the task that it left to the training samples."""
        task = self.config["task"] | {name: _plain(values[name]) for name in self.task_left}
        built = build_arguments(TASKS[task["name"]], {name: value for name, value in task.items() if name != "name"})
        return replace(self, task=built, config=self.config | {"task": task}, task_left=())

    def build_model(self) -> Any:
        """The model, freshly initialised.

        Raises:
            InputError: it cannot be built, or lacks arguments that were left to the data.
        """
        if self.left:
            raise InputError("arguments left to the data", where=f"model of {self.name}", got=", ".join(self.left))
        return build_model(self.system.model, self.config["model"], f"model of {self.name}")

    def build_task(self) -> Any:
        """The task."""
        return TASKS[self.config["task"]["name"]](**self.task)


def recipe_path(name: str | os.PathLike[str]) -> Path:
    """A recipe file by its path, or a shipped one by its name ("nbody/egno", with or without "recipes/" and ".yaml").

    Raises:
        InputError: neither exists.
    """
    if Path(name).is_file():
        return Path(name)
    if Path(name).suffix and not str(name).startswith("recipes"):
        raise InputError("no such recipe", where=name, expected="a YAML file, or the name of a shipped recipe")
    short = str(name).removeprefix("recipes/").removesuffix(".yaml")
    for folder, known in _shipped():
        if short in known:
            return folder / f"{short}.yaml"
        if known:
            raise unknown_name("recipe", short, known)
    raise InputError("no such recipe", where=name, expected="a YAML file")


def shipped_recipes(dataset: str) -> list[str]:
    """Names of the shipped recipes of a data set, without its demonstrations."""
    found = [name for _, known in _shipped() for name in known if name.startswith(f"{dataset}/")]
    return [name for name in dict.fromkeys(found) if not name.startswith(f"{dataset}/demo_")]


def _shipped() -> Iterator[tuple[Path, list[str]]]:
    """Folders of shipped recipes, and the names in them."""
    package = Path(str(resources.files("equidyn")))
    for folder in (package / "recipes", package.parents[1] / "recipes"):  # installed, or in a checkout
        yield folder, sorted(str(p.relative_to(folder).with_suffix("")) for p in folder.rglob("*.yaml"))


_TOP = ("name", "system", "seed", "model", "data", "task", "train", "published")


def read_recipe(source: str | os.PathLike[str] | Mapping[str, Any], overrides: Sequence[str] = ()) -> Recipe:
    """Read and check a recipe.

    Args:
        source: a YAML file, the name of a shipped one ("nbody/egno"), or the content.
        overrides: command-line style, `["--model.hidden_dim", "128"]` or `["--model.hidden_dim=128"]`.

    Raises:
        InputError: no such file, no YAML, an unknown key or name (with the nearest right one), a wrong type.
    """
    where: Path | None
    if isinstance(source, Mapping):
        where, content = None, deepcopy(dict(source))
    else:
        where = recipe_path(source)
        content = _load(where)
    for key, value in _pairs(overrides):
        _set(content, key, value)
    for key in content:
        if key not in _TOP:
            raise unknown_name("recipe key", key, _TOP, where=where)
    entry = _named("system", content.get("system"), SYSTEMS, where)
    data = _section(content, "data", where)
    task = _section(content, "task", where)
    dataset = _named("dataset", data.pop("dataset", None), DATASETS, where)
    task_class = _named("task", task.pop("name", "trajectory"), TASKS, where)
    parser = ArgumentParser(exit_on_error=False)
    targets = {"model": entry.model, "data": dataset, "task": task_class, "train": TrainOptions}
    given: dict[str, Any] = {"data": data, "task": task, "model": _section(content, "model", where)}
    offered = getattr(dataset, "FITTED", ())
    left = {n for n in offered if n in signature(entry.model).parameters and n not in given["model"]}
    for section, target in targets.items():
        parser.add_class_arguments(target, section, skip=left if section == "model" else None)
        values = given.setdefault(section, _section(content, section, where))
        known = [action.dest.split(".", 1)[1] for action in parser._actions if action.dest.startswith(f"{section}.")]
        _refuse_unknown(values, section, known, where)
    checked = _check(parser, given, where)
    name = str(content.get("name", where.stem if where else entry.name))
    seed = content.get("seed", 0)
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise InputError("wrong type", where=_place("seed", where), expected="a whole number", got=repr(seed))
    config = {
        "name": name,
        "system": entry.name,
        "seed": seed,
        "model": checked["model"],
        "data": {"dataset": _key(DATASETS, dataset), **checked["data"]},
        "task": {"name": _key(TASKS, task_class), **checked["task"]},
        "train": checked["train"],
        "published": _section(content, "published", where),
    }
    built = {section: build_arguments(target, checked[section]) for section, target in targets.items()}
    return Recipe(
        name,
        entry,
        seed,
        built["model"],
        built["data"],
        built["task"],
        TrainOptions(**built["train"]),
        _plain(config),
        left=tuple(sorted(left)),
        task_left=tuple(n for n in getattr(task_class, "FITTED", ()) if not checked["task"][n]),
    )


def build_arguments(target: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments of a class from plain values: lists become tuples, mappings the dataclasses they stand for."""
    hints = get_type_hints(target.__init__)
    return {key: _build(hints.get(key), value) for key, value in values.items()}


def build_model(kind: type[nn.Module], values: Mapping[str, Any], where: object) -> nn.Module:
    """A model from the plain values of a recipe.

    Raises:
        InputError: they do not build one.
    """
    try:
        return kind(**build_arguments(kind, values))
    except InputError:
        raise
    except (TypeError, ValueError, RuntimeError, ArithmeticError) as error:
        raise InputError("these values build no model", where=where, got=error) from None


def _build(kind: Any, value: Any) -> Any:
    for part in (kind, *get_args(kind)):
        if isinstance(part, type) and is_dataclass(part) and isinstance(value, Mapping):
            return part(**value)
    return tuple(value) if isinstance(value, list) else value


def _load(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise InputError("no such recipe", where=path, expected="a YAML file")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError("not a YAML file", where=path, got=str(error)) from None
    if not isinstance(content, dict):
        raise InputError("not a recipe", where=path, expected="a mapping of keys", got=type(content).__name__)
    return content


def _pairs(overrides: Sequence[str]) -> list[tuple[str, Any]]:
    pairs, rest = [], list(overrides)
    while rest:
        flag = rest.pop(0)
        key, equals, value = flag.partition("=")
        if not key.startswith("--") or not (equals or rest):
            raise InputError("override", where="command line", expected="--section.key value", got=flag)
        text = value if equals else rest.pop(0)
        try:
            pairs.append((key[2:], yaml.safe_load(text)))
        except yaml.YAMLError:
            raise InputError("unreadable value", where=f"command line {key}", got=text) from None
    return pairs


def _set(content: dict[str, Any], key: str, value: Any) -> None:
    *sections, last = key.split(".")
    for section in sections:
        content = content.setdefault(section, {})
        if not isinstance(content, dict):
            raise InputError("override of a value that has no keys", where="command line", got=f"--{key}")
    content[last] = value


def _section(content: Mapping[str, Any], name: str, where: Path | None) -> dict[str, Any]:
    value = content.get(name) or {}
    if not isinstance(value, dict):
        raise InputError("wrong type", where=_place(name, where), expected="a mapping of keys", got=repr(value))
    return dict(value)


def _named(kind: str, name: Any, known: Mapping[str, Any], where: Path | None) -> Any:
    if name not in known:
        raise unknown_name(kind, str(name), known, where=where)
    return known[name]


def _key(registry: Mapping[str, Any], value: Any) -> str:
    return next(name for name, entry in registry.items() if entry is value)


def _place(key: str, where: Path | None) -> str:
    return f"key {key}" if where is None else f"key {key} of {where}"


def _refuse_unknown(values: Mapping[str, Any], section: str, known: list[str], where: Path | None) -> None:
    for key in values:
        if key not in known:
            raise unknown_name("recipe key", f"{section}.{key}", [f"{section}.{k}" for k in known], where=where)


def _check(parser: ArgumentParser, given: dict[str, Any], where: Path | None) -> dict[str, Any]:
    """Types and required keys, by the parser that knows the signatures."""
    try:
        checked = parser.parse_object(Namespace(**{k: Namespace(**v) for k, v in given.items()}))
    except ArgumentError as error:
        lines = [line.strip(" -") for line in str(error).splitlines() if line.strip()]
        raise InputError("wrong value", where=where or "recipe", got=" ".join(lines)[:300]) from None
    return checked.as_dict()


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return value
