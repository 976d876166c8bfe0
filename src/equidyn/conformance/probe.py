"""A model under test: how it is called, and how far two of its answers lie apart."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor, nn
from torch_geometric.data import Batch, Data

from equidyn.core.errors import InputError, unknown_name
from equidyn.core.fields import Transforms

from .actions import GEOMETRIC, Kinds, Rows, apply, copied, kind_of, perturbation, rows_of, tensors

Model = Callable[[Data], Mapping[str, Tensor]]
Outputs = dict[str, Tensor]


@dataclass(frozen=True)
class Probe:
    """A model, a sample, and the answer that all others are compared with.

    Attributes:
        base: outputs for the sample, detached.
        jiggled: outputs with every position and vector of the sample perturbed.
        nodes: number of nodes N.
        edges: number of edges E, 0 where the sample has none.
        dimensions: D of the space; 0 where no field is geometric.
        tolerance: largest relative error of a symmetry.
    """

    model: Model
    sample: Data
    kinds: Kinds
    seed: int
    base: Outputs
    jiggled: Outputs
    nodes: int
    edges: int
    dimensions: int
    tolerance: float

    @property
    def generator(self) -> torch.Generator:
        """A fresh generator, so that a check draws the same numbers whichever others ran before it."""
        return torch.Generator().manual_seed(self.seed)

    def run(self, sample: Data) -> Outputs:
        """Detached outputs for a copy of the sample."""
        return detached(call(self.model, copied(sample), self.seed))

    def kind(self, name: str) -> Transforms:
        """How a field or output behaves under a motion."""
        return kind_of(name, self.kinds)

    def rows(self, name: str, value: Tensor) -> Rows | None:
        """The axis of a field or output that counts nodes or edges."""
        return rows_of(name, value, self.nodes, self.edges)

    def has(self, *kinds: Transforms) -> bool:
        """Whether a field of the sample is of one of these kinds."""
        return any(self.kind(name) in kinds for name in tensors(self.sample))

    def distance(self, expected: Outputs, actual: Outputs) -> tuple[float, str]:
        """Largest relative error over all outputs, and the output it is in.

        Differences are taken relative to the largest entry of the output, here or in the base and jiggled answers, but
        one machine epsilon always passes: an output that is zero by symmetry is not held to its own rounding.
        """
        worst, where = 0.0, ""
        for name, a in expected.items():
            b = actual.get(name)
            if b is None or a.shape != b.shape:
                return math.inf, f"{name} has shape {None if b is None else list(b.shape)}, expected {list(a.shape)}"
            error = _largest(a.double() - b.double())
            known = [largest for t in (a, self.base[name], self.jiggled[name]) if (largest := _largest(t)) < math.inf]
            relative = error / max(*known, _epsilon(a) / self.tolerance, 1e-300) if error else 0.0
            if relative > worst or not where:
                worst, where = relative, name
        return worst, where


def make_probe(model: Model, sample: Data, kinds: Kinds, tolerance: float | None, seed: int) -> Probe:
    """Check the input and take the answers that all checks share.

    Raises:
        InputError: the sample is not one graph with finite numbers, a kind or the tolerance is wrong, or the model
            does not return a dict of tensors.
    """
    for kind in kinds.values():
        if kind not in get_args(Transforms):
            raise unknown_name("kind", kind, get_args(Transforms), where="kinds")
    if tolerance is not None and not tolerance > 0:
        raise InputError("tolerance", where="conformance check", expected="a positive number", got=tolerance)
    _check_sample(sample)
    base = detached(call(model, copied(sample), seed))
    shaken = apply(perturbation(kinds, GEOMETRIC, torch.Generator().manual_seed(seed)), sample)
    return Probe(
        model=model,
        sample=sample,
        kinds=kinds,
        seed=seed,
        base=base,
        jiggled=detached(call(model, shaken, seed)),
        nodes=int(sample.num_nodes or 0),
        edges=sample.num_edges,
        dimensions=_dimensions(sample, kinds),
        tolerance=default_tolerance(base.values()) if tolerance is None else tolerance,
    )


def call(model: Model, sample: Data, seed: int) -> Mapping[str, Tensor]:
    """The model's outputs with the random generators seeded, so that two calls draw the same numbers.

    Raises:
        InputError: the outputs are not a non-empty dict of tensors.
    """
    devices = sorted({value.device.index for value in tensors(sample).values() if value.device.type == "cuda"})
    with torch.random.fork_rng(devices), torch.enable_grad():
        torch.manual_seed(seed)
        outputs = model(sample)
    if not isinstance(outputs, Mapping) or not outputs:
        raise InputError("a model returns named tensors", where="outputs", expected="a dict", got=type(outputs))
    for name, value in outputs.items():
        if not isinstance(value, Tensor):
            raise InputError("a model returns named tensors", where=name, expected="a tensor", got=type(value))
    return outputs


def detached(outputs: Mapping[str, Tensor]) -> Outputs:
    """Copies without history, which later calls cannot change."""
    return {name: value.detach().clone() for name, value in outputs.items()}


def default_tolerance(values: Iterable[Tensor]) -> float:
    """Relative tolerance of symmetries for the coarsest floating type among the outputs."""
    epsilon = max(map(_epsilon, values), default=0.0)
    if epsilon > 1e-5:
        return 3e-2
    return 1e-4 if epsilon > 1e-10 else 1e-10


@contextmanager
def evaluating(model: object) -> Iterator[None]:
    """The model in evaluation mode; every module gets its own training flag back."""
    modules = list(model.modules()) if isinstance(model, nn.Module) else []
    flags = [module.training for module in modules]
    try:
        if isinstance(model, nn.Module):
            model.eval()
        yield
    finally:
        for module, flag in zip(modules, flags, strict=True):
            module.training = flag


def _largest(value: Tensor) -> float:
    """Largest magnitude; infinite where an entry is not finite."""
    if not value.numel():
        return 0.0
    largest = float(value.double().abs().max())
    return largest if math.isfinite(largest) else math.inf


def _epsilon(value: Tensor) -> float:
    return torch.finfo(value.dtype).eps if value.is_floating_point() else 0.0


def _check_sample(sample: Data) -> None:
    if not isinstance(sample, Data) or isinstance(sample, Batch):
        raise InputError("a sample is one graph", where="sample", expected="a Data", got=type(sample).__name__)
    if "batch" in sample and sample.batch.numel() and int(sample.batch.max()) > 0:
        raise InputError("a sample is one graph", where="batch", expected="only zeros", got=int(sample.batch.max()))
    if not tensors(sample) or not sample.num_nodes:
        raise InputError("a sample without nodes", where="sample", expected="at least one node")
    if "pos" in sample and sample.pos.dim() != 2:
        raise InputError("positions", where="sample", expected="[N, D]", got=list(sample.pos.shape))
    for name, value in tensors(sample).items():
        if not bool(torch.isfinite(value).all()):
            raise InputError("numbers that are not finite", where=name)


def _dimensions(sample: Data, kinds: Kinds) -> int:
    """D, from the positions if there are any, else from another geometric field."""
    geometric = [name for name in tensors(sample) if kind_of(name, kinds) in GEOMETRIC]
    first = sorted(geometric, key=lambda name: (name != "pos", kind_of(name, kinds) != "position"))
    return int(sample[first[0]].shape[-1]) if first else 0
