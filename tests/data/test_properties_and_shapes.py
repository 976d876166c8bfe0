"""QM9 and ModelNet through torch-geometric, on small files of their formats; solids made on the spot."""

import pytest
import torch
from torch_geometric.data import Batch
from torch_geometric.io import write_off

from equidyn import conformance
from equidyn.core.errors import InputError
from equidyn.data.qm9 import TARGETS, Properties
from equidyn.data.shapes import SOLIDS, Clouds, modelnet, solids, surface_points
from equidyn.models.implicit_steerable_kernels import ImplicitSteerableKernels, KernelOptions
from equidyn.models.segnn import SEGNN

MODELNET10 = ["bathtub", "bed", "chair", "desk", "dresser", "monitor", "night_stand", "sofa", "table", "toilet"]


@pytest.fixture
def qm9(tmp_path, monkeypatch):
    """Forty molecules as torch-geometric reads them without rdkit."""
    monkeypatch.setitem(__import__("sys").modules, "rdkit", None)
    random, molecules = torch.Generator().manual_seed(0), []
    for number in range(40):
        atoms = 3 + number % 3
        z = torch.tensor([8, 1, 1, 6, 7])[:atoms]
        pos = torch.randn(atoms, 3, generator=random)
        molecules.append({"pos": pos, "z": z, "y": torch.full((1, 19), float(number)) + torch.arange(19) / 100})
    (tmp_path / "raw").mkdir()
    torch.save(molecules, tmp_path / "raw" / "qm9_v3.pt")
    return tmp_path


def test_qm9_parts_and_samples(qm9):
    source = Properties(str(qm9), target="gap")
    parts = {name: source.part(name) for name in ("train", "val", "test")}
    assert [len(part) for part in parts.values()] == [30, 6, 4]
    numbers = torch.cat([part.values() for part in parts.values()])
    assert sorted(numbers.floor().tolist()) == list(range(40))
    assert torch.allclose(numbers - numbers.floor(), torch.tensor(TARGETS.index("gap") / 100), atol=1e-5)
    sample = parts["train"][0]
    assert torch.equal(sample.x.sum(1), torch.ones(len(sample.z)))
    send, receive = sample.edge_index
    assert bool(((sample.pos[send] - sample.pos[receive]).norm(dim=1) < 2.0).all())
    assert bool((send != receive).all())
    mean, deviation = source.scale()
    values = parts["train"].values()
    assert mean == pytest.approx(float(values.mean()))
    assert deviation > 0
    model = SEGNN(5, 0, 16, 1, velocity=False, readout="graph")
    assert model(Batch.from_data_list([parts["train"][k] for k in range(3)]))["prediction"].shape == (3,)


def test_wrong_wishes_of_qm9_are_named(qm9):
    for given, words in (({"target": "gab"}, "'gap'"), ({"radius": 0.0}, "radius")):
        with pytest.raises(InputError, match=words):
            Properties(str(qm9), **given)
    with pytest.raises(InputError, match="part of the data"):
        Properties(str(qm9)).part("tests")


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
