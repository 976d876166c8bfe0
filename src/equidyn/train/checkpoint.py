"""A trained model on disk: `model.safetensors` (weights) and `model.json` (what rebuilds the model). No pickles."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import yaml
from torch import Tensor, nn
from torch_geometric.data import Data

import equidyn
from equidyn.core.errors import InputError, unknown_name
from equidyn.core.files import make_folder, write_atomically
from equidyn.data import DATASETS
from equidyn.models import SYSTEMS
from equidyn.tasks import TASKS, Task, TrajectoryTask
from equidyn.train.recipe import build_arguments, build_model

FORMAT_VERSION = 1


@dataclass(frozen=True)
class Trained:
    """A trained model and where it comes from.

    Attributes:
        model: in evaluation mode.
        config: the recipe's configuration.
        info: epoch and validation error it was kept at.
        folder: the run folder.
    """

    model: nn.Module
    config: dict[str, Any]
    info: dict[str, Any]
    folder: Path


def build_family(config: dict[str, Any], **other: Any) -> Any:
    """The data family of a run, with other arguments than its recipe's where they are given."""
    given = dict(config["data"])
    kind = DATASETS[given.pop("dataset")]
    return kind(**build_arguments(kind, given | other))


def save_model(folder: Path, model: nn.Module, config: dict[str, Any], info: dict[str, Any]) -> None:
    """Write weights and description, each file atomically.

    The weights carry the description too, so that files of two models cannot pass for one.
    """
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    description = {"format_version": FORMAT_VERSION, "equidyn": equidyn.__version__, "config": config, "info": info}
    header = {"description": json.dumps(description)}
    write_atomically(folder / "model.safetensors", safetensors.torch.save(weights, metadata=header))
    write_atomically(folder / "model.json", json.dumps(description, indent=1))


def build_task(config: dict[str, Any]) -> Task:
    """The task of a run."""
    options = dict(config["task"])
    kind = TASKS[options.pop("name")]
    return kind(**build_arguments(kind, options))


class Ensemble(nn.Module):
    """Several models of one recipe, trained from different seeds, as one.

    Its outputs are the means of theirs; `trajectory_std [N, P]` is the standard deviation of the predicted positions
    over the members, per coordinate (root mean square over the three), and `prediction_std` that of a property.

    Args:
        members: the models.
        task: theirs. Where it keeps bone lengths, positions are averaged after that:
            before it, each member is free to put them anywhere along the bones.
    """

    def __init__(self, members: Sequence[nn.Module], task: Task) -> None:
        super().__init__()
        self.members, self.task = nn.ModuleList(members), task
        for name in ("times", "symmetry"):
            if hasattr(members[0], name):
                setattr(self, name, getattr(members[0], name))

    def forward(self, sample: Data) -> dict[str, Tensor]:
        """The mean of the members' outputs, and how far they disagree."""
        outputs = [self._output(member, sample) for member in self.members]
        mean = {name: torch.stack([out[name] for out in outputs]).mean(0) for name in outputs[0]}
        if "prediction" in mean:
            return mean | {"prediction_std": torch.stack([out["prediction"] for out in outputs]).std(0)}
        name = "trajectory" if "trajectory" in mean else "pos"
        spread = torch.stack([out[name] - mean[name] for out in outputs])
        variance = spread.square().sum(0).mean(-1) / (len(outputs) - 1)
        return mean | {"trajectory_std": variance.sqrt() if name == "trajectory" else variance.sqrt().unsqueeze(-1)}

    def _output(self, member: nn.Module, sample: Data) -> dict[str, Tensor]:
        out = member(sample)
        if not isinstance(self.task, TrajectoryTask) or not self.task.bone_lengths:
            return out
        positions = self.task.predicted(out, sample)
        return out | ({"trajectory": positions} if "trajectory" in out else {"pos": positions.squeeze(-2)})


def write_ensemble(folder: str | Path, runs: Sequence[str | Path]) -> Path:
    """Make a folder that stands for an ensemble: `evaluate`, `predict` and `report` take it like that of a run.

    Args:
        folder: made if it does not exist; refers to the runs by their place relative to it.
        runs: run folders of the same system, data and task.

    Raises:
        InputError: fewer than two runs, runs that differ in more than their training, or another run in the folder.
    """
    folder = Path(folder)
    if (folder / "model.json").exists():
        raise InputError("the folder holds a run", where=folder, expected="a folder of its own for the ensemble")
    trained = _members([Path(run) for run in runs], folder)
    make_folder(folder)
    paths = [os.path.relpath(member.folder.resolve(), folder.resolve()) for member in trained]
    config = trained[0].config | {"name": folder.name}
    write_atomically(folder / "config.yaml", yaml.safe_dump(config, sort_keys=False))
    _write_mean_metrics(folder, [member.folder / "metrics.csv" for member in trained])
    write_atomically(
        folder / "ensemble.json", json.dumps({"format_version": FORMAT_VERSION, "members": paths}, indent=1)
    )
    return folder


