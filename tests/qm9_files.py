"""Small files of QM9's formats: real molecules, moved a little, with properties that can be learned."""

import numpy as np
import torch
from ase.build import molecule
from ase.collections import g2
from ase.data import covalent_radii

HEAD = "mol_id,A,B,C,mu,alpha,homo,lumo,gap,r2,zpve,u0,u298,h298,g298,cv,u0_atom,u298_atom,h298_atom,g298_atom"
METHANE = (
    "gdb_1,157.7118,157.70997,157.70699,0.,13.21,-.3877,.1171,.5048,35.3641,.044749,-40.47893,-40.476062,-40.475117,"
    "-40.498597,6.469,-395.999594594,-398.643290011,-401.014646522,-372.471772148"
)
OF_ATOMS = {1: 2.0, 6: 7.6, 7: 6.0, 8: 5.0, 9: 3.5}  # polarisability, a0³
HARTREE_OF_ATOMS = {1: -0.5, 6: -38.0, 7: -54.6, 8: -75.1, 9: -99.7}


def molecules(count, seed=0):
    """(numbers, positions, bonds [B, 3] from 0) of methane and others."""
    random = np.random.default_rng(seed)
    names = [name for name in g2.names if {*molecule(name).numbers} <= {*OF_ATOMS} and len(molecule(name)) > 2]
    made = []
    for number in range(count):
        atoms = molecule("CH4" if not number else names[int(random.integers(len(names)))])
        pos = (atoms.positions + 0.03 * random.normal(size=atoms.positions.shape)).round(4)
        radii = covalent_radii[atoms.numbers]
        apart = np.linalg.norm(pos[:, None] - pos, axis=-1)
        bonded = np.argwhere(np.triu(apart < 1.3 * (radii[:, None] + radii), 1))
        kinds = (apart[tuple(bonded.T)] < 1.25) & (atoms.numbers[bonded].min(1) > 1)
        made.append((atoms.numbers, pos, np.column_stack([bonded, kinds]).astype(int)))
    return made


def polarisability(numbers, pos):
    """What the atoms give, and less the closer they are together."""
    apart = np.linalg.norm(pos[:, None] - pos, axis=-1)
    return sum(OF_ATOMS[z] for z in numbers) - float(np.exp(-apart[np.triu_indices(len(pos), 1)]).sum())


def energy(numbers, pos):
    """Hartree."""
    return sum(HARTREE_OF_ATOMS[z] for z in numbers) - 0.02 * polarisability(numbers, pos)


def write_text(folder, made, left_out=()):
    """`gdb9.sdf`, `gdb9.sdf.csv` and `uncharacterized.txt`; the first row of the table is that of methane in QM9."""
    records, rows = [], [HEAD]
    for number, (numbers, pos, bonds) in enumerate(made, start=1):
        symbols = ["_HXXXXCNOF"[z] for z in numbers]
        lines = [f"gdb_{number}", " RDKit 3D", "", f"{len(pos):3}{len(bonds):3}  0  0  0  0  0  0  0  0999 V2000"]
        rest = " 0  0  0  0  0  0  0  0  0  0  0  0"
        lines += [f"{x:10.4f}{y:10.4f}{z:10.4f} {s:3}{rest}" for (x, y, z), s in zip(pos, symbols, strict=True)]
        lines += [f"{a + 1:3}{b + 1:3}{kind + 1:3}  0" for a, b, kind in bonds]
        records += [*lines, "M  END", "$$$$"]
        values = ["1", "1", "1", "0", repr(polarisability(numbers, pos)), *["0"] * 5]
        values += [repr(energy(numbers, pos)), *["0"] * 8]
        rows.append(METHANE if number == 1 else ",".join([f"gdb_{number}", *values]))
    (folder / "gdb9.sdf").write_text("\n".join(records) + "\n")
    (folder / "gdb9.sdf.csv").write_text("\n".join(rows) + "\n")
    listed = [f"{number:7}   {'1' * 8}   smiles   smiles   0.1" for number in left_out]
    (folder / "uncharacterized.txt").write_text("\n".join([*["heading"] * 9, *listed, f"{len(listed)} compounds", ""]))


def write_tensors(folder, made):
    """torch-geometric's `raw/qm9_v3.pt`."""
    listed = []
    for numbers, pos, bonds in made:
        ends = torch.as_tensor(np.concatenate([bonds[:, :2], bonds[:, 1::-1]])).T
        y = torch.zeros(1, 19)
        y[0, 1], y[0, 7] = polarisability(numbers, pos), 27.211386246 * energy(numbers, pos)
        kinds = torch.eye(4)[torch.as_tensor(np.tile(bonds[:, 2], 2))]
        z, place = torch.as_tensor(numbers).long(), torch.as_tensor(pos, dtype=torch.float32)
        listed.append({"pos": place, "z": z, "y": y, "edge_index": ends, "edge_attr": kinds, "name": "gdb"})
    (folder / "raw").mkdir()
    torch.save(listed, folder / "raw" / "qm9_v3.pt")
