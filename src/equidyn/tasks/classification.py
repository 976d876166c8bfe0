"""One class per graph: shapes, kinds of molecules.

The model gives a score per class, `prediction [B, C]`, whose softmax are the probabilities; `y` is the number of the
class.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch_geometric.data import Data

from equidyn.core.errors import InputError
from equidyn.data.graphs import GraphDataset
from equidyn.tasks.property import cast_all_but_target, prediction_of


@dataclass
class ClassificationTask:
    """Losses and errors of a predicted class.

    Attributes:
        smoothing: share of the target spread evenly over all classes, against overconfidence.
        monitor: which validation error chooses the epoch that is kept: "loss", the cross-entropy, or "error", the share
            of wrong classes.
        classes: their names, by number; taken from the data if not given.
    """

    smoothing: float = 0.0
    monitor: Literal["loss", "error"] = "loss"
    classes: tuple[str, ...] = ()

    METRICS: ClassVar = ("loss", "error", "accuracy")
    NEEDS: ClassVar = "y"
    FITTED: ClassVar = ("classes",)
    differentiates: ClassVar = False

    def __post_init__(self) -> None:
        if not 0 <= self.smoothing < 1:
            raise InputError("smoothing", where="task.smoothing", expected="0 or more, less than 1", got=self.smoothing)

    def fitted(self, part: GraphDataset) -> dict[str, Any]:
        """The options `FITTED`, from the training samples.

        Raises:
            InputError: data without classes.
        """
        if not part.classes:
            raise InputError("the task does not fit the data", expected="task: {name: property}")
        return {"classes": list(part.classes)}

    def cast(self, sample: Data, dtype: torch.dtype) -> Data:
        """The sample in the dtype of a model."""
        return cast_all_but_target(sample, dtype)

    def predict(self, model: Callable[[Data], dict[str, Tensor]], sample: Data, *, training: bool) -> dict[str, Tensor]:
        """The model's outputs."""
        return model(sample)

    def loss(self, out: Mapping[str, Tensor], sample: Data) -> dict[str, Tensor]:
        """The loss; it is minimised."""
        scores = prediction_of(out, sample, len(self.classes)).float()
        return {"cross_entropy": cross_entropy(scores, sample.y, label_smoothing=self.smoothing)}

    def probabilities(self, out: Mapping[str, Tensor], sample: Data) -> Tensor:
        """Of each class [B, C]."""
        return prediction_of(out, sample, len(self.classes)).double().softmax(1)

    def measure(self, out: Mapping[str, Tensor], sample: Data) -> dict[str, Tensor]:
        """Sums over a batch, from which `metrics` makes errors once the sums of all batches are added up."""
        scores = prediction_of(out, sample, len(self.classes)).double()
        graphs = torch.tensor(float(len(scores)), dtype=torch.float64, device=scores.device)
        right = (scores.argmax(1) == sample.y).double().sum()
        return {"loss": cross_entropy(scores, sample.y, reduction="sum"), "right": right, "graphs": graphs}

    def metrics(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        """Errors by the names of `METRICS`: cross-entropy (natural logarithm), shares of wrong and right classes."""
        loss, accuracy = (float(sums[name] / sums["graphs"]) for name in ("loss", "right"))
        return {"loss": loss, "error": 1 - accuracy, "accuracy": accuracy}
