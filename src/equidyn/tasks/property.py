"""One number per graph: properties of molecules and crystals.

The model gives `prediction [B]`, which stands for (y - Σ atoms - mean) / scale: what the training samples told of the
property `y`, once, stays with the run as `fit`. Errors are given in the unit of the property.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from ase.data import atomic_numbers, chemical_symbols
from torch import Tensor
from torch.nn.functional import huber_loss
from torch_geometric.data import Data

from equidyn.core.errors import InputError
from equidyn.data.graphs import GraphDataset
from equidyn.data.references import per_element


@dataclass(frozen=True)
class Fit:
    """What the training samples told.

    Attributes:
        mean: of the property, in its unit, beyond what the atoms give.
        scale: of the property; what the model gives is multiplied by it.
        atoms: what each atom gives, by chemical symbol; empty for nothing.
        unit: of the property.
    """

    mean: float
    scale: float
    atoms: dict[str, float] = field(default_factory=dict)
    unit: str = ""


@dataclass
class PropertyTask:
    """Losses and errors of a predicted property.

    Attributes:
        penalty: "mae", the absolute error; "mse", the squared one; "huber", squared up to `delta`, linear beyond; of
            the property in units of its scale.
        delta: of "huber".
        scale: unit of the property inside: its standard deviation over the training samples ("std"), its mean absolute
            deviation ("mad"), or the property's own ("none", with mean 0).
        reference: "atoms" first takes from the property what each atom gives on its own, by least squares over the
            training samples; for energies, which grow with the molecule.
        monitor: which validation error chooses the epoch that is kept and lowers the learning rate.
        fit: mean, scale and reference; computed from the training samples if not given.
    """

    penalty: Literal["mae", "mse", "huber"] = "mae"
    delta: float = 1.0
    scale: Literal["std", "mad", "none"] = "std"
    reference: Literal["none", "atoms"] = "none"
    monitor: Literal["mae", "rmse", "loss"] = "mae"
    fit: Fit | None = None

    METRICS: ClassVar = ("loss", "mae", "rmse")
    NEEDS: ClassVar = "y"
    FITTED: ClassVar = ("fit",)
    differentiates: ClassVar = False

    def __post_init__(self) -> None:
        if not 0 < self.delta < float("inf"):
            raise InputError("delta", where="task.delta", expected="above 0", got=self.delta)
        if self.fit is not None and not 0 < self.fit.scale < float("inf"):
            raise InputError("scale", where="task.fit", expected="above 0", got=self.fit.scale)

    def fitted(self, part: GraphDataset) -> dict[str, Any]:
        """The options `FITTED`, from the training samples.

        Raises:
            InputError: a property that is the same everywhere, or atoms asked for where there are none.
        """
        if part.classes:
            raise InputError("the task does not fit the data", expected="task: {name: classification}")
        values, atoms = part.targets().double(), {}
        if self.reference == "atoms":
            numbers = part.atoms()
            if not len(numbers):
                raise InputError("reference", where="task.reference", expected="none, as nodes are no atoms")
            found = per_element(numbers, values.numpy())
            own = [sum(found[int(z)] for z in each) for each in numbers]
            values = values - torch.tensor(own, dtype=torch.float64)
            atoms = {chemical_symbols[z]: value for z, value in found.items()}
        mean = 0.0 if self.scale == "none" else float(values.mean())
        spread = values - values.mean()
        sizes = {"std": spread.square().mean().sqrt(), "mad": spread.abs().mean()}
        size = float(sizes[self.scale]) if self.scale != "none" else 1.0
        if not size > 1e-12 * max(1.0, float(values.abs().max())):
            got = f"{float(values[0]):g} everywhere"
            raise InputError("nothing to learn", where=f"property {part.name}", expected="different values", got=got)
        return {"fit": {"mean": mean, "scale": size, "atoms": atoms, "unit": part.unit}}

    def cast(self, sample: Data, dtype: torch.dtype) -> Data:
        """The sample with all but the property in the dtype of a model."""
        return cast_all_but_target(sample, dtype)

    def predict(self, model: Callable[[Data], dict[str, Tensor]], sample: Data, *, training: bool) -> dict[str, Tensor]:
        """The model's outputs."""
        return model(sample)

    def loss(self, out: Mapping[str, Tensor], sample: Data) -> dict[str, Tensor]:
        """The loss; it is minimised."""
        fit = self._fit()
        target = (sample.y - self._atoms(sample) - fit.mean) / fit.scale
        error = prediction_of(out, sample).double() - target
        if self.penalty == "huber":
            return {"huber": huber_loss(error, torch.zeros_like(error), delta=self.delta)}
        return {self.penalty: (error.square() if self.penalty == "mse" else error.abs()).mean()}

    def values(self, out: Mapping[str, Tensor], sample: Data) -> Tensor:
        """The predicted property in its unit [B]."""
        fit = self._fit()
        return prediction_of(out, sample).double() * fit.scale + fit.mean + self._atoms(sample)

    def baseline(self, sample: Data) -> Tensor:
        """What is predicted without a model: the mean, and what the atoms give [B]."""
        return self._fit().mean + self._atoms(sample) + torch.zeros_like(sample.y)

    def measure(self, out: Mapping[str, Tensor], sample: Data) -> dict[str, Tensor]:
        """Sums over a batch, from which `metrics` makes errors once the sums of all batches are added up."""
        error = self.values(out, sample) - sample.y
        graphs = torch.tensor(float(len(error)), dtype=torch.float64, device=error.device)
        loss = graphs * torch.stack(list(self.loss(out, sample).values())).sum()
        return {"loss": loss, "abs": error.abs().sum(), "square": error.square().sum(), "graphs": graphs}

    def metrics(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        """Errors by the names of `METRICS`, in the unit of the property."""
        loss, mae, square = (float(sums[name] / sums["graphs"]) for name in ("loss", "abs", "square"))
        return {"loss": loss, "mae": mae, "rmse": square**0.5}

    def _fit(self) -> Fit:
        if self.fit is None:
            raise InputError("no fit", where="task", expected="fit: {mean, scale}, or `fitted` samples")
        return self.fit

    def _atoms(self, sample: Data) -> Tensor:
        """What the atoms give, by graph [B]."""
        atoms = self._fit().atoms
        if not atoms:
            return torch.zeros_like(sample.y)
        table = sample.y.new_full((len(chemical_symbols),), torch.nan)
        for symbol, value in atoms.items():
            table[atomic_numbers[symbol]] = value
        own = table[sample.z]
        if bool(own.isnan().any()):
            got, expected = chemical_symbols[int(sample.z[own.isnan()][0])], ", ".join(atoms)
            raise InputError("an element that the training samples lack", where="field z", expected=expected, got=got)
        return torch.zeros_like(sample.y).index_add(0, sample.batch, own)


def cast_all_but_target(sample: Data, dtype: torch.dtype) -> Data:
    """The sample with all floating fields but `y` in a dtype."""
    cast = copy(sample)
    for name, value in sample.to_dict().items():
        if name != "y" and isinstance(value, Tensor) and value.is_floating_point():
            cast[name] = value.to(dtype)
    return cast


def prediction_of(out: Mapping[str, Tensor], sample: Data, width: int = 0) -> Tensor:
    """`prediction [B]` of a model's outputs, or [B, width].

    Raises:
        InputError: the model gives none, or one of another shape.
    """
    if "prediction" not in out:
        expected, got = "prediction (readout: graph)", ", ".join(out)
        raise InputError("the model gives no number per graph", where="outputs", expected=expected, got=got)
    prediction, shape = out["prediction"], [len(sample.y), *([width] if width else [])]
    if list(prediction.shape) != shape:
        where = "model.out_dim"
        raise InputError("shape of the prediction", where=where, expected=shape, got=list(prediction.shape))
    return prediction
