"""All checks of a model in one call."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection
from dataclasses import replace

from torch_geometric.data import Data

from equidyn.core.errors import InputError, unknown_name

from . import checks, potential
from .actions import Kinds
from .probe import Model, Probe, evaluating, make_probe
from .results import Check, Report, measured

CHECKS: dict[str, Callable[[Probe], Check]] = {
    "response": checks.response,
    "rotation": checks.rotation,
    "reflection": checks.reflection,
    "translation": checks.translation,
    "node_permutation": checks.permutation_nodes,
    "edge_permutation": checks.permutation_edges,
    "batching": checks.batching,
    "mutation": checks.mutation,
    "determinism": checks.determinism,
    "gradients": checks.gradients,
    "coincident": checks.coincident,
    "forces": potential.forces,
}

_GROUPS = {"SO": {"reflection", "translation"}, "O": {"translation"}, "SE": {"reflection"}, "E": set()}
"""The checks that a group does not promise."""


def check(
    model: Model,
    sample: Data,
    *,
    group: str | None = None,
    kinds: Kinds | None = None,
    tolerance: float | None = None,
    optional: Collection[str] = (),
    seed: int = 0,
) -> Report:
    """Measure how well a model keeps its symmetries and behaves as a function of its sample.

    A module is tested in evaluation mode and gets its training flags back. A check in which the model raises counts as
    failed; a check that cannot apply to this sample is reported as skipped, with the reason.

    Args:
        model: any callable `model(sample) -> dict[str, Tensor]`, one row per node, edge or graph in each tensor.
        sample: one graph; see `random_sample`. Fields that are not in `equidyn.core.fields` count as invariant.
        group: "E(3)", "SE(3)", "O(3)" or "SO(3)", or with n for the dimension of the sample; if not given what the
            model claims as `model.symmetry`, or "E(n)". Checks of symmetries that the group does not hold are measured
            for information only.
        kinds: how outputs (and fields) without an entry in `equidyn.core.fields` transform, `{"dipole": "vector"}`;
            invariant where nothing is said.
        tolerance: largest relative error of a symmetry; if not given 1e-10 in float64, 1e-4 in float32, 3e-2 below.
        optional: names of checks to measure for information only, such as "forces" for a model with direct forces.
        seed: fixes all random numbers, also the model's own.

    Raises:
        InputError: the sample, group, kinds, tolerance or optional names cannot be used, or the outputs are not a
            dict of tensors.
    """
    for name in optional:
        if name not in CHECKS:
            raise unknown_name("check", name, CHECKS, where="optional")
    group = getattr(model, "symmetry", "E(n)") if group is None else group
    with evaluating(model):
        probe = make_probe(model, sample, kinds or {}, tolerance, seed)
        informative = _not_promised(group, probe.dimensions) | set(optional)
        found = tuple(replace(_run(name, probe), required=name not in informative) for name in CHECKS)
    return Report(found)


def assert_conforms(
    model: Model,
    sample: Data,
    *,
    group: str | None = None,
    kinds: Kinds | None = None,
    tolerance: float | None = None,
    optional: Collection[str] = (),
    seed: int = 0,
) -> Report:
    """`check` for a test: raises ConformanceError, naming the worst check, unless all pass; else returns the report."""
    report = check(model, sample, group=group, kinds=kinds, tolerance=tolerance, optional=optional, seed=seed)
    report.raise_if_failed()
    return report


def _run(name: str, probe: Probe) -> Check:
    """One check; the report stays whole whatever the model raises in it."""
    try:
        return CHECKS[name](probe)
    except Exception as error:
        line = " ".join(str(error).split())[:120]
        return measured(name, math.inf, probe.tolerance, f"raised {type(error).__name__}: {line}")


def _not_promised(group: str, dimensions: int) -> set[str]:
    match = re.fullmatch(r"(SO|O|SE|E)\((n|\d+)\)", group)
    if match is None:
        raise unknown_name("group", group, ("E(3)", "SE(3)", "O(3)", "SO(3)", "E(n)"), where="conformance check")
    letters, size = match.groups()
    if size != "n" and dimensions and int(size) != dimensions:
        raise InputError("group and sample differ", where="group", expected=f"{letters}({dimensions})", got=group)
    return set(_GROUPS[letters])
