"""Shapes as clouds of points: ModelNet's OFF files through torch-geometric, and solids made on the spot.

A mesh is a sample with `pos [V, 3]`, `face [3, T]` and its class `y [1]`; a cloud has points drawn evenly from the
surface, centred and scaled into the unit ball, each joined to its nearest others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from scipy.spatial import ConvexHull
from torch import Tensor
from torch.utils.data import Dataset
from torch_geometric.data import Data
from torch_geometric.datasets import ModelNet

from equidyn.core.errors import InputError

SOLIDS = ("tetrahedron", "box", "octahedron", "prism", "cone")
"""Classes of `solids`, in the order of `y`."""


def modelnet(path: str, name: Literal["10", "40"] = "10", *, train: bool = True) -> ModelNet:
    """The meshes of ModelNet-10 or 40: torch-geometric's data set in a folder, fetched if it is not there.

    Raises:
        InputError: another name; a file that is not OFF.
    """
    if name not in ("10", "40"):
        raise InputError("ModelNet", where="name", expected="10 or 40", got=name)
    try:
        return ModelNet(path, name, train)
    except (ValueError, IndexError) as error:
        raise InputError("unreadable mesh", where=path, expected="OFF files", got=error) from None


def solids(count: int, seed: int = 0) -> list[Data]:
    """Convex solids of `SOLIDS` in turn, each turned and stretched at random."""
    random = np.random.default_rng(seed)
    made = []
    for number in range(count):
        kind = number % len(SOLIDS)
        turn, _ = np.linalg.qr(random.normal(size=(3, 3)))
        vertices = _vertices(SOLIDS[kind]) * random.uniform(0.7, 1.3, 3) @ turn.T
        face = torch.as_tensor(ConvexHull(vertices).simplices.T.astype(np.int64))
        made.append(Data(pos=torch.as_tensor(vertices, dtype=torch.float32), face=face, y=torch.tensor([kind])))
    return made


def _vertices(name: str) -> np.ndarray:
    signs = np.array([[x, y, z] for x in (-1.0, 1.0) for y in (-1.0, 1.0) for z in (-1.0, 1.0)])
    angle = 2 * np.pi * np.arange(24) / 24
    circle = np.stack([np.cos(angle), np.sin(angle), np.zeros(24)], axis=1)
    up = np.array([0.0, 0.0, 1.0])
    return {
        "tetrahedron": signs[signs.prod(axis=1) > 0],
        "box": signs,
        "octahedron": np.concatenate([np.eye(3), -np.eye(3)]),
        "prism": np.concatenate([circle[::4] + up, circle[::4] - up]),
        "cone": np.concatenate([circle - up, up[None]]),
    }[name]


def surface_points(mesh: Data, count: int, generator: torch.Generator) -> Tensor:
    """Points drawn evenly from the surface of a mesh: [count, 3].

    Raises:
        InputError: a mesh without faces, or of no area.
    """
    if mesh.get("face") is None or not mesh.face.numel():
        raise InputError("mesh without faces", where="field face", expected="[3, T]")
    a, b, c = mesh.pos[mesh.face]
    area = torch.linalg.cross(b - a, c - a).norm(dim=1)
    if not bool(torch.isfinite(area).all()) or not bool(area.sum() > 0):
        raise InputError("surface of the mesh", expected="finite vertices and a positive area", got=float(area.sum()))
    face = torch.multinomial(area, count, replacement=True, generator=generator)
    u, v = torch.rand(2, count, 1, generator=generator)
    u, v = torch.where(u + v > 1, 1 - u, u), torch.where(u + v > 1, 1 - v, v)
    return a[face] + u * (b - a)[face] + v * (c - a)[face]


class Clouds(Dataset):
    """Meshes as samples: `pos [points, 3]`, `x [points, 1]` of ones, `edge_index` from the nearest, the class `y [1]`.

    Args:
        meshes: with `pos`, `face` and `y`.
        points: drawn from each surface.
        neighbours: each point is joined to so many.
        seed: of the points; the same every time a cloud is asked for.

    Raises:
        InputError: no more points than neighbours; (when asked for a cloud) a mesh without a surface.
    """

    def __init__(self, meshes: Sequence[Data], points: int = 1024, neighbours: int = 16, seed: int = 0) -> None:
        if not 0 < neighbours < points:
            raise InputError("neighbours of a point", expected=f"1 to {points - 1}", got=neighbours)
        self.meshes, self.points, self.neighbours, self.seed = meshes, points, neighbours, seed

    def __len__(self) -> int:
        return len(self.meshes)

    def __getitem__(self, number: int) -> Data:
        mesh = self.meshes[number]
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
        pos = surface_points(mesh, self.points, generator)
        pos = pos - pos.mean(0)
        pos = pos / pos.norm(dim=1).max()
        send = torch.cdist(pos, pos).fill_diagonal_(torch.inf).topk(self.neighbours, largest=False).indices.flatten()
        receive = torch.arange(self.points).repeat_interleave(self.neighbours)
        return Data(pos=pos, x=torch.ones(self.points, 1), edge_index=torch.stack([send, receive]), y=mesh.y)
