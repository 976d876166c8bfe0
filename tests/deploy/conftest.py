"""Two small potentials as run folders: an imported MACE, and a NequIP with random weights."""

from pathlib import Path

import pytest
import torch

from equidyn.deploy import load_potential
from equidyn.interop.mace_file import import_model
from equidyn.models.nequip import NequIP
from equidyn.train.checkpoint import save_model

PEER = Path(__file__).parents[1] / "golden" / "mace" / "peer"


@pytest.fixture(scope="session")
def mace_run(tmp_path_factory):
    """Of H, C and O, with repulsion, cutoff 4 Å."""
    return import_model(PEER / "soft.model", tmp_path_factory.mktemp("mace") / "run")


@pytest.fixture(scope="session")
def nequip_run(tmp_path_factory):
    """Of H, C and O, cutoff 3.5 Å."""
    torch.manual_seed(0)
    arguments = {"species": ["H", "C", "O"], "cutoff": 3.5, "num_layers": 2, "l_max": 1, "num_features": 4}
    arguments |= {
        "mean_neighbors": 4.0,
        "scale": {"H": 0.5, "C": 0.9, "O": 0.8},
        "shift": {"H": -13.0, "C": -1026.0, "O": -2037.0},
    }
    model, folder = NequIP(**arguments).double(), tmp_path_factory.mktemp("nequip")
    save_model(
        folder,
        model,
        {"name": "n", "system": "nequip", "model": arguments, "data": {}, "task": {"name": "potential"}},
        {},
    )
    return folder


@pytest.fixture(scope="session", params=["mace", "nequip"])
def run(request, mace_run, nequip_run):
    return mace_run if request.param == "mace" else nequip_run


@pytest.fixture(scope="session")
def potential(mace_run):
    return load_potential(mace_run)
