"""Parts of a model that need more digits than the rest."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn


class Double(nn.Module):
    """A module whose parameters and buffers stay in float64 whatever precision the model around it is cast to.

    Distances and energies of atoms need it: energies per atom of thousands of eV are wanted to a meV.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        def moved(t: Tensor) -> Tensor:
            new = fn(t)
            return new if new.dtype == t.dtype else t.to(new.device)

        return super()._apply(moved, recurse)
