"""The documentation builds without a warning, and its code runs."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from equidyn.core.fields import FIELDS
from equidyn.data import NBody
from equidyn.data.trajectories import read_trajectories
from equidyn.models import SYSTEMS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


def blocks(page: str) -> list[str]:
    """Python code of a page."""
    return re.findall(r"^```python\n(.*?)^```", (DOCS / page).read_text(encoding="utf-8"), flags=re.S | re.M)


def run(code: str) -> dict:
    """The names that a piece of code leaves."""
    names: dict = {"__name__": "docs"}
    exec(code, names)
    return names


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built pages."""
    for tool in ("mkdocs", "material", "mkdocstrings", "latex2mathml"):
        if importlib.util.find_spec(tool) is None:
            pytest.skip(f"{tool} is not installed (extra docs)")
    out = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(out)],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def test_tables_come_from_the_package(site):
    data = (site / "data.html").read_text(encoding="utf-8")
    assert all(
        f"<code>{name}</code>" in data and f"<code>{field.shape}</code>" in data for name, field in FIELDS.items()
    )
    assert "velocity_weight" in (site / "cli.html").read_text(encoding="utf-8")
    assert all(entry.title in (site / "choose.html").read_text(encoding="utf-8") for entry in SYSTEMS.values())


def test_every_system_has_a_page(site):
    for name, entry in SYSTEMS.items():
        page = (site / "systems" / f"{name}.html").read_text(encoding="utf-8")
        assert entry.citation.key in page
        assert "<math" in page


def test_nothing_is_left_unfilled(site):
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert not re.search(r"@equation\d|<!-- (table|help|cite)", text), page


def test_pages_load_nothing_from_elsewhere(site):
    for page in site.rglob("*.html"):
        found = re.findall(
            r"<(?:script|link|img)[^>]*(?:src|href)=\"?(https?:[^\" >]*)", page.read_text(encoding="utf-8")
        )
        assert not found, (page, found)


def test_own_trajectories(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(blocks("data.md")[0])
    assert read_trajectories("mine.npz").positions.shape == (100, 41, 8, 3)


def test_benchmark_made_anew(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = blocks("data.md")[1]
    assert code.count("3000, seed") == 1
    assert code.count("2000, seed") == 2
    run(re.sub(r"[23]000, seed", "4, seed", code))
    official = np.load(ROOT / "tests" / "golden" / "nbody" / "official_frames.npz")
    part = NBody("benchmark.npz", train=4, val=4, test=4).part("val")
    assert part.trajectory.shape == (4, 5, 5, 3)
    error = np.abs(part.pos.numpy() - official["val_pos"][:4, 30]).max(axis=(1, 2))
    assert np.median(error) < 1e-6


def test_added_system():
    """The file of the guide is a system that conforms, by the test of the guide."""
    system, _, test = blocks("add-a-system.md")
    names = run(system)
    exec(re.sub(r"^from equidyn.models.mine.*\n", "", test, flags=re.M), names)
    for dtype in (torch.float32, torch.float64):
        names["test_conforms"](dtype)


def test_conformance_page():
    run(blocks("conformance.md")[0])
