"""Charts as inline SVG. Colours come from the style sheet, so that they follow the reader's theme."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from equidyn.report.text import count, escape, json_block, number, tick

Floats = NDArray[np.float64]

WIDTH, HEIGHT = 480, 300
LEFT, RIGHT, TOP, BOTTOM = 64, 14, 10, 42
MAX_POINTS = 400  # per line: more than a chart this wide can show
MAX_DOTS = 1500  # per parity plot
FEW_DOTS = 200  # that may be larger


@dataclass(frozen=True)
class Series:
    """One line or set of markers. `style` is a class of the style sheet that gives its colour."""

    name: str
    x: Floats
    y: Floats
    style: str
    line: str = "solid"  # "solid", "dashed", "dotted" or "none"
    markers: bool = False


@dataclass(frozen=True)
class Axis:
    """From data to drawing units, with the ticks to draw."""

    low: float
    high: float
    start: float
    stop: float
    ticks: tuple[float, ...]
    log: bool = False

    def __call__(self, values: Floats | float) -> Floats:
        """Positions in the drawing; NaN for what the axis cannot show."""
        array = np.asarray(values, dtype=np.float64)
        low, high = self.low, self.high
        if self.log:
            array = np.log10(np.where(array > 0, array, np.nan))
            low, high = math.log10(low), math.log10(high)
        return self.start + (array - low) / (high - low) * (self.stop - self.start)


def linear_axis(values: Floats, start: float, stop: float, *, pad: float = 0.0) -> Axis:
    """An axis over the finite values, widened by the share `pad` at both ends."""
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    if high <= low:
        low, high = low - 0.5 * (abs(low) or 1), high + 0.5 * (abs(high) or 1)
    low, high = low - pad * (high - low), high + pad * (high - low)
    step = nice_step((high - low) / 5)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return Axis(low, high, start, stop, tuple(k * step for k in range(first, last + 1)))


def log_axis(values: Floats, start: float, stop: float) -> Axis:
    """A logarithmic axis over the positive finite values."""
    usable = values[np.isfinite(values) & (values > 0)]
    low, high = (float(usable.min()), float(usable.max())) if usable.size else (0.1, 1.0)
    low, high = low / 1.25, high * 1.25
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    stride = max(1, len(decades) // 7)
    steps = (1, 2, 5) if math.log10(high / low) < 2.2 else (1,)
    ticks = (m * 10.0**k for k in decades[::stride] for m in steps)
    return Axis(low, high, start, stop, tuple(t for t in ticks if low <= t <= high), log=True)


def nice_step(rough: float) -> float:
    """The next of 1, 2, 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(rough))
    return power * next(m for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))


def line_chart(
    title: str, series: Sequence[Series], *, x_label: str, y_label: str, log_y: bool = True, caption: str = ""
) -> str:
    """A chart of lines over a common x, with a legend and values on hover; empty if there is nothing to draw."""
    drawable = [s for s in map(_thinned, series) if _drawable(s, log_y).any()]
    if not drawable:
        return ""
    xs = np.concatenate([s.x for s in drawable])
    ys = np.concatenate([s.y for s in drawable])
    x_axis = linear_axis(xs, LEFT, WIDTH - RIGHT)
    span = (HEIGHT - BOTTOM, TOP)
    y_axis = log_axis(ys, *span) if log_y else linear_axis(ys, *span, pad=0.06)
    marks = "".join(_marks(s, x_axis, y_axis) for s in drawable)
    body = _frame(x_axis, y_axis, x_label, y_label) + marks + '<g class="cursor"></g>'
    names = ", ".join(s.name for s in drawable)
    return _figure(
        title,
        _legend(drawable) + f'<div class="plot"><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" tabindex="0" '
        f'aria-label="{escape(f"{title}: {y_label} over {x_label}, for {names}")}">{body}</svg>'
        + '<div class="tip" role="status"></div></div>'
        + json_block(_hover(drawable, x_axis, y_axis, x_label), kind="chart-data"),
        caption,
        "chart",
    )


