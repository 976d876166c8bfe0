"""`equidyn import`: files of mace-torch, one for each kind of interaction, give what mace-torch gives."""

import importlib.util
import io
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch

from equidyn import Calculator
from equidyn.cli import main
from equidyn.core.errors import InputError
from equidyn.interop.mace_file import import_model, read_model
from equidyn.train import load_model

HERE = Path(__file__).parent
BLOCKS = HERE.parent / "golden" / "mace" / "peer" / "blocks.zip"
KINDS = ("", "Residual", "Density", "DensityResidual", "ResidualNonLinear")


def imported(archive, kind, folder):
    """The run folder of one model of an archive of `mace_peer.py`, and what the peer computed with it."""
    name = f"RealAgnostic{kind}InteractionBlock"
    archive.extract(f"{name}.model", folder)
    results = np.load(io.BytesIO(archive.read(f"{name}.npz")))
    return import_model(folder / f"{name}.model", folder / f"imported{kind}"), results


def compare(path, kind, folder):
    with zipfile.ZipFile(path) as archive:
        run, theirs = imported(archive, kind, folder)
        calculator = Calculator(run)
        for name in ("molecule", "slab", "crystal"):
            atoms = ase.io.read(io.StringIO(archive.read(f"{name}.json").decode()), format="json")
            atoms.calc = calculator
            ours = {"energy": [atoms.get_potential_energy()], "forces": atoms.get_forces()}
            ours["node_energy"] = atoms.get_potential_energies()
            if atoms.cell.rank == 3:  # the peer takes another volume for a slab: the virial has none
                stress = atoms.get_stress(voigt=False)
                ours["virials"] = -stress[None] * atoms.get_volume()
            if name == "crystal":
                ours["stress"] = stress[None]
            for key, value in ours.items():
                right = theirs[f"{name}/{key}"]
                error = np.abs(value - right).max() / np.abs(right).max()
                assert error < 1e-12, (name, key, error)


@pytest.mark.parametrize("kind", KINDS)
def test_equal_to_mace_torch(kind, tmp_path):
    compare(BLOCKS, kind, tmp_path)


def test_equal_to_mace_torch_run_now(tmp_path):
    """The same with models that the peer makes now: needs a Python that has mace-torch (EQUIDYN_MACE_PYTHON)."""
    python = os.environ.get("EQUIDYN_MACE_PYTHON")
    if not python and importlib.util.find_spec("mace") is None:
        pytest.skip("mace-torch is not installed and EQUIDYN_MACE_PYTHON names no Python that has it")
    subprocess.run([python or sys.executable, HERE / "mace_peer.py", tmp_path / "now.zip"], check=True)
    for kind in KINDS:
        compare(tmp_path / "now.zip", kind, tmp_path)


def test_the_contraction_is_folded(tmp_path):
    """Of 1 + 4 + 23 and 1 + 6 + 51 coupling trees, those that differ remain: the file has weights for all of them."""
    with zipfile.ZipFile(BLOCKS) as archive:
        run, _ = imported(archive, "Residual", tmp_path)
        theirs = (tmp_path / "RealAgnosticResidualInteractionBlock.model").stat().st_size
    product = load_model(run).model.layers[0].product
    assert product.weight.shape == (3, 1 + 4 + 8 + 1 + 3 + 12, 4)
    assert (run / "model.safetensors").stat().st_size < theirs / 50


def test_what_is_written_is_what_was_read(tmp_path):
    model, run = read_model(BLOCKS.parent / "soft.model"), import_model(BLOCKS.parent / "soft.model", tmp_path / "run")
    trained = load_model(run)
    assert trained.info["imported_from"] == "soft.model"
    assert trained.model.reference.atoms.like(torch.zeros(1).double()).tolist() == [[-1.5, -7.0, -11.0]]
    for name, value in trained.model.state_dict().items():
        assert value.dtype == torch.float64
        assert torch.equal(value, model.state_dict()[name])
    with pytest.raises(InputError, match="a model is there already"):
        import_model(BLOCKS.parent / "soft.model", tmp_path / "run")


def test_verb(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["import", str(BLOCKS.parent / "soft.model")]) == 0
    assert capsys.readouterr().out == "run folder: runs/soft\n"
    assert main(["import", str(BLOCKS.parent / "soft.model"), "--out", "runs/soft"]) == 2
    assert main(["import", str(BLOCKS)]) == 2
    assert "not a saved module" in capsys.readouterr().err
    assert not Path("runs/blocks").exists()
