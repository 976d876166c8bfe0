"""Structures: labels by every convention, splits, references, statistics, batches, LMDB."""

import importlib.util
import json
import warnings
from dataclasses import replace

import ase
import ase.build
import ase.db
import ase.io
import numpy as np
import pytest
import torch

from emt_structures import crystals, molecules
from equidyn.core.errors import DataWarning, InputError
from equidyn.data.audit import audit
from equidyn.data.consistency import check_consistency
from equidyn.data.frames import from_atoms, read_frames
from equidyn.data.references import least_squares
from equidyn.data.structure_dataset import StructureDataset
from equidyn.data.structures import Structures

needs_lmdb = pytest.mark.skipif(importlib.util.find_spec("lmdb") is None, reason="lmdb is not installed (extra lmdb)")


@pytest.fixture(scope="module")
def made():
    return molecules()


@pytest.fixture
def path(made, tmp_path):
    ase.io.write(tmp_path / "set.xyz", made)
    return str(tmp_path / "set.xyz")


def write(tmp_path, text, name="one.xyz"):
    (tmp_path / name).write_text(text)
    return tmp_path / name


def water(comment, rows=("O 0 0 0", "H 0.96 0 0", "H -0.24 0.93 0")):
    return "\n".join([str(len(rows)), comment, *rows]) + "\n"


@pytest.mark.parametrize("name", ["set.xyz", "set.xyz.gz", "set.traj", "set.db", "set.json"])
def test_every_format_gives_the_same_structures(name, made, tmp_path):
    if name.endswith(".db"):
        with ase.db.connect(tmp_path / name) as data:
            for atoms in made:
                data.write(atoms, key_value_pairs={"config_type": atoms.info["config_type"]})
    else:
        ase.io.write(tmp_path / name, made)
    frames = read_frames(tmp_path / name)
    assert len(frames) == len(made)
    for frame, atoms in zip(frames, made, strict=True):
        assert frame.energy == pytest.approx(atoms.get_potential_energy(), abs=1e-7)
        assert np.allclose(frame.forces, atoms.get_forces(), atol=1e-7)
        assert frame.stress is None
        if name.split(".")[1] in ("xyz", "db"):
            assert frame.config_type == atoms.info["config_type"]


@pytest.mark.parametrize(
    ("comment", "keys", "energy", "force"),
    [
        ("Properties=species:S:1:pos:R:3:REF_forces:R:3 REF_energy=-1 energy=-2", None, -1, 0.5),
        ("Properties=species:S:1:pos:R:3:forces:R:3 energy=-2", None, -2, 0.5),
        ("Properties=species:S:1:pos:R:3:force:R:3 Energy=-3", None, -3, 0.5),
        ("Properties=species:S:1:pos:R:3:dft:R:3 mine=-4 energy=-2", {"energy": "mine", "forces": "dft"}, -4, 0.5),
        ("Properties=species:S:1:pos:R:3:other:R:3 what=-4", None, None, None),
    ],
)
def test_key_conventions(comment, keys, energy, force, tmp_path):
    rows = [f"{row} 0.5 0.5 0.5" for row in ("O 0 0 0", "H 0.96 0 0", "H -0.24 0.93 0")]
    (frame,) = read_frames(write(tmp_path, water(comment, rows)), keys)
    assert frame.energy == energy
    assert (frame.forces is None) if force is None else (frame.forces == force).all()


@pytest.mark.parametrize(
    ("label", "sign"), [("stress", 1), ("REF_stress", 1), ("virials", -1), ("REF_virials", -1), ("virial", -1)]
)
def test_stress_and_virials(label, sign, tmp_path):
    value = "1 2 3 2 4 5 3 5 6"
    cell = 'Lattice="2 0 0 0 3 0 0 0 4"'
    text = water(f'{cell} Properties=species:S:1:pos:R:3 pbc="T T T" {label}="{value}"', ["Cu 0 0 0"])
    (frame,) = read_frames(write(tmp_path, text))
    expected = np.array([[1, 2, 3], [2, 4, 5], [3, 5, 6]]) * (1 if sign > 0 else -1 / 24)
    assert np.allclose(frame.stress, expected)


