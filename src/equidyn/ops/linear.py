"""A linear map on the fastest kernel at hand.

On CPUs in float32 PyTorch sends `x @ W.T` to MKL, which on AMD processors runs at half the speed of oneDNN (measured:
95 against 215 GFLOP/s on one AVX-512 core, [10000, 64] x [64, 64]). `linear` takes oneDNN there and PyTorch's own
everywhere else; the numbers agree to rounding.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


# An opaque operator, so that torch.compile leaves the product alone and fuses what lies between the products.
_library = torch.library.Library("equidyn", "DEF")
_library.define("linear(Tensor x, Tensor weight, Tensor? bias) -> Tensor")
_library.define("linear_backward(Tensor grad, Tensor x, Tensor weight) -> (Tensor, Tensor, Tensor)")


def _linear_backward(grad: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    rows = grad.reshape(-1, grad.shape[-1]).contiguous()
    grad_x = _onednn(rows, weight.t(), None).view(x.shape)
    # MKL is the faster one here: oneDNN would first copy both transposed operands.
    return grad_x, rows.t() @ x.reshape(-1, x.shape[-1]), rows.sum(0)


_library.impl("linear", _onednn, "CPU")
_library.impl("linear_backward", _linear_backward, "CPU")


@torch.library.register_fake("equidyn::linear")
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


@torch.library.register_fake("equidyn::linear_backward")
def _(grad: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), weight.new_empty(weight.shape), weight.new_empty(weight.shape[0])


def _setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    x, weight, bias = inputs
    ctx.save_for_backward(x, weight)
    ctx.has_bias = bias is not None


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    x, weight = ctx.saved_tensors
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # a second derivative is wanted
        rows = grad.flatten(0, -2)
        grads = grad @ weight, rows.t() @ x.flatten(0, -2), rows.sum(0)
    else:
        grads = torch.ops.equidyn.linear_backward(grad, x, weight)
    return grads[0], grads[1], grads[2] if ctx.has_bias else None


torch.library.register_autograd("equidyn::linear", _backward, setup_context=_setup_context)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The linear map x @ weight.T + bias.

    Args:
        x: [..., C_in].
        weight: [C_out, C_in].
        bias: [C_out].

    Returns:
        [..., C_out].
    """
    wide = min(weight.shape) >= 8  # thin maps are a few fused multiplications, not a product
    fast = _HAS_ONEDNN and wide and x.is_cpu and x.dtype == weight.dtype == torch.float32 and x.numel() > 0
    if fast and not torch.is_autocast_enabled("cpu"):
        return torch.ops.equidyn.linear(x, weight, bias)
    return F.linear(x, weight, bias)


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


def side_by_side(x: Tensor, *maps: nn.Linear) -> tuple[Tensor, ...]:
    """Several linear maps of one input as a single product, which is faster than one product each."""
    weight = torch.cat([m.weight for m in maps])
    bias = torch.cat([m.weight.new_zeros(m.out_features) if m.bias is None else m.bias for m in maps])
    return linear(x, weight, bias).split([m.out_features for m in maps], dim=-1)
