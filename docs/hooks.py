"""What the pages take from the package itself, so that they cannot disagree with it; and equations as MathML.

A page says `<!-- table: fields -->`, `<!-- table: systems -->`, `<!-- table: train -->`, `<!-- help: simulate -->` or
`<!-- cite: egno -->`; equations stand between `$$` on lines of their own, or between `$` in a line.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import os
import re
from dataclasses import fields
from typing import Any
from unittest import mock

from latex2mathml.converter import convert

from equidyn.cli import main
from equidyn.core.fields import FIELDS
from equidyn.models import SYSTEMS
from equidyn.train.recipe import TrainOptions

_equations: list[str] = []


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Fill in the tables, and put marks where equations stand; code stays as it is."""
    _equations.clear()
    parts = re.split(r"(^```.*?^```$|`[^`\n]+`)", markdown, flags=re.S | re.M)
    return "".join(part if number % 2 else _mark(_fill(part)) for number, part in enumerate(parts))


def on_page_content(html: str, **_: Any) -> str:
    """Put the equations in their places: Markdown would take each for a paragraph of its own."""
    return re.sub(r"@equation(\d+)@", lambda m: _equations[int(m[1])], html)


def _fill(text: str) -> str:
    make = {"table": lambda name: TABLES[name](), "help": _help, "cite": _cite}
    return re.sub(r"<!-- (table|help|cite): (\w*) ?-->", lambda m: make[m[1]](m[2]), text)


def _mark(text: str) -> str:
    def mark(latex: str, display: str) -> str:
        _equations.append(convert(latex, display=display))
        return f"@equation{len(_equations) - 1}@"

    text = re.sub(r"^\$\$\n(.+?)\n\$\$$", lambda m: mark(m[1], "block"), text, flags=re.S | re.M)
    return re.sub(r"\$([^$\n]+)\$", lambda m: mark(m[1], "inline"), text)


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ("---",) * len(head), *rows])


def field_table() -> str:
    """All fields of a sample."""
    rows = [(f"`{f.name}`", f"`{f.shape}`", f.unit or "–", f.transforms, f.meaning) for f in FIELDS.values()]
    return _table(("field", "shape", "unit", "transforms as", "meaning"), rows)


def system_table() -> str:
    """The catalogue."""
    names = lambda words: ", ".join(f"`{word}`" for word in words)  # noqa: E731
    rows = [
        (
            f"[`{e.name}`](systems/{e.name}.md)",
            e.title,
            e.symmetry,
            names(e.needs),
            names(e.gives),
            f"[{e.citation.year}](https://arxiv.org/abs/{e.citation.arxiv})",
        )
        for e in SYSTEMS.values()
    ]
    return _table(("system", "", "symmetry", "needs", "gives", "paper"), rows)


def train_table() -> str:
    """Keys of the section `train` of a recipe, with their defaults and what the docstring says of them."""
    text = inspect.getdoc(TrainOptions).split("Attributes:\n")[1]
    meaning = dict(re.findall(r"^    (\w+): (.*?)(?=^    \w+:|\Z)", text, flags=re.S | re.M))
    rows = [(f"`{f.name}`", f"`{f.default}`", " ".join(meaning[f.name].split())) for f in fields(TrainOptions)]
    return _table(("key", "default", "meaning"), rows)


TABLES = {"fields": field_table, "systems": system_table, "train": train_table}


def _help(verb: str) -> str:
    text = io.StringIO()
    wide = mock.patch.dict(os.environ, {"COLUMNS": "90", "NO_COLOR": "1"})
    with wide, contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        main([*filter(None, [verb]), "--help"])
    return f"```text\n{text.getvalue().rstrip()}\n```"


def _cite(system: str) -> str:
    return f"```bibtex\n{SYSTEMS[system].citation.bibtex()}\n```"
