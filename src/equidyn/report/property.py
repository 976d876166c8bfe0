"""The page about properties and classes of graphs: errors, learning curves, predicted against true."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from equidyn.core.errors import InputError
from equidyn.report.figures import Series, line_chart, parity_plot
from equidyn.report.runs import Facts, Fields, Floats, read_arrays, read_config, read_facts, read_fields, read_metrics
from equidyn.report.sections import (
    citations,
    configuration,
    fact_list,
    making,
    page_title,
    run_style,
    section,
    symmetry,
    table,
)
from equidyn.report.text import count, duration, escape, factor, number

_SCORES = {"property": ("mae", "rmse"), "classification": ("accuracy", "cross_entropy")}
_NAMES = {"mae": "MAE", "rmse": "RMSE", "accuracy": "accuracy", "cross_entropy": "cross-entropy"}


@dataclass(frozen=True, kw_only=True)
class PropertyEvaluation(Facts):
    """What `evaluation.json` holds; errors in the unit of the property, shares of 1 for classes."""

    task: str
    target: str
    unit: str
    classes: tuple[str, ...]
    samples: float | None
    scores: dict[str, float]
    baselines: dict[str, dict[str, float]]
    published: dict[str, dict[str, float]]


@dataclass(frozen=True)
class PropertyRun:
    """One finished run; `predicted` is [n], or the probabilities [n, C] of classes, whose numbers `true` then holds."""

    name: str
    folder: Path
    config: str
    metrics: dict[str, Floats]
    evaluation: PropertyEvaluation
    true: Floats
    predicted: Floats


def read_property(folder: Path) -> PropertyRun:
    """Read a run folder.

    Raises:
        InputError: a file in it is missing or corrupt.
    """
    path = folder / "evaluation.json"
    fields = read_fields(path)
    task = fields.text("task")
    classes = fields.raw.get("classes") or []
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise InputError("wrong 'classes'", where=path, expected="a list of names")
    scores = {name: fields.number(name, required=True) or 0.0 for name in _SCORES[task]}
    evaluation = PropertyEvaluation(
        **read_facts(fields),
        task=task,
        target=fields.text("target", ""),
        unit=fields.text("unit", ""),
        classes=tuple(classes),
        samples=fields.number("samples"),
        scores=scores,
        baselines=_rows(fields, "baselines"),
        published=_rows(fields, "published"),
    )
    columns = ("epoch", "train_loss", *(f"val_{name}" for name in _curves(task)))
    config, metrics = read_config(folder / "config.yaml"), read_metrics(folder / "metrics.csv", columns)
    true, predicted = _predictions(folder / "predictions.npz", len(classes))
    return PropertyRun(fields.text("name"), folder, config, metrics, evaluation, true, predicted)


def _rows(fields: Fields, key: str) -> dict[str, dict[str, float]]:
    names = [name for scores in _SCORES.values() for name in scores]
    found = {label: {name: entry.number(name) for name in names} for label, entry in fields.children(key)}
    return {label: {k: v for k, v in row.items() if v is not None} for label, row in found.items()}


def _predictions(path: Path, classes: int) -> tuple[Floats, Floats]:
    true, predicted = read_arrays(path, ("true", "predicted"), np.float64).values()
    shape = (len(true), classes) if classes else (len(true),)
    if true.ndim != 1 or predicted.shape != shape:
        raise InputError("wrong shape of 'predicted'", where=path, expected=list(shape), got=list(predicted.shape))
    if classes and not np.isin(true, np.arange(classes)).all():
        raise InputError("no such class in 'true'", where=path, expected=f"0 to {classes - 1}")
    return true, predicted


def _curves(task: str) -> tuple[str, ...]:
    return ("mae",) if task == "property" else ("accuracy", "loss")


def _of(run: PropertyRun) -> str:
    result = run.evaluation
    return f"{result.target} ({result.unit})" if result.unit else result.target


def _header(runs: Sequence[PropertyRun]) -> str:
    title = f'<p class="eyebrow">Equidyn report</p><h1>{escape(page_title(runs))}</h1>'
    return f'<header>{title}<p class="lead">{escape(_lead(runs[0]))}</p></header>{_facts(runs[0])}'


def _lead(run: PropertyRun) -> str:
    result = run.evaluation
    if result.task == "property":
        unit = f" {result.unit}" if result.unit else ""
        text = (
            f"{run.name} predicts {result.target or 'a number'}. On {count(result.samples)} test samples it "
            f"errs by {number(result.scores['mae'])}{unit} on average"
        )
        simple = next((row["mae"] for row in result.baselines.values() if row.get("mae")), math.nan)
        if 0 < result.scores["mae"] < simple:
            text += f", {factor(simple / result.scores['mae'])} times less than the mean of the training samples"
    else:
        text = (
            f"{run.name} tells {count(len(result.classes))} classes apart. It is right about "
            f"{_percent(result.scores['accuracy'])} of {count(result.samples)} test samples"
        )
        simple = next((row["accuracy"] for row in result.baselines.values() if "accuracy" in row), math.nan)
        if math.isfinite(simple):
            text += f"; always naming the most frequent class is right about {_percent(simple)}"
    return f"{text}."


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def _facts(run: PropertyRun) -> str:
    result = run.evaluation
    facts = [(_NAMES[name], _score(name, value), result.unit) for name, value in result.scores.items()]
    if result.parameters is not None:
        facts.append(("Parameters", count(result.parameters), result.system))
    if result.seconds_train is not None:
        facts.append(("Training time", duration(result.seconds_train), ""))
    return fact_list(run.name, facts)


def _score(name: str, value: float) -> str:
    return _percent(value) if name == "accuracy" else number(value)


def _results(runs: Sequence[PropertyRun]) -> str:
    names = list(dict.fromkeys(name for run in runs for name in run.evaluation.scores))
    head = ["", *(escape(_NAMES[name]) for name in names), "of", "parameters", "training time"]
    ours = ""
    for k, run in enumerate(runs):
        result = run.evaluation
        rest = (escape(_of(run)), count(result.parameters), duration(result.seconds_train))
        ours += _row(run.name, result.scores, names, rest, f'<span class="key {run_style(k)}"></span>')
    groups = {
        "Without a network, on the same samples": "baselines",
        "Published, on the data of their authors": "published",
    }
    body = f"<tbody>{ours}</tbody>"
    for title, kind in groups.items():
        rows: dict[str, tuple[Mapping[str, float], str]] = {}
        for run in runs:
            for label, scores in getattr(run.evaluation, kind).items():
                known = rows.setdefault(label, (scores, _of(run)))
                if known != (scores, _of(run)):
                    rows[f"{label} ({run.name})"] = (scores, _of(run))
        lines = "".join(_row(label, scores, names, (escape(of), "–", "–")) for label, (scores, of) in rows.items())
        if lines:
            top = f'<tr><th scope="rowgroup" colspan="{len(head)}">{title}</th></tr>'
            body += f'<tbody class="group minor">{top}{lines}</tbody>'
    intro = (
        "MAE is the mean absolute error, RMSE the root mean square one, in the unit of the property."
        if "mae" in names
        else "Accuracy is the share of samples whose most probable class is the right one."
    )
    return section("Results", table(head, body), intro)


def _row(name: str, scores: Mapping[str, float], names: Sequence[str], rest: Sequence[str], mark: str = "") -> str:
    cells = [f"<td>{_score(n, scores[n]) if n in scores else '–'}</td>" for n in names]
    return f'<tr><th scope="row">{mark}{escape(name)}</th>{"".join([*cells, *(f"<td>{r}</td>" for r in rest)])}</tr>'


def _learning(runs: Sequence[PropertyRun]) -> str:
    charts = []
    for key in dict.fromkeys(key for run in runs for key in run.metrics if key != "epoch"):
        series = [
            Series(run.name, run.metrics["epoch"], run.metrics[key], run_style(k))
            for k, run in enumerate(runs)
            if key in run.metrics
        ]
        words = {"train_loss": "training loss", "val_mae": "validation MAE", "val_loss": "validation cross-entropy"}
        label = words.get(key, key.replace("val_", "validation "))
        unit = f", {runs[0].evaluation.unit}" if key == "val_mae" and runs[0].evaluation.unit else ""
        title = label[0].upper() + label[1:]
        charts.append(
            line_chart(title, series, x_label="epoch", y_label=label + unit, log_y=not key.endswith("accuracy"))
        )
    charts = [*charts[1:], *charts[:1]]  # the training loss last
    body = "".join(charts)
    return section("Learning", f'<div class="pair">{body}</div>' if body else "", "How the errors fell while training.")


def _parity(runs: Sequence[PropertyRun]) -> str:
    plots = [
        parity_plot(f"{run.name}: {_of(run)}", run.true, run.predicted, run_style(k))
        for k, run in enumerate(runs)
        if not run.evaluation.classes
    ]
    body = "".join(plots)
    intro = "Each dot is a test sample. On the diagonal the prediction is exact."
    return section("Predicted against true", f'<div class="squares">{body}</div>' if body else "", intro)


def _confusion(runs: Sequence[PropertyRun]) -> str:
    body = ""
    for run in (run for run in runs if run.evaluation.classes):
        classes = run.evaluation.classes
        counts = np.zeros((len(classes), len(classes)), dtype=int)
        np.add.at(counts, (run.true.astype(int), run.predicted.argmax(1)), 1)
        rows = ""
        for k, name in enumerate(classes):
            cells = "".join(
                f"<td{' class=best' if j == k else ''}>{count(n) if n else '·'}</td>" for j, n in enumerate(counts[k])
            )
            rows += f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>'
        title = f"<h3>{escape(run.name)}</h3>" if len(runs) > 1 else ""
        body += title + table(["true", *map(escape, classes)], f"<tbody>{rows}</tbody>")
    intro = "Test samples by their true class (rows) and the class they were taken for (columns)."
    return section("What is taken for what", body, intro)


SECTIONS: tuple[Callable[[Any], str], ...] = (
    _header,
    _results,
    _learning,
    _parity,
    _confusion,
    symmetry,
    configuration,
    making,
    citations,
)
