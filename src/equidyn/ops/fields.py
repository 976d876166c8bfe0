"""Equivariant layers between fields: linear maps, a nonlinearity of sampled functions, norms.

A field is a sum of irreps (`ops.representations`). A feature holds copies of one field in a row, [..., c d].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from equidyn.ops.linear import linear
from equidyn.ops.representations import Constant, Group, Irrep, intertwiners, invariants, sample_matrices
from equidyn.ops.tracing import traced


class Field(NamedTuple):
    """Several copies of one representation; a feature [..., copies * d] holds one copy after the other."""

    copies: int
    irreps: tuple[Irrep, ...]


class EquivariantLinear(nn.Module):
    """A linear map that commutes with G: learned combinations of a basis of such maps, bias on invariant entries.

    Args:
        copies: output fields.
        bases: (input fields n, basis [K, d_out, d_in]) for each part of the input, in order.
        invariant: [d_out, T] invariant vectors of one output field, or None for no bias.
    """

    def __init__(self, copies: int, bases: Sequence[tuple[int, Tensor]], invariant: Tensor | None) -> None:
        super().__init__()
        self.bases = [Constant(basis) for _, basis in bases]
        self.invariant = None if invariant is None else Constant(invariant)
        # Started so that normal inputs give each entry of the output variance one: `energy` [K, d_out] is what each
        # basis element adds to the variance of each entry, and `total` what all of them together do.
        energy = [basis.square().sum(-1).float() for _, basis in bases]
        total = torch.stack([n * part.sum(0) for (n, _), part in zip(bases, energy, strict=True)]).sum(0)
        self.weights = nn.ParameterList()
        for (n, basis), part in zip(bases, energy, strict=True):
            deviation = (part.sum(1) / (part @ total).clamp(min=1e-12)).sqrt()
            self.weights.append(nn.Parameter(torch.randn(copies, n, len(basis)) * deviation))
        count = 0 if invariant is None else invariant.shape[1]
        self.bias = nn.Parameter(torch.zeros(copies, count)) if count else None

    def matrix(self) -> Tensor:
        """[copies * d_out, sum of n * d_in]."""
        parts = []
        for weight, constant in zip(self.weights, self.bases, strict=True):
            block = torch.tensordot(weight, constant(weight), dims=1)  # [copies, n, d_out, d_in]
            parts.append(block.transpose(1, 2).flatten(2).flatten(0, 1))
        return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]

    def offset(self) -> Tensor | None:
        """[copies * d_out], or None."""
        if self.bias is None or self.invariant is None:
            return None
        return (self.bias @ self.invariant(self.bias).T).flatten()

    def forward(self, h: Tensor) -> Tensor:
        """Map [..., sum of n * d_in] to [..., copies * d_out]."""
        return linear(h, self.matrix(), self.offset())


def equivariant_linear(group: Group, sources: Sequence[Field], target: Field) -> EquivariantLinear:
    """The equivariant maps from fields side by side to one field."""
    bases = [(field.copies, intertwiners(group, field.irreps, target.irreps)) for field in sources]
    return EquivariantLinear(target.copies, bases, invariants(group, target.irreps))


class FieldBias(nn.Module):
    """A learned constant on the invariant entries of a feature.

    Args:
        copies: fields.
        invariant: [d, T] invariant vectors of one field.
    """

    def __init__(self, copies: int, invariant: Tensor) -> None:
        super().__init__()
        self.invariant = Constant(invariant)
        self.weight = nn.Parameter(torch.zeros(copies, invariant.shape[1]))

    def forward(self) -> Tensor:
        """[copies * d]."""
        return (self.weight @ self.invariant(self.weight).T).flatten()


def _mean(x: Tensor) -> Tensor:
    """The mean [R, 1] of each row of x [R, d], as a product: reducing short rows takes much longer."""
    return (x @ x.new_full((x.shape[1],), 1 / x.shape[1]))[:, None]


def _plain(h: Tensor) -> bool:
    """Whether to leave derivatives to PyTorch: compilers find better ones, autocast mixes precisions."""
    return traced() or torch.is_autocast_enabled(h.device.type)


def _square(h: Tensor, samples: Tensor, back: Tensor) -> tuple[Tensor, ...]:
    """(h + A⁺ (A h)² / √(1 + |h|² / d)) σ(z₀) of fields h [R, d], where z is what the gate multiplies."""
    values = linear(h, samples)
    norm = (1 + _mean(h * h)).rsqrt()
    z = h + linear(values * values, back) * norm
    gate = z[:, :1].sigmoid()  # the scalar comes first
    return z * gate, values, norm, z, gate


class _Square(torch.autograd.Function):
    """The first of `_square`, with derivatives from what its steps gave; from h once more to differentiate again."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, samples: Tensor, back: Tensor) -> Tensor:
        out, *steps = _square(h, samples, back)
        ctx.save_for_backward(h, samples, back, *steps)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        h, samples, back, values, norm, z, gate = ctx.saved_tensors
        if torch.is_grad_enabled():
            return torch.autograd.grad(_square(h, samples, back)[0], h, grad, create_graph=True)[0], None, None
        width = h.shape[1]
        by_z = grad * gate
        by_z[:, :1] += width * _mean(grad * z) * (gate - gate * gate)
        by_norm = _mean(by_z * (z - h)).mul_(norm).mul_(norm)  # over d, times the rest of the slope
        by_values = linear(by_z * norm, back.t()).mul_(values)
        return torch.addcmul(by_z.add_(linear(by_values, samples.t()), alpha=2), h, by_norm, value=-1), None, None