def test_weights_heads_and_graph_fields(tmp_path):
    comment = (
        "Properties=species:S:1:pos:R:3 energy=-1 config_weight=2 config_energy_weight=0.5 head=pbe total_charge=-1"
    )
    (frame,) = read_frames(write(tmp_path, water(comment)))
    assert (frame.weight("energy"), frame.weight("forces"), frame.head) == (1.0, 0.0, "pbe")
    assert frame.fields == {"total_charge": -1}
    sample = StructureDataset([frame], 3.0)[0]
    assert sample.total_charge.tolist() == [-1]
    with pytest.raises(InputError, match=r"config weight.*frame 0, expected numbers, 0 or more"):
        read_frames(write(tmp_path, water("Properties=species:S:1:pos:R:3 config_weight=-2")))


def test_batches_are_the_structures_side_by_side(path):
    part = Structures(path, cutoff=2.0).part("train")
    batch = part.__getitems__([0, 3, 1])
    ones = [part[i] for i in (0, 3, 1)]
    assert batch.num_nodes == sum(one.num_nodes for one in ones)
    assert torch.equal(batch.pos, torch.cat([one.pos for one in ones]))
    assert torch.equal(batch.batch, torch.repeat_interleave(torch.arange(3), torch.tensor([len(o.pos) for o in ones])))
    send, receive = batch.edge_index
    assert torch.equal(batch.batch[send], batch.batch[receive])
    assert batch.edge_index.shape[1] == sum(one.edge_index.shape[1] for one in ones)
    assert batch.pos.dtype == batch.energy.dtype == batch.forces.dtype == torch.float64
    assert (batch.stress_weight == 0).all()
    assert part.sizes("edges")[0] == ones[0].edge_index.shape[1]


def test_shares_counts_files_and_indices(path, made, tmp_path):
    parts = Structures(path, val=0.25, test=4)
    where = [{frame.where for frame in parts.part(name).frames} for name in ("train", "val", "test")]
    assert list(map(len, where)) == [14, 6, 4]
    assert len(set.union(*where)) == 24
    again = Structures(path, val=0.25, test=4, seed=1).part("val")
    assert {frame.where for frame in again.frames} != where[1]
    split = tmp_path / "split.json"
    split.write_text(json.dumps({"train": [0, 1, 4], "val": [2, 3]}))
    ase.io.write(tmp_path / "other.xyz", made[:5])
    chosen = Structures(path, split=str(split), test={"a": str(tmp_path / "other.xyz"), "b": path})
    assert [frame.where[-1] for frame in chosen.part("train").frames] == ["0", "1", "4"]
    assert {name: len(part) for name, part in chosen.tests().items()} == {"a": 5, "b": 24}
    assert Structures(path).tests().keys() == {"validation"}
    for content, words in (
        ({"train": [0, 2], "val": [2]}, "an index in two parts"),
        ({"train": [0, 99], "val": [2]}, "index outside the file.*0 to 23, got 0 to 99"),
        ({"train": [0]}, "no indices val"),
    ):
        split.write_text(json.dumps(content))
        with pytest.raises(InputError, match=words):
            Structures(path, split=str(split)).part("train")
    with pytest.raises(InputError, match=r"val samples, in data.val"):
        Structures(path, val=24).part("train")


