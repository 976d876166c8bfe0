"""Reading a finished run folder, with one clear line for whatever is wrong in it."""

from __future__ import annotations

import csv
import json
import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from equidyn.core.errors import InputError
from equidyn.tasks import TASKS

Floats = NDArray[np.float64]

# All that NumPy and zipfile raise on damaged archives.
_UNREADABLE = (
    OSError,
    ValueError,
    EOFError,
    KeyError,
    AttributeError,
    TypeError,
    RuntimeError,
    SyntaxError,
    MemoryError,
    struct.error,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)

METRIC_COLUMNS = ("epoch", "train_loss", "val_f_mse")  # of trajectories


@dataclass(frozen=True)
class Score:
    """Error of one predictor: last state, mean over all states, and at each time point (empty where unknown)."""

    f_mse: float
    a_mse: float
    horizon_mse: Floats


@dataclass(frozen=True)
class UnseenTimes:
    """Error at many query times of a model that was trained at a few."""

    times: Floats
    mse: Floats
    trained_at: Floats


@dataclass(frozen=True)
class Rolled:
    """A model rolled on over several windows: errors, and medians of what should not drift."""

    windows: float
    velocities: str
    times: Floats
    mse: Floats
    baselines: dict[str, Floats]
    drift: dict[str, Floats]


