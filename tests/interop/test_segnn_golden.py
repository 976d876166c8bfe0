"""SEGNN: the original's records, and records of a plain reference for the options they do not exercise."""

from pathlib import Path

import numpy as np
import plain_segnn as plain
import pytest
from test_golden import assert_exact, rewritten

from equidyn.core.errors import InputError
from equidyn.interop import verify

GOLDEN = Path(__file__).parents[1] / "golden"
RECORDS = [*sorted((GOLDEN / "segnn").glob("*.npz")), GOLDEN / "nbody" / "segnn_nbody_sim.npz"]

NODE = {
    "model": "segnn",
    "conv_type": "nonlinear",
    "task": "node",
    "input_irreps": "2x1o+1x0e",
    "output_irreps": "1x1o",
    "lmax_h": 1,
    "lmax_attr": 1,
    "hidden_features": 8,
    "subspace_type": "weightbalanced",
    "num_layers": 2,
    "norm": "none",
    "pool": "avg",
    "additional_message_irreps": "2x0e",
    "hidden_irreps": "4x0e+4x1o",
}
GRAPH = NODE | {
    "task": "graph",
    "input_irreps": "5x0e",
    "output_irreps": "1x0e",
    "lmax_h": 2,
    "lmax_attr": 3,
    "norm": "instance",
    "additional_message_irreps": "1x0e",
    "hidden_irreps": "2x0e+2x1o+2x2e",
}
BALANCED = {"subspace_type": "balanced", "lmax_h": 2, "lmax_attr": 2, "hidden_irreps": "5x0e+3x1o+2x2e"}
SECONV = {"model": "seconv", "conv_type": "nonlinear"}
LINEAR = {"model": "seconv", "conv_type": "linear"}
SCALAR = {"lmax_h": 0, "hidden_irreps": "6x0e"}


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_committed_record(path):
    assert_exact(path)


@pytest.mark.parametrize(
    "given",
    [
        NODE,
        NODE | {"norm": None},
        NODE | {"norm": "instance", "num_layers": 1},
        NODE | BALANCED,
        NODE | BALANCED | {"norm": "instance"},
        NODE | LINEAR,
        NODE | LINEAR | BALANCED | {"norm": "instance", "output_irreps": "1x0e+2x1o"},
        NODE | SECONV | BALANCED,
        NODE | SECONV | {"lmax_attr": 3},
        NODE | {"lmax_attr": 0},
        NODE | {"additional_message_irreps": None},
        NODE | {"input_irreps": "1x1o+2x0e+1x1o+1x2e", "output_irreps": "1x1o+1x0e+1x1o"},
        NODE | {"hidden_irreps": "4x0e+2x1e+4x1o", "lmax_attr": 2},
        NODE | SCALAR | {"input_irreps": "3x0e", "output_irreps": "1x0e"},
        NODE | SCALAR | LINEAR | {"input_irreps": "3x0e", "output_irreps": "2x0e"},
        NODE | {"num_layers": 0},
        GRAPH,
        GRAPH | {"pool": "sum", "norm": "none"},
        GRAPH | {"output_irreps": "3x0e"},
        GRAPH | BALANCED,
        GRAPH | LINEAR,
        GRAPH | SECONV | {"pool": "sum"},
    ],
)
@pytest.mark.parametrize("graph", [{"sizes": [4, 3]}, {"sizes": [3, 1, 4], "per_node": 2}], ids=["complete", "sparse"])
def test_options(given, graph, tmp_path):
    inputs = plain.random_inputs(given, **graph)
    assert_exact(plain.write_record(tmp_path / "record.npz", given, inputs))


@pytest.mark.parametrize("told", [False, True])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("changes", [{}, SECONV, LINEAR, BALANCED])
def test_batch_norm(changes, training, told, tmp_path):
    given = NODE | changes | {"norm": "batch"}
    inputs = plain.random_inputs(given, [4, 3])
    assert_exact(plain.write_record(tmp_path / "record.npz", given, inputs, training=training, told=told))


def test_missing_hidden_irreps_follow_from_the_sizes(tmp_path):
    path = tmp_path / "record.npz"
    given = NODE | {"hidden_features": 16, "hidden_irreps": "8x0e+8x1o"}
    plain.write_record(path, given, plain.random_inputs(given, [4]))
    assert_exact(rewritten(path, path, lambda arrays: arrays["meta"]["config"].pop("hidden_irreps")))


def config(**changes):
    return lambda arrays: arrays["meta"]["config"].update(changes)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (config(model="segn"), "'segnn'"),
        (config(conv_type="lin"), "conv_type"),
        (config(lmax_atr=2), "'lmax_attr'"),
        (config(additional_message_irreps="1x1o"), "scalars 0e"),
        (config(hidden_irreps="8x1o+8x0e"), "scalars 0e first"),
        (config(hidden_irreps="8x0e+7x1o"), "parameter of another size"),
        (config(input_irreps="two vectors"), "irreps"),
        (config(task="graph"), "output of a graph readout"),
        (lambda arrays: arrays.pop("param/pre_pool1.biases"), "pre_pool1.biases"),
        (lambda arrays: arrays.update({"param/more": np.ones(2)}), "more"),
        (lambda arrays: arrays.pop("in/node_attr"), "node_attr"),
    ],
)
def test_what_cannot_be_replayed_is_refused(change, words, tmp_path):
    path = rewritten(GOLDEN / "segnn" / "nbody_segnn.npz", tmp_path / "record.npz", change)
    with pytest.raises(InputError, match=words):
        verify(path)
