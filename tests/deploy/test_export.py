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
from equidyn.deploy.potential import Potential
from equidyn.models.nequip import NequIP, NequIPOptions

LIMIT = {"float64": 1e-13, "float32": 1e-4}


@pytest.mark.parametrize("dtype", LIMIT)
def test_program_equals_the_model(run, dtype):
    potential = load_potential(run, dtype=dtype)
    assert compare(potential, Program(potential)) < LIMIT[dtype]


# Compiling takes a minute or more of processor time.
slow = pytest.mark.skipif(not os.environ.get("EQUIDYN_TEST_EXPORT"), reason="slow: set EQUIDYN_TEST_EXPORT=1")


@pytest.mark.parametrize("dtype", ["float64", pytest.param("float32", marks=slow)])
def test_graph_is_open_in_its_sizes(run, dtype):
    potential = load_potential(run, dtype=dtype)
    program = trace(potential)
    assert not any("equidyn" in str(node.target) for node in program.graph.nodes)
    for seed in (1, 2):  # other numbers of atoms, edges, structures and elements than it was traced with
        assert compare(potential, program.module(), seed) < LIMIT[dtype]


def test_graph_fields_are_refused():
    options = NequIPOptions(graph_fields={"total_charge": (-1, 1, 4)})
    potential = Potential(NequIP(["H"], num_layers=1, num_features=2, options=options))
    with pytest.raises(InputError, match="total_charge"):
        Program(potential)


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
