"""A potential as one file that runs without this library: a compiled program of AOTInductor.

    equidyn export RUN --out potential.pt2

    program = torch._inductor.aoti_load_package("potential.pt2")
    energy, energies, forces, virial = program(pos, z, edge_index, edge_shift, batch, cell)

Any numbers of atoms and edges (two at least) and structures; the derivatives are part of the program. The same file
loads from C++ (`torch::inductor::AOTIModelPackageLoader`). It is made for one kind of device, and for the version of
PyTorch it was made with.

    pos         [N, 3] float64   Å
    z           [N] int64        atomic numbers; those that the model does not know are not noticed
    edge_index  [2, E] int64     senders j and receivers i of all pairs within the cutoff, both directions
    edge_shift  [E, 3] float64   Å, r_ij = pos[j] + edge_shift - pos[i]
    batch       [N] int64        structure of each atom
    cell        [G, 3, 3] float64; only their number G is read

Energies in eV, forces in eV/Å, virial -dE/d(strain) in eV; stress is -virial / volume. All float64.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch_geometric.data import Data

from equidyn.core.errors import InputError
from equidyn.deploy.potential import Potential, Structure, join
from equidyn.ops.tracing import for_export

INPUTS = ("pos", "z", "edge_index", "edge_shift", "batch", "cell")
OUTPUTS = ("energy", "energies", "forces", "virial")
Arrays = tuple[Tensor, ...]


class Program(nn.Module):
    """What is exported: energies and their derivatives, as plain tensors.

    Raises:
        InputError: a model that reads more than atoms and edges.
    """

    def __init__(self, potential: Potential) -> None:
        super().__init__()
        self.derivatives, self.head = potential.derivatives, potential.head
        fields = getattr(getattr(potential.derivatives.model, "options", None), "graph_fields", {})
        if fields:
            raise InputError("graph fields in an exported program", expected="a model without", got=list(fields))

    def forward(
        self, pos: Tensor, z: Tensor, edge_index: Tensor, edge_shift: Tensor, batch: Tensor, cell: Tensor
    ) -> Arrays:
        """Energy [G], energies [N], forces [N, 3], virial [G, 3, 3]."""
        head = torch.full_like(cell[:, 0, 0], self.head, dtype=torch.long)
        sample = Data(pos=pos, z=z, edge_index=edge_index, edge_shift=edge_shift, batch=batch, cell=cell, head=head)
        with for_export():
            out = self.derivatives(sample)
        return out["energy"], out["atom_energy"], out["forces"], out["virial"]


def example(potential: Potential, seed: int = 0) -> Arrays:
    """Four crystals.

    Sizes that are equal in the example, or 0 or 1, would be taken for equal, or fixed, ones: four structures, as 2
    and 3 are sizes of other axes.
    """
    generator = torch.Generator().manual_seed(seed)
    made = []
    for atoms in (29, 37, 5, 7):
        cell = (2.2 * atoms ** (1 / 3) + 1.0) * torch.eye(3, dtype=torch.float64)
        cell = cell + 0.3 * torch.randn(3, 3, generator=generator, dtype=torch.float64)
        pos = torch.rand(atoms, 3, generator=generator, dtype=torch.float64) @ cell
        pick = torch.randint(len(potential.elements), (atoms,), generator=generator)
        numbers = torch.tensor(potential.elements)[pick].tolist()
        made.append(potential.structure(numbers, pos, potential.edges(pos, cell, True), "example"))
    one = join(made)
    cell = torch.eye(3, dtype=torch.float64, device=potential.device).repeat(len(made), 1, 1)
    return one.pos, one.z, one.edge_index, one.edge_shift, one.batch, cell


def trace(potential: Potential) -> torch.export.ExportedProgram:
    """The program, with numbers of atoms, edges and structures left open.

    `torch.export` does not see through a gradient taken inside a model: the computation and its derivative are first
    traced to one list of operations, which then is exported. Numbers of atoms per element are read from the data at
    run time: they decide how rows are split between the matrices of the elements, and are checked there.
    """
    inputs, program = example(potential), Program(potential)
    program(*inputs)  # constants of the model now exist in its dtype, and are not made while tracing
    made = make_fx(program, tracing_mode="symbolic", _allow_non_fake_inputs=True)(*inputs)
    atoms, edges, graphs = (torch.export.Dim(name, min=least) for name, least in (("N", 2), ("E", 2), ("G", 1)))
    open_sizes = ({0: atoms}, {0: atoms}, {1: edges}, {0: edges}, {0: atoms}, {0: graphs})
    # That the atoms of all elements are all atoms is not known while tracing: it is left to a check at run time.
    return torch.export.export(
        made, inputs, dynamic_shapes=open_sizes, prefer_deferred_runtime_asserts_over_guards=True
    )


def export(potential: Potential, path: str | Path) -> float:
    """Write the compiled program and compare it with the model.

    Args:
        potential: what to export.
        path: file to write, ending in .pt2.

    Returns:
        Largest relative difference of energies, forces and virial between file and model, for structures of other
        sizes than it was traced with.

    Raises:
        InputError: a model that reads more than atoms and edges, another ending, or a file that differs from the model.
    """
    path = Path(path)
    if path.suffix != ".pt2":
        raise InputError("file to export to", where=path, expected="a name that ends in .pt2")
    about = {"elements": list(potential.elements), "cutoff": potential.cutoff, "inputs": INPUTS, "outputs": OUTPUTS}
    settings = {"aot_inductor.metadata": {"equidyn": json.dumps(about)}}
    torch._inductor.aoti_compile_and_package(trace(potential), package_path=str(path), inductor_configs=settings)
    error = compare(potential, torch._inductor.aoti_load_package(str(path)))
    limit = 1e-10 if all(p.dtype == torch.float64 for p in potential.parameters()) else 1e-4
    if not error < limit:
        raise InputError("exported program differs from the model", where=path, expected=f"{limit:.0e}", got=error)
    return error


def compare(potential: Potential, program: Callable[..., Arrays], seed: int = 1) -> float:
    """Largest relative difference between a program and the model: two structures at once, a small one alone."""
    pos, z, edge_index, edge_shift, batch, cell = example(potential, seed)
    z = torch.where(batch == 2, z[batch == 2][0], z)  # all of one element
    worst = 0.0
    for chosen in (batch < 2, batch == 2):
        edges, number = chosen[edge_index[1]], torch.cumsum(chosen, 0) - 1
        graph = batch[chosen] - batch[chosen][0]
        one = Structure(z[chosen], pos[chosen], number[edge_index[:, edges]], edge_shift[edges], graph)
        right = potential(one)
        found = program(one.pos, one.z, one.edge_index, one.edge_shift, one.batch, cell[: int(graph[-1]) + 1])
        for name, value in zip(OUTPUTS, found, strict=True):
            worst = max(worst, float((value - right[name]).abs().max() / right[name].abs().max()))
    return worst