def _members(runs: Sequence[Path], where: Path) -> list[Trained]:
    if len(runs) < 2:
        raise InputError("members of an ensemble", where=where, expected="two runs or more", got=len(runs))
    trained = [load_model(run) for run in runs]
    first = trained[0]
    for other in trained[1:]:
        for key in ("system", "model", "data", "task"):
            if other.config.get(key) != first.config.get(key):
                expected = f"as in {first.folder}"
                raise InputError(f"members that differ in {key}", where=other.folder, expected=expected)
    return trained


def _write_mean_metrics(folder: Path, files: Sequence[Path]) -> None:
    """Mean over the members at the epochs that all have; the seconds are summed."""
    if not all(file.is_file() for file in files):
        return
    tables = [{row["epoch"]: row for row in csv.DictReader(file.read_text().splitlines())} for file in files]
    columns = list(next(iter(tables[0].values())))
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, lineterminator="\n")
    writer.writeheader()
    for epoch in (e for e in tables[0] if all(e in table for table in tables)):
        values = {c: [float(table[epoch][c]) for table in tables] for c in columns}
        row = {c: sum(v) if c == "seconds" else sum(v) / len(v) for c, v in values.items()}
        writer.writerow(row | {"epoch": epoch, "step": tables[0][epoch]["step"]})
    write_atomically(folder / "metrics.csv", buffer.getvalue())


def _load_ensemble(folder: Path) -> Trained:
    path = folder / "ensemble.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        members = [folder / name for name in content["members"]]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError("corrupt description", where=path, expected="JSON of an ensemble", got=error) from None
    if content.get("format_version") != FORMAT_VERSION:
        raise InputError("unknown format version", where=path, expected=FORMAT_VERSION)
    trained = _members(members, folder)
    errors = [key for key in trained[0].info if key.startswith("val_")]
    info = {"epoch": max(member.info["epoch"] for member in trained)}
    info |= {key: sum(member.info[key] for member in trained) / len(trained) for key in errors}
    config = trained[0].config
    model = Ensemble([member.model for member in trained], build_task(config)).eval()
    return Trained(model, config | {"name": folder.name}, info, folder)


def load_model(run: str | Path) -> Trained:
    """Load the model of a run folder, or the models of an ensemble (`write_ensemble`) as one.

    Raises:
        InputError: no run folder, a missing, foreign or corrupt file, weights of another model.
    """
    folder = Path(run)
    weights = folder / "model.safetensors"
    if not folder.is_dir():
        expected = "a run folder (model.safetensors and model.json)"
        raise InputError(
            "not a run folder", where=folder, expected=expected, got="a file" if folder.exists() else "nothing"
        )
    if (folder / "ensemble.json").is_file():
        return _load_ensemble(folder)
    description = _read_description(folder / "model.json")
    config = description["config"]
    if config["system"] not in SYSTEMS:
        raise unknown_name("system", config["system"], SYSTEMS, where=folder / "model.json")
    if not weights.is_file():
        raise InputError("no such file", where=weights, expected="the weights of the run")
    try:
        with safetensors.safe_open(weights, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            inside = json.loads((file.metadata() or {}).get("description", "{}"))
    except Exception as error:
        raise InputError("corrupt weights", where=weights, expected="a safetensors file", got=error) from None
    model = build_model(SYSTEMS[config["system"]].model, config["model"], folder / "model.json")
    refuse_other_tensors(model.state_dict(), tensors, weights)
    if inside and any(inside["config"][key] != config.get(key) for key in ("system", "model", "data", "task")):
        expected = f"the run described in {folder / 'model.json'}"
        raise InputError("checkpoint of another model", where=weights, expected=expected, got=inside["config"]["name"])
    model.to(_network_dtype(tensors)).load_state_dict(tensors)
    # A kill between the two files leaves an older description of the same run beside the weights.
    return Trained(model.eval(), config, inside.get("info", description["info"]), folder)


def _network_dtype(tensors: Mapping[str, Tensor]) -> torch.dtype:
    """That of most parts of a model; the others are those that keep float64."""
    kinds = {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}
    return min(kinds, key=lambda kind: torch.finfo(kind).bits, default=torch.float32)


def _read_description(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise InputError("no such file", where=path, expected="the description of the model")
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
        description["info"], description["config"]["system"], description["config"]["model"].items()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError("corrupt description", where=path, expected="JSON of a run", got=error) from None
    version = description.get("format_version")
    if version != FORMAT_VERSION:
        raise InputError("unknown format version", where=path, expected=FORMAT_VERSION, got=version)
    return description


def refuse_other_tensors(own: Mapping[str, Tensor], given: Mapping[str, Tensor], where: Path) -> None:
    """Compare names and shapes of the tensors a model has with those of a file.

    Raises:
        InputError: they differ.
    """
    for name in sorted(own.keys() | given.keys()):
        mine, theirs = (tuple(d[name].shape) if name in d else "no such tensor" for d in (own, given))
        if mine != theirs:
            raise InputError("checkpoint of another model", where=where, expected=f"{name} {mine}", got=theirs)
