"""Golden records: the committed ones, ones made by a plain reference for the other options, and broken ones."""

import json
from pathlib import Path

import numpy as np
import plain_reference as plain
import pytest

from equidyn.cli import main
from equidyn.core.errors import InputError
from equidyn.interop import read_record, verify

GOLDEN = Path(__file__).parents[1] / "golden"
RECORDS = sorted(path for system in ("egno", "egnn") for path in (GOLDEN / system).glob("*.npz"))

BACKBONE = {
    "n_layers": 2,
    "in_node_nf": 2,
    "in_edge_nf": 2,
    "hidden_nf": 6,
    "with_v": True,
    "flat": False,
    "norm": False,
    "activation": "SiLU (Tanh inside every MLP if flat=True)",
}
EGNO = BACKBONE | {"use_time_conv": True, "num_modes": 2, "num_timesteps": 5, "time_emb_dim": 8}
CLEAN = {"in_node_nf": 3, "hidden_nf": 6, "out_node_nf": 2, "in_edge_nf": 1, "n_layers": 2, "act_fn": "SiLU"}
VEL = {"in_node_nf": 1, "in_edge_nf": 2, "hidden_nf": 6, "n_layers": 2, "act_fn": "SiLU"}
QM9 = {"in_node_nf": 4, "in_edge_nf": 0, "hidden_nf": 6, "n_layers": 2, "coords_weight": 1.0, "act_fn": "SiLU"}
CLS = {
    "egno": "model.egno.EGNO",
    "backbone": "model.basic.EGNN",
    "clean": "models/egnn_clean/egnn_clean.py:EGNN",
    "vel": "n_body_system/model.py:EGNN_vel",
    "qm9": "qm9/models.py:EGNN",
}


def rewritten(source, path, change):
    """A copy of a record with some arrays or entries of `meta` changed."""
    with np.load(source) as archive:
        arrays = {name: archive[name] for name in archive.files}
    arrays["meta"] = json.loads(str(arrays["meta"]))
    change(arrays)
    arrays["meta"] = np.array(json.dumps(arrays["meta"]))
    np.savez(path, **arrays)
    return path


def assert_exact(path, outputs=1e-10, gradients=1e-8):
    outcomes = verify(path)
    with np.load(path) as archive:
        assert len(outcomes) == sum(name.startswith("out/") for name in archive.files)
    for outcome in outcomes:
        assert outcome.error <= (gradients if outcome.name.startswith("grad") else outputs), outcome
        assert outcome.passed


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_committed_record(path):
    assert_exact(path)