@dataclass(frozen=True)
class Calibration:
    """A predicted uncertainty against the true error: by quantile of the prediction, and coverage at each level."""

    method: str
    factor: float
    rank_correlation: float
    predicted: Floats
    true: Floats
    levels: Floats
    coverage: Floats


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What `evaluation.json` tells of every run, whatever its task; None or empty where it was not measured."""

    system: str
    parameters: float | None
    seconds_train: float | None
    machine: str
    citation: str
    symmetry: dict[str, float]
    symmetry_dtype: str


@dataclass(frozen=True, kw_only=True)
class Evaluation(Facts):
    """What `evaluation.json` holds; None or empty where the run did not measure it."""

    name: str
    score: Score
    times: Floats
    split: str
    samples: float | None
    seconds_per_step: float | None
    baselines: dict[str, Score]
    published: dict[str, Score]
    unseen: UnseenTimes | None
    drift: dict[str, Floats]
    rolled: Rolled | None = None
    calibration: tuple[Calibration, ...] = ()

    @property
    def one_time(self) -> bool:
        """Whether the run predicts a single state (S2S), which has no error over a trajectory."""
        return self.times.size == 1


@dataclass(frozen=True)
class Predictions:
    """A few samples as trajectories. S samples, Q times, N particles."""

    times: Floats  # [Q]
    initial: Floats  # [S, N, 3]
    initial_vel: Floats  # [S, N, 3]
    predicted: Floats  # [S, Q, N, 3]
    true: Floats  # [S, Q, N, 3]
    charge: Floats | None  # [S, N]
    bonds: NDArray[np.int64] | None  # [E, 2]
    up: Floats | None = None  # [3]; the third axis where the data do not tell


@dataclass(frozen=True)
class Run:
    """One finished run. `name` is unique within a report."""

    name: str
    folder: Path
    config: str
    metrics: dict[str, Floats]
    evaluation: Evaluation
    predictions: Predictions


def task_of(folder: Path) -> str:
    """The task of a run, as its evaluation says."""
    if not folder.is_dir():
        raise InputError("no such run folder", where=folder)
    path = folder / "evaluation.json"
    try:
        raw = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise InputError("corrupt JSON", where=path, got=error) from error
    task = raw.get("task", "trajectory") if isinstance(raw, Mapping) else "trajectory"
    if not isinstance(task, str) or task not in TASKS:
        raise InputError("unknown task", where=path, expected=f"one of {', '.join(TASKS)}", got=task)
    return task


def read_runs(folders: Sequence[Path], read: Callable[[Path], Any] | None = None) -> list[Any]:
    """Reads every folder (trajectories, if not told otherwise), and gives runs of the same name different ones."""
    if not folders:
        raise InputError("no run folder given", expected="at least one")
    runs = [(read or read_run)(Path(folder)) for folder in folders]
    names = [run.name for run in runs]
    unique: list[Any] = []
    for run in runs:
        name = run.name if names.count(run.name) == 1 else f"{run.name} ({run.folder.name})"
        taken = sum(other.name == name or other.name.startswith(f"{name} #") for other in unique)
        unique.append(replace(run, name=f"{name} #{taken + 1}" if taken else name))
    return unique


def read_run(folder: Path) -> Run:
    """Reads one run folder.

    Raises:
        InputError: it is no run folder, or a file in it is missing, corrupt or inconsistent.
    """
    if not folder.is_dir():
        raise InputError("no such run folder", where=folder)
    evaluation = _read_evaluation(folder / "evaluation.json")
    return Run(
        name=evaluation.name,
        folder=folder,
        config=read_config(folder / "config.yaml"),
        metrics=read_metrics(folder / "metrics.csv", METRIC_COLUMNS),
        evaluation=evaluation,
        predictions=_read_predictions(folder / "predictions.npz"),
    )


def read_arrays(path: Path, names: Sequence[str] | None = None, dtype: type | None = None) -> dict[str, Any]:
    """Arrays of a `.npz` of the run: these, or all; in this dtype, or as they are.

    Raises:
        InputError: it is missing, holds pickles, lacks one of the names or cannot be read.
    """
    if not path.is_file():
        raise InputError(f"{path.name} is missing", where=path.parent, expected="a finished run folder")
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return {name: np.asarray(archive[name], dtype) for name in names or archive.files}
    except _UNREADABLE as error:
        raise InputError("corrupt or unsafe array file", where=path, expected="a NumPy .npz without pickles") from error


def read_text(path: Path) -> str:
    """The text of a file of the run."""
    if not path.is_file():
        raise InputError(f"{path.name} is missing", where=path.parent, expected="a finished run folder")
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError("unreadable file", where=path, got=error) from error


def read_config(path: Path) -> str:
    """The text of the configuration."""
    text = read_text(path)
    try:
        config = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError("corrupt YAML", where=path, got=error) from error
    if not isinstance(config, Mapping):
        raise InputError("corrupt configuration", where=path, expected="a YAML mapping", got=type(config).__name__)
    return text


def read_metrics(path: Path, wanted: Sequence[str]) -> dict[str, Floats]:
    """The wanted columns of `metrics.csv`."""
    try:
        lines = csv.DictReader(read_text(path).splitlines(), strict=True)
        rows = list(lines)
    except csv.Error as error:
        raise InputError("corrupt CSV", where=path, got=error) from error
    columns = lines.fieldnames or []
    for column in wanted:
        if column not in columns:
            raise InputError(f"column {column!r} is missing", where=path, got=", ".join(columns) or "an empty file")
    return {
        column: np.array([_cell(row[column], f"{path}, row {k + 2}, {column}") for k, row in enumerate(rows)], float)
        for column in wanted
    }


def _cell(text: str | None, where: str) -> float:
    """A field of the table; an empty one was not measured."""
    if not text or not text.strip():
        return math.nan
    try:
        return float(text)
    except ValueError as error:
        raise InputError("not a number", where=where, got=repr(text)) from error


def read_fields(path: Path) -> Fields:
    """The fields of a JSON file.

    Raises:
        InputError: the file is missing or corrupt.
    """
    try:
        raw = json.loads(read_text(path), parse_int=float)  # an int may be too large for a float
    except (ValueError, RecursionError) as error:
        raise InputError("corrupt JSON", where=path, got=error) from error
    return Fields(raw, str(path))


def read_facts(fields: Fields) -> dict[str, Any]:
    """The arguments of `Facts`."""
    return {
        "system": fields.text("system"),
        "parameters": fields.number("parameters"),
        "seconds_train": fields.number("seconds_train"),
        "machine": fields.text("machine", ""),
        "citation": fields.text("citation", ""),
        "symmetry": _symmetry(fields),
        "symmetry_dtype": fields.text("symmetry_dtype", "float32"),
    }


def _read_evaluation(path: Path) -> Evaluation:
    fields = read_fields(path)
    times = fields.numbers("times")
    return Evaluation(
        **read_facts(fields),
        name=fields.text("name"),
        score=_score(fields, times.size),
        times=times,
        split=fields.text("split", "test"),
        samples=fields.number("samples"),
        seconds_per_step=fields.number("seconds_per_step"),
        baselines={name: _score(entry, times.size) for name, entry in fields.children("baselines")},
        published={name: _score(entry) for name, entry in fields.children("published")},
        unseen=_unseen(fields),
        drift=_drift(fields, times.size),
        rolled=_rolled(fields),
        calibration=tuple(map(_calibration, fields.items("calibration"))),
    )


class Fields:
    """A JSON object whose entries are asked for by kind; a wrong kind is an InputError that names it."""

    def __init__(self, raw: Any, where: str) -> None:
        if not isinstance(raw, Mapping):
            raise InputError("wrong type", where=where, expected="a JSON object", got=type(raw).__name__)
        self.raw, self.where = raw, where

    def _get(self, key: str, kinds: type | tuple[type, ...], expected: str, *, required: bool) -> Any:
        value = self.raw.get(key)
        if value is None:
            if required:
                raise InputError(f"{key!r} is missing", where=self.where, expected=expected)
        elif not isinstance(value, kinds) or isinstance(value, bool):
            raise InputError(f"wrong {key!r}", where=self.where, expected=expected, got=type(value).__name__)
        return value

    def text(self, key: str, default: str | None = None) -> str:
        """Text, or the default."""
        value = self._get(key, str, "text", required=default is None)
        return default or "" if value is None else value

    def number(self, key: str, *, required: bool = False) -> float | None:
        """A number; None where there is none."""
        value = self._get(key, (int, float), "a number", required=required)
        return None if value is None else float(value)

    def numbers(self, key: str, length: int | None = None, *, required: bool = True) -> Floats:
        """A flat list of numbers."""
        value = self._get(key, list, "a list of numbers", required=required)
        try:
            array = np.array([] if value is None else value, dtype=np.float64)  # None inside becomes NaN
        except (TypeError, ValueError) as error:
            raise InputError(f"wrong {key!r}", where=self.where, expected="a list of numbers") from error
        if array.ndim != 1 or (required and not array.size):
            raise InputError(f"wrong {key!r}", where=self.where, expected="a flat list of numbers", got=array.shape)
        if length is not None and array.size not in ({length} if required else {0, length}):
            raise InputError(f"wrong length of {key!r}", where=self.where, expected=length, got=array.size)
        return array

    def child(self, key: str) -> Fields | None:
        """The object under a key."""
        value = self._get(key, Mapping, "a JSON object", required=False)
        return Fields(value, f"{self.where}, {key}") if value else None

    def items(self, key: str) -> list[Fields]:
        """All objects of a list."""
        entries = self._get(key, list, "a list of JSON objects", required=False) or []
        return [Fields(raw, f"{self.where}, {key} {k}") for k, raw in enumerate(entries)]

    def children(self, key: str) -> list[tuple[str, Fields]]:
        """All objects under a key, by name."""
        entries = self.child(key)
        return [(name, Fields(raw, f"{entries.where}, {name}")) for name, raw in entries.raw.items()] if entries else []


def _score(fields: Fields, horizon: int | None = None) -> Score:
    """Published numbers have no horizon and may lack an error; measured ones lack A-MSE at a single time alone."""
    measured = horizon is not None
    f_mse = fields.number("f_mse", required=measured)
    a_mse = fields.number("a_mse", required=measured and horizon != 1)
    return Score(
        f_mse=math.nan if f_mse is None else f_mse,
        a_mse=math.nan if a_mse is None else a_mse,
        horizon_mse=fields.numbers("horizon_mse", horizon, required=measured),
    )


def _symmetry(fields: Fields) -> dict[str, float]:
    """Measured symmetry errors."""
    entries = fields.child("symmetry")
    values = {name: entries.number(name) for name in entries.raw} if entries else {}
    return {name: value for name, value in values.items() if value is not None}


def _unseen(fields: Fields) -> UnseenTimes | None:
    entry = fields.child("unseen_times")
    if entry is None:
        return None
    times = entry.numbers("times")
    return UnseenTimes(times, entry.numbers("mse", times.size), entry.numbers("trained_at"))


DRIFTS = ("energy", "momentum", "bonds")


def _rolled(fields: Fields) -> Rolled | None:
    entry = fields.child("rolled")
    if entry is None:
        return None
    times = entry.numbers("times")
    drift, simple = entry.child("drift"), entry.child("baselines")
    keys = [f"{name}{suffix}" for name in DRIFTS for suffix in ("", "_true")]
    drifts = {key: drift.numbers(key, times.size, required=False) for key in keys} if drift else {}
    return Rolled(
        windows=entry.number("windows", required=True) or 0.0,
        velocities=entry.text("velocities"),
        times=times,
        mse=entry.numbers("mse", times.size),
        baselines={name: simple.numbers(name, times.size) for name in simple.raw} if simple else {},
        drift={key: values for key, values in drifts.items() if values.size},
    )


def _calibration(entry: Fields) -> Calibration:
    predicted, levels = entry.numbers("predicted"), entry.numbers("levels")
    factor, correlation = (entry.number(key) for key in ("factor", "rank_correlation"))
    return Calibration(
        method=entry.text("method"),
        factor=math.nan if factor is None else factor,
        rank_correlation=math.nan if correlation is None else correlation,
        predicted=predicted,
        true=entry.numbers("true", predicted.size),
        levels=levels,
        coverage=entry.numbers("coverage", levels.size),
    )


def _drift(fields: Fields, length: int) -> dict[str, Floats]:
    entry = fields.child("drift")
    if entry is None:
        return {}
    times = entry.numbers("times", required=False)
    keys = ("energy", "momentum", "energy_true", "momentum_true")
    found = {key: values for key in keys if (values := entry.numbers(key, times.size or length, required=False)).size}
    return found | {"times": times} if times.size else found


def _read_predictions(path: Path) -> Predictions:
    arrays = read_arrays(path)
    for name in ("times", "initial", "initial_vel", "predicted", "true"):
        if name not in arrays:
            raise InputError(f"array {name!r} is missing", where=path)
    for name, array in arrays.items():
        if array.dtype.kind not in "fiub":
            raise InputError(f"array {name!r} holds no numbers", where=path, got=array.dtype)
    return _checked(arrays, path)


def _checked(arrays: Mapping[str, NDArray[Any]], path: Path) -> Predictions:
    def take(name: str, shape: tuple[int, ...]) -> Floats:
        if arrays[name].shape != shape:
            raise InputError(f"wrong shape of {name!r}", where=path, expected=shape, got=arrays[name].shape)
        return np.asarray(arrays[name], dtype=np.float64)

    initial = arrays["initial"]
    if initial.ndim != 3 or initial.shape[2] != 3 or not initial.size:
        raise InputError("wrong shape of 'initial'", where=path, expected="[samples, particles, 3]", got=initial.shape)
    samples, particles, _ = initial.shape
    times = take("times", (arrays["times"].size,))
    if not times.size or not np.isfinite(times).all() or (np.diff(times) <= 0).any():
        raise InputError("unusable 'times'", where=path, expected="finite times, increasing, at least one")
    trajectory = (samples, times.size, particles, 3)
    return Predictions(
        times=times,
        initial=take("initial", initial.shape),
        initial_vel=take("initial_vel", initial.shape),
        predicted=take("predicted", trajectory),
        true=take("true", trajectory),
        charge=take("charge", (samples, particles)) if "charge" in arrays else None,
        bonds=_bonds(arrays["bonds"], particles, path) if "bonds" in arrays else None,
        up=take("up", (3,)) if "up" in arrays else None,
    )


def _bonds(bonds: NDArray[Any], particles: int, path: Path) -> NDArray[np.int64]:
    if bonds.ndim != 2 or bonds.shape[1] != 2 or bonds.dtype.kind not in "iu":
        raise InputError(
            "wrong 'bonds'", where=path, expected="integers [bonds, 2]", got=f"{bonds.dtype} {bonds.shape}"
        )
    if bonds.size and (bonds.min() < 0 or bonds.max() >= particles):
        raise InputError("'bonds' names a particle that does not exist", where=path, expected=f"0 to {particles - 1}")
    return bonds.astype(np.int64)
