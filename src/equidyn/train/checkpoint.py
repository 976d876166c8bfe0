"""A trained model on disk: `model.safetensors` (weights) and `model.json` (what rebuilds the model). No pickles."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import nn

import equidyn
from equidyn.core.errors import InputError, unknown_name
from equidyn.core.files import write_atomically
from equidyn.models import SYSTEMS
from equidyn.train.recipe import build_arguments

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


def save_model(folder: Path, model: nn.Module, config: dict[str, Any], info: dict[str, Any]) -> None:
    """Write weights and description, each file atomically.

    The description names the weights by their checksum, so that a kill between the two files cannot pair strangers.
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
        tensors = safetensors.torch.load(weights.read_bytes())
    except Exception as error:
        raise InputError("corrupt weights", where=weights, expected="a safetensors file", got=error) from None
    try:
        kind = SYSTEMS[config["system"]].model
        model = kind(**build_arguments(kind, config["model"]))
    except (TypeError, InputError) as error:
        raise InputError("description does not build a model", where=folder / "model.json", got=error) from None
    _fill(model, tensors, weights)
    return Trained(model.eval(), config, description["info"], folder)


def _read_description(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise InputError("no such file", where=path, expected="the description of the model")
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
        description["config"]["system"], description["config"]["model"], description["info"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError("corrupt description", where=path, expected="JSON of a run", got=error) from None
    version = description.get("format_version")
    if version != FORMAT_VERSION:
        raise InputError("unknown format version", where=path, expected=FORMAT_VERSION, got=version)
    return description


def _fill(model: nn.Module, tensors: dict[str, Any], where: Path) -> None:
    own = model.state_dict()
    for name in own.keys() | tensors.keys():
        mine, theirs = (tuple(d[name].shape) if name in d else "no such tensor" for d in (own, tensors))
        if mine != theirs:
            raise InputError("checkpoint of another model", where=where, expected=f"{name} {mine}", got=theirs)
    model.load_state_dict(tensors)