def parity_plot(title: str, true: Floats, predicted: Floats, style: str) -> str:
    """Predicted against true values on one square; the closer to the diagonal the better."""
    usable = np.isfinite(true) & np.isfinite(predicted)
    true, predicted = true[usable], predicted[usable]
    if not true.size:
        return ""
    size, left, bottom = 300, 46, 40
    axis = linear_axis(true, left, size - 10, pad=0.05)
    y_axis = Axis(axis.low, axis.high, size - bottom, 10, axis.ticks)
    x, y = axis(_every(true, MAX_DOTS)), y_axis(_every(predicted, MAX_DOTS))
    inside = (y >= 10) & (y <= size - bottom)
    dots = "".join(f"M{a:.1f} {b:.1f}h0" for a, b in zip(x[inside], y[inside], strict=True))
    few = " few" if x.size <= FEW_DOTS else ""
    diagonal = f'<path class="diagonal" d="M{axis.start} {y_axis.start}L{axis.stop} {y_axis.stop}"/>'
    body = _frame(axis, y_axis, "true", "predicted", size) + diagonal + f'<path class="dots{few} {style}" d="{dots}"/>'
    spread = float(((true - true.mean()) ** 2).mean())
    error = float(((predicted - true) ** 2).mean())
    fit = f"R² {number(1 - error / spread)}, " if spread > 0 else ""
    outside = f", {count(int((~inside).sum()))} of them outside the frame" if (~inside).any() else ""
    caption = (
        f"{fit}root mean square error {number(math.sqrt(error))}; {count(x.size)} of {count(true.size)} values shown"
    )
    label = f"Predicted against true, {title}: {caption}"
    svg = f'<svg viewBox="0 0 {size} {size}" role="img" aria-label="{escape(label)}">{body}</svg>'
    return _figure(title, svg, f"{caption}{outside}.", "parity")


def ranking_chart(title: str, rows: Sequence[tuple[str, float, str]]) -> str:
    """One dot per name on a logarithmic axis, in the given order; rows are (name, value, style)."""
    usable = [(name, value, style) for name, value, style in rows if math.isfinite(value) and value > 0]
    if not usable:
        return ""
    left, step, top = 190, 20, 12
    base = top + step * len(usable)
    axis = log_axis(np.array([value for _, value, _ in usable]), left, WIDTH - RIGHT)
    parts = [f'<path class="axis" d="M{axis.start} {base}H{axis.stop}"/>']
    for value, x in zip(axis.ticks, axis(np.array(axis.ticks)), strict=True):
        parts.append(f'<path class="grid" d="M{x:.1f} {top}V{base}"/>')
        parts.append(f'<text class="tick" x="{x:.1f}" y="{base + 18}" text-anchor="middle">{tick(value)}</text>')
    for k, (name, value, style) in enumerate(usable):
        y, x = top + step * (k + 0.5), float(axis(value))
        parts.append(f'<text class="tick" x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{escape(name)}</text>')
        dot = f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.6"><title>{number(value)}</title></circle>'
        parts.append(f'<g class="{style}">{dot}</g>')
    label = escape(f"{title}: " + ", ".join(f"{name} {number(value)}" for name, value, _ in usable))
    svg = f'<svg viewBox="0 0 {WIDTH} {base + 30}" role="img" aria-label="{label}">{"".join(parts)}</svg>'
    return _figure(title, svg, "", "chart")


def _figure(title: str, body: str, caption: str, kind: str) -> str:
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f'<figure class="{kind}"><h3>{escape(title)}</h3>{body}{below}</figure>'


