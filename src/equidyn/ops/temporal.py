"""The temporal convolution: an operator on functions of time, given at a few points and answered at any.

A trajectory of features h(t), known at P equidistant anchor times, is expanded in a few modes; a learned matrix per
mode mixes the channels; the result is evaluated at any times:

    y(t) = sum_k  S_k(t) W_k ( sum_p A_kp h(t_p) ).

It acts on the time and channel axes alone, the same way on every node and every component of a vector or a higher
irrep, so it commutes with rotations, reflections and permutations whatever the features are.

Source: Xu et al. 2024 (arXiv 2401.11037), equations 6 to 9; Li et al. 2021 (arXiv 2010.08895) for the Fourier form,
written here with real cosines and sines instead of a complex FFT (the numbers are the same).
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from equidyn.core.errors import InputError
from equidyn.ops.linear import linear

Basis = Literal["fourier", "cosine"]


def _angles(points: Tensor, num_points: int, num_modes: int, basis: Basis) -> Tensor:
    mode = torch.arange(num_modes, dtype=points.dtype, device=points.device)
    if basis == "fourier":  # one period is the window: the trajectory is taken as periodic
        return points[..., None] * mode * (2 * math.pi / num_points)
    return (points[..., None] + 0.5) * mode * (math.pi / num_points)  # DCT: mirrored at both ends instead


def analysis(num_points: int, num_modes: int, basis: Basis) -> Tensor:
    """The matrix that expands values at the anchors 0 .. P-1 in modes, float64.

    Returns:
        Fourier: [2 M, P], first the real parts of the discrete Fourier transform, then the imaginary. Cosine: [M, P].
    """
    angle = _angles(torch.arange(num_points, dtype=torch.float64), num_points, num_modes, basis).T
    return torch.cat([angle.cos(), -angle.sin()]) if basis == "fourier" else angle.cos()


def synthesis(points: Tensor, num_points: int, num_modes: int, basis: Basis) -> Tensor:
    """The functions that evaluate an expansion in modes at given points.

    Args:
        points: [...] times as real-valued anchor indices (0 is the first anchor, P-1 the last).

    Returns:
        Fourier: [..., 2 M]; cosine: [..., M]; modes in the order of `analysis`.
    """
    angle = _angles(points, num_points, num_modes, basis)
    weight = points.new_full((num_modes,), 2.0 / num_points)
    weight[0] = 1.0 / num_points
    if basis == "cosine":
        return weight * angle.cos()
    sine = -weight * angle.sin()
    if num_points % 2 == 0 and num_modes == num_points // 2 + 1:  # the Nyquist mode counts once, its real part alone
        weight[-1] = 1.0 / num_points
        sine[..., -1] = 0.0
    return torch.cat([weight * angle.cos(), sine], dim=-1)


def leaky_relu(y: Tensor) -> Tensor:
    """LeakyReLU with slope 0.01 (equation 6)."""
    if torch.compiler.is_compiling():  # without the comparison, whose mask the compiler would store bit by bit, slowly
        return 0.505 * y + 0.495 * y.abs()
    return F.leaky_relu(y)


class TemporalConv(nn.Module):
    """Learned linear operator on trajectories of features (module docstring).

    Args:
        channels: C, mixed by the operator.
        num_points: P, number of equidistant anchor times.
        num_modes: M; at most P // 2 + 1 for "fourier", P for "cosine".
        basis: "fourier" as in the paper, or "cosine" for trajectories that are not periodic.
        scale: the weights are drawn uniformly from [0, scale).

    Raises:
        InputError: more modes than the anchors can carry.
    """

    expand: Tensor
    evaluate: Tensor
    kernel: Tensor
    kernel_to_modes: Tensor

    def __init__(
        self,
        channels: int,
        num_points: int,
        num_modes: int,
        *,
        basis: Basis = "fourier",
        scale: float = 0.1,
    ) -> None:
        super().__init__()
        most = num_points // 2 + 1 if basis == "fourier" else num_points
        if not 1 <= num_modes <= most:
            raise InputError(
                "number of temporal modes", expected=f"1 to {most} for {num_points} time points", got=num_modes
            )
        self.num_points, self.num_modes, self.basis = num_points, num_modes, basis
        parts = 2 if basis == "fourier" else 1
        # weight[k, 0] is the real and weight[k, 1] the imaginary part of W_k, stored [C_out, C_in].
        self.weight = nn.Parameter(scale * torch.rand(num_modes, parts, channels, channels))

        anchors = torch.arange(num_points, dtype=torch.float64)
        self.register_buffer("expand", analysis(num_points, num_modes, basis), persistent=False)
        self.register_buffer("evaluate", synthesis(anchors, num_points, num_modes, basis), persistent=False)
        self.few = channels <= 4  # few channels, as of vectors: one small matrix; many: one product per mode
        if self.few:
            modes = torch.eye(parts * num_modes, dtype=torch.float64)
            self.register_buffer("kernel", self._kernel(self.evaluate), persistent=False)
            self.register_buffer("kernel_to_modes", self._kernel(modes), persistent=False)

    def _kernel(self, evaluate: Tensor) -> Tensor:
        """K [Q, P, weights] with y_q = sum_p (sum_w K_qpw W_w) h_p, for rows of mode functions evaluate [Q, modes]."""
        if self.basis == "cosine":
            return torch.einsum("qk,kp->qpk", evaluate, self.expand)
        (cos, sin), (real, imag) = evaluate.chunk(2, dim=1), self.expand.chunk(2)
        by_real = torch.einsum("qk,kp->qpk", cos, real) + torch.einsum("qk,kp->qpk", sin, imag)
        by_imag = torch.einsum("qk,kp->qpk", sin, real) - torch.einsum("qk,kp->qpk", cos, imag)
        return torch.stack([by_real, by_imag], dim=-1).flatten(-2)  # in the order of `weight`

    def _mix(self, modes: Tensor) -> Tensor:
        """Apply W_k to each mode: [modes, ..., C] to the same shape."""
        if self.basis == "cosine":
            return torch.stack([linear(z, w[0]) for z, w in zip(modes, self.weight, strict=True)])
        real, imag = modes.chunk(2)
        mixed_real, mixed_imag = [linear(real[0], self.weight[0, 0])], [imag[0]]  # mode 0 is real, its sine is zero
        for a, b, (w, u) in zip(real[1:], imag[1:], self.weight[1:], strict=True):
            block = torch.cat([torch.cat([w, -u], dim=1), torch.cat([u, w], dim=1)])  # (a + ib)(w + iu)
            both = linear(torch.cat([a, b], dim=-1), block).chunk(2, dim=-1)
            mixed_real.append(both[0])
            mixed_imag.append(both[1])
        return torch.stack([*mixed_real, *mixed_imag])

    def _as_matrix(self, kernel: Tensor, h: Tensor) -> Tensor:
        """Times and channels mixed by one small matrix: [P, ..., C] to [Q, ..., C]."""
        channels = h.shape[-1]
        matrix = (kernel.to(h.dtype) @ self.weight.flatten(2).flatten(0, 1)).unflatten(-1, (channels, channels))
        matrix = matrix.transpose(1, 2).flatten(2).flatten(0, 1)  # [Q C_out, P C_in]
        rows = h.movedim(-1, 1)
        return (matrix @ rows.flatten(2).flatten(0, 1)).view(-1, *rows.shape[1:]).movedim(1, -1)

    def forward(self, h: Tensor, points: Tensor | None = None) -> Tensor:
        """Apply the operator.

        Args:
            h: [P, N, ..., C] features at the anchor times.
            points: [Q, N] further times at which each node's result is wanted, as real-valued anchor indices.

        Returns:
            [P + Q, N, ..., C]: the result at the anchors, then at the further times.
        """
        with torch.autocast(h.device.type, enabled=False):  # small, and positions deserve their digits
            return self._convolve(h.to(self.weight.dtype), points)

    def _convolve(self, h: Tensor, points: Tensor | None) -> Tensor:
        if self.few and points is None:
            return self._as_matrix(self.kernel, h)
        if self.few:
            mixed = self._as_matrix(self.kernel_to_modes, h)
        else:
            mixed = self._mix((self.expand.to(h.dtype) @ h.flatten(1)).view(-1, *h.shape[1:]))
        out = (self.evaluate.to(h.dtype) @ mixed.flatten(1)).view(h.shape)
        if points is None:
            return out
        evaluate = synthesis(points, self.num_points, self.num_modes, self.basis)
        return torch.cat([out, torch.einsum("qnk,kn...->qn...", evaluate, mixed)])
