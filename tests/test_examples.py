"""The numbered examples run, in order, as a user runs them (with small numbers where they take some)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(folder: Path, name: str, *arguments: str) -> str:
    """What an example prints."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *arguments],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where example 01 has run."""
    path = tmp_path_factory.mktemp("examples")
    out = run(path, "01_simulate_and_train.py", "--samples", "120", "--epochs", "5")
    assert "EGNO" in out
    assert "ballistic" in out
    return path


def test_query_any_time(folder):
    out = run(folder, "02_query_any_time.py")
    assert out.count("trained") == 5
    difference = float(out.split("largest difference")[1])
    assert difference < 1e-4


def test_conformance_of_your_own_model(tmp_path):
    out = run(tmp_path, "03_conformance_of_your_own_model.py")
    good, bad, line = out.split("\n\n")
    assert "FAILED" not in good
    assert [row.split()[0] for row in bad.splitlines() if "FAILED" in row] == ["rotation", "reflection"]
    assert "rotation" in line


def test_predict_and_report(folder):
    out = run(folder, "04_predict_and_report.py")
    assert "(20, 4, 5, 3)" in out
    assert (folder / "example" / "report.html").stat().st_size > 10_000


def test_use_a_potential(tmp_path):
    out = run(tmp_path, "05_use_a_potential.py", "--steps", "60")
    assert 3.4 < float(out.split("relaxed lattice constant")[1].split()[0]) < 3.9
    assert float(out.split("varied by")[1].split()[0]) < 1.0
    assert (tmp_path / "example" / "copper" / "model.safetensors").exists()


def test_every_example_is_tested():
    tested = Path(__file__).read_text(encoding="utf-8")
    names = [path.name for path in EXAMPLES.glob("*.py")]
    assert len(names) >= 5
    assert all(name in tested for name in names)
