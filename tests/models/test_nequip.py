"""NequIP: symmetries, forces and stress, the cutoff, isolated atoms, precision, training on forces, wrong input."""

import pytest
import torch
from torch_geometric.data import Batch, Data

from equidyn import conformance
from equidyn.core.errors import InputError
from equidyn.models.nequip import NequIP, NequIPOptions
from equidyn.ops.derivatives import WithForces
from equidyn.ops.neighbors import Neighbors

LIGHT = ("H", "He", "Li", "Be", "B", "C", "N", "O", "F")
SHIFT = {"H": -13.5, "C": -1026.8, "O": -2037.8}
CUTOFFS = {"pair_cutoffs": {"H": 3.0, "C": {"O": 4.0}}}
FORMS = [
    ({"l_max": 2}, {}),
    ({"l_max": 3, "parity": False, "num_features": [8, 4, 2, 2], "num_layers": 2}, {}),
    ({"l_max": 1, "num_features": 4}, {"nonlinearity": "norm", "residual": True}),
    (
        {"l_max": 2, "parity": False, "num_layers": 2},
        {"zbl": "metal", "pair_cutoffs": {"H": 3.0, "C": {"O": 4.0}}, "readout": (8,)},
    ),
    ({"l_max": 0}, {"radial": (), "trainable_bessel": True, "first_self_connection": True}),
]


def _model(species=LIGHT, *, options=None, **given):
    torch.manual_seed(0)
    sizes = {"cutoff": 8.0, "num_layers": 3, "num_features": 6, "mean_neighbors": 5.0} | given
    return NequIP(species, options=NequIPOptions(**({"radial": (16,)} | (options or {}))), **sizes).double()


def _molecule(atoms=8, seed=0, spread=1.5):
    generator = torch.Generator().manual_seed(seed)
    pos = spread * torch.randn(atoms, 3, generator=generator, dtype=torch.float64)
    return Data(pos=pos, z=torch.tensor([1, 6, 8])[torch.randint(0, 3, (atoms,), generator=generator)])


def _crystal(seed=0):
    sample = _molecule(4, seed, 1.0)
    generator = torch.Generator().manual_seed(seed)
    cell = 4 * (torch.eye(3, dtype=torch.float64) + 0.2 * torch.randn(3, 3, generator=generator, dtype=torch.float64))
    sample.cell, sample.pbc = cell[None], torch.ones(1, 3, dtype=torch.bool)
    return sample


@pytest.mark.parametrize(("sizes", "options"), FORMS)
def test_conforms(sizes, options):
    model = WithForces(_model(options=options, **sizes), create_graph=True)
    sample = conformance.random_sample(6, fields=("pos", "z", "edge_index"))
    conformance.assert_conforms(model, sample, group="E(3)", tolerance=1e-12)


@pytest.mark.parametrize(("sizes", "options"), FORMS[1:4:2])
def test_conforms_in_single_precision(sizes, options):
    model = WithForces(_model(options=options, **sizes), create_graph=True)
    # Below float64 a difference of energies is mostly rounding; the forces themselves are held to the rotation.
    single = conformance.random_sample(6, dtype=torch.float32, fields=("pos", "z", "edge_index"))
    conformance.assert_conforms(model.float(), single, group="E(3)", tolerance=1e-4, optional=("forces",))


def test_conforms_in_a_crystal():
    model = WithForces(_model(num_layers=2), stress=True, create_graph=True)
    fields = ("pos", "z", "edge_index", "edge_shift", "cell", "pbc")
    conformance.assert_conforms(model, conformance.random_sample(5, fields=fields), group="E(3)", tolerance=1e-12)


def test_two_far_copies_have_twice_the_energy():
    model = WithForces(_model(tuple(SHIFT), shift=SHIFT))
    conformance.check_extensivity(model, Neighbors(4.0)(_molecule()), tolerance=1e-12).raise_if_failed()


