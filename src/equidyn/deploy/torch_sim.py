"""TorchSim: a potential as a model, for simulations of many systems in one batch (extra `torchsim`).

    model = make_model(load_potential("runs/mine"))
    torch_sim.integrate(
        system=[atoms] * 64, model=model, integrator=torch_sim.nve, n_steps=1000, temperature=300, timestep=0.0005
    )

All systems go through the network at once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from equidyn.core.extras import require
from equidyn.deploy.neighbors import SkinNeighbors
from equidyn.deploy.potential import Potential, Structure, join


def make_model(potential: Potential, *, skin: float = 1.0) -> Any:
    """A `ModelInterface` of TorchSim: energy [G], forces [N, 3] and stress [G, 3, 3] of a state, in float64.

    Args:
        potential: see `load_potential`.
        skin: Å, see `SkinNeighbors`; each system keeps its own list.

    Raises:
        MissingExtraError: TorchSim is not installed.
    """
    base: Any = require("torch_sim.models.interface", "torchsim", "a model for TorchSim").ModelInterface

    class EquidynModel(base):
        def __init__(self) -> None:
            super().__init__()
            self._device, self._dtype = potential.device, torch.float64
            self._compute_stress = self._compute_forces = True
            self.potential = potential
            self.neighbors: list[SkinNeighbors] = []

        def forward(self, state: Any, **_: Any) -> dict[str, Tensor]:
            cell, pbc = state.row_vector_cell, torch.as_tensor(state.pbc).flatten().expand(3)
            counts = torch.bincount(state.system_idx, minlength=len(cell)).tolist()
            while len(self.neighbors) < len(counts):
                self.neighbors.append(SkinNeighbors(potential, skin))
            parts = zip(state.positions.split(counts), state.atomic_numbers.split(counts), cell, strict=True)
            one = join([_structure(potential, self.neighbors[k], *part, pbc) for k, part in enumerate(parts)])
            out = potential(one)
            volume = torch.linalg.det(cell).abs()[:, None, None]
            stress = torch.where(volume > 0, -out["virial"] / volume.clamp(min=1e-300), 0.0)
            return {"energy": out["energy"], "forces": out["forces"], "stress": stress}

    return EquidynModel()


def _structure(
    potential: Potential, neighbors: SkinNeighbors, pos: Tensor, z: Tensor, cell: Tensor, pbc: Tensor
) -> Structure:
    pos = pos.detach().double()
    return potential.structure(z.tolist(), pos, neighbors(pos, cell.detach().double(), pbc), "TorchSim")
