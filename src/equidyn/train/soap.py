"""SOAP: Adam in the principal axes of the gradients (Vyas et al. 2024, arXiv 2409.11321).

For the gradients G of a weight matrix, the averages of G G^T and G^T G know in which directions of the rows and of the
columns gradients are large. Adam gives each entry of the matrix a step of its own, which means most where the entries
are independent: so its second moments are kept, and its steps made, in the eigenvectors of those two averages. The
axes turn slowly; every few steps they follow by one orthogonal iteration.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, overload

import torch
from torch import Tensor


class Soap(torch.optim.Optimizer):
    """The optimiser.

    A weight [..., rows, columns] is a stack of matrices, each with axes of its own. Vectors and numbers, and sides
    longer than `largest`, keep their entries as axes; a weight that has no others is trained by Adam.

    Args:
        params: weights, or groups of them with options of their own.
        lr: learning rate.
        betas: how long the first and second moments remember.
        memory: likewise, the averages behind the axes.
        every: steps after which the axes follow.
        largest: longest side that has axes.
        eps: added to the root of the second moment.
        weight_decay: decoupled, as in AdamW.
    """

    def __init__(
        self,
        params: Any,
        lr: float,
        *,
        betas: tuple[float, float] = (0.95, 0.99),
        memory: float = 0.95,
        every: int = 10,
        largest: int = 1024,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        shared = {"betas": betas, "memory": memory, "every": every, "largest": largest, "eps": eps}
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, **shared})

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One step. The first only learns the axes."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None or not weight.numel():
                    continue
                state, gradient = self.state[weight], _matrices(weight.grad)
                if state:
                    update = _update(state, gradient, group)
                    weight.mul_(1 - group["lr"] * group["weight_decay"])
                    weight.sub_(update.reshape(weight.shape), alpha=group["lr"])
                    _remember(state, gradient, group)
                else:
                    state |= _fresh(gradient, group)
        return loss


_SIDES = (("row", -2), ("column", -1))


def _matrices(x: Tensor) -> Tensor:
    return x.reshape(-1, *x.shape[-2:]) if x.dim() > 1 else x.reshape(-1, 1, 1)


def _covariance(gradient: Tensor, dim: int) -> Tensor:
    """Of the rows (-2) or of the columns (-1) of each matrix."""
    return gradient @ gradient.mT if dim == -2 else gradient.mT @ gradient


def _fresh(gradient: Tensor, group: dict[str, Any]) -> dict[str, Any]:
    """The state before the first step."""
    state: dict[str, Any] = {"step": 0, "mean": torch.zeros_like(gradient), "square": torch.zeros_like(gradient)}
    for side, dim in _SIDES:
        if 1 < gradient.shape[dim] <= group["largest"]:
            covariance = _covariance(gradient, dim)
            axes = torch.linalg.eigh(covariance.double())[1].flip(-1)
            state |= {f"{side}_covariance": covariance, f"{side}_axes": axes.to(gradient.dtype)}
    return state


def _turned(state: dict[str, Any], x: Tensor, *, back: bool = False) -> Tensor:
    """A matrix in the axes, or back from there."""
    rows, columns = state.get("row_axes"), state.get("column_axes")
    if rows is not None:
        x = (rows if back else rows.mT) @ x
    return x if columns is None else x @ (columns.mT if back else columns)


def _update(state: dict[str, Any], gradient: Tensor, group: dict[str, Any]) -> Tensor:
    """Adam's step of unit rate, made in the axes."""
    (first, second), state["step"] = group["betas"], state["step"] + 1
    mean = state["mean"].lerp_(gradient, 1 - first) / (1 - first ** state["step"])
    square = state["square"].lerp_(_turned(state, gradient).square(), 1 - second) / (1 - second ** state["step"])
    return _turned(state, _turned(state, mean) / (square.sqrt() + group["eps"]), back=True)


def _remember(state: dict[str, Any], gradient: Tensor, group: dict[str, Any]) -> None:
    """Let the averages follow the gradients and, when it is time, the axes the averages."""
    for side, dim in _SIDES:
        if (axes := state.get(f"{side}_axes")) is None:
            continue
        covariance = state[f"{side}_covariance"].lerp_(_covariance(gradient, dim), 1 - group["memory"])
        if state["step"] % group["every"]:
            continue
        ahead = covariance @ axes
        # Larger axes first, as the orthogonalisation keeps the direction of the first column alone; the second moments
        # move with their axes.
        order = (axes * ahead).sum(1).argsort(dim=1, descending=True)
        state[f"{side}_axes"] = torch.linalg.qr(ahead.gather(2, order[:, None].expand_as(ahead)))[0]
        moved = order[:, :, None] if dim == -2 else order[:, None]
        state["square"] = state["square"].gather(dim, moved.expand_as(state["square"]))