@pytest.mark.parametrize("options", [{}, {"zbl": "metal"}, {"pair_cutoffs": {"H": 3.0, "C": 3.0, "O": 3.0}}])
def test_smooth_at_the_cutoff(options):
    model = WithForces(_model(tuple(SHIFT), cutoff=4.0, l_max=2, options=options))
    z = torch.tensor([1, 6, 8, 1])
    cutoff = 3.0 if "pair_cutoffs" in options else 4.0

    def build(pos):
        return Neighbors(cutoff)(Data(pos=pos, z=z))

    conformance.check_cutoff(model, build, _molecule(4).pos, cutoff).raise_if_failed()


def test_edges_beyond_a_pair_cutoff_change_nothing():
    model = _model(tuple(SHIFT), cutoff=4.0, options={"pair_cutoffs": dict.fromkeys(SHIFT, 3.0), "zbl": "real"})
    few, many = (model(Neighbors(cutoff)(_molecule())) for cutoff in (3.0, 9.0))
    torch.testing.assert_close(few["atom_energy"], many["atom_energy"], rtol=1e-12, atol=0)


def test_stress_is_the_slope_of_the_energy_under_strain():
    model = WithForces(_model(tuple(SHIFT), cutoff=4.0, l_max=2, options={"zbl": "metal"}), stress=True)
    sample = Neighbors(4.0)(_crystal())
    out = model(sample)
    generator = torch.Generator().manual_seed(0)
    strain = torch.randn(3, 3, generator=generator, dtype=torch.float64)
    strain = strain + strain.T

    def energy(step):
        model.eval()
        turn = torch.eye(3, dtype=torch.float64) + step * strain
        changed = {name: sample[name] @ turn for name in ("pos", "cell", "edge_shift")}
        return float(model(Data(**{**sample.to_dict(), **changed}))["energy"])

    step = 1e-4
    slope = (energy(-2 * step) - 8 * energy(-step) + 8 * energy(step) - energy(2 * step)) / (12 * step)
    volume = torch.linalg.det(sample.cell[0]).abs()
    assert abs(slope - float((out["stress"][0].detach() * strain).sum() * volume)) < 1e-8 * abs(slope)
    torch.testing.assert_close(out["virial"], -out["stress"] * volume)


def test_a_supercell_has_the_same_energy_per_cell():
    model = WithForces(_model(tuple(SHIFT), cutoff=4.0, shift=SHIFT), stress=True)
    small = _crystal()
    steps = torch.cartesian_prod(torch.arange(2), torch.arange(1), torch.arange(3)).double()
    large = Data(
        pos=(small.pos[None] + (steps @ small.cell[0])[:, None]).flatten(0, 1),
        z=small.z.repeat(6),
        cell=small.cell * torch.tensor([2.0, 1.0, 3.0], dtype=torch.float64)[:, None],
        pbc=small.pbc,
    )
    one, six = model(Neighbors(4.0)(small)), model(Neighbors(4.0)(large))
    torch.testing.assert_close(six["energy"], 6 * one["energy"], rtol=1e-13, atol=0)
    torch.testing.assert_close(six["forces"], one["forces"].repeat(6, 1), rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(six["stress"], one["stress"], rtol=1e-10, atol=1e-13)


def test_wrapping_atoms_into_the_cell_changes_nothing():
    model = WithForces(_model(tuple(SHIFT), cutoff=4.0))
    sample = _crystal()
    moved = sample.clone()
    moved.pos = sample.pos + torch.tensor([[1, 0, -2], [0, 0, 0], [3, 1, 0], [0, -1, 0]]).double() @ sample.cell[0]
    a, b = (model(Neighbors(4.0)(s))["forces"] for s in (sample, moved))
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-13)


def test_an_isolated_atom_has_exactly_its_shift():
    model = WithForces(_model(tuple(SHIFT), shift=SHIFT, options={"zbl": "metal"}).float(), stress=True)
    sample = Neighbors(4.0)(Data(pos=torch.zeros(1, 3), z=torch.tensor([8])))
    out = model(sample)
    assert out["energy"].tolist() == [SHIFT["O"]]
    assert out["forces"].tolist() == [[0, 0, 0]]
    assert "stress" not in out