def _frame(x_axis: Axis, y_axis: Axis, x_label: str, y_label: str, width: float = WIDTH) -> str:
    """Grid lines, tick labels and axis titles."""
    parts = []
    for value, y in zip(y_axis.ticks, y_axis(np.array(y_axis.ticks)), strict=True):
        parts.append(f'<path class="grid" d="M{x_axis.start} {y:.1f}H{x_axis.stop}"/>')
        parts.append(
            f'<text class="tick" x="{x_axis.start - 7}" y="{y + 4:.1f}" text-anchor="end">{tick(value)}</text>'
        )
    base = y_axis.start
    for value, x in zip(x_axis.ticks, x_axis(np.array(x_axis.ticks)), strict=True):
        parts.append(f'<path class="axis" d="M{x:.1f} {base}v4"/>')
        parts.append(f'<text class="tick" x="{x:.1f}" y="{base + 18}" text-anchor="middle">{tick(value)}</text>')
    parts.append(f'<path class="axis" d="M{x_axis.start} {base}H{x_axis.stop}"/>')
    middle = (x_axis.start + x_axis.stop) / 2
    parts.append(f'<text class="label" x="{middle}" y="{base + 36}" text-anchor="middle">{escape(x_label)}</text>')
    turn = f"translate(11 {(y_axis.start + y_axis.stop) / 2}) rotate(-90)"
    parts.append(f'<text class="label" transform="{turn}" text-anchor="middle">{escape(y_label)}</text>')
    return "".join(parts)


def _marks(series: Series, x_axis: Axis, y_axis: Axis) -> str:
    x, y = x_axis(series.x), y_axis(series.y)
    seen = np.isfinite(x) & np.isfinite(y)
    parts = []
    if series.line != "none":
        parts.append(f'<path class="line {series.line}" d="{_path(x, y, seen)}"/>')
    if series.markers:
        parts += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3.6"/>' for a, b in zip(x[seen], y[seen], strict=True)]
    return f'<g class="{series.style}">{"".join(parts)}</g>'


def _path(x: Floats, y: Floats, seen: NDArray[np.bool_]) -> str:
    """A path that lifts the pen over what cannot be drawn."""
    parts, pen = [], "M"
    for a, b, ok in zip(x, y, seen, strict=True):
        if ok:
            parts.append(f"{pen}{a:.1f} {b:.1f}")
        pen = "L" if ok else "M"
    return "".join(parts)


def _legend(series: Sequence[Series]) -> str:
    items = []
    for s in series:
        line = f'<path class="line {s.line}" d="M1 6H25"/>' if s.line != "none" else ""
        dot = '<circle cx="13" cy="6" r="3.6"/>' if s.markers else ""
        swatch = (
            f'<svg class="{s.style}" viewBox="0 0 26 12" width="26" height="12" aria-hidden="true">{line}{dot}</svg>'
        )
        items.append(f"<li>{swatch}{escape(s.name)}</li>")
    return f'<ul class="legend">{"".join(items)}</ul>'


def _hover(series: Sequence[Series], x_axis: Axis, y_axis: Axis, x_label: str) -> dict[str, object]:
    """Where each point lies and what to say of it."""
    entries = []
    for s in series:
        x, y = x_axis(s.x), y_axis(s.y)
        seen = np.isfinite(x) & np.isfinite(y)
        entries.append(
            {
                "name": s.name,
                "style": s.style,
                "x": [round(float(a), 1) for a in x[seen]],
                "y": [round(float(b), 1) for b in y[seen]],
                "at": [tick(float(f"{a:.4g}")) if a % 1 else count(a) for a in s.x[seen]],
                "value": [number(float(b)) for b in s.y[seen]],
            }
        )
    return {"label": x_label, "top": TOP, "bottom": HEIGHT - BOTTOM, "width": WIDTH, "series": entries}


def _drawable(series: Series, log_y: bool) -> NDArray[np.bool_]:
    seen = np.isfinite(series.x) & np.isfinite(series.y)
    return seen & (series.y > 0) if log_y else seen


def _thinned(series: Series) -> Series:
    """The same series without rows that were not measured, and with at most MAX_POINTS."""
    kept = ~np.isnan(series.y) & np.isfinite(series.x)
    x, y = _every(series.x[kept], MAX_POINTS), _every(series.y[kept], MAX_POINTS)
    return Series(series.name, x, y, series.style, series.line, series.markers)


def _every(values: Floats, most: int) -> Floats:
    """At most `most` of the values, evenly spread, both ends included."""
    if values.size <= most:
        return values
    return values[np.linspace(0, values.size - 1, most).round().astype(int)]
