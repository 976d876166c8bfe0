"""Trajectories of proteins through MDAnalysis, on a peptide of ten residues; and DCD and XTC of molecules."""

import json
import shutil
import struct
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from equidyn.cli import main
from equidyn.core.errors import InputError
from equidyn.data import MolecularDynamics, Protein
from equidyn.data.md_frames import read_frames
from equidyn.data.trajectories import read_trajectories
from equidyn.models.egno import EGNO
from equidyn.train import read_recipe

mda = pytest.importorskip("MDAnalysis")

# Chignolin (GYDPETGTWG), 138 atoms, OpenMM with amber14 and GBn2 at 300 K, 61 frames 0.4 ps apart; charges in the PQR.
FOLDER = Path(__file__).parent / "excerpts"
TOPOLOGY, TRAJECTORY = FOLDER / "peptide.pqr", FOLDER / "peptide.dcd"
RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture(scope="module")
def universe():
    return mda.Universe(str(TOPOLOGY), str(TRAJECTORY))


def protein(**options):
    return Protein(str(TRAJECTORY), str(TOPOLOGY), **options)


def test_the_protocol_of_the_paper(universe):
    parts = {name: protein().part(name) for name in ("train", "val", "test")}
    assert [len(part) for part in parts.values()] == [27, 9, 10]  # 60, 20, 20 % of 61 - 15 starts
    assert np.concatenate([part.starts for part in parts.values()]).tolist() == list(range(46))
    backbone = universe.select_atoms("backbone")
    assert set(backbone.names) == {"N", "CA", "C", "O"}
    at = lambda frame: (universe.trajectory[frame], backbone.positions.astype(np.float64))[1]  # noqa: E731
    sample = parts["val"][2]
    torch.testing.assert_close(sample.pos, torch.tensor(at(29)).float())
    torch.testing.assert_close(sample.vel, torch.tensor(at(30) - at(29)).float())
    for k, later in enumerate((3, 7, 11, 15)):
        torch.testing.assert_close(sample.trajectory[:, k], torch.tensor(at(29 + later)).float())
    assert sample.times.tolist() == [[3.0, 7.0, 11.0, 15.0]]
    charges = backbone.charges / np.abs(backbone.charges).max()
    torch.testing.assert_close(sample.x, torch.stack([sample.vel.norm(dim=-1), torch.tensor(charges).float()], -1))


def test_contacts():
    sample = protein(cutoff=6.0).part("train")[5]
    distance = torch.cdist(sample.pos, sample.pos, compute_mode="donot_use_mm_for_euclid_dist")
    near = (distance < 6.0).fill_diagonal_(False)
    send, receive = sample.edge_index
    assert torch.equal(receive, receive.sort().values)
    found = torch.zeros(*near.shape, 2)
    found[receive, send] = sample.edge_attr
    torch.testing.assert_close(found, torch.stack([distance * near, distance**2 * near], -1))


def test_a_batch_is_one_large_graph():
    part = protein(train=12).part("train")
    torch.manual_seed(0)
    model = EGNO(2, 2, 8, 2, times=(3, 7, 11, 15))
    together = model(part.__getitems__([7, 0, 11]))["trajectory"]
    alone = [model(part[k])["trajectory"] for k in (7, 0, 11)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-5, atol=1e-5)


def test_only_asked_frames_are_read(tmp_path, universe, monkeypatch):
    """Memory does not grow with the trajectory: two batches of ten times the frames take no more."""
    long = tmp_path / "long.dcd"
    with mda.Writer(str(long), len(universe.atoms)) as writer:
        for _ in range(10):
            for _ in universe.trajectory:
                writer.write(universe.atoms)
    peaks = []
    for path in (TRAJECTORY, long):
        part = Protein(str(path), str(TOPOLOGY)).part("train")
        part[0]
        tracemalloc.start()
        for indices in ([0, 1], [len(part) - 1, 3]):
            part.__getitems__(indices)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert len(part) == 357
    assert peaks[1] < 1.2 * peaks[0]
    reads, source = [], type(part.frames.source)
    monkeypatch.setattr(
        source, "read", lambda self, frames, read=source.read: (reads.append(frames), read(self, frames))[1]
    )
    part.__getitems__([4, 300])
    assert np.concatenate(reads).tolist() == [4, 5, 7, 11, 15, 19, 300, 301, 303, 307, 311, 315]


