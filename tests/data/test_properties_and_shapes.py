"""Structures with a property: QM9 on small files of its formats, files of one's own; ModelNet and solids."""

import json
import pickle
from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch
from ase.build import bulk, molecule
from ase.calculators.singlepoint import SinglePointCalculator
from torch_geometric.io import write_off

import qm9_files
from equidyn import conformance
from equidyn.core.errors import InputError
from equidyn.data.properties import Properties
from equidyn.data.qm9 import read_qm9, split_qm9
from equidyn.data.shapes import SOLIDS, Clouds, modelnet, solids, surface_points
from equidyn.models.implicit_steerable_kernels import ImplicitSteerableKernels, KernelOptions

MODELNET10 = ["bathtub", "bed", "chair", "desk", "dresser", "monitor", "night_stand", "sofa", "table", "toilet"]


@pytest.fixture(scope="module")
def qm9(tmp_path_factory):
    """Forty molecules as text, two of which are to be left out."""
    folder = tmp_path_factory.mktemp("qm9")
    qm9_files.write_text(folder, qm9_files.molecules(42), left_out=(3, 40))
    return folder


def test_both_forms_of_qm9_hold_the_same(qm9, tmp_path):
    made = [m for k, m in enumerate(qm9_files.molecules(42), start=1) if k not in (3, 40)]
    qm9_files.write_tensors(tmp_path, made)
    text, tensors = read_qm9(qm9), read_qm9(tmp_path)
    assert len(text) == len(tensors) == 40
    for number, (numbers, pos, bonds) in enumerate(made):
        for source, close in ((text, 1e-12), (tensors, 1e-6)):
            frame = source[number]
            assert frame.numbers.tolist() == numbers.tolist()
            np.testing.assert_allclose(frame.pos, pos, atol=close)
            assert source.bonds_of(number).tolist() == bonds.tolist()
    np.testing.assert_allclose(text.targets[1:, [1, 7]], tensors.targets[1:, [1, 7]], rtol=1e-6)
    methane = [0, 13.21, -10.54985, 3.186453, 13.736308, 35.3641, 1.217682, -1101.48779, -1101.40979, -1101.38403]
    methane += [-1102.02295, 6.469, -17.172182, -17.286823, -17.389656, -16.151918, 157.7118, 157.70997, 157.70699]
    np.testing.assert_allclose(text.targets[0], methane, rtol=1e-6)  # as torch-geometric has them


def test_splits_of_qm9():
    order = np.random.RandomState(0).permutation(130_831)
    found = split_qm9(130_831, "cormorant")
    assert [len(found[name]) for name in ("train", "val", "test")] == [100_000, 17_748, 13_083]
    assert [*found["train"], *found["val"], *found["test"]] == order.tolist()
    found = split_qm9(130_831, "torchmd")
    assert [len(found[name]) for name in ("train", "val", "test")] == [110_000, 10_000, 10_831]
    assert found["train"][:3] == np.random.default_rng(1).permutation(130_831)[:3].tolist()
    assert sorted(i for part in split_qm9(40, "torchmd").values() for i in part) == list(range(40))


def test_parts_and_samples(qm9):
    source = Properties(str(qm9), target="alpha", split="cormorant", cutoff=2.0)
    parts = {name: source.part(name) for name in ("train", "val", "test")}
    assert [len(part) for part in parts.values()] == [30, 6, 4]
    assert parts["train"].unit == "a0³"
    sample = parts["train"][0]
    assert torch.equal(sample.x.sum(1), torch.ones(len(sample.z)))
    send, receive = sample.edge_index
    assert bool(((sample.pos[send] - sample.pos[receive]).norm(dim=1) < 2.0).all())
    assert bool((send != receive).all())
    assert sample.y.item() == pytest.approx(qm9_files.polarisability(sample.z.tolist(), sample.pos.numpy()))
    batch = parts["train"].__getitems__([0, 1, 2])
    assert torch.equal(batch.y, parts["train"].targets()[:3])
    few = Properties(str(qm9), target="alpha", split="cormorant", train=7).part("train")
    assert {*few.index} < {*parts["train"].index}
    assert len({*few.index}) == 7


def test_bonds_as_edges(qm9):
    source = Properties(str(qm9), target="alpha", edges="bonds")
    sample = source.part("val")[0]
    assert sample.edge_attr.shape == (sample.edge_index.shape[1], 4)
    assert torch.equal(sample.edge_attr.sum(1), torch.ones(len(sample.edge_attr)))
    pairs = {tuple(pair) for pair in sample.edge_index.T.tolist()}
    assert {(b, a) for a, b in pairs} == pairs
    assert source.fitted()["edge_dim"] == 4
    read = source.read(qm9 / "gdb9.sdf")
    assert len(read) == 42
    assert read.__getitems__([0, 5]).edge_attr.shape[1] == 4