def test_isolated_atoms_come_from_the_file_the_recipe_or_least_squares(made, tmp_path, capsys):
    alone = [ase.Atoms(symbol, info={"config_type": "IsolatedAtom", "REF_energy": energy}) for symbol, energy in
             (("H", -1.0), ("C", -2.0), ("O", -3.0))]  # fmt: skip
    ase.io.write(tmp_path / "all.xyz", [*alone, *made])
    family = Structures(str(tmp_path / "all.xyz"))
    assert family.references().energies == {1: -1.0, 6: -2.0, 8: -3.0}
    assert len(family.part("train")) + len(family.part("val")) == 24
    fitted = family.fitted()
    assert "isolated-atom energies (from all.xyz): H -1.000000, C -2.000000, O -3.000000 eV" in capsys.readouterr().out
    train = family.part("train").frames
    rest = np.mean([(f.energy - (f.numbers == 1).sum() * -1 - (f.numbers == 6).sum() * -2 - (f.numbers == 8).sum() * -3)
                    / len(f) for f in train])  # fmt: skip
    assert fitted["reference"]["shift"] == pytest.approx(rest)
    assert fitted["reference"]["atoms"] == [-1.0, -2.0, -3.0]
    assert fitted["species"] == ["H", "C", "O"]
    forces = np.concatenate([f.forces for f in train])
    assert fitted["reference"]["scale"] == pytest.approx(np.sqrt(np.mean(forces**2)))
    ase.io.write(tmp_path / "bare.xyz", made)
    ase.io.write(tmp_path / "alone.xyz", alone)
    bare = str(tmp_path / "bare.xyz")
    assert Structures(bare, isolated=str(tmp_path / "alone.xyz")).references().energies[8] == -3.0
    assert Structures(bare, reference={"H": 1, "C": 2, "O": 3}).references().energies == {1: 1.0, 6: 2.0, 8: 3.0}
    assert Structures(bare, reference="none", shift="none").fitted()["shift"] == {"H": 0.0, "C": 0.0, "O": 0.0}
    for reference, words in (
        ("isolated", "no isolated atoms"),
        ({"H": 1}, r"no energy of the isolated atom.*got \['C', 'O'\]"),
        ({"Hh": 1}, "unknown element 'Hh'"),
        ("mean", "reference, in data.reference"),
    ):
        with pytest.raises(InputError, match=words):
            Structures(bare, reference=reference).references()


def test_least_squares_finds_additive_energies(made, path):
    frames = read_frames(path)
    true = {1: -5.0, 6: -7.0, 8: -11.0}
    exact = [type(frame)(**{**frame.__dict__, "energy": sum(true[int(z)] for z in frame.numbers)}) for frame in frames]
    found = least_squares(exact)  # water and methanol tell only two combinations of three numbers
    for frame in exact:
        assert sum(found[int(z)] for z in frame.numbers) == pytest.approx(frame.energy)


def test_mean_neighbours_is_counted_over_the_training_structures(path):
    family = Structures(path, cutoff=1.2, reference="least_squares")
    part = family.part("train")
    degree = torch.cat([torch.bincount(part[i].edge_index[1], minlength=part[i].num_nodes) for i in range(len(part))])
    assert family.fitted()["neighbours"] == pytest.approx(float(degree[degree > 0].double().mean()))


def test_replay_and_config_weights(path, made, tmp_path):
    ase.io.write(tmp_path / "old.xyz", made[:2])
    family = Structures(path, config_weights={"water": 3.0}, replay=str(tmp_path / "old.xyz"), replay_weight=0.5)
    frames = family.part("train").frames
    assert {frame.weight("energy") for frame in frames if frame.where.startswith(path)} == {1.0, 3.0}
    assert [frame.weight("forces") for frame in frames[-2:]] == [1.5, 0.5]


@needs_lmdb
def test_an_lmdb_holds_the_same_structures(tmp_path, made):
    from equidyn.data.structure_store import StructureStore, write_store

    alone = ase.Atoms("Cu", info={"config_type": "IsolatedAtom", "REF_energy": -9.0})
    ase.io.write(tmp_path / "set.xyz", [alone, *made, *crystals(2)])
    frames = read_frames(tmp_path / "set.xyz")
    assert write_store(tmp_path / "set.lmdb", frames) == 26
    store = read_frames(tmp_path / "set.lmdb")
    assert store.isolated == {"Cu": -9.0}
    assert store.atom_counts.tolist() == [len(frame) for frame in frames[1:]]
    for mine, frame in zip(store, frames[1:], strict=True):
        for name in ("numbers", "pos", "cell", "pbc", "energy", "forces", "stress"):
            assert np.array_equal(getattr(mine, name), getattr(frame, name)), name
        assert (mine.config_type, mine.weights) == (frame.config_type, frame.weights)
    family = Structures(str(tmp_path / "set.lmdb"), reference="least_squares", val=3)
    from_memory = Structures(str(tmp_path / "set.xyz"), reference="least_squares", val=3)
    one, other = (f.part("val").__getitems__([0, 1, 2]) for f in (family, from_memory))
    assert torch.equal(one.pos, other.pos)
    assert torch.equal(one.edge_index, other.edge_index)
    assert family.part("train").sizes("atoms") == from_memory.part("train").sizes("atoms")
    assert family.fitted()["neighbours"] == from_memory.fitted()["neighbours"]
    assert not family.part("train")._kept
    with pytest.raises(InputError, match="the file exists"):
        write_store(tmp_path / "set.lmdb", frames)
    (tmp_path / "bad.lmdb").write_bytes(b"no")
    with pytest.raises(InputError, match="unreadable LMDB"):
        StructureStore(tmp_path / "bad.lmdb")


