"""How the report writes numbers, names and data: one place, so that every section agrees."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

escape = html.escape


def number(value: float | None) -> str:
    """A measured value as a reader wants it: `0.0054`, `3.1e-7`, `12.3`; a dash where there is none."""
    if value is None:
        return "–"
    if not math.isfinite(value):
        return "not finite"
    size = abs(value)
    if size == 0:
        return "0"
    if size < 0.00095 or size >= 1e5:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa}e{int(exponent)}"
    if size < 1:
        return f"{value:.4f}"
    return f"{value:.3g}" if size < 1000 else f"{value:,.0f}"


def tick(value: float) -> str:
    """A tick label: short, no trailing zeros."""
    if value != 0 and not 1e-3 <= abs(value) < 1e5:
        mantissa, exponent = f"{value:.6e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:.6g}"


def count(value: float | None) -> str:
    """A whole number with thousands separators."""
    return "–" if value is None or not math.isfinite(value) else f"{value:,.0f}"


def duration(seconds: float | None) -> str:
    """A span of time in the two largest units that say something."""
    if seconds is None or not math.isfinite(seconds):
        return "–"
    if seconds < 1:
        return f"{1000 * seconds:.3g} ms"
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"


def factor(ratio: float) -> str:
    """How many times: `4.8`, `13`, `0.62`."""
    return f"{ratio:.2g}" if ratio < 10 else f"{ratio:,.0f}"


def json_block(value: object, identifier: str = "", kind: str = "") -> str:
    """Data for a script, as an inert JSON element that no string inside it can close."""
    attributes = (f' id="{escape(identifier)}"' if identifier else "") + (f' class="{escape(kind)}"' if kind else "")
    text = json.dumps(_finite(value), allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    return f'<script type="application/json"{attributes}>{text}</script>'


def _finite(value: Any) -> Any:
    """The same data with null for every number that JSON cannot hold."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_finite(item) for item in value]
    return value
