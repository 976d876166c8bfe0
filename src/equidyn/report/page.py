"""The report: from finished run folders to one HTML file that opens offline."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from string import Template

import numpy as np

from equidyn.core.errors import InputError
from equidyn.report import potential, property, sections
from equidyn.report.potential import read_potential
from equidyn.report.property import read_property
from equidyn.report.runs import read_run, read_runs, task_of
from equidyn.report.text import escape

_PAGES = {  # by task: what reads a run folder, and the sections
    "classification": (read_property, property.SECTIONS),
    "potential": (read_potential, potential.SECTIONS),
    "property": (read_property, property.SECTIONS),
    "trajectory": (read_run, sections.SECTIONS),
}


def write_report(run_folders: Sequence[Path], out: Path) -> Path:
    """Turns finished runs into one self-contained HTML page.

    Args:
        run_folders: folders with `config.yaml`, `metrics.csv`, `evaluation.json` and `predictions.npz`.
        out: the file to write; it appears under this name only when complete.

    Returns:
        The path written.

    Raises:
        InputError: a folder is no finished run, a file in it is missing or corrupt, or `out` cannot be written.
    """
    kinds = {task_of(Path(folder)) for folder in run_folders}
    if len(kinds) > 1:
        raise InputError("runs of different tasks on one page", expected="one task", got=", ".join(sorted(kinds)))
    read, parts = _PAGES[kinds.pop()] if kinds else _PAGES["trajectory"]
    runs = read_runs(run_folders, read)
    with np.errstate(all="ignore"):  # a diverged run may hold anything; the page says so
        body = [section(runs) for section in parts]
    return write_page(sections.page_title(runs), body, out)


def write_page(title: str, body: Sequence[str], out: Path) -> Path:
    """Writes a page of finished sections (HTML) in the style of the report.

    Raises:
        InputError: `out` cannot be written.
    """
    page = _render(title, body)
    out = Path(out)
    partial = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(page, encoding="utf-8")
        os.replace(partial, out)
    except OSError as error:
        raise InputError("cannot write the report", where=out, got=error.strerror or error) from error
    finally:
        if partial.is_file():
            partial.unlink()
    return out


def _render(title: str, body: Sequence[str]) -> str:
    charts, animation = _asset("charts.js"), _asset("animation.js")
    return Template(_asset("template.html")).substitute(
        title=escape(title),
        script_hashes=" ".join(map(_content_hash, (charts, animation))),
        style=_asset("style.css"),
        body="\n".join(filter(None, body)),
        charts=charts,
        animation=animation,
    )


def _asset(name: str) -> str:
    return files("equidyn.report").joinpath(name).read_text(encoding="utf-8")


def _content_hash(script: str) -> str:
    """Lets the browser run our two scripts and nothing else on the page."""
    digest = hashlib.sha256(script.encode("utf-8")).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"
