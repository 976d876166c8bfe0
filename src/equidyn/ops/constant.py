"""Numbers that are the same for every model: kept in float64, cast to whatever they meet."""

from __future__ import annotations

from torch import Tensor


class Constant:
    """A float64 tensor that `model.float()` does not round, with a copy for each dtype and device it was used with."""

    def __init__(self, value: Tensor) -> None:
        self._value = value.double()
        self._copies: dict = {}

    def like(self, other: Tensor) -> Tensor:
        """The tensor in the dtype and on the device of another."""
        key = (other.dtype, other.device)
        if key not in self._copies:
            self._copies[key] = self._value.to(other)
        return self._copies[key]

    def __getstate__(self) -> dict:
        return {"_value": self._value, "_copies": {}}
