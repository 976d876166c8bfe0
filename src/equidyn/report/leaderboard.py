"""The leaderboard of a data set as a page: every system, baseline and published number in one order."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from equidyn.report.figures import ranking_chart
from equidyn.report.page import write_page
from equidyn.report.runs import Run, Score, read_runs
from equidyn.report.sections import (
    citations,
    learning,
    making,
    measured_horizon,
    run_style,
    section,
    symmetry,
    table,
)
from equidyn.report.text import count, duration, escape, number


def write_leaderboard(title: str, folders: Sequence[Path], failed: Mapping[str, str], out: Path) -> Path:
    """Write the page.

    Args:
        title: data set and budget.
        folders: evaluated run folders.
        failed: recipes that could not be trained, and why.
        out: file to write.

    Raises:
        InputError: as for `write_report`.
    """
    runs = read_runs(folders)
    body = [
        f'<header><p class="eyebrow">Equidyn leaderboard</p><h1>{escape(title)}</h1></header>',
        _ranking(runs, failed),
        learning(runs),
        section("Error over the horizon", measured_horizon(runs)),
        symmetry(runs),
        making(runs),
        citations(runs),
    ]
    return write_page(title, body, out)


def _others(runs: Sequence[Run], kind: str) -> dict[str, Score]:
    """Baselines or published numbers, each once: with its A-MSE if a run that predicts trajectories has it."""
    found: dict[str, Score] = {}
    for run in runs:
        for name, score in getattr(run.evaluation, kind).items():
            if name not in found or math.isnan(found[name].a_mse):
                found[name] = score
    return found


def _ranking(runs: Sequence[Run], failed: Mapping[str, str]) -> str:
    rows: list[tuple[str, Score, str, str, str, str]] = []
    for k, run in enumerate(runs):
        result = run.evaluation
        rest = (count(result.parameters), duration(result.seconds_train))
        rows.append((run.name, result.score, f"ours, {result.system}", *rest, run_style(k)))
    for kind, what in (("baselines", "baseline"), ("published", "published")):
        rows += [(name, score, what, "–", "–", "base-0") for name, score in _others(runs, kind).items()]
    rows.sort(key=lambda row: row[1].f_mse if math.isfinite(row[1].f_mse) else math.inf)
    body = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{escape(kind)}</td><td>{number(score.f_mse)}</td>'
        f"<td>{number(score.a_mse) if math.isfinite(score.a_mse) else '–'}</td><td>{size}</td><td>{time}</td></tr>"
        for name, score, kind, size, time, _ in rows
    )
    head = ["", "", "F-MSE", "A-MSE", "parameters", "training time"]
    chart = ranking_chart("F-MSE on the test samples", [(name, s.f_mse, style) for name, s, _, _, _, style in rows])
    missing = "".join(f"<li>{escape(name)}: {escape(why)}</li>" for name, why in failed.items())
    note = f"<h3>Not trained</h3><ul>{missing}</ul>" if missing else ""
    intro = (
        "Our runs have all had the same number of epochs, each with the learning rate and schedule of its recipe. "
        "Published numbers are as reported by their authors, at budgets of their own."
    )
    return section("Ranking", table(head, f"<tbody>{body}</tbody>") + chart + note, intro)
