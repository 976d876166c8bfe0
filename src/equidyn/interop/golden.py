"""Golden records: what an original computed, replayed by our model.

A record is an npz file with `meta` (JSON), `param/*`, `in/*` and `out/*`. `verify` rebuilds the system with the
record's parameters, replays it in the record's dtype and compares every output.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import equidyn.interop
from equidyn.core.errors import InputError, unknown_name
from equidyn.interop import e3nn_tables
from equidyn.models import SYSTEMS

# Relative tolerances of outputs and of gradients.
_TOLERANCES = {torch.float64: (1e-8, 1e-7), torch.float32: (1e-4, 1e-4)}


@dataclass(frozen=True)
class Record:
    """A golden record in memory.

    Attributes:
        path: file it came from.
        meta: system, case, constructor arguments of the original, dtype.
        params: the original's parameters.
        inputs: what it was given.
        outputs: what it computed.
        aux: what else helps to check it, such as matrices of representations.
    """

    path: Path
    meta: dict[str, Any]
    params: dict[str, Tensor]
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]
    aux: dict[str, Tensor] = field(default_factory=dict)

    @property
    def dtype(self) -> torch.dtype:
        """The precision the record was computed in."""
        return getattr(torch, self.meta["dtype"])

    def options(self, **defaults: Any) -> dict[str, Any]:
        """The original's constructor arguments.

        Args:
            defaults: every argument the original knows, with the original's default; `...` where it has none.

        Raises:
            InputError: an argument that is not among them, or one without default that is missing.
        """
        given = {key: value for key, value in self.meta.get("constructor", {}).items() if key != "device"}
        for key in given:
            if key not in defaults:
                raise unknown_name("constructor argument", key, defaults, where=self.path)
        for key, value in defaults.items():
            if value is ... and key not in given:
                raise InputError("missing constructor argument", where=self.path, expected=key)
        return defaults | given


@dataclass(frozen=True)
class Outcome:
    """Comparison of one output: relative error (of the largest entry) against its tolerance."""

    name: str
    error: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether the error is within tolerance; NaN is not."""
        return self.error <= self.tolerance


def read_record(path: str | Path) -> Record:
    """Read a golden record; nothing in the file is executed.

    Raises:
        InputError: no such file, or not a golden record.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError("no such file", where=path)
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        meta = json.loads(str(arrays.pop("meta")))
        if "config" in meta:  # the name that some records use
            meta.setdefault("constructor", meta["config"])
        if str(meta["system"]).startswith(e3nn_tables.SYSTEM):
            return _tables(path, meta, arrays)
        meta["system"], meta["dtype"]
    except Exception as error:
        raise InputError("unreadable golden record", where=path, got=f"{type(error).__name__}: {error}") from None
    if meta["dtype"] not in ("float64", "float32"):
        raise InputError("dtype of the record", where=path, expected="float64 or float32", got=meta["dtype"])
    groups: dict[str, dict[str, Tensor]] = {"param": {}, "in": {}, "out": {}, "aux": {}}
    for name, array in arrays.items():
        group, _, rest = name.partition("/")
        if group not in groups:
            raise InputError("array", where=path, expected="param/*, in/*, out/* or aux/*", got=name)
        if array.dtype.kind in "biufc":
            groups[group][rest] = torch.from_numpy(np.array(array))
    if not groups["out"]:
        raise InputError("golden record without outputs", where=path, expected="arrays out/*")
    return Record(path, meta, groups["param"], groups["in"], groups["out"], groups["aux"])


def _tables(path: Path, meta: dict[str, Any], arrays: dict[str, Any]) -> Record:
    """A table of conventions as a record: all but its vectors are outputs."""
    outputs = {name: torch.from_numpy(array) for name, array in arrays.items()}
    inputs = {"vectors": outputs.pop("sh/vectors")}
    return Record(path, meta | {"system": e3nn_tables.SYSTEM, "dtype": "float64"}, {}, inputs, outputs)


def replayable() -> list[str]:
    """The systems whose records can be replayed."""
    names = [module.name for module in pkgutil.iter_modules(equidyn.interop.__path__)]
    return [name for name in names if name in SYSTEMS]


def verify(path: str | Path) -> list[Outcome]:
    """Replay a record and compare every output of it.

    Raises:
        InputError: unreadable record, unknown system, or a record that the system cannot be built from.
    """
    record = read_record(path)
    system = record.meta["system"]
    if system == e3nn_tables.SYSTEM:
        replay = e3nn_tables.replay
    elif system in replayable():
        replay = importlib.import_module(f"equidyn.interop.{system}").replay
    else:
        raise unknown_name("system", system, replayable(), where=path)
    try:
        computed = replay(record)
    except InputError as error:
        raise InputError("record cannot be replayed", where=path, got=error) from None
    except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
        raise InputError("record cannot be replayed", where=path, got=f"{type(error).__name__}: {error}") from None
    return [_compare(name, computed.get(name), record) for name in record.outputs]


def _compare(name: str, ours: Tensor | None, record: Record) -> Outcome:
    theirs = record.outputs[name]
    output, gradient = _TOLERANCES[record.dtype]
    tolerance = gradient if name.startswith("grad") else output
    if ours is None or ours.numel() != theirs.numel():
        return Outcome(name, float("nan"), tolerance)
    difference = (ours.detach().reshape(theirs.shape) - theirs).abs().max()
    scale = theirs.abs().max()
    return Outcome(name, float(difference / scale) if scale > 0 else float(difference), tolerance)
