"""NequIP: the committed records, and records of a plain reference for the options that they leave out."""

from pathlib import Path

import numpy as np
import plain_nequip as plain
import pytest
from test_golden import assert_exact, rewritten

from equidyn.core.errors import InputError
from equidyn.interop import verify

GOLDEN = Path(__file__).parents[1] / "golden" / "nequip"
RECORDS = sorted(GOLDEN.glob("l2_*.npz"))
FIELDS = [
    {"field": "charge", "min": -2, "max": 2, "num_features": 3},
    {"field": "spin", "min": 1, "max": 3, "num_features": 2},
]
CUTOFFS = {"H": 2.0, "C": {"H": 2.5, "O": 2.8}}
SC = "param/model.func.layer1_convnet.conv.sc.weight"
ZBL = {"_target_": "nequip.nn.pair_potential.ZBL", "chemical_species": ["H", "C", "O"]}


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_committed_record(path):
    assert_exact(path)


@pytest.mark.parametrize(
    ("config", "sizes", "periodic"),
    [
        ({}, [5, 3], False),
        ({"l_max": 0}, [4], False),
        ({"l_max": 0, "parity": False, "num_layers": 1}, [4], False),
        ({"l_max": 2, "parity": False, "num_features": [4, 3, 2]}, [5, 1], False),
        ({"l_max": 3, "num_features": [3, 2, 2, 1]}, [5], False),
        ({"l_max": 3, "parity": False, "num_layers": 4, "num_features": 2}, [3, 2], True),
        ({"per_edge_type_cutoff": CUTOFFS}, [5, 4], False),
        ({"per_edge_type_cutoff": CUTOFFS, "pair_potential": ZBL | {"units": "metal"}}, [3, 2], True),
        ({"pair_potential": ZBL | {"units": "real"}, "polynomial_cutoff_p": 5}, [5], False),
        ({"readout_mlp_hidden_layers_depth": 2, "readout_mlp_hidden_layers_width": 7}, [5], False),
        ({"categorical_graph_field_embed": FIELDS}, [4, 3, 2], False),
        ({"categorical_graph_field_embed": FIELDS[:1], "type_embed_num_features": 5}, [3, 2], True),
        ({"radial_mlp_depth": 0, "bessel_trainable": True, "num_bessels": 6}, [5], False),
        ({"radial_mlp_depth": 3, "num_layers": 2}, [5], False),
        ({"avg_num_neighbors": {"H": 2.5, "C": 4.0, "O": 3.0}}, [5, 3], False),
        ({"per_type_energy_scales": 1.7, "per_type_energy_shifts": None}, [5], False),
        ({"nonlinearity_type": "norm", "l_max": 2}, [5], False),
        ({"convnet_resnet": True, "num_layers": 4}, [5, 3], False),
        ({"learnable_shift": True}, [5], False),
    ],
)
def test_options(config, sizes, periodic, tmp_path):
    assert_exact(plain.write_record(tmp_path / "record.npz", config, sizes, periodic=periodic))


def test_types_that_are_no_elements(tmp_path):
    def rename(arrays):
        arrays["meta"]["config"]["type_names"] = ["H_water", "C_x", "O_x"]
        for name in ("scales", "shifts"):
            arrays["meta"]["config"].pop(f"per_type_energy_{name}")

    source = plain.write_record(tmp_path / "source.npz", {}, [5])
    assert_exact(rewritten(source, tmp_path / "record.npz", rename))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda a: a.pop(SC), "sc.weight"),
        (lambda a: a.__setitem__("param/model.func.more", np.ones(2)), "more"),
        (
            lambda a: a.__setitem__("param/model.func.layer1_convnet.conv.sc.weight", np.ones(2)),
            "layer1_convnet.conv.sc",
        ),
        (lambda a: a["meta"]["config"].update(pair_potential={"_target_": "x.LennardJones"}), "LennardJones"),
        (lambda a: a["meta"]["config"].pop("r_max"), "r_max"),
        (lambda a: a["meta"]["config"].update(avg_num_neighbors={"H": 1.0}), "'C'"),
    ],
)
def test_what_cannot_be_replayed_is_refused(change, words, tmp_path):
    path = rewritten(RECORDS[1], tmp_path / "record.npz", change)
    with pytest.raises(InputError, match=words):
        verify(path)


@pytest.mark.parametrize("name", ["param/model.func.layer1_convnet.conv.edge_mlp.mlp.4.weight", "out/forces", "in/pos"])
def test_a_tampered_record_fails(name, tmp_path):
    def tamper(arrays):
        arrays[name].flat[0] += 1e-6 * max(1, np.abs(arrays[name]).max())

    assert any(not outcome.passed for outcome in verify(rewritten(RECORDS[1], tmp_path / "record.npz", tamper)))
