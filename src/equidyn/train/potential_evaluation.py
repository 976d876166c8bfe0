"""Errors of a potential on its test sets, by config type, and the values behind the parity plots."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch_geometric.data import Data

from equidyn.core.files import write_arrays
from equidyn.data.structure_dataset import StructureDataset
from equidyn.data.structures import Structures
from equidyn.models import SYSTEMS
from equidyn.ops.derivatives import WithForces
from equidyn.tasks.potential import PotentialTask
from equidyn.train.checkpoint import Trained
from equidyn.train.symmetry import symmetry_errors

_BATCH = 25
_SHOWN = 3000  # values per parity plot


def evaluate_potential(trained: Trained, task: PotentialTask, source: Structures) -> dict[str, Any]:
    """What `evaluation.json` says of the test sets; values for parity plots go to `predictions.npz`.

    Raises:
        InputError: unusable data.
    """
    tables: dict[str, Any] = {}
    arrays: dict[str, Any] = {}
    samples = 0
    for name, part in source.tests().items():
        rows, values = _errors(trained.model, task, part)
        tables[name] = rows
        samples += len(part)
        for kind, pair in values.items():
            arrays[f"{name}/{kind}"] = _spread(pair)
    write_arrays(trained.folder / "predictions.npz", arrays)
    first = next(iter(source.tests().values()))
    return {
        "split": ", ".join(tables),
        "samples": samples,
        **{name: value for name, value in trained.info.items() if name.startswith("val_")},
        "errors": tables,
        "symmetry": _symmetry(trained, task, first),
    }


def _errors(model: nn.Module, task: PotentialTask, part: StructureDataset) -> tuple[dict, dict[str, np.ndarray]]:
    """Errors over all structures and by config type; pairs of true and predicted values by kind [values, 2]."""
    per_structure: list[dict[str, Tensor]] = []
    configs: list[Tensor] = []
    pairs: dict[str, list[Tensor]] = {"energy": [], "forces": [], "stress": []}
    dtype = next(model.parameters()).dtype
    for begin in range(0, len(part), _BATCH):
        batch = part.__getitems__(range(begin, min(begin + _BATCH, len(part))))
        sample = task.cast(batch, dtype)
        out = WithForces(model, stress=task.stress > 0, create_graph=False)(sample)
        per_structure.append(task.per_structure(out, sample))
        configs.append(sample.config)
        for kind, values in _pairs(out, sample).items():
            pairs[kind].append(values)
    config = torch.cat(configs)
    sums = {name: torch.cat([one[name] for one in per_structure]) for name in per_structure[0]}
    rows = {"all": _row(task, sums)}
    if len(part.config_types) > 1:
        for number, name in enumerate(part.config_types):
            chosen = config == number
            if chosen.any():
                rows[name or "(none)"] = _row(task, {key: value[chosen] for key, value in sums.items()})
    found = {kind: torch.cat(values).numpy() for kind, values in pairs.items() if sum(map(len, values))}
    return rows, found


def _row(task: PotentialTask, sums: Mapping[str, Tensor]) -> dict[str, Any]:
    """Errors of some structures; `e_spread` is what is left of the energies' RMSE without their mean error."""
    metrics = task.metrics({name: value.sum() for name, value in sums.items()})
    known = sums["e"] > 0
    spread = float(sums["e_sum"][known].std(correction=0)) * 1000 if known.any() else float("nan")
    row = {name: value for name, value in metrics.items() if name not in ("loss", "mae")}
    return {"structures": len(sums["e"]), **row, "e_spread": spread}


def _pairs(out: Mapping[str, Tensor], sample: Data) -> dict[str, Tensor]:
    """True and predicted energies per atom, force and stress components, where there are labels."""
    atoms = torch.bincount(sample.batch, minlength=len(sample.energy)).double()
    found = {"energy": torch.stack([sample.energy / atoms, out["energy"] / atoms], 1)[sample.energy_weight > 0]}
    masks = {"forces": (sample.forces_weight > 0)[sample.batch], "stress": sample.stress_weight > 0}
    for kind, mask in masks.items():
        if kind in out:
            pair = torch.stack([sample[kind].flatten(1), out[kind].double().flatten(1)], -1)
            found[kind] = pair[mask].flatten(0, 1)
    return found


def _spread(values: np.ndarray) -> np.ndarray:
    if len(values) <= _SHOWN:
        return values
    return values[np.linspace(0, len(values) - 1, _SHOWN).round().astype(int)]


def _symmetry(trained: Trained, task: PotentialTask, part: StructureDataset) -> dict[str, float]:
    """Relative errors under the symmetries of the group, measured on one test structure in float32."""
    batch = task.cast(part[0], torch.float32)
    names = ("pos", "z", "edge_index", "edge_shift")
    periodic = ("cell", "pbc") if bool(batch.pbc.any()) else ()
    sample = Data(**{name: batch[name] for name in (*names, *periodic)})
    model = WithForces(trained.model.float(), create_graph=False)
    return symmetry_errors(model, sample, SYSTEMS[trained.config["system"]].symmetry)
