"""Messages made for some edges at a time: the same numbers and gradients, and no array over all edges."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from equidyn import conformance
from equidyn.models.clofnet import ClofNet, ClofNetOptions
from equidyn.models.egnn import EGNN, EGNNOptions
from equidyn.models.egno import EGNO
from equidyn.models.implicit_steerable_kernels import ImplicitSteerableKernels, KernelOptions
from equidyn.models.segnn import SEGNN, SEGNNOptions
from equidyn.ops import edges as ops

MODELS = {
    "egnn": lambda: EGNN(2, 2, 16, 2),
    "egnn plain": lambda: EGNN(2, 2, 16, 2, layer=EGNNOptions(relative_velocity=True, reduce="sum", fused=False)),
    "egnn still": lambda: EGNN(2, 2, 16, 2, layer=EGNNOptions(move=False)),
    "egno": lambda: EGNO(2, 2, 16, 2),
    "clofnet": lambda: ClofNet(2, 2, 16, 2),
    "clofnet plain": lambda: ClofNet(
        2, 2, 16, 2, options=ClofNetOptions(centre="neighbours", clamp="message_component", fused=False)
    ),
    "egno over clofnet": lambda: EGNO(2, 2, 16, 2, backbone="clofnet"),
    "egno over segnn": lambda: EGNO(2, 2, 16, 2, backbone="segnn"),
    "kernels": lambda: ImplicitSteerableKernels(2, 2, 2, 1, velocity=True, readout="position"),
    "kernels batch": lambda: ImplicitSteerableKernels(2, 2, 2, 1, options=KernelOptions(norm="batch")).eval(),
    "egno over kernels": lambda: EGNO(2, 2, 8, 1, backbone="implicit_steerable_kernels"),
    "segnn": lambda: SEGNN(2, 1, 16, 2, options=SEGNNOptions(norm="instance")),
    "segnn linear": lambda: SEGNN(2, 1, 16, 2, options=SEGNNOptions(conv="linear")),
    "segnn batch": lambda: SEGNN(2, 1, 16, 2, options=SEGNNOptions(norm="batch")).eval(),
}


class Largest(TorchDispatchMode):
    """The most numbers in one array that an operator makes."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **kwargs or {})
        for value in out if isinstance(out, tuple | list) else (out,):
            if isinstance(value, torch.Tensor) and value.is_floating_point():
                self.numbers = max(self.numbers, value.numel())
        return out


def results(name, nodes):
    torch.manual_seed(0)
    model, sample = MODELS[name]().double(), conformance.random_sample(nodes)
    sample.pos.requires_grad_()
    with torch.no_grad(), Largest() as quiet:
        silent = model(sample)
    with Largest() as forward:
        out = model(sample)
    sum(value.sin().sum() for value in out.values()).backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None} | {"pos": sample.pos.grad}
    return silent, out, gradients, max(quiet.numbers, forward.numbers)


@pytest.mark.parametrize("name", MODELS)
def test_parts_give_the_same(name, monkeypatch):
    *whole, size = results(name, 24)
    monkeypatch.setattr(ops, "EDGES_AT_ONCE", 64)
    *parts, small = results(name, 24)
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-12, atol=1e-12)
    assert small < size / 3


def test_statistics_of_all_messages_are_not_made_of_parts(monkeypatch):
    sample = conformance.random_sample(6)
    model = SEGNN(2, 1, 16, 2, options=SEGNNOptions(norm="batch")).double()
    whole = model(sample)["pos"]
    monkeypatch.setattr(ops, "EDGES_AT_ONCE", 7)
    torch.testing.assert_close(model(sample)["pos"], whole, rtol=1e-12, atol=1e-12)
