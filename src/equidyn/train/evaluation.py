"""Measure a trained model on the test samples: `evaluation.json` and `predictions.npz` of the run folder."""

from __future__ import annotations

import csv
import json
import math
import os
import platform
from pathlib import Path
from typing import Any

import torch

from equidyn.core.errors import InputError
from equidyn.core.files import write_atomically
from equidyn.data.qm9 import is_qm9
from equidyn.models import SYSTEMS
from equidyn.tasks import PotentialTask, TrajectoryTask
from equidyn.train.checkpoint import build_family, build_task, load_model
from equidyn.train.potential_evaluation import evaluate_potential
from equidyn.train.property_evaluation import evaluate_property
from equidyn.train.trajectory_evaluation import evaluate_trajectories


def evaluate(run: str | Path, *, data: str | None = None, windows: int = 1, curvature: bool = False) -> dict[str, Any]:
    """Evaluate the best model of a run and write the results into its folder.

    Args:
        run: run folder, or the folder of an ensemble.
        data: other data than the recipe's, of the same family.
        windows: roll a model of trajectories on over so many windows, and report the error and what drifts.
        curvature: also measure an uncertainty of it that needs one model only (see `equidyn.train.calibration`).

    Returns:
        The content of `evaluation.json`.

    Raises:
        InputError: unusable run folder or data, windows or curvature of another model than one of trajectories.
    """
    trained = load_model(run)
    task, name = build_task(trained.config), trained.config["task"]["name"]
    source = build_family(trained.config, **(_tested_on(data, trained.config["data"]["dataset"]) if data else {}))
    if isinstance(task, TrajectoryTask):
        measured = evaluate_trajectories(trained, task, source, windows=windows, curvature=curvature)
    elif windows != 1 or curvature:
        raise InputError("windows and curvature", where=trained.folder, expected="a model of trajectories", got=name)
    elif isinstance(task, PotentialTask):
        measured = evaluate_potential(trained, task, source)
    else:
        measured = evaluate_property(trained, task, source)
    entry = SYSTEMS[trained.config["system"]]
    result: dict[str, Any] = {
        "name": trained.config["name"],
        "task": name,
        "system": entry.name,
        "parameters": sum(p.numel() for p in trained.model.parameters()),
        "epoch": trained.info["epoch"],
        "published": trained.config.get("published", {}),
        **measured,
        "symmetry_dtype": "float32",
        "citation": entry.citation.bibtex(),
        "machine": f"{os.cpu_count()} cores, torch {torch.__version__}, Python {platform.python_version()}",
    }
    result |= _cost(trained.folder)
    write_atomically(trained.folder / "evaluation.json", json.dumps(_finite(result), indent=1, allow_nan=False))
    return result


def _tested_on(path: str, dataset: str) -> dict[str, Any]:
    """Arguments of a data family that make another file the one to test on."""
    if dataset == "structures":
        return {"test": {Path(path).name: path}}
    return {"test": path} if dataset == "properties" and not is_qm9(path) else {"path": path}


def _finite(value: Any) -> Any:
    """The same with null for numbers that JSON does not know (an energy at coincident particles, say)."""
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _cost(folder: Path) -> dict[str, float]:
    path = folder / "metrics.csv"
    if not path.is_file():
        return {}
    last = list(csv.DictReader(path.read_text().splitlines()))[-1]
    seconds = float(last["seconds"])
    return {"seconds_train": seconds, "seconds_per_step": seconds / float(last["step"])}
