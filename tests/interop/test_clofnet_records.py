"""Golden records of ClofNet: the committed ones, and those of a plain reference for the other options."""

import json
from pathlib import Path

import numpy as np
import plain_clofnet as plain
import pytest
import torch

from equidyn.core.errors import InputError
from equidyn.data.bonds import extend_bonds
from equidyn.interop import verify

RECORDS = sorted((Path(__file__).parents[1] / "golden" / "clofnet").glob("*.npz"))
NEWTON = {
    "model": "clof_vel",
    "hidden_nf": 8,
    "n_layers": 2,
    "coords_weight": 1.0,
    "recurrent": True,
    "norm_diff": True,
    "tanh": False,
    "n_nodes": 4,
}
SCORE = {"hidden_dim": 16, "order": 3, "mlp_act": "relu", "gnn_act": "relu", "short_cut": True, "concat_hidden": False}


def assert_exact(path, outputs=1e-10, gradients=1e-8):
    outcomes = verify(path)
    with np.load(path) as archive:
        assert len(outcomes) == sum(name.startswith("out/") for name in archive.files)
    for outcome in outcomes:
        assert outcome.error <= (gradients if "grad" in outcome.name else outputs), outcome


def rewritten(source, path, change):
    with np.load(source) as archive:
        arrays = {name: archive[name] for name in archive.files}
    arrays["meta"] = json.loads(str(arrays["meta"]))
    change(arrays)
    np.savez(path, **(arrays | {"meta": np.array(json.dumps(arrays["meta"]))}))
    return path


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_committed_record(path):
    assert_exact(path)


@pytest.mark.parametrize("model", ["clof", "clof_vel", "clof_vel_gbf"])
@pytest.mark.parametrize(
    ("changes", "scale"),
    [
        ({}, 1.0),
        ({"norm_diff": False}, 1.0),
        ({"tanh": True, "coords_weight": 0.7}, 1.0),
        ({"recurrent": False, "n_nodes": 3, "n_layers": 1}, 1.0),
        ({"norm_diff": False, "n_layers": 1, "hidden_nf": 6}, 15.0),  # the clamp of every summand acts
    ],
)
def test_particle_options(model, changes, scale, tmp_path):
    given = NEWTON | {"model": model} | changes
    assert_exact(plain.newton_record(tmp_path / "record.npz", given, systems=2, scale=scale))


@pytest.mark.parametrize(
    ("changes", "sizes", "power"),
    [
        ({}, [5, 4], 2.0),
        ({"short_cut": False, "order": 2}, [5, 4], 2.0),
        ({"gnn_act": "silu", "mlp_act": "softplus", "order": 4, "hidden_dim": 24}, [7], 1.0),
        ({"order": 1, "num_convs": 2, "sigma_begin": 5.0}, [3, 3, 6], 2.0),
    ],
)
def test_score_options(changes, sizes, power, tmp_path):
    assert_exact(plain.score_record(tmp_path / "record.npz", SCORE | changes, sizes, power))


@pytest.mark.parametrize(
    ("record", "change", "words"),
    [
        ("newton_clof", lambda a: a["meta"]["config"].update(model="clof_val"), "clof_vel"),
        ("newton_clof", lambda a: a["meta"]["config"].update(norm_dif=True), "norm_diff"),
        ("newton_clof", lambda a: a["meta"]["config"].pop("n_nodes"), "n_nodes"),
        ("newton_clof", lambda a: a["meta"].pop("config"), "config|constructor"),
        ("newton_clof", lambda a: a.pop("param/gcl_0.layer_norm.bias"), "layer_norm"),
        ("confgen_score", lambda a: a["meta"]["config"]["model"].update(concat_hidden=True), "concat_hidden"),
        ("confgen_score", lambda a: a["meta"]["config"]["model"].update(gnn_act="rellu"), "relu"),
        ("nbody_sim", lambda a: a["meta"]["sims"].update(statik=a["meta"]["sims"]["static"]), "static"),
    ],
)
def test_what_cannot_be_replayed_is_refused(record, change, words, tmp_path):
    source = next(path for path in RECORDS if path.stem == record)
    with pytest.raises(InputError, match=words) as caught:
        verify(rewritten(source, tmp_path / "record.npz", change))
    assert "\n" not in str(caught.value)


def test_a_tampered_record_fails(tmp_path):
    for path, name in zip(RECORDS, ("param/coff_mlp.bias", "out/static/loc", "in/vel", "out/grad_vel"), strict=True):

        def tamper(arrays, name=name):
            arrays[name].flat[0] += 1e-5 * np.abs(arrays[name]).max()

        assert any(not outcome.passed for outcome in verify(rewritten(path, tmp_path / "record.npz", tamper)))


def test_bonds_are_extended_within_their_molecules():
    bonds = torch.tensor([[0, 1, 1, 2, 2, 3, 5, 6, 0, 1], [1, 0, 2, 1, 3, 2, 6, 5, 1, 0]])  # 0-1-2-3, 4, 5-6, one twice
    index, kind, hops = extend_bonds(bonds, torch.ones(10, dtype=torch.long), 7)
    assert index.T.tolist() == sorted(index.T.tolist())
    found = dict(zip(map(tuple, index.T.tolist()), zip(kind.tolist(), hops.tolist(), strict=True), strict=True))
    assert found[0, 1] == (1, 1)
    assert found[0, 2] == (23, 2)
    assert found[3, 0] == (24, 3)
    assert len(found) == 14
    none = torch.zeros(2, 0, dtype=torch.long)
    assert extend_bonds(none, none[0], 1)[0].shape == (2, 0)
    with pytest.raises(InputError, match="atoms 0 to 2"):
        extend_bonds(bonds, torch.ones(10, dtype=torch.long), 3)
    with pytest.raises(InputError, match="at least 1"):
        extend_bonds(bonds, torch.ones(10, dtype=torch.long), 7, order=0)
