"""Shapes as clouds of points: ModelNet's OFF files through torch-geometric, and solids made on the spot.

    data:
      dataset: shapes
      path: null                 # solids made on the spot, or the folder of torch-geometric's ModelNet
      modelnet: "10"             # or "40"
      train: 500                 # solids of each part; of ModelNet 0 for all
      val: 100
      test: 200
      points: 1024
      neighbours: 16

A mesh is a sample with `pos [V, 3]`, `face [3, T]` and its class `y [1]`; a cloud has points drawn evenly from the
surface, centred and scaled into the unit ball, each joined to its nearest others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from scipy.spatial import ConvexHull
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.datasets import ModelNet
from torch_geometric.io import read_off

from equidyn.core.errors import InputError, unknown_name
from equidyn.data.graphs import GraphDataset

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
    except OSError as error:
        raise InputError("ModelNet is not there", where=path, expected="its files, or a network", got=error) from None
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


class Clouds(GraphDataset):
    """Meshes as samples: `pos [points, 3]`, `x [points, 1]` of ones, `edge_index` from the nearest, the class `y [1]`.

    Args:
        meshes: with `pos`, `face` and `y`.
        points: drawn from each surface.
        neighbours: each point is joined to so many.
        seed: of the points; the same every time a cloud is asked for.
        classes: their names.

    Raises:
        InputError: no more points than neighbours; (when asked for a cloud) a mesh without a surface.
    """

    name = "shape"

    def __init__(
        self,
        meshes: Sequence[Data],
        points: int = 1024,
        neighbours: int = 16,
        seed: int = 0,
        classes: Sequence[str] = SOLIDS,
    ) -> None:
        super().__init__()
        if not 0 < neighbours < points:
            raise InputError("neighbours of a point", expected=f"1 to {points - 1}", got=neighbours)
        self.meshes, self.points, self.neighbours, self.seed = meshes, points, neighbours, seed
        self.classes = tuple(classes)

    def __len__(self) -> int:
        return len(self.meshes)

    def targets(self) -> Tensor:
        """The class of every mesh [S]."""
        return torch.tensor([int(mesh.y) for mesh in self.meshes])

    def made(self, index: int) -> dict[str, Tensor]:
        """The fields of one cloud."""
        mesh = self.meshes[index]
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + index)
        pos = surface_points(mesh, self.points, generator)
        pos = pos - pos.mean(0)
        pos = pos / pos.norm(dim=1).max()
        send = torch.cdist(pos, pos).fill_diagonal_(torch.inf).topk(self.neighbours, largest=False).indices.flatten()
        receive = torch.arange(self.points).repeat_interleave(self.neighbours)
        x, edge_index = torch.ones(self.points, 1), torch.stack([send, receive])
        return {"pos": pos, "x": x, "edge_index": edge_index, "y": mesh.y.view(1)}


@dataclass
class Shapes:
    """The shapes of an experiment, told apart by their class.

    Attributes:
        path: folder of torch-geometric's ModelNet (fetched if it is not there); null for solids made on the spot.
        modelnet: which of the two, with 10 or 40 classes.
        train, val, test: shapes of each part. ModelNet's own division has training and test; validation shapes are
            drawn from the former, and 0 takes all there are (of validation a tenth).
        points: drawn from the surface of each.
        neighbours: each point is joined to so many.
        seed: of the solids, the draw and the points.

    Raises:
        InputError: (from `part` and `read`) sizes that cannot be, unusable files.
    """

    path: str | None = None
    modelnet: Literal["10", "40"] = "10"
    train: int = 0
    val: int = 0
    test: int = 0
    points: int = 1024
    neighbours: int = 16
    seed: int = 0

    FITTED = ("node_dim", "edge_dim", "out_dim")
    """Arguments of models that `fitted` offers."""

    def __post_init__(self) -> None:
        self._parts: dict[str, Clouds] = {}

    def fitted(self, given: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Values for arguments of models, by their names: `FITTED`."""
        return {"node_dim": 1, "edge_dim": 0, "out_dim": len(self.part("train").classes)}

    def part(self, name: str) -> Clouds:
        """The clouds of one part: "train", "val" or "test"."""
        sizes = {"train": self.train, "val": self.val, "test": self.test}
        if name not in sizes:
            raise unknown_name("part of the data", name, sizes)
        if name not in self._parts:
            meshes, classes = self._solids(name, sizes[name]) if self.path is None else self._meshes(name, sizes)
            number = list(sizes).index(name)
            self._parts[name] = Clouds(meshes, self.points, self.neighbours, 3 * self.seed + number, classes)
        return self._parts[name]

    def read(self, path: str | Path) -> Clouds:
        """Clouds of an OFF file, or of all in a folder, in the order of their names; their class is not known (-1)."""
        path = Path(path)
        files = sorted(path.glob("*.off")) if path.is_dir() else [path]
        if not files or not all(file.is_file() for file in files):
            raise InputError("no such file", where=path, expected="an OFF file, or a folder of them")
        meshes = []
        for file in files:
            try:
                mesh = read_off(str(file))
            except Exception as error:  # the reader checks nothing
                raise InputError("unreadable mesh", where=file, expected="an OFF file", got=error) from None
            mesh.y = torch.tensor([-1])
            meshes.append(mesh)
        return Clouds(meshes, self.points, self.neighbours, self.seed)

    def _solids(self, name: str, count: int) -> tuple[Sequence[Data], Sequence[str]]:
        if count < 1:
            raise InputError(f"number of {name} solids", where=f"data.{name}", expected="at least 1", got=count)
        return solids(count, 3 * self.seed + ("train", "val", "test").index(name)), SOLIDS

    def _meshes(self, name: str, sizes: Mapping[str, int]) -> tuple[Sequence[Data], Sequence[str]]:
        source = modelnet(str(self.path), self.modelnet, train=name != "test")
        order = range(len(source)) if name == "test" else np.random.default_rng(self.seed).permutation(len(source))
        if name != "test":
            cut = sizes["val"] or len(source) // 10
            order = order[:cut] if name == "val" else order[cut:]
        chosen = [int(i) for i in order][: sizes[name] or None]
        if not chosen or len(chosen) < sizes[name]:
            expected = f"at most {len(chosen)}"
            raise InputError(f"number of {name} shapes", where=f"data.{name}", expected=expected, got=sizes[name])
        classes = sorted(folder.name for folder in Path(source.raw_dir).iterdir() if folder.is_dir())
        return [source[i] for i in chosen], classes