BAD = {
    "atoms 1 and 2 in one place, in .*frame 0, expected more than 0.1 Å apart, got 0.01 Å": water(
        "Properties=species:S:1:pos:R:3 energy=0", ["O 0 0 0", "H 0.96 0 0", "H 0.97 0 0"]
    ),
    "pbc without a cell, in .*frame 0": water('Properties=species:S:1:pos:R:3 pbc="T T T"'),
    "a periodic box without volume, in cell.*frame 0": water(
        'Lattice="2 0 0 4 0 0 0 0 3" Properties=species:S:1:pos:R:3 pbc="T T T"'
    ),
    "NaN or infinity in forces at atom 1, in .*frame 0": water(
        "Properties=species:S:1:pos:R:3:forces:R:3",
        ["O 0 0 0 0 0 0", "H 0.96 0 0 0 nan 0", "H -0.24 0.93 0 0 0 0"],
    ),
    "NaN or infinity in energy, in .*frame 0": water("Properties=species:S:1:pos:R:3 energy=nan"),
    "NaN or infinity in pos at atom 2": water("Properties=species:S:1:pos:R:3", ["O 0 0 0", "H 1 0 0", "H 0 inf 0"]),
    "no such element": water("Properties=species:S:1:pos:R:3", ["X 0 0 0", "H 1 0 0"]),
    "unreadable structure, in .*frame 0": water("Properties=species:S:1:pos:R:3", ["O 0 0 0", "H 1 0"]),
    "energy is not a number|unreadable structure": water("Properties=species:S:1:pos:R:3 REF_energy=much"),
    "unreadable structure, .* Empty file": "",
}


@pytest.mark.parametrize("words", BAD)
def test_unusable_structures_are_refused_in_one_line(words, tmp_path):
    file = write(tmp_path, 3 * BAD[words])
    with pytest.raises(InputError, match=words) as caught:
        audit(file, 5.0)
    assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(InputError, match=words):
        Structures(str(file)).part("train")


def test_unknown_elements_and_missing_files(path, tmp_path):
    ase.io.write(tmp_path / "cu.xyz", crystals(2))
    with pytest.raises(
        InputError, match=r"unknown element in the test structures, .*cu.xyz, frame 0.*\(H, C, O\), got Cu"
    ):
        Structures(path, test=str(tmp_path / "cu.xyz")).part("train")
    with pytest.raises(InputError, match="no such file"):
        read_frames(tmp_path / "none.xyz")
    with pytest.raises(InputError, match="unknown label"):
        read_frames(path, {"enrgy": "e"})


def found_in(frames, tmp_path, cutoff=5.0):
    ase.io.write(tmp_path / "found.xyz", frames)
    return audit(tmp_path / "found.xyz", cutoff)[1]


def test_good_files_have_no_findings(made, tmp_path):
    assert found_in(made, tmp_path) == []
    assert found_in(crystals(), tmp_path) == []


def test_findings(made, tmp_path):
    missing = [atoms.copy() if k < 3 else atoms for k, atoms in enumerate(made)]
    lines = found_in(missing, tmp_path)
    assert "3 of 24 structures have no energy (frame 0 ...): weight 0" in lines[0]
    assert "no forces" in lines[1]
    (left,) = [line for line in found_in(_left_handed(), tmp_path) if "left" in line]
    assert "1 cells are left-handed, first in" in left
    far = ase.Atoms("OH", [[0, 0, 0], [0, 0, 20]], info={"REF_energy": -1.0})
    assert any("2 atoms have no neighbour within 5.0 Å; first atom 0" in line.replace(",", ";", 1) or
               "2 atoms have no neighbour" in line for line in found_in([*made, far], tmp_path))  # fmt: skip
    assert any("1 structures occur more than once" in line for line in found_in([*made, made[0]], tmp_path))