class Activation(nn.Module):
    """Pointwise nonlinearity of the function that a field stands for, sampled at points: A⁺ f(A h).

    ELU spreads over all frequencies, which no grid catches: it is equivariant at the symmetries of the points alone.
    The square of a function has at most twice its frequency, so that a quadrature projects it exactly; a gate by the
    mean of the function, z σ(z₀), makes the scalars SiLU.

    Args:
        samples: A [P, d].
        back: A⁺ [d, P].
        kind: "square", or a pointwise "elu" or "relu".
    """

    def __init__(self, samples: Tensor, back: Tensor, kind: Literal["square", "elu", "relu"]) -> None:
        super().__init__()
        self.samples, self.back, self.kind = Constant(samples), Constant(back), kind
        self.size = samples.shape[1]

    def forward(self, h: Tensor) -> Tensor:
        """Apply it to each field of h [..., c * d]."""
        fields, samples, back = h.reshape(-1, self.size), self.samples(h), self.back(h)
        if self.kind != "square":
            values = linear(fields, samples)
            values = F.elu(values) if self.kind == "elu" else values.relu()
            return linear(values, back).view(h.shape)
        return (_square(fields, samples, back)[0] if _plain(h) else _Square.apply(fields, samples, back)).view(h.shape)


def _scale(h: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of h [R, C] over their root mean square, times weight [C], plus bias [C]; and one over the root [R, 1]."""
    inverse = (_mean(h * h) + 1e-5).rsqrt()
    return torch.addcmul(bias, h * inverse, weight), inverse


class _Scale(torch.autograd.Function):
    """The first of `_scale`, as `_Square`."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        out, inverse = _scale(h, weight, bias)
        ctx.save_for_backward(h, weight, bias, inverse)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        h, weight, bias, inverse = ctx.saved_tensors
        if torch.is_grad_enabled():
            return torch.autograd.grad(_scale(h, weight, bias)[0], (h, weight, bias), grad, create_graph=True)
        unit = h * inverse
        along = grad * unit
        by_weight, mean = along.sum(0), (along @ weight)[:, None].div_(h.shape[1])
        by_h = torch.addcmul(grad * weight, unit, mean, value=-1).mul_(inverse)
        return by_h, by_weight, grad.sum(0)


class FieldNorm(nn.Module):
    """Scale a feature by the size of all its fields together, which no rotation changes."""

    def __init__(self, copies: int, invariant: Tensor) -> None:
        super().__init__()
        self.copies, self.invariant = copies, Constant(invariant)
        self.weight = nn.Parameter(torch.ones(copies, 1))
        self.bias = nn.Parameter(torch.zeros(copies, invariant.shape[1]))

    def forward(self, h: Tensor) -> Tensor:
        """Scale h [..., copies * d]."""
        invariant = self.invariant(self.weight)
        weight, bias = self.weight.expand(-1, len(invariant)).flatten(), (self.bias @ invariant.T).flatten()
        rows = h.reshape(-1, h.shape[-1])
        return (_scale(rows, weight, bias)[0] if _plain(h) else _Scale.apply(rows, weight, bias)).view(h.shape)


class FieldBatchNorm(nn.Module):
    """The original's norm: statistics over all points of a batch, one variance per field; no gradient through them."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, copies: int, invariant: Tensor) -> None:
        super().__init__()
        self.copies, self.invariant = copies, Constant(invariant)
        self.weight = nn.Parameter(torch.ones(copies, 1))
        self.bias = nn.Parameter(torch.zeros(copies, invariant.shape[1]))
        self.register_buffer("running_mean", torch.zeros(copies, len(invariant)))
        self.register_buffer("running_var", torch.ones(copies, 1))

    def forward(self, h: Tensor) -> Tensor:
        """Scale h [B, copies * d] by the statistics of its rows, or in evaluation mode by the running ones."""
        fields, invariant = h.unflatten(-1, (self.copies, -1)), self.invariant(h)
        mean, var = self.running_mean, self.running_var
        if self.training and len(fields) > 1:
            rows = fields.detach()
            mean = rows.mean(0) @ invariant @ invariant.T
            var = rows.var(0).mean(-1, keepdim=True)
            self.running_mean.lerp_(mean, 0.1)
            self.running_var.lerp_(var, 0.1)
        scaled = (fields - mean) * (self.weight * (var + 1e-5).rsqrt())
        return (scaled + self.bias @ invariant.T).flatten(-2)


def make_activation(irreps: Sequence[Irrep], dimension: int, kind: Literal["square", "elu"]) -> Activation:
    """The nonlinearity of `band(order)`; three times the order is exact for the square, more is better for ELU."""
    order = max(f for _, f in irreps)
    return Activation(*sample_matrices(order, dimension, (3 if kind == "square" else 8) * order), kind)


def make_norm(kind: str, copies: int, invariant: Tensor) -> nn.Module:
    """A norm by name."""
    norms = {"field": FieldNorm, "batch": FieldBatchNorm}
    return norms[kind](copies, invariant) if kind in norms else nn.Identity()