def test_a_frame_without_volume_has_zero_stress():
    model = WithForces(_model(tuple(SHIFT)), stress=True)
    crystal, molecule = Neighbors(4.0)(_crystal()), _molecule()
    molecule.cell, molecule.pbc = torch.zeros(1, 3, 3, dtype=torch.float64), torch.zeros(1, 3, dtype=torch.bool)
    out = model(Batch.from_data_list([crystal, Neighbors(4.0)(molecule)]))
    assert out["stress"][0].abs().max() > 0
    assert out["stress"][1].abs().max() == 0
    assert out["virial"][1].abs().max() > 0


def test_float32_keeps_the_digits_of_the_energy():
    model = _model(tuple(SHIFT), shift=SHIFT)
    sample = Neighbors(4.0)(_molecule())
    exact = WithForces(model)(sample)
    rough = WithForces(model.float())(sample)
    assert rough["energy"].dtype == rough["forces"].dtype == torch.float64
    assert model.scale_shift.shift.dtype == torch.float64
    torch.testing.assert_close(rough["energy"], exact["energy"], rtol=0, atol=1e-6)
    assert (rough["forces"] - exact["forces"]).abs().max() < 1e-4 * exact["forces"].abs().max()


def test_it_trains_on_forces():
    torch.manual_seed(0)
    sample = Neighbors(4.0)(_molecule())
    target = torch.randn(8, 3, dtype=torch.float64)
    model = WithForces(_model(tuple(SHIFT), options={"trainable_shift": True, "trainable_scale": True})).train()
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for _ in range(15):
        loss = (model(sample)["forces"] - target).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


def test_the_gradient_of_a_loss_on_forces_is_right():
    model = WithForces(_model(tuple(SHIFT), l_max=2, num_features=3), create_graph=True)
    sample = Neighbors(4.0)(_molecule(4))
    weight = model.model.layers[1].conv.mix_in.weights[0]

    def loss():
        return model(sample)["forces"].square().sum()

    (gradient,) = torch.autograd.grad(loss(), weight)
    direction = torch.randn_like(weight)
    values = []
    for step in (-1e-4, 1e-4):
        with torch.no_grad():
            weight += step * direction
        values.append(float(loss()))
        with torch.no_grad():
            weight -= step * direction
    slope, expected = (values[1] - values[0]) / 2e-4, float((gradient * direction).sum())
    assert abs(slope - expected) < 1e-5 * abs(expected)


def test_graph_fields_are_seen():
    model = _model(tuple(SHIFT), options={"graph_fields": {"total_charge": (-1, 1, 3), "spin": (1, 3, 2)}})
    sample = Neighbors(4.0)(_molecule())
    energies = []
    for charge, spin in ((-1, 1), (1, 1), (1, 3)):
        sample.total_charge, sample.spin = torch.tensor([charge]), torch.tensor([spin])
        energies.append(float(model(sample)["energy"]))
    assert len(set(energies)) == 3
    sample.spin = torch.tensor([4])
    with pytest.raises(InputError, match="spin"):
        model(sample)
    del sample.spin
    with pytest.raises(InputError, match="spin"):
        model(sample)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"species": ("H", "Xx")}, "Xx"),
        ({"species": ("H", "H")}, "different elements"),
        ({"shift": {"H": 1.0}}, "shift"),
        ({"num_features": [4, 4, 4]}, "num_features"),
        ({"cutoff": -1.0}, "cutoff"),
        ({"mean_neighbors": 0.0}, "mean_neighbors"),
        ({"num_layers": 0}, "num_layers"),
        ({"options": {"pair_cutoffs": {"N": 3.0}}}, "'N'"),
        ({"options": {"pair_cutoffs": {"H": 9.0}}}, "H-H"),
    ],
)
def test_wrong_arguments_are_named(given, words):
    with pytest.raises(InputError, match=words):
        _model(**({"species": tuple(SHIFT)} | given))


def test_an_unknown_element_is_named():
    sample = Neighbors(4.0)(_molecule())
    sample.z[2] = 92
    with pytest.raises(InputError, match="92"):
        _model(tuple(SHIFT))(sample)