def test_verify_on_the_command_line(capsys):
    assert main(["verify", *map(str, RECORDS)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(RECORDS) == 6
    assert all(line.startswith("ok") for line in lines)
    assert main(["verify", "--all", str(RECORDS[0])]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1 + len(verify(RECORDS[0]))


@pytest.mark.parametrize(
    ("changes", "sizes", "options"),
    [
        ({}, [4, 4], {}),
        ({"flat": True}, [4, 4], {}),
        ({"norm": True}, [4, 4], {}),
        ({"flat": True, "norm": True, "use_time_conv": False}, [3, 5], {}),
        ({"use_time_conv": False}, [4, 4], {}),
        ({"num_timesteps": 1, "num_modes": 1}, [4], {}),
        ({"num_timesteps": 2, "num_modes": 2}, [4], {}),
        ({"num_timesteps": 7, "num_modes": 4, "time_emb_dim": 9, "flat": True}, [3, 2], {}),
        ({"num_timesteps": 6, "num_modes": 4, "time_emb_dim": 5}, [3, 2], {}),
        ({"num_timesteps": 6, "num_modes": 3}, [3, 2], {}),
        ({"num_timesteps": 4, "num_modes": 1}, [3, 2], {}),
        ({"in_edge_nf": 0}, [4, 3], {}),
        ({"n_layers": 1, "num_timesteps": 8, "num_modes": 5}, [5, 1, 3], {"per_node": 2}),
        ({}, [5], {"scale": 60.0}),
    ],
)
def test_egno_options(changes, sizes, options, tmp_path):
    given = EGNO | changes
    inputs = plain.egno_inputs(given, sizes, **options)
    compute = lambda w, i: plain.egno(w, given, i)  # noqa: E731
    path = tmp_path / "record.npz"
    assert_exact(plain.write_record(path, "egno", CLS["egno"], given, sizes, inputs, compute, plain.egno_loss))


@pytest.mark.parametrize(
    ("changes", "sizes", "options"),
    [
        ({}, [4, 3], {}),
        ({"with_v": False}, [4, 3], {"velocity": False}),
        ({"with_v": True}, [4, 3], {"velocity": False}),
        ({"flat": True, "norm": True}, [4, 1], {}),
        ({"in_edge_nf": 0, "flat": True}, [4, 3], {}),
        ({"norm": True, "n_layers": 3}, [6], {"per_node": 2}),
    ],
)
def test_backbone_options(changes, sizes, options, tmp_path):
    given = BACKBONE | changes
    inputs = plain.egno_inputs(given, sizes, **options)
    compute = lambda w, i: plain.egno_backbone(w, given, i)  # noqa: E731
    path = tmp_path / "record.npz"
    assert_exact(plain.write_record(path, "egno", CLS["backbone"], given, sizes, inputs, compute, plain.egno_loss))


@pytest.mark.parametrize(
    ("variant", "given", "sizes", "scale"),
    [
        ("clean", CLEAN, [4, 3], 1.0),
        ("clean", CLEAN | {"residual": False}, [4, 3], 1.0),
        ("clean", CLEAN | {"attention": True}, [4, 1], 1.0),
        ("clean", CLEAN | {"attention": 1, "normalize": True, "tanh": True, "residual": False}, [4, 3], 1.0),
        ("clean", CLEAN | {"normalize": True}, [4, 3], 50.0),
        ("clean", CLEAN | {"coords_agg": "sum", "in_edge_nf": 0}, [4, 3], 1.0),
        ("clean", CLEAN | {"in_edge_nf": None}, [3], 1.0),
        ("vel", VEL | {"recurrent": True}, [4, 4], 1.0),
        ("vel", VEL, [4, 4], 1.0),  # the original's default is without residual
        ("vel", VEL | {"norm_diff": True, "tanh": True, "recurrent": False}, [4, 3], 1.0),
        ("vel", VEL | {"norm_diff": True, "recurrent": True, "coords_weight": 1.0}, [4, 3], 30.0),
        ("vel", VEL | {"tanh": True, "recurrent": True, "in_edge_nf": 0}, [4, 1], 1.0),
        ("vel", VEL | {"recurrent": True}, [4], 100.0),  # the clamp of every summand acts
        ("qm9", QM9 | {"attention": False, "node_attr": 0}, [4, 2, 3], 1.0),
        ("qm9", QM9 | {"attention": True, "node_attr": 0}, [4, 2, 3], 1.0),
        ("qm9", QM9 | {"attention": 0, "node_attr": 1, "coords_weight": 3.0}, [4, 1], 1.0),
    ],
)
def test_egnn_options(variant, given, sizes, scale, tmp_path):
    inputs = plain.egnn_inputs(given, variant, sizes, scale=scale)
    compute = lambda w, i: plain.egnn(w, variant, given, i)  # noqa: E731
    path = tmp_path / "record.npz"
    assert_exact(plain.write_record(path, "egnn", CLS[variant], given, sizes, inputs, compute, plain.egnn_loss))


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_float32_record_passes_at_its_own_tolerance(path, tmp_path):
    def cast(arrays):
        arrays["meta"]["dtype"] = "float32"
        for name, array in arrays.items():
            if name != "meta" and array.dtype == np.float64:
                arrays[name] = array.astype(np.float32)

    outcomes = verify(rewritten(path, tmp_path / "record.npz", cast))
    assert all(outcome.passed and outcome.tolerance == 1e-4 for outcome in outcomes), outcomes
    assert max(outcome.error for outcome in outcomes) > 1e-10  # it was computed in float32


@pytest.mark.parametrize(
    ("record", "name"),
    [
        ("egno/nbody_T5", "param/embedding.weight"),
        ("egno/nbody_T5", "out/x"),
        ("egno/ragged_T8_nyquist", "param/time_conv_x_modules.1.t_conv.weights1"),
        ("egnn/nbody_vel", "out/gradparam/embedding.weight"),
        ("egnn/qm9_attention", "out/pred"),
        ("egnn/clean_default", "in/x"),
    ],
)
def test_a_tampered_record_fails(record, name, tmp_path, capsys):
    def tamper(arrays):
        arrays[name].flat[0] += 1e-6 * max(1, np.abs(arrays[name]).max())

    path = rewritten(GOLDEN / f"{record}.npz", tmp_path / "record.npz", tamper)
    assert any(not outcome.passed for outcome in verify(path))
    assert main(["verify", str(path)]) == 1
    out = capsys.readouterr().out
    assert out.startswith("FAIL")
    assert len(out.splitlines()) > 1  # the outputs that differ, one per line


def test_an_unknown_output_and_nan_fail(tmp_path):
    def tamper(arrays):
        arrays["out/new"] = np.ones(3)
        arrays["out/loss"] = np.array([np.nan])

    outcomes = verify(rewritten(RECORDS[0], tmp_path / "record.npz", tamper))
    assert {outcome.name for outcome in outcomes if not outcome.passed} == {"new", "loss"}


def drop(name):
    return lambda arrays: arrays.pop(name)


def meta(**changes):
    return lambda arrays: arrays["meta"].update(changes)


def argument(**changes):
    return lambda arrays: arrays["meta"]["constructor"].update(changes)


def set_array(name, value):
    return lambda arrays: arrays.__setitem__(name, value)


@pytest.mark.parametrize(
    ("record", "change", "words"),
    [
        ("egno/nbody_T5", drop("param/embedding.bias"), "embedding.bias"),
        ("egno/nbody_T5", set_array("param/more", np.ones(2)), "more"),
        ("egno/nbody_T5", set_array("param/embedding.bias", np.ones(3)), "embedding.bias"),
        ("egno/nbody_T5", drop("in/loc_mean"), "loc_mean"),
        ("egno/nbody_T5", meta(system="egnoo"), "'egno'"),
        ("egno/nbody_T5", meta(dtype="float16"), "float16"),
        ("egno/nbody_T5", argument(num_mods=3), "'num_modes'"),
        ("egno/nbody_T5", argument(activation="ReLU"), "ReLU"),
        ("egno/nbody_T5", argument(num_modes=4), "1 to 3"),
        ("egno/nbody_T5", argument(with_v=False), "with_v"),
        ("egno/nbody_T5", argument(hidden_nf="many"), "replayed"),
        ("egno/nbody_T5", lambda arrays: arrays["meta"]["constructor"].pop("hidden_nf"), "hidden_nf"),
        ("egno/nbody_T5", lambda arrays: arrays["meta"].pop("cls"), "cls"),
        ("egno/nbody_T5", lambda arrays: arrays["meta"].pop("constructor"), "constructor"),
        ("egno/nbody_T5", set_array("elsewhere/x", np.ones(2)), "elsewhere/x"),
        ("egnn/clean_default", meta(cls="models/ae.py:AE"), "models/ae.py:AE"),
        ("egnn/clean_default", argument(coords_agg="max"), "max"),
        ("egnn/nbody_vel", argument(coords_weight=2.0), "coords_weight"),
        ("egnn/nbody_vel", argument(act_fn="ReLU"), "ReLU"),
    ],
)
def test_what_cannot_be_replayed_is_refused(record, change, words, tmp_path, capsys):
    path = rewritten(GOLDEN / f"{record}.npz", tmp_path / "record.npz", change)
    with pytest.raises(InputError, match=words):
        verify(path)
    assert main(["verify", str(path)]) == 2
    message = capsys.readouterr().err
    assert len(message.splitlines()) == 1
    assert str(path) in message


def test_files_that_are_no_records(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_record(tmp_path / "none.npz")
    cut = tmp_path / "cut.npz"
    cut.write_bytes(RECORDS[0].read_bytes()[:1000])
    with pytest.raises(InputError, match="unreadable golden record"):
        read_record(cut)
    pickled = tmp_path / "pickled.npz"
    np.savez(pickled, meta=np.array([{"system": "egno"}], dtype=object))
    with pytest.raises(InputError, match="allow_pickle"):
        read_record(pickled)
    rewritten(RECORDS[0], cut, lambda arrays: [arrays.pop(k) for k in list(arrays) if k.startswith("out/")])
    with pytest.raises(InputError, match="without outputs"):
        read_record(cut)
