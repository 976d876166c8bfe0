"""MACE: symmetries, forces and stress, the cutoff, sizes, heads, and what it refuses."""

import pytest
import torch
from torch_geometric.data import Batch, Data
from vesin import NeighborList

from equidyn import conformance
from equidyn.core.errors import InputError
from equidyn.models.mace import ENTRY, MACE, EnergyReference, MACEOptions
from equidyn.ops.derivatives import WithForces

CUTOFF = 3.0
ELEMENTS = (1, 6, 8)
ANY = tuple(range(1, 10))  # the elements of a random sample
FORMS = {
    "residual": {},
    "isolated": {"first_block": "plain"},
    "density": {"first_block": "density", "block": "density_residual", "transform": "agnesi", "repulsion": True},
    "late": {"transform": "soft", "radial": "gaussian", "late_cutoff": True, "readout_mid": True},
    "chebyshev": {"radial": "chebyshev", "last_readout_only": True, "agnostic_product": True},
    "nonlinear": {
        "first_block": "nonlinear",
        "block": "nonlinear",
        "late_cutoff": True,
        "edge_channels": (3, 2),
        "num_radial": 4,
    },
}


def potential(model):
    return WithForces(model, stress=True, create_graph=True)


def make(form="residual", elements=ELEMENTS, **given):
    torch.manual_seed(0)
    options = MACEOptions(**({"radial_hidden": (8,), "readout_hidden": 4} | FORMS[form]))
    given = {"sh_l": 2, "correlation": 2, "cutoff": CUTOFF, "neighbours": 1.5} | given
    model = MACE(elements, 4, 1, 2, options=options, **given)
    with torch.no_grad():  # the fresh element embeddings and density weights of "nonlinear" are too small to show
        for name, parameter in model.named_parameters():
            if name.endswith(("source", "target", "beta", "biases.0", "biases.1")):
                parameter.normal_()
    return model.double()


def crystal(pos, z, cell, cutoff=CUTOFF):
    """A periodic sample with its edges."""
    found = NeighborList(cutoff=cutoff, full_list=True).compute(pos.numpy(), cell.numpy(), True, "ijS")
    i, j, shift = (torch.from_numpy(part.astype("float64")) for part in found)
    edges, images = torch.stack([j, i]).long(), shift @ cell
    return Data(pos=pos, z=z, edge_index=edges, edge_shift=images, cell=cell[None], pbc=torch.ones(1, 3).bool())


def molecule(pos, z=None, cutoff=CUTOFF):
    near = (torch.cdist(pos, pos) < cutoff) & ~torch.eye(len(pos), dtype=torch.bool)
    z = torch.tensor(ELEMENTS)[torch.arange(len(pos)) % 3] if z is None else z
    return Data(pos=pos, z=z, edge_index=near.nonzero().T)


def random_crystal(n=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    cell = 4.2 * torch.eye(3).double() + 0.4 * torch.randn(3, 3, generator=generator, dtype=torch.float64)
    pos = torch.rand(n, 3, generator=generator, dtype=torch.float64) @ cell
    return pos, torch.tensor(ELEMENTS)[torch.arange(n) % 3], cell


@pytest.mark.parametrize("form", FORMS)
def test_conforms(form):
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-4)):
        sample = conformance.random_sample(6, dtype=dtype, fields=("pos", "z", "edge_index"), edges=6.0)
        model = potential(make(form, ANY, cutoff=6.0).to(dtype))
        # Below float64 a difference of energies is mostly rounding; the forces themselves are held to the rotation.
        optional = () if dtype == torch.float64 else ("forces",)
        conformance.assert_conforms(model, sample, group=ENTRY.symmetry, tolerance=tolerance, optional=optional)
    conformance.check_extensivity(model.double(), conformance.random_sample(5, fields=ENTRY.needs)).raise_if_failed()


@pytest.mark.parametrize("form", FORMS)
def test_neighbours_leave_smoothly(form):
    pos = torch.tensor([[0.0, 0, 0], [1.1, 0.3, 0], [0.2, 1.2, 0.4], [9, 9, 9]], dtype=torch.float64)
    model = potential(make(form))
    conformance.check_cutoff(model, molecule, pos, CUTOFF).raise_if_failed()


@pytest.mark.parametrize("form", FORMS)
def test_stress_is_the_slope_along_strains(form):
    pos, z, cell = random_crystal()
    model, step = potential(make(form)), 1e-4
    base = crystal(pos, z, cell)
    stress, volume = model(base)["stress"][0], torch.linalg.det(cell).abs()

    def energy(strain):
        sample = base.clone()
        sample.pos, sample.edge_shift = pos @ strain, base.edge_shift @ strain
        return model.model(sample)["energy"][0]

    for direction in torch.randn(3, 3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64):
        direction = (direction + direction.T) / 2
        e = [energy(torch.eye(3).double() + k * step * direction) for k in (-2, -1, 1, 2)]
        slope = (e[0] - 8 * e[1] + 8 * e[2] - e[3]) / (12 * step) / volume
        torch.testing.assert_close((stress * direction).sum(), slope, rtol=1e-7, atol=1e-9)