def _left_handed():
    atoms = crystals(3)
    flipped = ase.Atoms(atoms[0])
    flipped.set_cell(atoms[0].cell.array[[1, 0, 2]])
    flipped.info["REF_energy"] = 1.0
    return [flipped, *atoms[1:]]


@pytest.mark.parametrize(("unit", "factor"), [("Hartree", 1 / 27.2114), ("kcal/mol", 23.0605), ("kJ/mol", 96.485)])
def test_units_are_recognised_by_the_size_of_energies(unit, factor, tmp_path):
    """Total energies of water, -76.4 Hartree."""
    rng = np.random.default_rng(0)
    frames = []
    for _ in range(5):
        atoms = ase.build.molecule("H2O")
        atoms.rattle(0.02, rng=rng)
        atoms.info["REF_energy"] = -76.4 * 27.2114 * factor
        frames.append(atoms)
    (line,) = found_in(frames, tmp_path)
    assert f"energies look like {unit}: {factor:.2g}"[:28] in line


def test_large_forces_are_reported_with_their_ratio(made, tmp_path):
    frames = []
    for atoms in made:
        other = atoms.copy()
        other.info["REF_energy"], other.arrays["REF_forces"] = atoms.get_potential_energy(), atoms.get_forces() * 23.06
        frames.append(other)
    lines = found_in(frames, tmp_path)
    assert any("times the usual: kcal/mol/Å would be 23.1 times" in line for line in lines)
    assert any("forces in kcal/mol/Å beside energies in eV?" in line for line in lines)


@pytest.mark.parametrize(
    ("scale", "words"), [(1.0, "forces agree"), (-1.0, "wrong sign"), (1 / 27.2114, "Hartree/Å"), (0.7, "do not agree")]
)
@pytest.mark.parametrize("make", [lambda: molecules(24, spread=0.01), lambda: _shaken(12)])
def test_forces_are_compared_with_energies(make, scale, words, tmp_path):
    ase.io.write(tmp_path / "set.xyz", make())
    frames = read_frames(tmp_path / "set.xyz")
    scaled = [type(f)(**{**f.__dict__, "forces": f.forces * scale}) for f in frames]
    outcome = check_consistency(scaled)
    assert outcome.explained > 0.9
    assert outcome.consistent == (scale == 1.0)
    assert outcome.slope * scale == pytest.approx(1, abs=0.05)
    assert words in str(outcome)


def _shaken(count):
    from emt_structures import labelled

    rng = np.random.default_rng(1)
    made = []
    for _ in range(count):
        atoms = ase.build.bulk("Cu", cubic=True)
        atoms.positions += 0.02 * rng.standard_normal(atoms.positions.shape)
        made.append(labelled(atoms))
    return made


def test_warnings_while_training_are_single_lines(made, tmp_path):
    ase.io.write(tmp_path / "part.xyz", [atoms.copy() if k < 3 else atoms for k, atoms in enumerate(made)])
    with pytest.warns(DataWarning, match="structures have no energy") as caught:
        Structures(str(tmp_path / "part.xyz")).part("train")
    assert all("\n" not in str(w.message) for w in caught)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ase.io.write(tmp_path / "whole.xyz", made)
        Structures(str(tmp_path / "whole.xyz")).part("train")


def test_stress_counts_only_where_there_is_a_volume():
    (frame,) = map(from_atoms, crystals(1))
    for cell, pbc, expected in (
        (frame.cell, [True, True, True], 1.0),
        (frame.cell * [[1], [1], [0]], [True, True, False], 0.0),
        (frame.cell, [False, False, False], 0.0),
    ):
        sample = StructureDataset([replace(frame, cell=cell, pbc=np.array(pbc))], 3.0)[0]
        assert float(sample.stress_weight) == expected
        assert bool(sample.cell.any()) == any(pbc)
