"""The tensor product of features with the edges' spherical harmonics, summed at the receivers.

    A_i^(k)[m3, c] = sum_j w_ij^(k)[c]  sum_{m1 m2} C[m1, m2, m3] h_j^(l1)[m1, c] Y_ij^(l2)[m2],    k = (l1, l2, l3)

The coefficients C and the harmonics do not know the channels c. They are contracted first, once per edge, for all
layers together, to small matrices K_ij[m3, m1] (`Couplings`). What is left per channel is a product with a matrix, for
all paths out of one block at once, and the weights. No array of edges x channels x m1 x m2 is ever built.

The two steps that cost time, `matmul` and `scale`, are written so that their derivatives are made of themselves (and
of `contract`): they can be differentiated any number of times, always on the fast kernel.

Features are rows of blocks, one per irrep with its number of channels, components before channels:
[N, sum of (2 l + 1) channels].
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from equidyn.ops.edges import Edges
from equidyn.ops.so3 import wigner_3j


class Irrep(NamedTuple):
    """A block of features: degree l, parity (1 even, -1 odd under inversion), and how many channels it has."""

    degree: int
    parity: int
    channels: int

    @property
    def width(self) -> int:
        """Numbers per node."""
        return (2 * self.degree + 1) * self.channels


class Path(NamedTuple):
    """One way l1 x l2 -> l3 from a block of the input to a block of the output."""

    target: int
    l_edge: int
    l_out: int


class Fan(NamedTuple):
    """The degrees of all paths out of one block: l1 and the pairs (l2, l3)."""

    l_in: int
    ways: tuple[tuple[int, int], ...]


def split_irreps(h: Tensor, irreps: Sequence[Irrep]) -> list[Tensor]:
    """The blocks [N, 2 l + 1, channels] of features [N, width]."""
    parts = h.split([irrep.width for irrep in irreps], dim=1)
    return [part.unflatten(1, (-1, irrep.channels)) for part, irrep in zip(parts, irreps, strict=True)]


def paths_from(source: Irrep, targets: Sequence[Irrep], l_max: int) -> list[Path]:
    """All paths from one block, with harmonics up to l_max (of parity (-1)^l), to the blocks of an output.

    They come in the order of (l3, parity of l2, l2): the same for both parities of the source.
    """
    paths = [
        Path(number, degree, target.degree)
        for number, target in enumerate(targets)
        for degree in range(abs(source.degree - target.degree), min(source.degree + target.degree, l_max) + 1)
        if source.parity * (-1) ** degree == target.parity
    ]
    return sorted(paths, key=lambda path: (path.l_out, path.l_edge % 2, path.l_edge))


class Couplings(nn.Module):
    """The matrices K of the paths out of each block, from the harmonics of each edge.

    Args:
        fans: what is needed; each distinct one is computed once.
        l_max: degree of the harmonics.
    """

    matrix: Tensor

    def __init__(self, fans: Iterable[Fan], l_max: int) -> None:
        super().__init__()
        self.fans = tuple(dict.fromkeys(fans))
        columns = [self._columns(fan, l_max) for fan in self.fans]
        self.sizes = [part.shape[1] for part in columns]
        self.register_buffer("matrix", torch.cat(columns, dim=1), persistent=False)

    @staticmethod
    def _columns(fan: Fan, l_max: int) -> Tensor:
        """[(l_max + 1)^2, rows x (2 l_in + 1)], the rows over paths and m3."""
        blocks = []
        for l_edge, l_out in fan.ways:
            column = torch.zeros((l_max + 1) ** 2, (2 * l_out + 1) * (2 * fan.l_in + 1), dtype=torch.float64)
            coupling = math.sqrt(2 * l_out + 1) * wigner_3j(fan.l_in, l_edge, l_out)
            column[l_edge**2 : (l_edge + 1) ** 2] = coupling.permute(1, 2, 0).flatten(1)
            blocks.append(column)
        return torch.cat(blocks, dim=1)

    def forward(self, harmonics: Tensor) -> dict[Fan, Tensor]:
        """From [E, (l_max + 1)^2]: for each fan [E, sum over its paths of (2 l3 + 1), 2 l_in + 1]."""
        parts = (harmonics @ self.matrix.to(harmonics.dtype)).split(self.sizes, dim=1)
        return {f: part.unflatten(1, (-1, 2 * f.l_in + 1)) for f, part in zip(self.fans, parts, strict=True)}


def convolve(sent: Tensor, coupling: Tensor, weight: Tensor, edges: Edges, fan: Fan) -> list[Tensor]:
    """The messages out of one block, summed at the receivers.

    Args:
        sent: [E, 2 l_in + 1, C] features of the senders.
        coupling: K of the fan.
        weight: [E, P C] for its P paths.
        edges: of the nodes.
        fan: the degrees of its paths.

    Returns:
        For each path [N, 2 l3 + 1, C].
    """
    runs = _runs(fan)
    message = scale(matmul(coupling, sent), weight, runs)
    total = edges.sum(message.flatten(1)).unflatten(1, message.shape[1:])
    return list(total.split([2 * l_out + 1 for _, l_out in fan.ways], dim=1))


class Run(NamedTuple):
    """Neighbouring paths of one degree l3: how many, and how many components each."""

    paths: int
    components: int


def _runs(fan: Fan) -> tuple[Run, ...]:
    degrees = [l_out for _, l_out in fan.ways]
    return tuple(Run(degrees.count(degree), 2 * degree + 1) for degree in dict.fromkeys(degrees))


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """Products of many small matrices, [E, r, k] x [E, k, c]."""
    return _Matmul.apply(a, b)


def scale(x: Tensor, weight: Tensor, runs: tuple[Run, ...]) -> Tensor:
    """All components of a path times its weight: [E, rows, C] and [E, P C] to [E, rows, C]."""
    return _Scale.apply(x, weight, runs)


def contract(x: Tensor, y: Tensor, runs: tuple[Run, ...]) -> Tensor:
    """Sum over the components of each path of x y: twice [E, rows, C] to [E, P C]."""
    return _Contract.apply(x, y, runs)


class _Matmul(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        inner, size = a.shape[2], a.shape[1] * b.shape[1] * b.shape[2]
        if torch.compiler.is_compiling():  # one pass, fused with what comes before and after
            return (a[..., None] * b[:, None]).sum(2)
        if inner > 7 or (size >= 400 and inner > 1):  # below, PyTorch's own loop would be several times slower
            return torch.bmm(a, b)
        out = a[:, :, 0, None] * b[:, 0, None]
        for k in range(1, inner):
            out.addcmul_(a[:, :, k, None], b[:, k, None])
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        a, b = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        return matmul(grad, b.mT) if wanted[0] else None, matmul(a.mT, grad) if wanted[1] else None


def _views(rows: Tensor | None, weight: Tensor | None, channels: int, runs: tuple[Run, ...]) -> list[list[Tensor]]:
    """Per run, [E, paths, components, C] of rows [E, rows, C] and [E, paths, C] of weights [E, P C]."""
    found = []
    if rows is not None:
        parts = rows.split([run.paths * run.components for run in runs], dim=1)
        found.append([part.unflatten(1, (run.paths, -1)) for part, run in zip(parts, runs, strict=True)])
    if weight is not None:
        parts = weight.split([run.paths * channels for run in runs], dim=1)
        found.append([part.unflatten(1, (run.paths, -1)) for part, run in zip(parts, runs, strict=True)])
    return found


class _Scale(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, runs: tuple[Run, ...]) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.runs = runs
        rows, weights = _views(x, weight, x.shape[2], runs)
        if torch.compiler.is_compiling():
            return torch.cat([(r * w[:, :, None]).flatten(1, 2) for r, w in zip(rows, weights, strict=True)], dim=1)
        out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        for r, w, o in zip(rows, weights, _views(out, None, x.shape[2], runs)[0], strict=True):
            torch.mul(r, w[:, :, None], out=o)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        by_x = scale(grad, weight, ctx.runs) if wanted[0] else None
        return by_x, contract(grad, x, ctx.runs) if wanted[1] else None, None


class _Contract(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, runs: tuple[Run, ...]) -> Tensor:
        ctx.save_for_backward(x, y)
        ctx.runs = runs
        pairs = zip(_views(x, None, 0, runs)[0], _views(y, None, 0, runs)[0], strict=True)
        if torch.compiler.is_compiling():
            return torch.cat([(a * b).sum(2).flatten(1) for a, b in pairs], dim=1)
        out = x.new_empty(x.shape[0], sum(run.paths for run in runs) * x.shape[2])
        for (a, b), o in zip(pairs, _views(None, out, x.shape[2], runs)[0], strict=True):
            torch.mul(a[:, :, 0], b[:, :, 0], out=o)
            for k in range(1, a.shape[2]):
                o.addcmul_(a[:, :, k], b[:, :, k])
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, y = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        by_x = scale(y, grad, ctx.runs) if wanted[0] else None
        return by_x, scale(x, grad, ctx.runs) if wanted[1] else None, None