def test_from_recipe_to_report(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = {
        "name": "peptide",
        "system": "egno",
        "model": {"node_dim": 2, "edge_dim": 2, "hidden_dim": 8, "num_layers": 2, "times": [3, 7, 11, 15]},
        "data": {"dataset": "protein", "path": str(TRAJECTORY), "topology": str(TOPOLOGY), "cutoff": 5.0},
        "train": {"epochs": 1, "batch_size": 8, "eval_every": 1, "threads": 1, "accelerator": "cpu"},
    }
    Path("peptide.yaml").write_text(yaml.safe_dump(content))
    assert main(["train", "peptide.yaml"]) == 0
    result = json.loads(Path("runs/peptide/evaluation.json").read_text())
    assert result["samples"] == 10
    assert max(result["symmetry"].values()) < 1e-4
    part = protein().part("test")
    whole = part.__getitems__(range(10))
    constant = (whole.trajectory - whole.pos[:, None]).square().mean((0, 2))
    assert result["baselines"]["constant"]["horizon_mse"] == pytest.approx(constant.tolist(), rel=1e-4)
    assert main(["predict", "runs/peptide", str(TRAJECTORY), "out.npz", "--frame", "36"]) == 0
    assert read_trajectories("out.npz").positions.shape == (1, 4, 40, 3)
    assert main(["report", "runs/peptide"]) == 0


def test_molecules_from_dcd_and_xtc(tmp_path, universe):
    """The same frames from two formats; elements are guessed where the topology has none."""
    some = universe.select_atoms("resid 2")
    pdb, xtc, dcd = (str(tmp_path / f"some.{kind}") for kind in ("pdb", "xtc", "dcd"))
    some.write(pdb)
    some.write(xtc, frames="all")
    some.write(dcd, frames="all")
    options = {"topology": pdb, "frames": (1, 2, 3), "train": 0, "split": "ordered"}
    parts = [MolecularDynamics(path, **options).part("train") for path in (dcd, xtc)]
    torch.testing.assert_close(parts[0].trajectory, parts[1].trajectory, atol=1e-2, rtol=0)
    assert sorted(parts[0].states.z.tolist()) == [6] * 9 + [7] + [8] * 2  # tyrosine
    torch.testing.assert_close(parts[0].states.edge_attr[..., :4], parts[1].states.edge_attr[..., :4])
    assert read_frames(dcd, pdb).frame_time > 0


def refused(message, path=TRAJECTORY, topology=TOPOLOGY, part="train", **options):
    with pytest.raises(InputError, match=message) as error:
        Protein(str(path), str(topology), **options).part(part)
    assert "\n" not in str(error.value)


def test_bad_selections(tmp_path):
    refused("empty selection, in .*got selection 'resname HEM'", selection="resname HEM")
    refused("selection, in .*MDAnalysis's selection language", selection="naem CA")
    refused("no contacts, in .*got cutoff 0.5 Å", cutoff=0.5)
    refused("cutoff, in data.cutoff", cutoff=0)
    other = tmp_path / "other.pqr"
    other.write_text(TOPOLOGY.read_text().replace(" TRP ", " XYZ "))
    refused("unknown residue, in .*expected an amino acid .*got XYZ 9", topology=other)
    assert len(Protein(str(TRAJECTORY), str(other), selection="name N CA C O").part("test")) == 10


def test_bad_trajectories(tmp_path, universe):
    bad, whole = tmp_path / "bad.dcd", TRAJECTORY.read_bytes()
    frame = 3 * (4 * len(universe.atoms) + 8)
    refused("no such file, in .*expected the topology", topology=tmp_path / "none.pdb")
    refused("no such file, in .*expected a trajectory", path=tmp_path / "none.dcd")

    bad.write_bytes(whole[: -frame // 2])
    refused("truncated .*trajectory, in .*61 frames of its header, got 60", path=bad)
    bad.write_bytes(whole[:100])
    refused("truncated or corrupt trajectory", path=bad)

    atoms = universe.select_atoms("resid 1 to 5")
    atoms.write(str(bad), frames="all")
    refused(f"topology and trajectory do not match, in .*the {len(universe.atoms)} atoms", path=bad)

    universe.atoms.write(str(bad), frames=[3])
    refused("no velocity, in .*expected 2 or more frames, got 1", path=bad)
    universe.atoms.write(str(bad), frames=list(range(20)))
    assert len(Protein(str(bad), str(TOPOLOGY)).part("train")) == 3
    refused("trajectory too short, in .*expected more than 80 frames", path=bad, split="separate", part="val")
    refused("trajectory too short, in .*expected frames to predict up to 19, got 25", path=bad, frames=(25,))

    content = bytearray(whole)
    content[len(whole) - 7 * frame - 40 : len(whole) - 7 * frame - 36] = struct.pack("<f", float("nan"))
    bad.write_bytes(content)
    part = Protein(str(bad), str(TOPOLOGY), selection="all").part("test")
    with pytest.raises(InputError, match=r"positions hold NaN or infinity, in .*got frame 54, atom"):
        part.__getitems__(range(len(part)))

    text = tmp_path / "text.pdb"
    text.write_text("nothing")
    refused("topology", topology=text)


def test_a_time_step_of_zero(tmp_path):
    bad = tmp_path / "bad.dcd"
    content = bytearray(TRAJECTORY.read_bytes())
    content[44:48] = struct.pack("<f", 0.0)
    bad.write_bytes(content)
    refused("time step, in .*expected more than 0 fs, got 0", path=bad)


def test_the_shipped_recipe_is_right(tmp_path):
    made = read_recipe(RECIPES / "protein" / "adk.yaml")
    assert made.build_data().split == "ordered"
    assert sum(p.numel() for p in made.build_model().parameters()) > 500_000


def test_without_mdanalysis(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "MDAnalysis", None)
    refused(r"needs MDAnalysis, in .*pip install 'equidyn\[MDAnalysis\]'")
    shutil.copy(TRAJECTORY, tmp_path)