def test_structures_of_ones_own(tmp_path):
    atoms = [molecule("H2O"), molecule("CH4"), molecule("NH3"), molecule("HCN"), molecule("C2H6")]
    for k, one in enumerate(atoms):
        one.info["heat"] = 1.5 * k
    atoms[1].calc = SinglePointCalculator(atoms[1], energy=-3.0)
    ase.io.write(tmp_path / "set.xyz", atoms)
    (tmp_path / "split.json").write_text(json.dumps({"train": [4, 2, 1], "val": [0], "test": [3]}))
    np.savez(tmp_path / "split.npz", idx_train=[4, 2, 1], idx_valid=[0], idx_test=[3])
    for name in ("split.json", "split.npz"):
        source = Properties(str(tmp_path / "set.xyz"), "heat", unit="kJ", split=str(tmp_path / name))
        assert source.part("train").targets().tolist() == [6.0, 3.0, 1.5]
        assert source.part("test")[0].z.tolist() == molecule("HCN").numbers.tolist()
    shares = Properties(str(tmp_path / "set.xyz"), "heat", val=1, test=0.4)
    assert [len(shares.part(name)) for name in ("train", "val", "test")] == [2, 1, 2]
    other = Properties("gone.xyz", "heat", test=str(tmp_path / "set.xyz"))
    assert len(other.part("test")) == 5
    crystal = bulk("C", cubic=True)
    crystal.info["heat"] = 2.0
    ase.io.write(tmp_path / "mixed.xyz", [*atoms, crystal])
    batch = Properties("gone.xyz", "heat", test=str(tmp_path / "mixed.xyz"), cutoff=2.0).part("test")
    shift = batch.__getitems__([0, 5]).edge_shift
    assert shift.abs().sum() > 0
    assert len(shift) == batch.__getitems__([0, 5]).edge_index.shape[1]


def test_wrong_wishes_are_named(qm9, tmp_path):
    def every(**given):
        part = Properties(**given).part("train")
        return [part[k] for k in range(len(part))]

    for given, words in (
        ({"target": "gab"}, r"unknown property of QM9 'gab', in data.target, expected 'gap'"),
        ({"cutoff": 0.0}, "cutoff, in data.cutoff, expected more than 0"),
        ({"elements": ["H", "Xx"]}, "unknown element 'Xx', in data.elements"),
        (
            {"elements": ["H", "C", "O"], "cutoff": 2.0},
            r"an element of no feature, .* molecule \d+, expected one of data",
        ),
        ({"train": 31, "split": "cormorant"}, "number of train samples, in .*, expected at most 30, got 31"),
        ({"train": -1}, "number of train samples, in data.train"),
        ({"split": "corm"}, "no such file, in corm"),
        ({"val": 50}, "val samples, in data.val, expected fewer than all, at least 1, got 50 of 40"),
        ({"path": str(tmp_path)}, "no data, in .*, expected a file of structures, or the folder of QM9"),
        ({"path": "none.xyz"}, "no such file, in none.xyz"),
    ):
        with pytest.raises(InputError, match=words) as caught:
            every(**({"path": str(qm9), "target": "alpha"} | given))
        assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(InputError, match="unknown part of the data 'tests'"):
        Properties(str(qm9), "alpha").part("tests")


def test_structures_that_lack_what_is_asked_for(tmp_path):
    def refused(words, **given):
        with pytest.raises(InputError, match=words):
            Properties(str(tmp_path / "set.xyz"), **({"target": "heat", "val": 1, "test": 1} | given)).part("train")[0]

    atoms = [molecule("H2O") for _ in range(5)]
    for k, one in enumerate(atoms):
        one.info |= {"heat": float(k), "word": "a"}
    write = lambda: ase.io.write(tmp_path / "set.xyz", atoms)  # noqa: E731
    write()
    refused("unknown property 'heet', in .*set.xyz, frame 0, expected 'heat'", target="heet")
    refused("property word, in .*frame 0, expected a finite number, got a", target="word")
    refused("split of QM9, in data.split, expected a file of indices", split="torchmd")
    refused("bonds, in data.edges, expected radius", edges="bonds")
    atoms[3].info["heat"] = float("nan")
    write()
    refused("property heat, in .*frame 3, expected a finite number, got nan")
    atoms[3] = molecule("H2O")
    write()
    refused("unknown property 'heat', in .*frame 3")
    atoms[3].info["heat"] = 1.0
    atoms[3].positions[0] = np.nan
    write()
    refused("NaN or infinity in pos at atom 0, in .*frame 3")


