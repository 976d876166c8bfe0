# ruff: noqa: E402
"""What mace-torch computes with a small model of each kind of interaction: its files and their results, in one archive.

python mace_peer.py blocks.zip       (in an environment with mace-torch 0.3; nothing of Equidyn is used)
"""

import io
import os
import sys
import warnings
import zipfile
from tempfile import TemporaryDirectory

os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"
warnings.filterwarnings("ignore")

import ase.io
import numpy as np
import torch
from ase import Atoms
from ase.build import add_adsorbate, fcc111, molecule
from e3nn import o3
from mace import data, modules
from mace.modules import interaction_classes
from mace.tools import AtomicNumberTable
from mace.tools.torch_geometric.batch import Batch

BLOCKS = (
    "RealAgnosticInteractionBlock",
    "RealAgnosticResidualInteractionBlock",
    "RealAgnosticDensityInteractionBlock",
    "RealAgnosticDensityResidualInteractionBlock",
    "RealAgnosticResidualNonLinearInteractionBlock",
)
ELEMENTS = [1, 8, 29]
R_MAX = 4.0


def structures() -> dict[str, Atoms]:
    """A molecule, a slab with something on it, and a skewed crystal smaller than the cutoff."""
    water = molecule("H2O")
    slab = fcc111("Cu", (2, 2, 2), vacuum=6.0)
    add_adsorbate(slab, molecule("OH"), 1.8, "fcc")
    slab.pbc = (True, True, False)
    cell = [[3.1, 0.2, 0.0], [1.2, 3.4, 0.1], [0.3, -0.4, 4.0]]
    crystal = Atoms("Cu2O", scaled_positions=[[0, 0, 0], [0.5, 0.45, 0.5], [0.2, 0.7, 0.3]], cell=cell, pbc=True)
    made = {"molecule": water, "slab": slab, "crystal": crystal}
    for seed, atoms in enumerate(made.values()):
        atoms.rattle(0.05, seed=seed)
    return made


def model(block: str) -> torch.nn.Module:
    """A small model with random weights."""
    torch.manual_seed(BLOCKS.index(block))
    made = modules.ScaleShiftMACE(
        r_max=R_MAX,
        num_bessel=6,
        num_polynomial_cutoff=5,
        max_ell=3,
        interaction_cls=interaction_classes[block],
        interaction_cls_first=interaction_classes[block],
        num_interactions=2,
        num_elements=len(ELEMENTS),
        hidden_irreps=o3.Irreps("4x0e + 4x1o"),
        MLP_irreps=o3.Irreps("4x0e"),
        gate=torch.nn.functional.silu,
        atomic_energies=np.array([-13.6, -2041.8, -1640.5]),
        avg_num_neighbors=9.3,
        atomic_numbers=ELEMENTS,
        correlation=3,
        radial_MLP=[8, 8],
        atomic_inter_scale=0.9,
        atomic_inter_shift=-0.3,
        apply_cutoff="NonLinear" not in block,
        heads=["Default"],
    )
    with torch.no_grad():
        for weight in made.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
    return made


def results(model: torch.nn.Module, atoms: Atoms) -> dict[str, np.ndarray]:
    config = data.config_from_atoms(atoms)
    one = data.AtomicData.from_config(config, z_table=AtomicNumberTable(ELEMENTS), cutoff=R_MAX, heads=["Default"])
    out = model(Batch.from_data_list([one]).to_dict(), compute_force=True, compute_virials=True, compute_stress=True)
    return {name: out[name].detach().numpy() for name in ("energy", "node_energy", "forces", "virials", "stress")}


def main(path: str) -> None:
    torch.set_default_dtype(torch.float64)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive, TemporaryDirectory() as folder:
        for name, atoms in structures().items():
            text = io.StringIO()
            ase.io.write(text, atoms, "json")
            archive.writestr(f"{name}.json", text.getvalue())
        for block in BLOCKS:
            made, arrays = model(block), {}
            for name, atoms in structures().items():
                arrays |= {f"{name}/{key}": value for key, value in results(made, atoms).items()}
            buffer = io.BytesIO()
            np.savez(buffer, **arrays)
            archive.writestr(f"{block}.npz", buffer.getvalue())
            torch.save(made, f"{folder}/{block}.model")
            archive.write(f"{folder}/{block}.model", f"{block}.model")


if __name__ == "__main__":
    main(sys.argv[1])
