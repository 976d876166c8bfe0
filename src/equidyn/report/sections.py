"""The sections of the page, from top to bottom; each is empty where the runs hold nothing to show."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

import equidyn
from equidyn.report.figures import Series, line_chart, parity_plot
from equidyn.report.runs import DRIFTS, Floats, Run, Score, UnseenTimes
from equidyn.report.scene import scene_data
from equidyn.report.text import count, duration, escape, factor, json_block, number

RUN_STYLES, BASELINE_STYLES = 6, 3  # classes of the style sheet

# Relative errors up to these are rounding, not broken symmetry.
ROUNDING = {"float64": 1e-8, "float32": 1e-4, "float16": 5e-2, "bfloat16": 1e-1}


def section(title: str, body: str, intro: str = "") -> str:
    """A section of the page, or nothing where there is nothing to show. `body` and `intro` are HTML."""
    if not body:
        return ""
    return f"<section><h2>{escape(title)}</h2>{f'<p>{intro}</p>' if intro else ''}{body}</section>"


def table(head: Iterable[str], groups: str) -> str:
    """A table that scrolls by itself; `head` and `groups` are HTML."""
    cells = "".join(f'<th scope="col">{name}</th>' for name in head)
    return f'<div class="scroll"><table><thead><tr>{cells}</tr></thead>{groups}</table></div>'


def run_style(index: int) -> str:
    """The colour of the k-th run."""
    return f"run-{index % RUN_STYLES}"


def _baseline_style(index: int) -> tuple[str, str]:
    return f"base-{index % BASELINE_STYLES}", ("dashed", "dotted")[index % 2]


# ---- Headline -------------------------------------------------------------------------------------------------------


def page_title(runs: Sequence[Any]) -> str:
    """The runs, as a title names them."""
    names = [run.name for run in runs]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _best(runs: Sequence[Run]) -> Run:
    return min(runs, key=lambda run: _rank(run.evaluation.score.f_mse))


def _rank(value: float) -> float:
    return value if math.isfinite(value) else math.inf


def _reference(run: Run) -> tuple[str, Score] | None:
    """The strongest baseline: being better than this one means something."""
    usable = [(name, score) for name, score in run.evaluation.baselines.items() if score.f_mse > 0]
    return min(usable, key=lambda item: _rank(item[1].f_mse), default=None)


def _comparison(ours: float, theirs: float) -> str:
    if not (math.isfinite(ours) and math.isfinite(theirs) and ours > 0 and theirs > 0):
        return ""
    return f"{factor(theirs / ours)} times less" if ours <= theirs else f"{factor(ours / theirs)} times more"


def _header(runs: Sequence[Run]) -> str:
    now = datetime.now()
    lead = [_lead(runs), _lead_others(runs), _lead_cost(_best(runs)), _lead_symmetry(_best(runs))]
    return (
        f'<header><p class="eyebrow">Equidyn report, {now.day} {now:%B %Y}</p><h1>{escape(page_title(runs))}</h1>'
        f'<p class="lead">{escape(" ".join(filter(None, lead)))}</p></header>{_facts(_best(runs))}'
    )


def _lead(runs: Sequence[Run]) -> str:
    best = _best(runs)
    result, reference = best.evaluation, _reference(best)
    samples = f"{count(result.samples)} " if result.samples is not None else ""
    compared = _comparison(result.score.f_mse, reference[1].f_mse) if reference else ""
    against = f" ({compared} than the best simple baseline, {reference[0]})" if reference and compared else ""
    trajectory = "" if result.one_time else f" and {number(result.score.a_mse)} over the whole trajectory"
    return (
        f"{best.name} predicts how {count(best.predictions.initial.shape[1])} particles move. On {samples}"
        f"{result.split} samples its mean squared error is {number(result.score.f_mse)} at the last time "
        f"point{against}{trajectory}."
    )


def _lead_cost(run: Run) -> str:
    result = run.evaluation
    size = f"{run.name} has {count(result.parameters)} parameters" if result.parameters is not None else ""
    spent = f"was trained for {duration(result.seconds_train)}" if result.seconds_train is not None else ""
    if size and spent:
        return f"{size} and {spent}."
    return f"{size}." if size else f"{run.name} {spent}." if spent else ""


def _lead_others(runs: Sequence[Run]) -> str:
    best = _best(runs)
    others = [f"{run.name} reaches {number(run.evaluation.score.f_mse)}" for run in runs if run is not best]
    return f"At the last time point {', '.join(others)}." if others else ""


def _lead_symmetry(run: Run) -> str:
    errors = run.evaluation.symmetry
    if not errors:
        return ""
    worst = max(errors.values(), key=_rank)
    if worst <= _rounding(run):
        return f"The symmetries of {run.name} hold to rounding."
    return f"{run.name} violates a symmetry by up to {number(worst)}, more than rounding explains."


def _facts(run: Run) -> str:
    result, reference = run.evaluation, _reference(run)
    facts = [("F-MSE", number(result.score.f_mse), "last time point")]
    if not result.one_time:
        facts.append(("A-MSE", number(result.score.a_mse), "all time points"))
    if reference and 0 < result.score.f_mse < math.inf:
        ratio = reference[1].f_mse / result.score.f_mse
        facts.append(("Error reduction", f"{factor(ratio)}×", f"against {reference[0]}"))
    if result.parameters is not None:
        facts.append(("Parameters", count(result.parameters), result.system))
    if result.seconds_train is not None:
        step = f"{duration(result.seconds_per_step)} per step" if result.seconds_per_step is not None else ""
        facts.append(("Training time", duration(result.seconds_train), step))
    return fact_list(run.name, facts)


def fact_list(run: str, facts: Iterable[tuple[str, str, str]]) -> str:
    """The numbers of a run at the top of its page: name, value and note of each."""
    items = (
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}<small>{escape(note)}</small></dd></div>"
        for name, value, note in facts
    )
    return f'<dl class="facts" aria-label="{escape(run)} in numbers">{"".join(items)}</dl>'


# ---- Animation ------------------------------------------------------------------------------------------------------

SCENE = """
<div class="scene" id="scene" data-frames="0" data-state="paused">
  <div class="stage">
    <canvas data-part="stage" tabindex="0" role="img" aria-label="Three-dimensional animation of true and predicted
 trajectories. Arrow keys turn the view, plus and minus zoom, space plays and pauses."></canvas>
    <dl class="readout"><dt>time</dt><dd data-part="clock"></dd><dt>error</dt><dd data-part="error"></dd>
      <dt>grid</dt><dd data-part="grid"></dd></dl>
    <p class="hint">Drag to turn, click and scroll to zoom, space to play</p>
  </div>
  <ul class="legend">$legend</ul>
  <div class="timeline">
    <canvas data-part="strip" aria-hidden="true"></canvas>
    <input type="range" data-part="time" aria-label="Time">
  </div>
  <div class="controls">
    <button type="button" class="play" data-part="play">Play</button>
    <label>Run <select data-part="run"></select></label>
    <label>Sample <select data-part="sample"></select></label>
    <label>Speed <select data-part="speed"><option value="0.25">0.25×</option><option value="0.5">0.5×</option>
      <option value="1" selected>1×</option><option value="2">2×</option></select></label>
    <button type="button" data-part="reset">Reset view</button>
  </div>
