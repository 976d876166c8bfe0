"""The checks that hold for every model: symmetries, and good manners as a function."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch_geometric.data import Batch, Data

from .actions import (
    GEOMETRIC,
    Action,
    apply,
    companion,
    copied,
    edge_permutation,
    node_permutation,
    perturbation,
    random_orthogonal,
    rigid_motion,
    spread,
    tensors,
)
from .probe import Outputs, Probe, call, detached
from .results import Check, measured, skipped


def response(probe: Probe) -> Check:
    """Outputs that do not notice the geometry would pass every symmetry check and show nothing."""
    if not probe.dimensions:
        return measured("response", 1.0, 0.0, "the sample has no positions or vectors, so nothing is shown")
    dead = [name for name in probe.base if not _differs(probe, probe.jiggled, name)]
    if dead:
        what = "outputs do not depend on the positions" + (" and vectors" if probe.has("vector") else "")
        return measured("response", len(dead) / len(probe.base), 0.0, f"{what}: {', '.join(dead)}")
    if probe.has("position"):
        moved = probe.run(apply(perturbation(probe.kinds, ("position",), probe.generator), probe.sample))
        if not any(_differs(probe, moved, name) for name in probe.base):
            return measured("response", 1.0, 0.0, "outputs do not depend on the positions")
    return measured("response", 0.0, 0.0)


def rotation(probe: Probe) -> Check:
    """A proper rotation of the input rotates the output."""
    return _turn("rotation", probe, determinant=1)


def reflection(probe: Probe) -> Check:
    """A reflection (with a rotation) of the input reflects the output."""
    return _turn("reflection", probe, determinant=-1)


def translation(probe: Probe) -> Check:
    """A shift of all positions shifts output positions and leaves all else as it is."""
    if not probe.has("position"):
        return skipped("translation", "the sample has no positions")
    positions = [value for name, value in tensors(probe.sample).items() if probe.kind(name) == "position"]
    largest = max(map(spread, positions))
    shift = 3 * (largest or 1.0) * torch.randn(probe.dimensions, generator=probe.generator, dtype=torch.float64)
    still = torch.eye(probe.dimensions, dtype=torch.float64)
    return _equivariance("translation", probe, rigid_motion(still, shift, probe.kinds))


def permutation_nodes(probe: Probe) -> Check:
    """The numbering of nodes carries no meaning."""
    if probe.nodes < 2:
        return skipped("node_permutation", "fewer than two nodes")
    return _equivariance("node_permutation", probe, node_permutation(_shuffle(probe, probe.nodes), probe.edges))


def permutation_edges(probe: Probe) -> Check:
    """The order of edges carries no meaning."""
    if probe.edges < 2:
        return skipped("edge_permutation", "fewer than two edges")
    return _equivariance("edge_permutation", probe, edge_permutation(_shuffle(probe, probe.edges), probe.nodes))


def batching(probe: Probe) -> Check:
    """A graph alone gives what it gives inside a batch, between two graphs of other sizes and numbers."""
    graphs = [
        companion(probe.sample, 0.8, probe.nodes // 2 + 1, probe.kinds),
        copied(probe.sample),
        companion(probe.sample, 1.25, probe.nodes, probe.kinds),
    ]
    for graph in graphs:
        if "batch" in graph:
            del graph["batch"]
    together = detached(call(probe.model, Batch.from_data_list(graphs), probe.seed))
    before = {"nodes": int(graphs[0].num_nodes or 0), "edges": graphs[0].num_edges}
    own = {}
    for name, alone in probe.base.items():
        rows = probe.rows(name, alone)
        start, axis = (before[rows.of], rows.axis) if rows else (1, 0)
        value = together.get(name, alone.new_empty(0))
        if value.dim() and value.dim() == alone.dim() and value.shape[axis] >= start + alone.shape[axis]:
            own[name] = value.narrow(axis, start, alone.shape[axis])
        else:
            own[name] = value
    error, where = probe.distance(probe.base, own)
    return measured("batching", error, probe.tolerance, where)


def mutation(probe: Probe) -> Check:
    """The model leaves its input as it was: the same fields, the same numbers, no gradient asked for."""
    sample = copied(probe.sample)
    call(probe.model, sample, probe.seed)
    before, after = tensors(probe.sample), tensors(sample)
    changed = [
        name
        for name in before.keys() | after.keys()
        if name not in before
        or name not in after
        or after[name].requires_grad
        or not torch.equal(before[name], after[name])
    ]
    return measured("mutation", float(len(changed)), 0.0, f"changed: {', '.join(sorted(changed))}" if changed else "")


def determinism(probe: Probe) -> Check:
    """Two calls with the same seed agree; the detail says whether another seed changes the answer."""
    error, where = probe.distance(probe.base, probe.run(probe.sample))
    other = detached(call(probe.model, copied(probe.sample), probe.seed + 1))
    noisy = any(_differs(probe, other, name) for name in probe.base) and error <= probe.tolerance
    return measured("determinism", error, probe.tolerance, "draws random numbers" if noisy else where)


def gradients(probe: Probe) -> Check:
    """Gradients with respect to positions and parameters are finite."""
    return _finite_gradients("gradients", probe, probe.sample)


def coincident(probe: Probe) -> Check:
    """Outputs and gradients stay finite with two connected nodes at the same place."""
    if "pos" not in probe.sample:
        return skipped("coincident", "the sample has no positions")
    if probe.nodes < 2:
        return skipped("coincident", "fewer than two nodes")
    i, j = _connected_pair(probe.sample)
    sample = copied(probe.sample)
    sample.pos[i] = sample.pos[j]
    return _finite_gradients("coincident", probe, sample)


def _turn(name: str, probe: Probe, determinant: int) -> Check:
    if not probe.dimensions:
        return skipped(name, "the sample has no positions or vectors")
    if probe.dimensions == 1 and determinant == 1:
        return skipped(name, "no rotations in one dimension")
    matrix = random_orthogonal(probe.dimensions, determinant, probe.generator)
    still = torch.zeros(probe.dimensions, dtype=torch.float64)
    return _equivariance(name, probe, rigid_motion(matrix, still, probe.kinds))


def _equivariance(name: str, probe: Probe, act: Action) -> Check:
    """model(act(sample)) against act(model(sample))."""
    expected = {output: act(output, value) for output, value in probe.base.items()}
    error, where = probe.distance(expected, probe.run(apply(act, probe.sample)))
    return measured(name, error, probe.tolerance, where)


def _finite_gradients(name: str, probe: Probe, sample: Data) -> Check:
    sample = copied(sample)
    wanted: dict[str, Tensor] = {}
    for field, value in tensors(sample).items():
        if probe.kind(field) in GEOMETRIC and value.is_floating_point():
            wanted[field] = value.requires_grad_()
            # Not the leaf itself: a model that writes into its input is the business of `mutation`.
            sample[field] = value.clone()
    if isinstance(probe.model, nn.Module):
        wanted |= {key: value for key, value in probe.model.named_parameters() if value.requires_grad}
    outputs = call(probe.model, sample, probe.seed)
    faults = [key for key, value in outputs.items() if not bool(torch.isfinite(value).all())]
    live = [value for value in outputs.values() if value.requires_grad]
    if not faults and not (live and wanted):
        return skipped(name, "the outputs carry no gradient")
    if live and wanted:
        weights = [torch.randn(v.shape, generator=probe.generator, dtype=torch.float64).to(v) for v in live]
        found = torch.autograd.grad(live, list(wanted.values()), weights, allow_unused=True)
        faults += [
            f"gradient of {key}"
            for key, gradient in zip(wanted, found, strict=True)
            if gradient is not None and not bool(torch.isfinite(gradient).all())
        ]
    return measured(name, float(len(faults)), 0.0, f"not finite: {', '.join(faults[:3])}" if faults else "")


def _differs(probe: Probe, other: Outputs, name: str) -> bool:
    """Whether an output differs from the base answer by more than rounding."""
    a, b = probe.base[name].double(), other[name].double()
    if a.shape != b.shape or not a.numel():
        return a.shape != b.shape
    dtype = probe.base[name].dtype
    rounding = 100 * torch.finfo(dtype).eps if dtype.is_floating_point else 0.0
    return not float((a - b).abs().max()) <= rounding * float(a.abs().max())


def _shuffle(probe: Probe, count: int) -> Tensor:
    """A random order that is not the present one."""
    order = torch.randperm(count, generator=probe.generator)
    return order.roll(1) if bool((order == torch.arange(count)).all()) else order


def _connected_pair(sample: Data) -> tuple[int, int]:
    """An edge of two different nodes in the same image, else the first two nodes."""
    if "edge_index" in sample:
        source, target = sample.edge_index
        near = source != target
        if "edge_shift" in sample:
            near &= (sample.edge_shift == 0).all(dim=-1)
        if bool(near.any()):
            first = int(near.nonzero()[0, 0])
            return int(source[first]), int(target[first])
    return 0, 1
