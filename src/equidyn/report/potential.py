"""The page about potentials: errors by test set and config type, learning curves, parity plots."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from equidyn.core.errors import InputError
from equidyn.report.figures import Series, line_chart, parity_plot
from equidyn.report.runs import Facts, Floats, read_arrays, read_config, read_facts, read_fields, read_metrics
from equidyn.report.sections import (
    citations,
    configuration,
    making,
    run_style,
    section,
    symmetry,
    table,
)
from equidyn.report.text import count, duration, escape, number

COLUMNS = ("epoch", "train_loss", "val_e_mae", "val_f_mae")
ERRORS = {
    "e_mae": "energy MAE",
    "e_rmse": "energy RMSE",
    "e_spread": "energy RMSE without its mean error",
    "f_mae": "force MAE",
    "f_rmse": "force RMSE",
    "s_mae": "stress MAE",
    "s_rmse": "stress RMSE",
}
UNITS = {"energy": "meV/atom", "forces": "eV/Å", "stress": "eV/Å³"}

Rows = dict[str, dict[str, dict[str, float]]]  # test set, config type, error


@dataclass(frozen=True, kw_only=True)
class PotentialEvaluation(Facts):
    """What `evaluation.json` holds of a potential; errors in meV, meV/Å and meV/Å³."""

    errors: Rows
    published: dict[str, dict[str, dict[str, float]]]  # label, test set, error


@dataclass(frozen=True)
class PotentialRun:
    """One finished run; `pairs` are true and predicted values [n, 2] by "test set/kind"."""

    name: str
    folder: Path
    config: str
    metrics: dict[str, Floats]
    evaluation: PotentialEvaluation
    pairs: dict[str, Floats]


def read_potential(folder: Path) -> PotentialRun:
    """Read a run folder.

    Raises:
        InputError: a file in it is missing or corrupt.
    """
    path = folder / "evaluation.json"
    fields = read_fields(path)
    evaluation = PotentialEvaluation(
        **read_facts(fields),
        errors=_nested(fields.raw.get("errors"), f"{path}, errors"),
        published=_nested(fields.raw.get("published") or {}, f"{path}, published"),
    )
    config, metrics = read_config(folder / "config.yaml"), read_metrics(folder / "metrics.csv", COLUMNS)
    return PotentialRun(fields.text("name"), folder, config, metrics, evaluation, _pairs(folder / "predictions.npz"))


def _nested(raw: Any, where: str) -> Rows:
    try:
        return {
            first: {second: {k: float(v) for k, v in row.items() if v is not None} for second, row in rows.items()}
            for first, rows in raw.items()
        }
    except (AttributeError, TypeError, ValueError):
        raise InputError("wrong errors", where=where, expected="numbers by test set, kind and name") from None


def _pairs(path: Path) -> dict[str, Floats]:
    found = read_arrays(path, dtype=np.float64)
    for name, pairs in found.items():
        if pairs.ndim != 2 or pairs.shape[1] != 2:
            raise InputError(f"wrong shape of {name!r}", where=path, expected="[n, 2]", got=list(pairs.shape))
    return found


def _header(runs: Sequence[PotentialRun]) -> str:
    names = ", ".join(run.name for run in runs)
    first = runs[0]
    test, rows = next(iter(first.evaluation.errors.items()))
    whole = rows["all"]
    lead = f"On {count(whole.get('structures'))} structures of {test}, {first.name} errs by "
    parts = []
    if "e_mae" in whole:
        parts.append(f"{number(whole['e_mae'])} meV in the energy of a structure")
    if "f_mae" in whole:
        parts.append(f"{number(whole['f_mae'])} meV/Å in a force component")
    cost = f" It has {count(first.evaluation.parameters)} parameters"
    if first.evaluation.seconds_train is not None:
        cost += f" and was trained for {duration(first.evaluation.seconds_train)}"
    text = f"{lead}{' and '.join(parts)} on average.{cost}."
    title = f'<p class="eyebrow">Equidyn report</p><h1>{escape(names)}</h1>'
    return f'<header>{title}<p class="lead">{escape(text)}</p></header>'


def _errors(runs: Sequence[PotentialRun]) -> str:
    tests = list(dict.fromkeys(test for run in runs for test in run.evaluation.errors))
    known = [e for e in ERRORS if any(e in row for run in runs for row in _all_rows(run.evaluation.errors))]
    body = ""
    for test in tests:
        rows = []
        for k, run in enumerate(runs):
            for kind, row in run.evaluation.errors.get(test, {}).items():
                name = run.name if kind == "all" else f"{run.name}, {kind}"
                rows.append(_row(name, row, known, f'<span class="key {run_style(k)}"></span>'))
        published = {
            label: given[test] for run in runs for label, given in run.evaluation.published.items() if test in given
        }
        rows += [_row(label, row, known) for label, row in published.items()]
        title = f'<tr><th scope="rowgroup" colspan="{len(known) + 2}">{escape(test)}</th></tr>'
        body += f'<tbody class="group">{title}{"".join(rows)}</tbody>'
    intro = (
        "Energies are those of whole structures, in meV; forces by component, in meV/Å; stress in meV/Å³. MAE is the "
        "mean absolute error, RMSE the root mean square one. Rows without a coloured mark are published numbers."
    )
    return section("Errors", table(["", "structures", *(ERRORS[e] for e in known)], body), intro)


def _all_rows(errors: Rows) -> list[Mapping[str, float]]:
    return [row for rows in errors.values() for row in rows.values()]


def _row(name: str, row: Mapping[str, float], known: Sequence[str], mark: str = "") -> str:
    cells = "".join(f"<td>{number(row[e]) if e in row and math.isfinite(row[e]) else '–'}</td>" for e in known)
    return f'<tr><th scope="row">{mark}{escape(name)}</th><td>{count(row.get("structures"))}</td>{cells}</tr>'


def _learning(runs: Sequence[PotentialRun]) -> str:
    charts = {
        "val_f_mae": ("Validation force MAE", "meV/Å"),
        "val_e_mae": ("Validation energy MAE", "meV"),
        "train_loss": ("Training loss", "training loss"),
    }
    body = "".join(
        line_chart(
            title,
            [Series(run.name, run.metrics["epoch"], run.metrics[key], run_style(k)) for k, run in enumerate(runs)],
            x_label="epoch",
            y_label=label,
        )
        for key, (title, label) in charts.items()
    )
    return section("Learning", f'<div class="pair">{body}</div>' if body else "", "How the errors fell, logarithmic.")


def _parity(runs: Sequence[PotentialRun]) -> str:
    plots = []
    for k, run in enumerate(runs):
        for name, pairs in run.pairs.items():
            test, _, kind = name.rpartition("/")
            if kind == "energy" and len(pairs):  # per atom, from the mean of the true ones
                pairs = 1000 * (pairs - pairs[:, 0].mean())
            title = f"{run.name}, {test}: {kind}, {UNITS.get(kind, '')}"
            plots.append(parity_plot(title, pairs[:, 0], pairs[:, 1], run_style(k)))
    body = "".join(plots)
    intro = (
        "Each dot is a force component, or the energy per atom of a structure, counted from the mean of the true ones. "
        "On the diagonal the prediction is exact."
    )
    return section("Predicted against true", f'<div class="squares">{body}</div>' if body else "", intro)


SECTIONS: tuple[Callable[[Any], str], ...] = (
    _header,
    _errors,
    _learning,
    _parity,
    symmetry,
    configuration,
    making,
    citations,
)