</div>"""


def _animation(runs: Sequence[Run]) -> str:
    legend = "".join(f'<li class="{style}">{swatch}<span>{name}</span></li>' for style, swatch, name in _keys(runs))
    intro = (
        "Solid spheres and lines are the truth, dashed ghosts the prediction from the initial state alone. The error "
        "is the mean squared error of this sample at the recorded time nearest to the clock; the curve over the slider "
        "shows it on a logarithmic scale. Between recorded times the paths are interpolated smoothly."
    )
    body = Template(SCENE).substitute(legend=legend) + json_block(scene_data(runs), identifier="scene-data")
    return section("Predicted and true trajectories", body, intro)


def _keys(runs: Sequence[Run]) -> Iterator[tuple[str, str, str]]:
    ball = '<span class="ball"></span>'
    given = [run.predictions.charge.ravel() for run in runs if run.predictions.charge is not None]
    charges = np.concatenate(given) if given else np.zeros(0)
    kinds = (("positive", charges > 0), ("negative", charges < 0), ("neutral", charges == 0))
    for name, present in kinds:
        if present.any():
            yield name, ball, f"{name} charge" if name != "neutral" else "no charge"
    if not charges.size:
        yield "neutral", ball, "true position"
    yield "neutral", '<span class="ghost"></span>', "predicted position"
    line = (
        '<svg viewBox="0 0 26 12" width="26" height="12" aria-hidden="true"><path class="line {}" d="M1 6H25"/></svg>'
    )
    yield "neutral", line.format("solid"), "true path"
    yield "neutral", line.format("dashed"), "predicted path"


# ---- Results --------------------------------------------------------------------------------------------------------


def _results(runs: Sequence[Run]) -> str:
    baselines, published = _shared_scores(runs, "baselines"), _shared_scores(runs, "published")
    scores = [*(run.evaluation.score for run in runs), *baselines.values(), *published.values()]
    least = [min(_rank(score.f_mse) for score in scores), min(_rank(score.a_mse) for score in scores)]
    reference = _reference(_best(runs))
    versus = f"F-MSE against {escape(reference[0])}" if reference else "relative F-MSE"
    head = ["", "F-MSE", "A-MSE", versus, "parameters", "training time"]
    ours = "".join(_run_row(run, run_style(k), least) for k, run in enumerate(runs))
    simple = "".join(_row(name, score, least, _ratio(score, reference)) for name, score in baselines.items())
    known = "".join(_row(name, score, least, unknown="–") for name, score in published.items())
    body = table(
        head,
        f"<tbody>{ours}</tbody>"
        + _row_group("Simple baselines, on the same samples", simple, len(head))
        + _row_group("Published, as reported by their authors", known, len(head)),
    )
    note = '<p class="note">Smaller is better; the smallest error of each column is bold.</p>'
    intro = (
        "F-MSE is the mean squared error of the positions at the last time point, A-MSE its mean over all time points, "
        f"both on {_samples(runs)}."
    )
    return section("Results", body + note, intro)


def _row(name: str, score: Score, least: Sequence[float], *columns: str, unknown: str = "not finite") -> str:
    """`columns` are the cells after the two errors; `unknown` stands for an error that is not a number."""
    errors = [_error_cell(error, best, unknown) for error, best in zip((score.f_mse, score.a_mse), least, strict=True)]
    rest = [f"<td>{text}</td>" for text in (*columns, "–", "–", "–")[:3]]
    return f'<tr><th scope="row">{escape(name)}</th>{"".join([*errors, *rest])}</tr>'


def _run_row(run: Run, style: str, least: Sequence[float]) -> str:
    result = run.evaluation
    ratio = _ratio(result.score, _reference(run))
    rest = (ratio, count(result.parameters), duration(result.seconds_train))
    row = _row(run.name, result.score, least, *rest, unknown="–" if result.one_time else "not finite")
    return row.replace('<th scope="row">', f'<th scope="row"><span class="key {style}"></span>', 1)


def _row_group(title: str, rows: str, width: int) -> str:
    if not rows:
        return ""
    head = f'<tr><th scope="rowgroup" colspan="{width}">{title}</th></tr>'
    return f'<tbody class="group minor">{head}{rows}</tbody>'


def _samples(runs: Sequence[Run]) -> str:
    kinds = {(run.evaluation.samples, run.evaluation.split) for run in runs}
    if len(kinds) > 1:
        return "the samples of each run's own evaluation"
    samples, split = kinds.pop()
    return f"{count(samples)} {escape(split)} samples" if samples is not None else f"the {escape(split)} samples"


def _error_cell(value: float, least: float, unknown: str) -> str:
    """Equal to the digits shown is equal."""
    if math.isnan(value):
        return f"<td>{unknown}</td>"
    best = ' class="best"' if math.isfinite(value) and number(value) == number(least) else ""
    return f'<td{best} title="{value!r}">{number(value)}</td>'


def _ratio(score: Score, reference: tuple[str, Score] | None) -> str:
    if reference is None or not math.isfinite(score.f_mse) or not math.isfinite(reference[1].f_mse):
        return "–"
    return f"{score.f_mse / reference[1].f_mse:.3g}×"


def _shared_scores(runs: Sequence[Run], kind: str) -> dict[str, Score]:
    """Baselines or published numbers of all runs, each once; runs that disagree keep theirs under their own name."""
    scores: dict[str, Score] = {}
    for run in runs:
        entries: dict[str, Score] = getattr(run.evaluation, kind)
        for name, score in entries.items():
            known = scores.setdefault(name, score)
            if not np.allclose([known.f_mse, known.a_mse], [score.f_mse, score.a_mse], equal_nan=True):
                scores[f"{name} ({run.name})"] = score
    return scores


# ---- Curves ---------------------------------------------------------------------------------------------------------


def learning(runs: Sequence[Run]) -> str:
    """Errors and losses over the epochs."""
    train, val = [], []
    for k, run in enumerate(runs):
        epoch = run.metrics["epoch"]
        train.append(Series(run.name, epoch, run.metrics["train_loss"], run_style(k)))
        val.append(Series(run.name, epoch, run.metrics["val_f_mse"], run_style(k)))
    charts = (
        line_chart("Validation F-MSE", val, x_label="epoch", y_label="validation F-MSE"),
        line_chart("Training loss", train, x_label="epoch", y_label="training loss"),
    )
    body = "".join(charts)
    intro = "How the error fell while training, on a logarithmic scale."
    return section("Learning", f'<div class="pair">{body}</div>' if body else "", intro)


def _horizon(runs: Sequence[Run]) -> str:
    body = measured_horizon(runs) + _unseen_horizon(runs)
    intro = "How far ahead the prediction holds."
    if any(run.evaluation.unseen for run in runs):
        intro += (
            " Circles at unseen times mark where a model was trained; the line between them is the same model asked, "
            "in one pass, for times it has never seen."
        )
    return section("Error over the horizon", f'<div class="pair">{body}</div>' if body else "", intro)


def measured_horizon(runs: Sequence[Run]) -> str:
    """All runs, and the baselines where they were measured at the same times for all."""
    series = [
        Series(run.name, run.evaluation.times, run.evaluation.score.horizon_mse, run_style(k), markers=True)
        for k, run in enumerate(runs)
    ]
    if len({tuple(run.evaluation.times) for run in runs}) == 1:
        for k, (name, score) in enumerate(_shared_scores(runs, "baselines").items()):
            if score.horizon_mse.size:
                style, line = _baseline_style(k)
                series.append(Series(name, runs[0].evaluation.times, score.horizon_mse, style, line))
    return line_chart("Against the baselines", series, x_label="time", y_label="mean squared error")


def _unseen_horizon(runs: Sequence[Run]) -> str:
    series = []
    for k, run in enumerate(runs):
        if unseen := run.evaluation.unseen:
            error, style = _error_when_trained(run, unseen), run_style(k)
            series.append(Series(f"{run.name}, {unseen.times.size} times", unseen.times, unseen.mse, style))
            series.append(Series("trained times", unseen.trained_at, error, style, line="none", markers=True))
    return line_chart("At unseen times", series, x_label="time", y_label="mean squared error")


def _error_when_trained(run: Run, unseen: UnseenTimes) -> Floats:
    """Error at the trained times: measured where it was evaluated there, else read off the dense line."""
    result = run.evaluation
    values = np.interp(unseen.trained_at, unseen.times, unseen.mse, left=np.nan, right=np.nan)
    for k, time in enumerate(unseen.trained_at):
        nearest = int(np.argmin(np.abs(result.times - time)))
        if np.isclose(result.times[nearest], time, rtol=1e-4):
            values[k] = result.score.horizon_mse[nearest]
    return values


def _parity(runs: Sequence[Run]) -> str:
    plots = []
    for k, run in enumerate(runs):
        start = run.predictions.initial[:, None]
        true, predicted = (path - start for path in (run.predictions.true, run.predictions.predicted))
        plots.append(parity_plot(run.name, true.ravel(), predicted.ravel(), run_style(k)))
    body = "".join(plots)
    intro = (
        "Each dot is one component (x, y or z) of one particle's displacement from its start, over the samples and "
        "times of the animation. On the diagonal the prediction is exact."
    )
    return section("Predicted against true displacement", f'<div class="squares">{body}</div>' if body else "", intro)


# ---- Physics --------------------------------------------------------------------------------------------------------


def _rounding(run: Run) -> float:
    return ROUNDING.get(run.evaluation.symmetry_dtype, ROUNDING["float32"])


def symmetry(runs: Sequence[Run]) -> str:
    """What the symmetry checks measured."""
    measured = [(k, run) for k, run in enumerate(runs) if run.evaluation.symmetry]
    if not measured:
        return ""
    checks = list(dict.fromkeys(check for _, run in measured for check in run.evaluation.symmetry))
    head = [
        "",
        *(
            f'<span class="key {run_style(k)}"></span>{escape(run.name)}, {escape(run.evaluation.symmetry_dtype)}'
            for k, run in measured
        ),
    ]
    rows = "".join(
        f'<tr><th scope="row">{escape(check)}</th>{"".join(_symmetry_cell(run, check) for _, run in measured)}</tr>'
        for check in checks
    )
    intro = (
        "Each number compares two ways to the same answer: transform the input and predict, or predict and transform "
        "the output; it is the largest relative difference found. Values at the level of rounding mean that the model "
        "obeys the symmetry exactly, by construction, and need not learn it from data. Batching compares a sample "
        "predicted alone with the same sample among others."
    )
    return section("Measured symmetry", table(head, f"<tbody>{rows}</tbody>"), intro)


def _symmetry_cell(run: Run, check: str) -> str:
    value = run.evaluation.symmetry.get(check)
    if value is None:
        return "<td>–</td>"
    holds = value <= _rounding(run)
    verdict = '<span class="badge">rounding</span>' if holds else '<span class="badge fails">above rounding</span>'
    return f"<td>{number(value)} {verdict}</td>"


def _drift(runs: Sequence[Run]) -> str:
    charts = [_drift_chart(runs, quantity) for quantity in ("energy", "momentum")]
    body = "".join(charts)
    intro = "What physics conserves, along the predicted trajectories and along the true ones."
    return section("Drift of conserved quantities", f'<div class="pair">{body}</div>' if body else "", intro)


def _drift_chart(runs: Sequence[Run], quantity: str) -> str:
    series: list[Series] = []
    truths: list[Floats] = []
    for k, run in enumerate(runs):
        drift = run.evaluation.drift
        times = drift.get("times", run.evaluation.times)
        if quantity in drift:
            series.append(Series(run.name, times, drift[quantity], run_style(k), markers="times" not in drift))
        true = drift.get(f"{quantity}_true")
        if true is not None and not any(np.array_equal(true, known, equal_nan=True) for known in truths):
            truths.append(true)
            name = "truth" if len(truths) == 1 else f"truth ({run.name})"
            style, line = _baseline_style(len(truths) - 1)
            series.append(Series(name, times, true, style, line))
    values = np.concatenate([s.y[np.isfinite(s.y)] for s in series] or [np.zeros(0)])
    wide = bool(values.size and values.min() > 0 and values.max() > 30 * values.min())
    return line_chart(f"Drift of {quantity}", series, x_label="time", y_label=f"{quantity} drift", log_y=wide)


# ---- Beyond one window and one model ---------------------------------------------------------------------------------


def _rolled(runs: Sequence[Run]) -> str:
    known = [(k, run.name, found) for k, run in enumerate(runs) if (found := run.evaluation.rolled)]
    series = [Series(name, found.times, found.mse, run_style(k), markers=True) for k, name, found in known]
    for _, _, found in known[:1]:
        for k, (name, error) in enumerate(found.baselines.items()):
            style, line = _baseline_style(k)
            series.append(Series(name, found.times, error, style, line))
    charts = [line_chart("Error over several windows", series, x_label="time", y_label="mean squared error")]
    for quantity in DRIFTS:
        lines = [
            Series(name, found.times, found.drift[quantity], run_style(k))
            for k, name, found in known
            if quantity in found.drift
        ]
        true = f"{quantity}_true"
        for _, _, found in known[:1]:
            if true in found.drift:
                style, line = _baseline_style(1)
                lines.append(Series("truth", found.times, found.drift[true], style, line))
        what = "relative drift of the bone lengths" if quantity == "bonds" else f"{quantity} drift"
        charts.append(line_chart(f"Drift of {quantity}, rolled", lines, x_label="time", y_label=what))
    body = "".join(charts)
    notes = "".join(
        f"<li>{escape(name)}: {count(found.windows)} windows, velocities {escape(found.velocities)}</li>"
        for _, name, found in known
    )
    intro = (
        "The state at the end of each window is the input of the next; errors add up from here. Drifts are medians "
        "over samples."
    )
    return section("Beyond the window", f'<div class="pair">{body}</div><ul>{notes}</ul>' if body else "", intro)


def _uncertainty(runs: Sequence[Run]) -> str:
    known = [(k, run.name, found) for k, run in enumerate(runs) for found in run.evaluation.calibration]
    if not known:
        return ""
    names = [f"{name}, {found.method}" for _, name, found in known]
    styles = [run_style(k) for k in range(len(known))]
    error, cover = (
        [
            Series(name, getattr(found, x), getattr(found, y), style, markers=True)
            for name, style, (_, _, found) in zip(names, styles, known, strict=True)
        ]
        for x, y in (("predicted", "true"), ("levels", "coverage"))
    )
    span = np.array([f(np.concatenate([s.x for s in error])) for f in (np.min, np.max)])
    for lines, ends in ((error, span), (cover, np.array([0.0, 1.0]))):
        lines.append(Series("ideal", ends, ends, *_baseline_style(0)))
    charts = (
        line_chart("Predicted and true error", error, x_label="predicted", y_label="true, root mean square"),
        line_chart("Coverage", cover, x_label="promised share", y_label="measured share", log_y=False),
    )
    notes = "".join(
        f"<li>{escape(name)}: rank correlation with the error {number(found.rank_correlation)}, "
        f"factor {number(found.factor)}</li>"
        for name, (_, _, found) in zip(names, known, strict=True)
    )
    intro = (
        "Left, each point holds a tenth of all nodes and times, by predicted uncertainty. Right, the share of "
        "coordinates whose error stays within the interval that is to hold the promised share of normal errors. One "
        "factor per method was fitted to half of the validation errors; all points are test samples."
    )
    return section("Uncertainty", f'<div class="pair">{"".join(charts)}</div><ul>{notes}</ul>', intro)


# ---- How it was made ------------------------------------------------------------------------------------------------


def configuration(runs: Sequence[Run]) -> str:
    """The recipes."""
    body = "".join(
        f"<details><summary>{escape(run.name)}</summary><pre tabindex='0'>{escape(run.config.strip())}</pre></details>"
        for run in runs
    )
    return section("Configuration", body, "Everything a run was made from.")


def making(runs: Sequence[Run]) -> str:
    """Machine, version, and the commands that make the runs again."""
    machines = dict.fromkeys(run.evaluation.machine for run in runs if run.evaluation.machine)
    rows = [("Machine", machine) for machine in machines]
    rows += [("Equidyn", equidyn.__version__), ("Report written", f"{datetime.now().astimezone():%Y-%m-%d %H:%M %Z}")]
    facts = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in rows)
    commands = "\n".join(f"equidyn train {shlex.quote(_config_path(run))}" for run in runs)
    body = f'<dl class="made">{facts}</dl><h3>Run it again</h3><pre tabindex="0">{escape(commands)}</pre>'
    return section("Reproduce", body)


def _config_path(run: Run) -> str:
    """The configuration as seen from beside the folder of runs; nobody's home folder belongs in a shared page."""
    folder = run.folder.resolve()
    return (Path(folder.parent.name) / folder.name / "config.yaml").as_posix()


def citations(runs: Sequence[Run]) -> str:
    """The papers."""
    entries = dict.fromkeys(run.evaluation.citation.strip() for run in runs if run.evaluation.citation.strip())
    body = "".join(f"<pre tabindex='0'>{escape(entry)}</pre>" for entry in entries)
    return section("Cite", body)


SECTIONS: tuple[Callable[[Sequence[Run]], str], ...] = (
    _header,
    _animation,
    _results,
    learning,
    _horizon,
    _parity,
    symmetry,
    _drift,
    _rolled,
    _uncertainty,
    configuration,
    making,
    citations,
)
