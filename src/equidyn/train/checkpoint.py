"""A trained model on disk: `model.safetensors` (weights) and `model.json` (what rebuilds the model). No pickles."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor, nn

import equidyn
from equidyn.core.errors import InputError, unknown_name
from equidyn.core.files import write_atomically
from equidyn.data import DATASETS
from equidyn.models import SYSTEMS
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


def load_model(run: str | Path) -> Trained:
    """Load the model of a run folder.

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
    model.load_state_dict(tensors)
    # A kill between the two files leaves an older description of the same run beside the weights.
    return Trained(model.eval(), config, inside.get("info", description["info"]), folder)


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
