"""Interatomic potentials: energy, forces and stress of structures, forces and stress as derivatives of the energy.

A label counts with its weight of the sample (`energy_weight [G]` and so on), zero where the data lack it. Errors are
given in meV (energies of whole structures), meV/Å and meV/Å³.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import huber_loss
from torch_geometric.data import Data

from equidyn.core.errors import InputError
from equidyn.ops.derivatives import WithForces

_GEOMETRY = ("pos", "edge_shift", "cell")
# The universal loss: forces beyond these (eV/Å) count linearly from a smaller error on.
_STEEP, _FACTORS = (100.0, 200.0, 300.0), (1.0, 0.7, 0.4, 0.1)


@dataclass
class PotentialTask:
    """Losses and errors of a potential.

    Attributes:
        energy: weight of the error of the energy per atom (eV).
        forces: weight of the error of the force components (eV/Å).
        stress: weight of the error of the stress components (eV/Å³); 0 does not compute stress.
        penalty: "mse", mean squared errors; "huber", squared up to `delta`, linear beyond; "universal", the same with a
            smaller `delta` for forces beyond 100 eV/Å; "norm", the length of the error of each force and the absolute
            error of energies and stress.
        delta: of "huber" and "universal", in eV, eV/Å, eV/Å³.
        monitor: which validation error chooses the epoch that is kept and lowers the learning rate: "loss", or "mae",
            half the sum of the mean absolute errors of energies (per structure) and forces.
    """

    energy: float = 1.0
    forces: float = 100.0
    stress: float = 0.0
    penalty: Literal["mse", "huber", "universal", "norm"] = "mse"
    delta: float = 0.01
    monitor: Literal["loss", "mae"] = "loss"

    METRICS: ClassVar = ("loss", "mae", "e_mae", "e_rmse", "f_mae", "f_rmse", "s_mae", "s_rmse")
    NEEDS: ClassVar = "energy"

    def __post_init__(self) -> None:
        for name in ("energy", "forces", "stress"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise InputError("weight", where=f"task.{name}", expected="0 or more", got=getattr(self, name))
        if self.energy == self.forces == self.stress == 0:
            raise InputError("weights", where="task", expected="energy, forces or stress above 0", got="all 0")
        if not self.delta > 0:
            raise InputError("delta", where="task.delta", expected="above 0", got=self.delta)

    @property
    def differentiates(self) -> bool:
        """Whether the loss holds derivatives of the energy."""
        return self.forces > 0 or self.stress > 0

    def cast(self, sample: Data, dtype: torch.dtype) -> Data:
        """The sample with its geometry in the dtype of a model; labels stay in float64."""
        cast = copy(sample)
        for name in _GEOMETRY:
            cast[name] = sample[name].to(dtype)
        return cast

    def predict(self, model: Callable[[Data], dict[str, Tensor]], sample: Data, *, training: bool) -> dict[str, Tensor]:
        """Energies and their derivatives; in training these can be differentiated again."""
        if training and not self.differentiates:
            return model(sample)
        return WithForces(model, stress=self.stress > 0, create_graph=training)(sample)

    def loss(self, out: Mapping[str, Tensor], sample: Data) -> dict[str, Tensor]:
        """The terms of the loss; their sum is minimised."""
        atoms = torch.bincount(sample.batch, minlength=len(sample.energy)).double()
        energy = (out["energy"] - sample.energy) / atoms
        terms = {"energy": self.energy * _mean(self._cost(energy), sample.energy_weight)}
        if self.forces:
            error = out["forces"].double() - sample.forces
            cost = self._force_cost(error, sample.forces)
            terms["forces"] = self.forces * _mean(cost, sample.forces_weight[sample.batch])
        if self.stress:
            error = (out["stress"].double() - sample.stress).flatten(1)
            terms["stress"] = self.stress * _mean(self._cost(error).mean(1), sample.stress_weight)
        return terms

    def _cost(self, error: Tensor, factor: Tensor | float = 1.0) -> Tensor:
        if self.penalty == "mse":
            return error.square()
        if self.penalty == "norm":
            return error.abs()
        if self.penalty == "huber":
            return huber_loss(error, torch.zeros_like(error), reduction="none", delta=self.delta)
        delta = self.delta * torch.as_tensor(factor, dtype=error.dtype, device=error.device)
        small = error.abs() <= delta
        return torch.where(small, 0.5 * error.square(), delta * (error.abs() - 0.5 * delta))

    def _force_cost(self, error: Tensor, label: Tensor) -> Tensor:
        """[N, 3] to [N]."""
        if self.penalty == "norm":
            return error.square().sum(-1).clamp(min=1e-16).sqrt()
        if self.penalty != "universal":
            return self._cost(error).mean(-1)
        steep = torch.bucketize(label.norm(dim=-1, keepdim=True), label.new_tensor(_STEEP))
        return self._cost(error, label.new_tensor(_FACTORS)[steep]).mean(-1)

    def measure(self, out: Mapping[str, Tensor], sample: Data) -> dict[str, Tensor]:
        """Sums over a batch, from which `metrics` makes errors once the sums of all batches are added up."""
        sums = {name: value.sum(0) for name, value in self.per_structure(out, sample).items()}
        graphs = torch.tensor(float(len(sample.energy)), dtype=torch.float64, device=sample.energy.device)
        return sums | {"loss": graphs * torch.stack(list(self.loss(out, sample).values())).sum(), "graphs": graphs}

    def per_structure(self, out: Mapping[str, Tensor], sample: Data) -> dict[str, Tensor]:
        """Sums of errors over the labels of each structure [G], and how many labels these are."""
        graphs = len(sample.energy)
        known = (sample.energy_weight > 0).double()
        energy = known * (out["energy"] - sample.energy)
        found = {"e": known, "e_sum": energy, "e_abs": energy.abs(), "e_square": energy.square()}
        errors = {"f": ("forces", sample.batch), "s": ("stress", torch.arange(graphs, device=energy.device))}
        for short, (name, graph) in errors.items():
            if name not in out:
                continue
            known = (sample[f"{name}_weight"] > 0).double()
            error = known[graph, None] * (out[name].double() - sample[name]).flatten(1)
            per_graph = lambda x, graph=graph: x.new_zeros(graphs).index_add(0, graph, x)  # noqa: E731
            found[short] = per_graph(known[graph] * error.shape[1])
            found[f"{short}_abs"] = per_graph(error.abs().sum(1))
            found[f"{short}_square"] = per_graph(error.square().sum(1))
        return found

    def metrics(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        """Errors by the names of `METRICS`, in meV, meV/Å and meV/Å³; NaN where there are no labels."""
        found: dict[str, float] = dict.fromkeys(self.METRICS, float("nan"))
        for short in ("e", "f", "s"):
            count = float(sums.get(short, 0.0))
            if count:
                found[f"{short}_mae"] = 1000 * float(sums[f"{short}_abs"]) / count
                found[f"{short}_rmse"] = 1000 * (float(sums[f"{short}_square"]) / count) ** 0.5
        if "loss" in sums:
            found["loss"] = float(sums["loss"]) / float(sums["graphs"])
        known = [found[name] for name in ("e_mae", "f_mae") if found[name] == found[name]]
        found["mae"] = sum(known) / 2
        return found


def _mean(value: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean over what has a weight; zero where nothing has."""
    return (weight * value).sum() / (weight > 0).sum().clamp(min=1)
