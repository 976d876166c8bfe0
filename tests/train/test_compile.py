"""Training with torch.compile: the same numbers, and plain training where the compiler does not work."""

import csv
from functools import partial

import pytest
import safetensors.torch
import torch
from torch._dynamo.utils import counters
from torch._inductor import config as inductor

from equidyn.conformance import random_sample
from equidyn.models.clofnet import ClofNet
from equidyn.models.egno import EGNO


@pytest.fixture(autouse=True)
def _fresh_compiler(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def losses(folder):
    with (folder / "metrics.csv").open() as file:
        return [float(row[name]) for row in csv.DictReader(file) for name in ("train_loss", "val_f_mse")]


def weights(folder):
    return safetensors.torch.load_file(folder / "model.safetensors")


def test_a_compiled_run_gives_the_numbers_of_a_plain_one(tiny_train, monkeypatch):
    options = {"epochs": 2, "eval_every": 1, "batch_size": 8}
    plain = losses(tiny_train("plain", **options))
    counters.clear()
    # Traced and differentiated as for the compiler, without the minute that writing C++ takes.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    traced = losses(tiny_train("traced", compile=True, **options))
    assert counters["stats"]["unique_graphs"] >= 1
    assert traced == pytest.approx(plain, rel=1e-5)


def test_without_a_working_compiler_training_goes_on(tiny_train):
    options = {"epochs": 2, "eval_every": 1}
    plain = weights(tiny_train("plain", **options))
    with (
        inductor.patch({"cpp.cxx": ("no-such-compiler",), "fx_graph_cache": False}),
        pytest.warns(UserWarning, match="torch.compile does not work here, training without it"),
    ):
        fallen_back = weights(tiny_train("fallen-back", compile=True, **options))
    assert all(torch.equal(fallen_back[name], weight) for name, weight in plain.items())


@pytest.mark.parametrize(
    "make",
    [lambda: EGNO(2, 2, 8, 2, times=(0.2, 0.4, 0.6, 0.8, 1.0)), lambda: ClofNet(2, 2, 8, 2)],
    ids=["egno", "clofnet"],
)
def test_the_compiler_sees_one_graph(make):
    """Anything it cannot look into cuts the model in pieces, which costs more than compiling gains."""
    model = make()
    assert torch._dynamo.explain(model)(random_sample(nodes=5, dtype=torch.float32)).graph_count == 1