def test_a_supercell_has_the_energy_of_its_cells():
    pos, z, cell = random_crystal()
    model = potential(make("density"))
    one = model(crystal(pos, z, cell))
    images = torch.cartesian_prod(*[torch.arange(2.0, dtype=torch.float64)] * 3) @ cell
    many = model(crystal((images[:, None] + pos).flatten(0, 1), z.repeat(8), 2 * cell))
    torch.testing.assert_close(many["energy"], 8 * one["energy"], rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(many["forces"], one["forces"].repeat(8, 1), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(many["stress"], one["stress"], rtol=1e-10, atol=1e-12)
    moved = pos + torch.tensor([1, -2, 1]).double() @ cell  # whole cells, in another image
    torch.testing.assert_close(model(crystal(moved, z, cell))["energy"], one["energy"], rtol=1e-11, atol=1e-11)


def test_an_isolated_atom_has_its_reference_energy():
    reference = EnergyReference((-13.5, -1026.8, -2037.8), scale=2.0)
    model = make("isolated", reference=reference)
    sample = Data(pos=torch.zeros(1, 3).double(), z=torch.tensor([8]), edge_index=torch.zeros(2, 0).long())
    assert model(sample)["energy"].item() == -2037.8
    sample.pos = sample.pos.float()
    assert model.float()(sample)["energy"].item() == -2037.8  # kept in float64
    sample.pos = sample.pos.double()
    assert make("residual", reference=reference)(sample)["energy"].item() != -2037.8


@pytest.mark.parametrize("form", ["density", "nonlinear"])
def test_batches_of_ragged_graphs(form):
    model = potential(make(form))
    pos, z, cell = random_crystal(5)
    alone = Data(pos=torch.zeros(1, 3).double(), z=torch.tensor([6]), edge_index=torch.zeros(2, 0).long())
    samples = [molecule(1.5 * torch.randn(n, 3).double()) for n in (7, 2)]
    samples = [*samples, alone, Data(**{k: v for k, v in crystal(pos, z, cell).items() if k not in ("cell", "pbc")})]
    for sample in samples:
        if "edge_shift" not in sample:
            sample.edge_shift = torch.zeros(sample.num_edges, 3).double()
    together = model(Batch.from_data_list(samples))
    torch.testing.assert_close(together["energy"], torch.cat([model(s)["energy"] for s in samples]))
    torch.testing.assert_close(together["forces"], torch.cat([model(s)["forces"] for s in samples]))


def test_heads_do_not_see_each_other():
    reference = EnergyReference(((0.0, 1.0, 2.0), (5.0, 6.0, 7.0)), scale=(1.0, 2.0), shift=(0.0, 0.5))
    model, sample = make("late", reference=reference), molecule(torch.randn(6, 3).double())
    energies = []
    for head in (0, 1):
        sample.head = torch.tensor([head])
        energies.append(model(sample)["energy"])
    assert abs(energies[0] - energies[1]) > 1.0
    both = Batch.from_data_list([sample.clone().update({"head": torch.tensor([k])}) for k in (1, 0)])
    torch.testing.assert_close(model(both)["energy"], torch.cat(energies[::-1]))
    for name, parameter in model.readouts.named_parameters():  # the last column belongs to head 1
        if name.endswith(("out.weights.0", "biases.1")):
            parameter.data[..., 1] += 1
    sample.head = torch.tensor([0])
    torch.testing.assert_close(model(sample)["energy"], energies[0])
    sample.head = torch.tensor([2])
    with pytest.raises(InputError, match="head"):
        model(sample)


def test_forces_can_be_trained_on():
    model, sample = make("density"), molecule(torch.randn(6, 3).double())
    potential(model)(sample)["forces"].square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.layers.parameters())
    inputs = sample.pos.requires_grad_()

    def forces(pos):
        return potential(model)(Data(pos=pos, z=sample.z, edge_index=sample.edge_index))["forces"]

    assert torch.autograd.gradcheck(forces, inputs, eps=1e-6, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"elements": (6, 1)}, "rising"),
        ({"correlation": (3,)}, "layers"),
        ({"correlation": 5}, "1 to 4"),
        ({"reference": EnergyReference((1.0, 2.0))}, "energy reference"),
        ({"reference": EnergyReference(scale=(1.0, 2.0), shift=(1.0, 2.0, 3.0))}, "energy reference"),
    ],
)
def test_arguments_that_do_not_fit(given, words):
    with pytest.raises(InputError, match=words):
        make(**given)


def test_unknown_elements_are_named():
    with pytest.raises(InputError, match="7"):
        make()(molecule(torch.randn(3, 3).double(), torch.tensor([1, 7, 8])))
