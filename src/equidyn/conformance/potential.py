"""Checks for models of an energy: forces that are its gradient, sizes that add up, neighbours that leave smoothly."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch_geometric.data import Data

from equidyn.core.errors import InputError

from .actions import apply, copied, spread
from .probe import Model, Outputs, Probe, call, detached, evaluating, make_probe
from .results import Check, Report, measured, skipped

_DIFFERENCE_TOLERANCE = 1e-7
"""Central differences of fourth order agree with a float64 gradient about this well."""

_SECOND_DERIVATIVES = ("forces", "stress")
"""Outputs that are derivatives already: their own slope may have a kink at the cutoff, their value no jump."""


def forces(probe: Probe) -> Check:
    """The forces are minus the gradient of the energy.

    In float64 the gradient is a central difference of the energy along random directions, which sees what autograd
    cannot (a detached term); in float32, where a difference is mostly rounding, it is autograd's.
    """
    if not {"energy", "forces"} <= probe.base.keys():
        return skipped("forces", "the model does not give both energy and forces")
    if "pos" not in probe.sample:
        return skipped("forces", "the sample has no positions")
    if probe.base["energy"].dtype != torch.float64:
        return _forces_by_autograd(probe)
    generator, step = probe.generator, 1e-4 * min(1.0, spread(probe.sample.pos) or 1.0)
    worst = 0.0
    for _ in range(3):
        direction = torch.randn(probe.sample.pos.shape, generator=generator, dtype=torch.float64)
        direction = (direction / direction.norm()).to(probe.sample.pos)
        energy = [_energy_at(probe, probe.sample.pos + k * step * direction) for k in (-2, -1, 1, 2)]
        slope = (energy[0] - 8 * energy[1] + 8 * energy[2] - energy[3]) / (12 * step)
        worst = max(worst, abs(slope + float((probe.base["forces"] * direction).sum())))
    size = max(float(probe.base["forces"].norm()), float(probe.jiggled["forces"].norm()), 1e-300)
    return measured("forces", worst / size, max(probe.tolerance, _DIFFERENCE_TOLERANCE), "by central differences")


def check_extensivity(
    model: Model, sample: Data, *, distance: float = 100.0, tolerance: float | None = None, seed: int = 0
) -> Report:
    """Two copies of a graph, `distance` apart and without edges between them, have twice the energy and equal forces.

    Args:
        model: a callable that gives `energy` [1] (and perhaps `forces` [N, 3]).
        sample: one graph with `pos`; samples with a `cell` are skipped, their copies cannot be taken apart.
        distance: beyond the reach of the model, in the unit of `pos`.
        tolerance: largest relative error; by dtype if not given.
        seed: fixes all random numbers.

    Raises:
        InputError: the sample has no positions or the model gives no energy.
    """
    if "cell" in sample:
        return Report((skipped("extensivity", "the sample has a cell"),))
    with evaluating(model):
        probe = make_probe(model, sample, {}, tolerance, seed)
        if "pos" not in sample or "energy" not in probe.base:
            raise InputError("extensivity", where="check_extensivity", expected="`pos` in the sample, `energy` given")
        actual = probe.run(_two_copies(probe, distance))
    expected: Outputs = {"energy": 2 * probe.base["energy"]}
    if "forces" in probe.base:
        expected["forces"] = probe.base["forces"].repeat(2, 1)
    error, where = probe.distance(expected, actual)
    return Report((measured("extensivity", error, probe.tolerance, where),))


def check_cutoff(
    model: Model,
    build: Callable[[Tensor], Data],
    pos: Tensor,
    cutoff: float,
    *,
    tolerance: float = 1e-4,
    seed: int = 0,
) -> Report:
    """Nothing jumps as a neighbour moves through the cutoff: neither the outputs nor their first derivative.

    The last node moves along a random line through the first one. Values and slopes at the cutoff are extrapolated
    from three distances on either side of it, and their differences taken relative to how much the output changes
    between 0.7 and 1 cutoff. Of `forces` and `stress`, derivatives themselves, only the value is looked at.

    Args:
        model: any callable `model(sample) -> dict[str, Tensor]`.
        build: makes the sample, with its edges, from positions [N, D].
        pos: positions [N, D] in float64, at least two nodes; where the last one stands does not matter.
        cutoff: distance at which `build` drops an edge.
        tolerance: largest relative jump.
        seed: fixes the line.

    Returns:
        A report of two checks, `cutoff_value` and `cutoff_slope`.

    Raises:
        InputError: fewer than two nodes, not in float64 (coarser numbers hide a jump in their rounding), or a cutoff
            that is not positive.
    """
    if pos.dim() != 2 or len(pos) < 2 or pos.dtype != torch.float64:
        got = f"{pos.dtype} {list(pos.shape)}"
        raise InputError("positions", where="check_cutoff", expected="float64 [N, D] with N at least 2", got=got)
    if not cutoff > 0:
        raise InputError("cutoff", where="check_cutoff", expected="a positive distance", got=cutoff)
    generator = torch.Generator().manual_seed(seed)
    line = torch.randn(pos.shape[1], generator=generator, dtype=torch.float64)
    line = (line / line.norm()).to(pos)

    def at(distance: float) -> Data:
        moved = pos.detach().clone()
        moved[-1] = moved[0] + distance * line
        return build(moved)

    step = 1e-4 * cutoff
    inside, outside = at(cutoff - step), at(cutoff + step)
    names = ("cutoff_value", "cutoff_slope")
    if "edge_index" in inside and inside.num_edges == outside.num_edges:
        return Report(tuple(skipped(name, "`build` drops no edge at this distance") for name in names))
    with evaluating(model):

        def outputs(distance: float) -> Outputs:
            return detached(call(model, at(distance), seed))

        left = [outputs(cutoff - k * step) for k in (1, 2, 3)]
        right = [outputs(cutoff + k * step) for k in (1, 2, 3)]
        near = outputs(0.7 * cutoff)
    return Report(_jumps(left, right, near, step, cutoff, tolerance))


def _jumps(
    left: list[Outputs], right: list[Outputs], near: Outputs, step: float, cutoff: float, limit: float
) -> tuple[Check, Check]:
    """The largest jump of value and slope over all outputs, each relative to the reach of the interaction."""
    value, slope = (0.0, ""), (0.0, "")
    silent = True
    for name in left[0]:
        l1, l2, l3 = (side[name].double() for side in left)
        r1, r2, r3 = (side[name].double() for side in right)
        size = float((near[name].double() - l1).abs().max())
        silent &= size == 0.0
        size = max(size, 1e-300)
        # Quadratic extrapolation to the cutoff from 1, 2 and 3 steps away; rightwards slopes are positive.
        jump = (3 * l1 - 3 * l2 + l3) - (3 * r1 - 3 * r2 + r3)
        kink = ((2.5 * l1 - 4 * l2 + 1.5 * l3) - (-2.5 * r1 + 4 * r2 - 1.5 * r3)) / step
        value = max(value, (float(jump.abs().max()) / size, name))
        if name not in _SECOND_DERIVATIVES:
            slope = max(slope, (float(kink.abs().max()) * cutoff / size, name))
    if silent:
        reason = "no output changes with the distance, so nothing is shown"
        return measured("cutoff_value", 1.0, limit, reason), measured("cutoff_slope", 1.0, limit, reason)
    return measured("cutoff_value", value[0], limit, value[1]), measured("cutoff_slope", slope[0], limit, slope[1])


def _energy_at(probe: Probe, pos: Tensor) -> float:
    sample = copied(probe.sample)
    sample.pos = pos
    return float(probe.run(sample)["energy"].sum())


def _forces_by_autograd(probe: Probe) -> Check:
    sample = copied(probe.sample)
    sample.pos.requires_grad_()
    energy = call(probe.model, sample, probe.seed)["energy"]
    if not energy.requires_grad:
        return skipped("forces", "below float64 autograd is needed, and the energy carries no gradient")
    (gradient,) = torch.autograd.grad(energy.sum(), sample.pos, allow_unused=True)
    if gradient is None:
        return skipped("forces", "below float64 autograd is needed, and the energy carries no gradient")
    error, _ = probe.distance({"forces": -gradient}, {"forces": probe.base["forces"]})
    return measured("forces", error, probe.tolerance, "by autograd")


def _two_copies(probe: Probe, distance: float) -> Data:
    """One graph of twice the size; the second copy is moved along the first axis."""

    def act(name: str, value: Tensor) -> Tensor:
        rows = probe.rows(name, value)
        if rows is None:
            return value
        other = value.clone()
        if name == "edge_index":
            other += probe.nodes
        if probe.kind(name) == "position":
            other[..., 0] += distance
        return torch.cat([value, other], dim=rows.axis)

    double = apply(act, probe.sample)
    if "num_nodes" in probe.sample:
        double.num_nodes = 2 * probe.nodes
    return double
