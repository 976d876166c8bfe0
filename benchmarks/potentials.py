"""MACE and NequIP against the packages people use, `mace-torch` and `nequip`: same weights, same structures, one run.

python -m benchmarks.potentials --peer mace|nequip [--size 1|2|3] [--quick] [--repeats N] [--threads N] [--json FILE]
python -m benchmarks.potentials --growth [--json FILE]

The peers need different versions of e3nn, so that each has an environment of its own: `equidyn[bench-nequip]`, or
equidyn and then `mace-torch==0.3.16`, which takes e3nn back to 0.4.4. Every way is checked to give the same energies
and forces before it is timed.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.data import Batch, Data

from benchmarks.harness import peak_memory, show, side_by_side, training_step, write
from equidyn.interop import mace as interop_mace
from equidyn.interop import nequip as interop_nequip
from equidyn.interop.golden import Record
from equidyn.models.mace import MACE
from equidyn.models.nequip import NequIP
from equidyn.ops.derivatives import WithForces
from equidyn.ops.neighbors import Neighbors

Forces = Callable[[Data], tuple[Tensor, Tensor]]
"""Energies [G] and forces [N, 3] of a sample, that can be differentiated where the model is in training mode."""

ELEMENTS = {"H": 1, "C": 6, "O": 8}
CUTOFF, NEIGHBORS = 5.0, 20.0
SIZES = {"32 molecules of 15 atoms": (1, 3, 5, 32), "256 atoms, periodic": (4, 8, 8, 0), "2048 atoms": (8, 16, 16, 0)}

# The models of issue-sized training runs on AcAc: small, and what either package recommends to begin with.
MACE_CONFIG = {
    "r_max": CUTOFF,
    "hidden_irreps": "32x0e + 32x1o",
    "atomic_numbers": list(ELEMENTS.values()),
    "atomic_energies": [-13.6, -1029.0, -2042.0],
    "avg_num_neighbors": NEIGHBORS,
    "radial_MLP": [64, 64, 64],
    "atomic_inter_scale": 1.0,
    "atomic_inter_shift": 0.0,
}
NEQUIP_CONFIG = {
    "r_max": CUTOFF,
    "type_names": list(ELEMENTS),
    "num_layers": 4,
    "l_max": 2,
    "parity": True,
    "num_features": 16,
    "radial_mlp_depth": 2,
    "radial_mlp_width": 64,
    "avg_num_neighbors": NEIGHBORS,
    "per_type_energy_shifts": dict(zip(ELEMENTS, [-13.6, -1029.0, -2042.0], strict=True)),
    "per_type_energy_scales": dict.fromkeys(ELEMENTS, 1.0),
}


def structures(nx: int, ny: int, nz: int, copies: int) -> Data:
    """Atoms near the points of a grid, with their neighbours: a periodic box, or `copies` molecules."""
    spacing = 1.5 if copies else 2.2
    counts = torch.tensor([nx, ny, nz])
    grid = spacing * torch.cartesian_prod(*(torch.arange(n) for n in counts.tolist())).float()
    samples = []
    for number in range(max(copies, 1)):
        generator = torch.Generator().manual_seed(number)
        sample = Data(pos=grid + 0.2 * torch.randn(grid.shape, generator=generator, dtype=torch.float32))
        sample.z = torch.tensor(list(ELEMENTS.values()))[torch.randint(3, (len(grid),), generator=generator)]
        sample.cell = torch.diag(spacing * counts if not copies else torch.full((3,), 50.0))[None]
        sample.pbc = torch.full((1, 3), not copies)
        samples.append(Neighbors(CUTOFF)(sample))
    return Batch.from_data_list(samples)


def ours(model: MACE | NequIP) -> Forces:
    """A model of ours."""
    return lambda sample: _energy_and_forces(WithForces(model, create_graph=model.training)(sample))


def _energy_and_forces(out: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    return out["energy"], out["forces"]


# Peers ---------------------------------------------------------------------------------------------------------------


def mace_ways(compiled: bool, config: dict[str, Any] = MACE_CONFIG) -> dict[str, tuple[nn.Module, Forces]]:
    """mace-torch, and our model with its weights; its compiled form (0.3.16) fails under torch 2.13 and is left out."""
    try:
        from e3nn import o3
        from mace import modules
    except ImportError:
        raise SystemExit("mace-torch is missing: pip install mace-torch==0.3.16 in an environment of its own") from None
    block = modules.interaction_classes["RealAgnosticResidualInteractionBlock"]
    given: dict[str, Any] = {
        "num_bessel": 8,
        "num_polynomial_cutoff": 5,
        "max_ell": 3,
        "interaction_cls": block,
        "interaction_cls_first": block,
        "num_interactions": 2,
        "num_elements": len(ELEMENTS),
        "hidden_irreps": o3.Irreps(config["hidden_irreps"]),
        "MLP_irreps": o3.Irreps("16x0e"),
        "atomic_energies": torch.tensor(config["atomic_energies"]),
        "correlation": 3,
        "gate": torch.nn.functional.silu,
    }
    given = config | given
    torch.manual_seed(0)
    peer = modules.ScaleShiftMACE(**given)
    state = peer.state_dict()

    def forces_of(model: Callable[..., dict[str, Tensor]], training: nn.Module) -> Forces:
        def forces(sample: Data) -> tuple[Tensor, Tensor]:
            return _energy_and_forces(model(_for_mace(sample), training=training.training, compute_force=True))

        return forces

    ways = {"mace-torch": (peer, forces_of(peer, peer))}
    model = interop_mace.build(interop_mace.ARGUMENTS | config, "benchmark")
    interop_mace.load(model, state)
    return ways | {"equidyn": (model, ours(model))}


def _for_mace(sample: Data) -> dict[str, Tensor]:
    species = (sample.z[:, None] == torch.tensor(list(ELEMENTS.values()))).to(sample.pos)
    shift = -sample.edge_shift
    return {
        "positions": sample.pos.clone(),
        "node_attrs": species,
        "edge_index": sample.edge_index,
        "shifts": shift,
        "unit_shifts": shift,
        "cell": sample.cell.flatten(0, 1),
        "batch": sample.batch,
        "ptr": sample.ptr,
    }


def nequip_ways(compiled: bool, config: dict[str, Any] = NEQUIP_CONFIG) -> dict[str, tuple[nn.Module, Forces]]:
    """nequip, and our model with its weights."""
    try:
        from nequip.model import NequIPGNNModel
        from nequip.model.utils import override_model_compile_mode
        from nequip.utils.global_state import set_global_state
    except ImportError:
        raise SystemExit(
            "nequip is missing: pip install 'equidyn[bench-nequip]' in an environment of its own"
        ) from None
    set_global_state()

    def make(mode: str) -> nn.Module:
        with override_model_compile_mode(mode):
            return NequIPGNNModel(**config, seed=0, model_dtype="float32")

    def forces_of(model: nn.Module) -> Forces:
        def forces(sample: Data) -> tuple[Tensor, Tensor]:
            out = model(_for_nequip(sample))
            return out["total_energy"][:, 0], out["forces"]

        return forces

    peer = make("eager")
    ways = {"nequip": (peer, forces_of(peer))}
    if compiled:
        fast = make("compile")
        ways["nequip, compiled"] = (fast, forces_of(fast))
    meta = {"constructor": config, "dtype": "float32"}
    record = Record(Path("benchmark"), meta, dict(peer.state_dict()), inputs={}, outputs={})
    model = interop_nequip.model_of(record)
    return ways | {"equidyn": (model, ours(model))}


def _for_nequip(sample: Data) -> dict[str, Tensor]:
    sender, receiver = sample.edge_index
    cell = sample.cell.double()
    images = torch.einsum("ei,eij->ej", sample.edge_shift.double(), torch.linalg.inv(cell)[sample.batch[receiver]])
    return {
        "pos": sample.pos.double(),
        "atom_types": (sample.z[:, None] == torch.tensor(list(ELEMENTS.values()))).long().argmax(1),
        "edge_index": torch.stack([receiver, sender]),
        "edge_cell_shift": images.round(),
        "cell": cell,
        "pbc": sample.pbc,
        "batch": sample.batch,
        "num_atoms": sample.ptr.diff(),
    }


WAYS = {"mace": mace_ways, "nequip": nequip_ways}

# Measurements --------------------------------------------------------------------------------------------------------


def compare(
    ways: dict[str, tuple[nn.Module, Forces]], title: str, sample: Data, repeats: int, seconds: float
) -> list[dict[str, Any]]:
    """One row per way: inference and training step; how much faster than the first way, and its share of memory."""
    target = [t.detach() + 0.1 * torch.randn_like(t) for t in next(iter(ways.values()))[1](sample)]
    inference: dict[str, Callable[[], Any]] = {}
    training: dict[str, Callable[[], Any]] = {}
    for name, (model, forces) in ways.items():
        model.eval()
        _check(forces(sample), next(iter(ways.values()))[1](sample), name)
        inference[name] = lambda forces=forces: forces(sample)

        def loss(forces: Forces = forces) -> Tensor:
            energy, force = forces(sample)
            return (energy - target[0]).square().mean() / len(sample.pos) + (force - target[1]).square().mean()

        training[name] = training_step(loss, model)
    rows = [{"": title, "edges": sample.num_edges, "way": name} for name in ways]
    for kind, calls in (("inference", inference), ("training", training)):
        for model, _ in ways.values():
            model.train(kind == "training")
        # TorchScript optimises during its first calls: three go before that of which the memory is measured.
        memory = {name: peak_memory(call, warm=3) for name, call in calls.items()}
        times = side_by_side(calls, repeats=repeats, seconds=seconds, warm=0)
        first = next(iter(ways))
        for row in rows:
            name = row["way"]
            row |= {
                f"{kind} ms": 1e3 * times[name],
                f"{kind} faster": times[first] / times[name],
                f"{kind} MB": memory[name] / 1e6,
                f"{kind} memory": memory[name] / memory[first],
            }
    return rows


def _check(found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor], name: str) -> None:
    """Refuse a way that computes something else; float32 leaves about five digits of a force."""
    for a, b in zip(found, expected, strict=True):
        error = float((a - b).abs().max() / (b.abs().max()))
        if not error < 1e-4:
            raise SystemExit(f"{name} gives other numbers: relative difference {error:.1e}")


def growth(repeats: int) -> list[dict[str, Any]]:
    """Energy and forces of periodic boxes of growing size."""
    torch.manual_seed(0)
    models = {
        "mace": MACE(tuple(ELEMENTS.values()), 32, cutoff=CUTOFF, neighbours=NEIGHBORS),
        "nequip": NequIP(tuple(ELEMENTS), CUTOFF, 4, 2, 16, mean_neighbors=NEIGHBORS),
    }
    rows = []
    for sides in ((5, 10, 10), (10, 10, 10), (10, 15, 15), (14, 18, 20), (20, 25, 20), (20, 25, 40)):
        sample = structures(*sides, 0)
        row: dict[str, Any] = {"atoms": sample.num_nodes, "edges": sample.num_edges}
        for name, model in models.items():
            call = ours(model.eval())
            once = lambda call=call, sample=sample: call(sample)  # noqa: E731
            large = len(sample.pos) > 5000  # seconds a call, of which the profiler needs more memory than the model
            memory = None if large else peak_memory(once) / 1e6
            seconds = side_by_side({"": once}, repeats=1 if large else repeats, warm=1)[""]
            row |= {f"{name} s": seconds, f"{name} us per atom": 1e6 * seconds / len(sample.pos), f"{name} MB": memory}
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer", choices=WAYS, help="package to compare with")
    parser.add_argument("--growth", action="store_true", help="cost of our models from 500 to 20,000 atoms")
    parser.add_argument("--quick", action="store_true", help="molecules only, nothing compiled")
    parser.add_argument("--sizes", type=int, default=3, help="how many of the three sizes")
    parser.add_argument("--size", type=int, choices=(1, 2, 3), help="only this one of them")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="file for the results")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    results: dict[str, Any] = {}
    if options.peer is not None:
        rows = []
        first, last = (options.size - 1, options.size) if options.size else (0, 1 if options.quick else options.sizes)
        for title, size in list(SIZES.items())[first:last]:
            ways = WAYS[options.peer](compiled=not options.quick)
            rows += compare(ways, title, structures(*size), options.repeats, 0.2 if options.quick else 0.5)
        show(f"energy and forces, and a training step, against {options.peer}", rows)
        results[options.peer] = rows
    if options.growth:
        results["growth"] = growth(options.repeats)
        show("growth of energy and forces with the number of atoms", results["growth"])
    write(options.json, results)


if __name__ == "__main__":
    main()
