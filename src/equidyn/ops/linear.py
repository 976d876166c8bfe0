"""A linear map on the fastest kernel at hand.

On CPUs in float32 PyTorch sends `x @ W.T` to MKL, which on AMD processors runs at half the speed of oneDNN (measured:
95 against 215 GFLOP/s on one AVX-512 core, [10000, 64] x [64, 64]). `linear` takes oneDNN there, and in bfloat16, and
PyTorch's own everywhere else; the numbers agree to rounding.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from equidyn.ops.tracing import exporting

_THIN = 8  # maps with fewer inputs or outputs are a few multiplications, not a product
_HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


# An opaque operator, as the compiler takes oneDNN's own for constant weights only.
_library = torch.library.Library("equidyn", "DEF")
_library.define("linear(Tensor x, Tensor weight, Tensor? bias) -> Tensor")
_library.impl("linear", _onednn, "CPU")


@torch.library.register_fake("equidyn::linear")
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return (torch.ops.equidyn.linear if torch.compiler.is_compiling() else _onednn)(x, weight, bias)


class _Linear(torch.autograd.Function):
    """x [E, C_in], weight [C_out, C_in], bias [C_out] or None, to [E, C_out]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        grad_x = linear(grad, weight.t()) if ctx.needs_input_grad[0] else None
        grad_weight = weight_gradient(grad, x) if ctx.needs_input_grad[1] else None
        return grad_x, grad_weight, grad.sum(0) if ctx.has_bias else None


def _takes_onednn(x: Tensor, weight: Tensor) -> bool:
    wide = min(weight.shape) >= _THIN
    fits = x.is_cpu and x.dtype == weight.dtype and x.dtype in (torch.float32, torch.bfloat16)
    return _HAS_ONEDNN and wide and fits and not exporting() and x.numel() > 0


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The linear map x @ weight.T + bias.

    Args:
        x: [..., C_in].
        weight: [C_out, C_in].
        bias: [C_out].

    Returns:
        [..., C_out].
    """
    if torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64:  # as autocast would do
        low = torch.get_autocast_dtype(x.device.type)
        with torch.autocast(x.device.type, enabled=False):
            return linear(x.to(low), weight.to(low), None if bias is None else bias.to(low))
    if _takes_onednn(x, weight):
        rows = x.reshape(-1, x.shape[-1])
        y = _Linear.apply(rows, weight, bias) if torch.is_grad_enabled() else _product(rows, weight, bias)
        return y.view(*x.shape[:-1], -1)
    if torch.compiler.is_compiling() and min(weight.shape) < _THIN and not exporting():
        y = thin_product(x, weight)
        return y if bias is None else y + bias
    return F.linear(x, weight, bias)


def thin_product(x: Tensor, weight: Tensor) -> Tensor:
    """x [..., C_in] @ weight.T, where one side of weight [C_out, C_in] is short, as a few multiplications.

    The compiler fuses them with what stands around them.
    """
    if weight.shape[0] <= weight.shape[1]:
        return torch.stack([(x * row).sum(-1) for row in weight], dim=-1)
    terms = [column * row for column, row in zip(x.split(1, dim=-1), weight.T, strict=True)]
    return sum(terms[1:], terms[0])


def weight_gradient(grad: Tensor, x: Tensor) -> Tensor:
    """grad.T @ x, the gradient of the weight of a linear map, for grad [E, C_out] and x [E, C_in]."""
    if torch.compiler.is_compiling() and min(grad.shape[1], x.shape[1]) < _THIN:
        if grad.shape[1] <= x.shape[1]:
            return torch.stack([(column * x).sum(0) for column in grad.split(1, dim=1)])
        return torch.stack([(grad * column).sum(0) for column in x.split(1, dim=1)], dim=1)
    if torch.compiler.is_compiling() and _takes_onednn(x, grad[: grad.shape[1]]):
        # The compiler writes the transpose along with `grad` itself, which spares oneDNN the slow half of its work.
        return _product(grad.t().contiguous(), x.t())
    return grad.t() @ x  # MKL is no slower here: oneDNN would first copy both transposed operands


class Linear(nn.Linear):
    """`torch.nn.Linear` (same parameters, same initialisation) through `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply the map to x [..., in_features]."""
        return linear(x, self.weight, self.bias)


def split_linear(in_features: tuple[int, ...], out_features: int) -> list[Linear]:
    """One linear map on a concatenation, as the list of its parts.

    W [a ++ b] = W_a a + W_b b: each part is applied where it is cheap (per node instead of per edge) and the results
    are added; the concatenation is never built. The first part carries the bias. Initialised like one `nn.Linear` of
    the whole width.

    Args:
        in_features: width of each part.
        out_features: width of the result.
    """
    parts = [Linear(width, out_features, bias=i == 0) for i, width in enumerate(in_features)]
    bound = sum(in_features) ** -0.5
    for part in parts:
        for parameter in part.parameters():
            nn.init.uniform_(parameter, -bound, bound)
    return parts


def side_by_side(x: Tensor, *maps: nn.Linear) -> Tensor:
    """Several linear maps of one input as a single product: their results side by side."""
    weight = torch.cat([m.weight for m in maps])
    bias = torch.cat([m.weight.new_zeros(m.out_features) if m.bias is None else m.bias for m in maps])
    return linear(x, weight, bias)
