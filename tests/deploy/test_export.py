"""Exported programs equal the model, for any sizes, and need nothing of this library."""

import os
import subprocess
import sys

import pytest
import torch

from equidyn.cli import main
from equidyn.core.errors import InputError
from equidyn.deploy import load_potential
from equidyn.deploy.export import Program, compare, example, export, trace


def test_static_form_equals_the_model(run):
    potential = load_potential(run)
    assert compare(potential, Program(potential)) < 1e-13


# Tracing and compiling take a minute or more of processor time.
slow = pytest.mark.skipif(not os.environ.get("EQUIDYN_TEST_EXPORT"), reason="slow: set EQUIDYN_TEST_EXPORT=1")


@slow
def test_graph_is_open_in_its_sizes(mace_run):
    potential = load_potential(mace_run)
    program = trace(potential)
    for seed in (1, 2):  # other numbers of atoms and edges than it was traced with
        assert compare(potential, program.module(), seed) < 1e-13


def test_wrong_name(potential, tmp_path):
    with pytest.raises(InputError, match=r"ends in \.pt2"):
        export(potential, tmp_path / "potential.pt")


CODE = """
import sys, torch
inputs, expected = torch.load(sys.argv[2])
out = torch._inductor.aoti_load_package(sys.argv[1])(*inputs)
assert not any(name.startswith(("equidyn", "e3nn", "ase")) for name in sys.modules)
print(max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(out, expected)))
"""


@slow
@pytest.mark.skipif(sys.platform != "linux", reason="compiles C++, tried on Linux only")
def test_file_runs_without_this_library(mace_run, tmp_path, capsys):
    path, potential = tmp_path / "potential.pt2", load_potential(mace_run)
    assert main(["export", str(mace_run), "--out", str(path)]) == 0
    assert "equal to the model within" in capsys.readouterr().out
    inputs = example(potential, seed=5)
    torch.save((inputs, Program(potential)(*inputs)), tmp_path / "inputs.pt")
    (tmp_path / "alone.py").write_text(CODE)
    done = subprocess.run(
        [sys.executable, "-I", tmp_path / "alone.py", path, tmp_path / "inputs.pt"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 1e-10
