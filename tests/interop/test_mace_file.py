"""Files of mace-torch: read without it, nothing in them executed, everything else refused."""

import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch

from equidyn.core.errors import InputError
from equidyn.interop import read_record
from equidyn.interop.inert_pickle import read_inert
from equidyn.interop.mace import ARGUMENTS, build, load, record_sample
from equidyn.interop.mace_file import read_model

PEER = Path(__file__).parents[1] / "golden" / "mace" / "peer"
FILES = {"soft": "soft_gaussian", "nonlinear_mh": "nonlinear_heads"}


@pytest.mark.parametrize("name", FILES)
def test_a_file_and_its_state_make_the_same_model(name):
    record = read_record(PEER / f"{FILES[name]}.npz")
    other = build(record.options(**ARGUMENTS), "record").double()
    load(other, record.params)
    model, (sample, _) = read_model(PEER / f"{name}.model"), record_sample(record)
    for key, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[key]), key
    torch.testing.assert_close(model(sample)["energy"], record.outputs["energy"], rtol=1e-13, atol=1e-13)


class Call:
    """Pickles as a call of a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def archive(path, content, name="model/data.pkl"):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(name, content)
    return path


@pytest.mark.parametrize(
    "call", [Call(os.mkdir, "ran"), Call(eval, "open('ran', 'w')"), Call(exec, "open('ran', 'w')"), Call(print, "ran")]
)
def test_names_that_no_model_needs_are_refused(call, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    path = archive(tmp_path / "bad.model", pickle.dumps({"_modules": call}))
    with pytest.raises(InputError, match="refused"):
        read_model(path)
    assert [p.name for p in tmp_path.iterdir()] == ["bad.model"]
    assert capsys.readouterr().out == ""


def test_functions_of_the_libraries_are_not_run(tmp_path):
    path = archive(tmp_path / "bad.model", pickle.dumps(Call(torch.set_num_threads, 77), protocol=2))
    with pytest.raises(InputError, match="not a saved module"):
        read_inert(path, ("torch",))
    assert torch.get_num_threads() != 77
    method = Call(getattr, torch.nn.Linear, "forward")
    with pytest.raises(InputError, match="not a saved module"):
        read_inert(archive(tmp_path / "more.model", pickle.dumps(method, protocol=2)), ("torch",))


def test_files_that_are_no_models(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_model(tmp_path / "none.model")
    whole = (PEER / "soft.model").read_bytes()
    (tmp_path / "cut.model").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="not a saved module"):
        read_model(tmp_path / "cut.model")
    torch.save({"a": torch.ones(2)}, tmp_path / "state.pt")
    with pytest.raises(InputError, match="not a saved module"):
        read_model(tmp_path / "state.pt")
    torch.save(torch.nn.Linear(2, 3), tmp_path / "other.model")
    with pytest.raises(InputError, match=r"MACE or ScaleShiftMACE, got Linear"):
        read_model(tmp_path / "other.model")
