"""Implicit steerable kernels as their paper's code computes them, for comparison: a dense matrix for every map, a
kernel [C_out, C_in] stored for every edge, one product per edge, sums scattered. Written from the equations, on the
spherical harmonics of e3nn; the same function as `ImplicitSteerableKernels` with `velocity` and the readout "position",
from which it takes its weights."""

import torch
import torch.nn.functional as F
from e3nn import o3
from torch import Tensor, nn

from equidyn.models.implicit_steerable_kernels import ImplicitSteerableKernels, PointConv
from equidyn.ops.fields import Activation, EquivariantLinear, FieldNorm


def _copy(weight: Tensor) -> nn.Parameter:
    return nn.Parameter(weight.detach().clone())


class PlainMap(nn.Module):
    """An equivariant linear map, its matrix summed up from the basis."""

    def __init__(self, of: EquivariantLinear) -> None:
        super().__init__()
        self.weights = nn.ParameterList(_copy(weight) for weight in of.weights)
        self.bases = [basis.value.float() for basis in of.bases]
        self.bias = None if of.bias is None else _copy(of.bias)
        self.invariant = None if of.invariant is None else of.invariant.value.float()

    def forward(self, h: Tensor) -> Tensor:
        pairs = zip(self.weights, self.bases, strict=True)
        parts = [torch.einsum("onk,kab->oanb", weight, basis) for weight, basis in pairs]
        matrix = torch.cat([part.flatten(2).flatten(0, 1) for part in parts], dim=1)
        return F.linear(h, matrix, None if self.bias is None else (self.bias @ self.invariant.T).flatten())


class PlainActivation(nn.Module):
    """The square of the sampled function, projected back, and the gate."""

    def __init__(self, of: Activation) -> None:
        super().__init__()
        self.samples, self.back = of.samples.value.float(), of.back.value.float()

    def forward(self, h: Tensor) -> Tensor:
        fields = h.unflatten(-1, (-1, self.samples.shape[1]))
        square = (fields @ self.samples.T).square() @ self.back.T
        z = fields + square / (1 + fields.square().mean(-1, keepdim=True)).sqrt()
        return (z * z[..., :1].sigmoid()).flatten(-2)


class PlainNorm(nn.Module):
    def __init__(self, of: FieldNorm) -> None:
        super().__init__()
        self.weight, self.bias, self.invariant = _copy(of.weight), _copy(of.bias), of.invariant.value.float()

    def forward(self, h: Tensor) -> Tensor:
        h = h / (h.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return (h.unflatten(-1, (len(self.weight), -1)) * self.weight + self.bias @ self.invariant.T).flatten(-2)


def _plain(of: nn.Module) -> nn.Module:
    kinds = ((EquivariantLinear, PlainMap), (Activation, PlainActivation), (FieldNorm, PlainNorm))
    return next(plain(of) for ours, plain in kinds if isinstance(of, ours))


class PlainConv(nn.Module):
    """y_i = sum of K(r_ij, a_ij) x_j, and a bias."""

    def __init__(self, of: PointConv) -> None:
        super().__init__()
        self.mlp = nn.Sequential(*map(_plain, [*of.kernel.body, of.kernel.last]))
        self.shape, self.harmonics, self.width = of.kernel.shape, of.kernel.harmonics, _copy(of.kernel.width)
        self.bias, self.invariant = _copy(of.bias.weight), of.bias.invariant.value.float()

    def forward(self, x: Tensor, r: Tensor, a: Tensor, row: Tensor, col: Tensor) -> Tensor:
        orders = list(range(1, self.harmonics + 1))
        y = o3.spherical_harmonics(orders, r[:, [1, 2, 0]], normalize=False, normalization="norm")
        kernel = self.mlp(torch.cat([y, a], dim=-1)) * torch.exp(-r.square().sum(-1, keepdim=True) / 2 / self.width**2)
        kernel = kernel.view(-1, *self.shape).transpose(2, 3).flatten(3, 4).flatten(1, 2)  # [E, C_out, C_in]
        message = torch.einsum("eoi,ei->eo", kernel, x[col])
        summed = message.new_zeros(len(x), message.shape[1]).index_add_(0, row, message)
        return summed + (self.bias @ self.invariant.T).flatten()


class PlainKernels(nn.Module):
    def __init__(self, of: ImplicitSteerableKernels) -> None:
        super().__init__()
        self.scale, self.order = of.options.scale, of._order
        self.embedding = nn.Linear(of.embedding.in_features, of.embedding.out_features)
        self.embedding.load_state_dict(of.embedding.state_dict())
        self.lift, self.activation, self.out = _plain(of.lift), _plain(of.activation), _plain(of.node_out)
        self.convs = nn.ModuleList(PlainConv(conv) for block in of.blocks for conv in block.convs)
        self.norms = nn.ModuleList(_plain(norm) for block in of.blocks for norm in block.norms)

    def forward(self, sample) -> Tensor:
        """Positions [B, N, 3] of a batch of systems on one shared graph."""
        batch, nodes, _ = sample.pos.shape
        offset = nodes * torch.arange(batch)[:, None]
        col, row = ((end[None] + offset).flatten() for end in sample.edge_index)
        pos, v = sample.pos.flatten(0, 1), sample.vel.flatten(0, 1)[:, self.order]
        r, a = (pos[row] - pos[col]) / self.scale, sample.edge_attr.flatten(0, 1)
        h = self.activation(self.lift(torch.cat([F.silu(self.embedding(sample.x.flatten(0, 1))), v], dim=-1)))
        pairs = list(zip(self.convs, self.norms, strict=True))
        for first, second in zip(pairs[::2], pairs[1::2], strict=True):
            y = self.activation(first[1](first[0](h, r, a, row, col)))
            h = self.activation(second[1](second[0](y, r, a, row, col)) + h)
        return sample.pos + self.out(torch.cat([h, v], dim=-1))[:, self.order.argsort()].view(sample.pos.shape)