def test_broken_files_of_qm9(qm9, tmp_path):
    def refused(words):
        with pytest.raises(InputError, match=words) as caught:
            read_qm9(tmp_path)
        assert len(str(caught.value).splitlines()) == 1

    refused("QM9 is not there, in .*, expected gdb9.sdf")
    names = ("gdb9.sdf", "gdb9.sdf.csv", "uncharacterized.txt")
    whole = {name: (qm9 / name).read_text() for name in names}

    def put(**changed):
        for name in names:
            (tmp_path / name).unlink(missing_ok=True)
            if (text := changed.get(name.split(".")[-1], whole[name])) is not None:
                (tmp_path / name).write_text(text)

    put(csv=None)
    refused("no such file, in .*gdb9.sdf.csv")
    put(txt=None)
    refused("no such file, in .*uncharacterized.txt")
    sdf, table = whole["gdb9.sdf"], whole["gdb9.sdf.csv"]
    put(sdf=sdf[: len(sdf) // 2])
    refused(r"truncated or corrupt file, in .*gdb9.sdf, molecule \d+, expected SDF")
    put(sdf=sdf[: sdf.index("gdb_30")])
    refused("molecules and properties, in .*, expected 40 molecules beside those to leave out, as in the table, got 28")
    put(sdf=sdf.replace(" C  ", " Cx ", 1))
    refused("truncated or corrupt file, in .*gdb9.sdf, molecule 1")
    put(csv=table.replace("alpha", "alfa"))
    refused("truncated or corrupt file, in .*csv, expected a table with the columns mu, alpha")
    put(csv=table[:-30] + "\n")
    refused("truncated or corrupt file, in .*csv")
    put(csv=table.replace("13.21", "nan"))
    refused("properties hold NaN or infinity")
    put(sdf=None)
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "qm9_v3.pt").write_bytes(pickle.dumps([Path("a")]))
    refused("truncated or corrupt file, in .*qm9_v3.pt")


def test_modelnet_reads_off_files(tmp_path):
    meshes = solids(2 * len(MODELNET10))
    for number, name in enumerate(MODELNET10):
        for offset, part in enumerate(("train", "test")):
            folder = tmp_path / "raw" / name / part
            folder.mkdir(parents=True)
            write_off(meshes[2 * number + offset], str(folder / f"{name}_0001.off"))
    read = modelnet(str(tmp_path))
    assert len(read) == 10
    assert [int(mesh.y) for mesh in read] == list(range(10))
    torch.testing.assert_close(read[3].pos, meshes[6].pos, rtol=1e-4, atol=1e-4)
    cloud = Clouds(modelnet(str(tmp_path), train=False), points=32, neighbours=4)[9]
    assert cloud.pos.shape == (32, 3)
    assert cloud.edge_index.shape == (2, 128)
    assert int(cloud.y) == 9
    with pytest.raises(InputError, match="10 or 40"):
        modelnet(str(tmp_path), "20")


def test_points_lie_evenly_on_the_surface():
    box = solids(2)[1]
    points = surface_points(box, 4000, torch.Generator().manual_seed(0))
    corners = box.pos[0], *(box.pos[k] for k in (1, 2, 4))
    sides = torch.stack([corner - corners[0] for corner in corners[1:]])
    inside = torch.linalg.solve(sides.T, (points - corners[0]).T)
    on_face = (inside.abs() < 1e-4) | ((inside - 1).abs() < 1e-4)
    assert bool(on_face.any(0).all())
    assert bool((inside > -1e-4).all())
    assert bool((inside < 1 + 1e-4).all())
    length = sides.norm(dim=1)
    area = length.prod() / length  # of the faces across each side
    torch.testing.assert_close(on_face.float().mean(1), area / area.sum(), rtol=0, atol=0.05)


def test_kernels_on_solids_conform():
    clouds = Clouds(solids(len(SOLIDS)), points=24, neighbours=5)
    torch.manual_seed(0)
    options = KernelOptions(layers=2, channels=2, scale=0.5, readout_dim=8)
    model = ImplicitSteerableKernels(1, 0, 2, 1, out_dim=len(SOLIDS), options=options).double()
    sample = clouds[4]
    sample.pos, sample.x = sample.pos.double(), sample.x.double()
    conformance.assert_conforms(model, sample, group="E(3)", tolerance=1e-11)
    assert torch.equal(clouds[4].pos, clouds[4].pos)


def test_shapes_that_have_no_surface_are_named():
    mesh = solids(1)[0]
    flat = mesh.clone().update({"pos": torch.zeros_like(mesh.pos)})
    bare = mesh.clone().update({"face": None})
    for broken, words in ((flat, "surface"), (bare, "without faces")):
        with pytest.raises(InputError, match=words):
            Clouds([broken], points=8, neighbours=2)[0]
    with pytest.raises(InputError, match="neighbours"):
        Clouds([mesh], points=8, neighbours=8)
