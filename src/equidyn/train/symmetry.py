"""The symmetries of a trained model, measured."""

from __future__ import annotations

from torch import nn
from torch_geometric.data import Data

from equidyn import conformance

_CHECKS = ("rotation", "reflection", "translation", "node_permutation", "edge_permutation", "batching")


def symmetry_errors(model: nn.Module, sample: Data, group: str) -> dict[str, float]:
    """Relative errors under those symmetries of a sample that a group demands, by name."""
    report = conformance.check(model, sample, group=group)
    return {name: report[name].error for name in _CHECKS if report[name].required and report[name].passed is not None}
