"""Errors and predictions of a property or a class per graph."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase.data import chemical_symbols
from ase.formula import Formula
from torch import Tensor
from torch_geometric.data import Data

from equidyn.core.errors import InputError
from equidyn.core.files import write_arrays, write_atomically
from equidyn.data.graphs import GraphDataset
from equidyn.models import SYSTEMS
from equidyn.tasks import ClassificationTask, PropertyTask
from equidyn.train.checkpoint import Trained, build_family, build_task
from equidyn.train.symmetry import symmetry_errors


def evaluate_property(trained: Trained, task: PropertyTask | ClassificationTask, source: Any) -> dict[str, Any]:
    """What `evaluation.json` says of the test samples; all predictions go to `predictions.npz`.

    Raises:
        InputError: unusable data.
    """
    test = source.part("test")
    true, predicted, simple = (torch.cat(parts) for parts in zip(*_answers(trained, task, test), strict=True))
    write_arrays(trained.folder / "predictions.npz", {"true": true.numpy(), "predicted": predicted.numpy()})
    measured = {
        "split": "test",
        "samples": len(test),
        "target": test.name,
        **{name: value for name, value in trained.info.items() if name.startswith("val_")},
    }
    if isinstance(task, PropertyTask):
        answers = {"": predicted, "mean of the training samples": simple}
        errors = {name: _errors(values, true) for name, values in answers.items()}
        rows = trained.config.get("published") or {}
        published = {
            label: {"mae": row[test.name]}
            for label, row in rows.items()
            if isinstance(row, Mapping) and test.name in row
        }
        measured |= {"unit": task.fit.unit if task.fit else "", **errors.pop(""), "baselines": errors}
        measured |= {"published": published}
    else:
        common = int(source.part("train").targets().bincount().argmax())
        share = float((true == common).double().mean())
        measured |= {
            "classes": list(task.classes),
            "accuracy": float((predicted.argmax(1) == true).double().mean()),
            "cross_entropy": float(-predicted.clamp(min=1e-300).log()[torch.arange(len(true)), true].mean()),
            "baselines": {"most frequent class": {"accuracy": share}},
        }
    return measured | {"symmetry": _symmetry(trained, task, test)}


@torch.no_grad()
def _answers(
    trained: Trained, task: PropertyTask | ClassificationTask, part: GraphDataset
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """True, predicted (classes: probabilities) and simple answers, batch by batch."""
    dtype = next(trained.model.parameters()).dtype
    for begin in range(0, len(part), part.at_once):
        sample = task.cast(part.__getitems__(range(begin, min(begin + part.at_once, len(part)))), dtype)
        out = trained.model(sample)
        if isinstance(task, PropertyTask):
            yield sample.y, task.values(out, sample), task.baseline(sample)
        else:
            yield sample.y, task.probabilities(out, sample), sample.y


def _errors(values: Tensor, true: Tensor) -> dict[str, float]:
    error = values - true
    return {"mae": float(error.abs().mean()), "rmse": float(error.square().mean().sqrt())}


def _symmetry(trained: Trained, task: PropertyTask | ClassificationTask, part: GraphDataset) -> dict[str, float]:
    """Relative errors under the symmetries of the group, measured on one test sample in float32."""
    sample = task.cast(part[0], torch.float32)
    fields = {name: value for name, value in sample.to_dict().items() if name not in ("y", "batch", "num_nodes")}
    group = getattr(trained.model, "symmetry", SYSTEMS[trained.config["system"]].symmetry)
    return symmetry_errors(trained.model.float(), Data(**fields), group)


def predict_properties(trained: Trained, path: str | Path) -> list[dict[str, Any]]:
    """Predict for every graph of a file: structures of any format of ASE (or SDF), or meshes (OFF).

    Args:
        trained: from `load_model`, of a task `property` or `classification`.
        path: file of the kind the model was trained on.

    Returns:
        A row for each: its number, its formula where it has one, and the property under its name, or the class and the
        probability of each.

    Raises:
        InputError: a model of another task, unusable data.
    """
    task = task_of(trained)
    part = build_family(trained.config).read(path)
    predicted = torch.cat([values for _, values, _ in _answers(trained, task, part)])
    rows: list[dict[str, Any]] = [{"number": k} for k in range(len(part))]
    for row, numbers in zip(rows, part.atoms(), strict=False):
        row["formula"] = _formula(numbers)
    for row, values in zip(rows, predicted, strict=True):
        if isinstance(task, PropertyTask):
            row[part.name] = float(values)
        else:
            row["class"] = task.classes[int(values.argmax())]
            row |= dict(zip((f"p({name})" for name in task.classes), values.tolist(), strict=True))
    return rows


def task_of(trained: Trained) -> PropertyTask | ClassificationTask:
    """The task of a run.

    Raises:
        InputError: it is another one.
    """
    task = build_task(trained.config)
    if not isinstance(task, PropertyTask | ClassificationTask):
        expected = "a run of the task property or classification"
        raise InputError("predictions per graph", where=trained.folder, expected=expected)
    return task


def _formula(numbers: np.ndarray) -> str:
    return Formula.from_dict(Counter(chemical_symbols[int(z)] for z in numbers)).format("hill")


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write predictions as a CSV table, whole or not at all.

    Raises:
        InputError: the folder cannot be written to.
    """
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, buffer.getvalue())
