"""MACE: golden records, records of mace-torch for the other options, the tables of e3nn, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest

from equidyn.core.errors import InputError
from equidyn.interop import mace, verify
from equidyn.interop.golden import read_record
from equidyn.models.mace import MACE
from equidyn.ops.symmetric_contraction import coupling_trees, equivariant_polynomials

GOLDEN = Path(__file__).parents[1] / "golden" / "mace"
CONVENTIONS = GOLDEN / "e3nn_conventions.npz"
RECORDS = sorted(set(GOLDEN.glob("*.npz")) - {CONVENTIONS})
PEER = sorted((GOLDEN / "peer").glob("*.npz"))  # made by running mace-torch 0.3.16


def rewritten(source, path, change):
    with np.load(source) as archive:
        arrays = {name: archive[name] for name in archive.files}
    arrays["meta"] = json.loads(str(arrays["meta"]))
    change(arrays)
    arrays["meta"] = np.array(json.dumps(arrays["meta"]))
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize("path", RECORDS + PEER, ids=lambda path: path.stem)
def test_record(path):
    outcomes = verify(path)
    assert len(RECORDS) == 3
    assert len(PEER) == 13
    assert {"energy", "node_energy", "node_feats", "product0"} <= {outcome.name for outcome in outcomes}
    for outcome in outcomes:
        # The interaction energy of two AcAc molecules is what is left of 9391 eV.
        assert outcome.error <= (1e-11 if outcome.name == "interaction_energy" else 1e-12), outcome


def test_a_float32_record(tmp_path):
    def cast(arrays):
        arrays["meta"]["dtype"] = "float32"
        for name, array in arrays.items():
            if name != "meta" and array.dtype == np.float64:
                arrays[name] = array.astype(np.float32)

    outcomes = verify(rewritten(GOLDEN / "ss_density_agnesi_heads.npz", tmp_path / "record.npz", cast))
    assert all(outcome.passed for outcome in outcomes), outcomes


def test_couplings_in_another_basis_fold_to_the_same_function(tmp_path):
    """Neither the order nor the scale nor the signs of the stored coupling trees matter."""
    random = np.random.default_rng(0)

    def change(arrays):
        for name in [name for name in arrays if "U_matrix" in name]:
            degree, stem = int(name[-1]), name.rsplit(".", 1)[0]
            weight = f"{stem}.weights_max" if degree == 3 else f"{stem}.weights.{2 - degree}"
            mix = np.linalg.qr(random.normal(size=2 * arrays[name].shape[-1:]))[0]
            arrays[name] = arrays[name] @ mix
            arrays[weight] = np.einsum("pq,spc->sqc", mix, arrays[weight])

    path = rewritten(GOLDEN / "ss_l1_acac.npz", tmp_path / "record.npz", change)
    assert all(outcome.error < 1e-11 for outcome in verify(path))

    def spoil(arrays):
        arrays["param/products.0.symmetric_contractions.contractions.1.U_matrix_3"][0, 1, 1, 1, 0] += 0.1

    with pytest.raises(InputError, match="couplings"):
        verify(rewritten(GOLDEN / "ss_l1_acac.npz", tmp_path / "record.npz", spoil))


@pytest.mark.parametrize("path", [CONVENTIONS, GOLDEN.parent / "nequip/e3nn_conventions.npz"])
def test_conventions_of_e3nn(path, tmp_path):
    outcomes = verify(path)
    assert len(outcomes) == 70
    assert all(o.error < 1e-14 for o in outcomes)

    def flip(arrays):
        arrays["w3j/2_1_2"] = -arrays["w3j/2_1_2"]

    outcomes = verify(rewritten(path, tmp_path / "record.npz", flip))
    assert [o.name for o in outcomes if not o.passed] == ["w3j/2_1_2"]


def test_counts_of_independent_polynomials():
    independent = [[len(equivariant_polynomials(3, n, k)) for k in range(3)] for n in (1, 2, 3)]
    assert independent == [[1, 1, 1], [4, 3, 5], [8, 12, 14]]
    assert [[coupling_trees(3, n, k) for k in range(3)] for n in (1, 2, 3)] == [[1, 1, 1], [4, 6, 7], [23, 51, 65]]


def test_the_published_count_of_parameters():
    """2,803,984 for acetylacetone; there each dependent coupling tree has a weight of its own."""
    model = MACE((1, 6, 8), 256, 2, 2)
    dependent = sum(
        coupling_trees(3, n, k) - len(equivariant_polynomials(3, n, k))
        for ls in (range(3), range(1))
        for k in ls
        for n in (1, 2, 3)
    )
    assert sum(p.numel() for p in model.parameters()) + 3 * 256 * dependent == 2_803_984


def drop(name):
    return lambda arrays: arrays.pop(name)


def config(**changes):
    return lambda arrays: arrays["meta"]["config"].update(changes)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (drop("param/interactions.1.linear_up.weight"), "interactions.1.linear_up"),
        (lambda arrays: arrays.update({"param/joint_embedding.weight": np.ones(2)}), "joint_embedding"),
        (lambda arrays: arrays.update({"param/readouts.0.linear.weight": np.ones(2)}), "readouts.0"),
        (config(hidden_irreps="8x0e + 8x1e"), "natural parities"),
        (config(hidden_irreps="8x0e + 4x1o"), "equal numbers"),
        (config(interaction_cls="AgnosticBlock"), "unknown interaction"),
        (config(gate="gelu"), "unknown activation"),
        (config(use_so3=True), "use_so3"),
        (config(embedding_specs={"total_charge": {}}), "embedding_specs"),
        (config(r_max=4.0), "bessel_weights"),
        (config(num_polynomial_cutoff=6), "cutoff_fn.p"),
        (config(correlations=3), "'correlation'"),
    ],
)
def test_what_cannot_be_replayed_is_refused(change, words, tmp_path):
    with pytest.raises(InputError, match=words):
        verify(rewritten(GOLDEN / "ss_l1_acac.npz", tmp_path / "record.npz", change))


def test_a_tampered_record_fails(tmp_path):
    def tamper(arrays):
        arrays["param/products.0.symmetric_contractions.contractions.1.weights_max"][0, 3, 2] += 1e-5

    outcomes = verify(rewritten(GOLDEN / "ss_l1_acac.npz", tmp_path / "record.npz", tamper))
    assert not all(outcome.passed for outcome in outcomes)


def test_state_and_arguments_make_a_model():
    record = read_record(GOLDEN / "mace_l2_pbc_zbl.npz")
    model = mace.build(record.options(**mace.ARGUMENTS), "record").double()
    mace.load(model, record.params)
    assert model.cutoff == 4.0
    assert len(model.layers) == 2
