"""The fast operators against the plain formulas they stand for."""

import pytest
import torch
from torch.nn import functional as F

from equidyn.core.errors import InputError
from equidyn.ops.edges import EdgeCache, Edges
from equidyn.ops.linear import Linear, linear, side_by_side, split_linear
from equidyn.ops.message import MessageWeights, fused_messages
from equidyn.ops.temporal import TemporalConv
from equidyn.ops.time import sinusoidal_embedding

RAGGED = torch.tensor([[1, 2, 0, 3, 3], [0, 0, 1, 1, 2]])  # node 3 receives nothing, node 4 has no edges


def _draw(*shape, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, requires_grad=True)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 1e-4)])
def test_linear_equals_torch(dtype, tolerance):
    torch.manual_seed(0)
    inputs = [_draw(3, 40, 16, dtype=dtype), _draw(24, 16, dtype=dtype), _draw(24, dtype=dtype)]
    weight = torch.randn(3, 40, 24, dtype=dtype)
    results = []
    for function in (linear, F.linear):
        out = function(*inputs)
        results.append([out, *torch.autograd.grad((out * weight).sum(), inputs)])
    for ours, theirs in zip(*results, strict=True):
        assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max()


def test_linear_can_be_differentiated_twice():
    torch.manual_seed(0)
    x, w = _draw(5, 16, dtype=torch.float32), _draw(16, 16, dtype=torch.float32)
    results = []
    for function in (linear, F.linear):
        (g,) = torch.autograd.grad(function(x, w).pow(3).sum(), x, create_graph=True)
        results.append(torch.autograd.grad(g.pow(2).sum(), (x, w)))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


def test_a_split_map_is_one_map_on_the_concatenation():
    a, b = torch.randn(7, 3), torch.randn(7, 5)
    parts = split_linear((3, 5), 4)
    whole = F.linear(torch.cat([a, b], 1), torch.cat([p.weight for p in parts], 1), parts[0].bias)
    torch.testing.assert_close(parts[0](a) + parts[1](b), whole)
    assert max(p.abs().max() for part in parts for p in part.parameters()) <= 8**-0.5
    maps = [Linear(3, 4), Linear(3, 2, bias=False)]
    for ours, single in zip(side_by_side(a, *maps).split([4, 2], dim=-1), maps, strict=True):
        torch.testing.assert_close(ours, single(a))


def test_sending_and_summing_along_edges():
    edges = Edges.build(RAGGED, 5, torch.float64, copies=2)
    send, receive = torch.cat([RAGGED, RAGGED + 5], dim=1)
    h, m = _draw(10, 3), _draw(10, 3)
    torch.testing.assert_close(edges.from_senders(h), h[send], rtol=0, atol=0)
    torch.testing.assert_close(edges.from_receivers(h), h[receive], rtol=0, atol=0)
    torch.testing.assert_close(edges.sum(m), torch.zeros(10, 3).double().index_add(0, receive, m))
    assert (edges.mean(m)[[3, 4, 8, 9]] == 0).all()
    torch.testing.assert_close(edges.mean(m)[0], m[:2].mean(0))
    assert torch.autograd.gradcheck(lambda t: edges.sum(t).pow(2), m)
    assert torch.autograd.gradgradcheck(lambda t: edges.from_senders(t).pow(3), h)


def test_a_graph_without_edges_and_the_cache():
    empty = torch.zeros(2, 0, dtype=torch.long)
    edges = Edges.build(empty, 1, torch.float32, copies=3)
    assert edges.sum(torch.zeros(0, 4)).shape == (3, 4)
    cache = EdgeCache()
    first = cache(RAGGED, 5, torch.float32, 1)
    assert cache(RAGGED.clone(), 5, torch.float32, 1) is first
    other = RAGGED.clone()
    other[0, 0] = 4
    assert cache(other, 5, torch.float32, 1) is not first


@pytest.mark.parametrize(("shared", "vectors"), [(True, 1), (False, 1), (True, 2)])
def test_fused_messages_equal_the_plain_formula(shared, vectors):
    torch.manual_seed(0)
    edges = Edges.build(RAGGED, 5, torch.float64, copies=2)
    nodes, q = _draw(10, 12), _draw(10, 2)
    e = _draw(5, 6) if shared else None
    weights = MessageWeights(
        _draw(6, 2), _draw(4, 6), _draw(4), _draw(6, 4), _draw(6), _draw(vectors, 6), _draw(vectors)
    )

    def plain():
        receiver, sender = nodes.chunk(2, dim=1)
        a = edges.from_receivers(receiver) + edges.from_senders(sender) + q @ weights.distance.T
        if e is not None:
            a = a + torch.cat([e, e])
        m = F.silu(F.linear(F.silu(a), weights.weight2, weights.bias2))
        return edges.sum(m), F.linear(
            F.silu(F.linear(m, weights.weight3, weights.bias3)), weights.weight4, weights.bias4
        )

    inputs = [t for t in (nodes, q, e, *weights) if t is not None]
    results = []
    for total, g in (fused_messages(nodes, q, e, edges, weights), plain()):
        results.append([total, g, *torch.autograd.grad(total.pow(2).sum() + (g * g.detach().cos()).sum(), inputs)])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)
    total, _ = fused_messages(nodes, q, e, edges, weights)
    (grad,) = torch.autograd.grad(total.pow(2).sum(), nodes, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@pytest.mark.parametrize("vectors", [1, 2])
def test_fused_messages_compiled_in_bfloat16(vectors):
    """What is kept for the backward pass differs there; the numbers are those of float32 to the digits of bfloat16."""
    torch.manual_seed(0)
    edges = Edges.build(RAGGED, 5, torch.float32, copies=2)
    nodes, q, e = (_draw(*shape).detach().float().requires_grad_() for shape in ((10, 32), (10, 1), (5, 16)))
    shapes = ((16, 1), (8, 16), (8,), (16, 8), (16,), (vectors, 16))
    weights = [(0.5 * _draw(*shape)).detach().float().requires_grad_() for shape in shapes]
    inputs = [nodes, q, e, *weights]

    def gradients(messages, low):
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            total, g = messages(nodes, q, e, edges, MessageWeights(*weights))
        loss = total.float().pow(2).sum() + g.float().sin().sum()
        return [total.float(), g.float(), *torch.autograd.grad(loss, inputs)]

    torch._dynamo.reset()
    compiled = gradients(torch.compile(fused_messages, backend="aot_eager"), True)
    for low, full in zip(compiled, gradients(fused_messages, False), strict=True):
        assert (low - full).norm() <= 0.03 * full.norm()


@pytest.mark.parametrize(("points", "modes"), [(5, 2), (8, 5), (7, 4), (1, 1), (2, 2)])
@pytest.mark.parametrize("channels", [2, 9])  # one matrix, one product per mode
def test_the_real_form_is_the_fourier_form(points, modes, channels):
    torch.manual_seed(0)
    conv = TemporalConv(channels, points, modes).double()
    h = torch.randn(points, 4, channels, dtype=torch.float64)
    spectrum = torch.fft.rfft(h, dim=0)
    weight = torch.complex(conv.weight[:, 0], conv.weight[:, 1])
    mixed = torch.zeros_like(spectrum)
    mixed[:modes] = torch.einsum("kni,koi->kno", spectrum[:modes], weight)
    expected = torch.fft.irfft(mixed, n=points, dim=0)
    out = conv(h)
    assert (out - expected).abs().max() < 1e-13
    (grad,) = torch.autograd.grad(out.pow(2).sum(), conv.weight)
    assert grad[0, 1].abs().max() == 0  # the imaginary part of mode 0 never acts
    if points == 8:
        assert grad[4, 1].abs().max() < 1e-13  # nor that of the Nyquist mode


@pytest.mark.parametrize("basis", ["fourier", "cosine"])
def test_an_answer_at_an_anchor_is_the_anchor_s(basis):
    points = torch.arange(6, dtype=torch.float64)[:, None].expand(-1, 4)
    for channels in (2, 9):
        conv = TemporalConv(channels, 6, 3, basis=basis).double()
        h = torch.randn(6, 4, 3, channels, dtype=torch.float64)
        out = conv(h, points)
        torch.testing.assert_close(out[:6], conv(h), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(out[6:], out[:6], rtol=1e-12, atol=1e-12)


def test_too_many_modes_are_refused():
    for basis, points, modes in (("fourier", 5, 4), ("fourier", 1, 2), ("cosine", 5, 6), ("cosine", 5, 0)):
        with pytest.raises(InputError, match="number of temporal modes"):
            TemporalConv(3, points, modes, basis=basis)


def test_the_time_embedding_by_hand():
    row = sinusoidal_embedding(torch.tensor([2.0], dtype=torch.float64), 5)[0]
    expected = torch.tensor([2.0, 2e-4, 0.0, 0.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(row[:2], expected[:2].sin())
    torch.testing.assert_close(row[2:4], expected[:2].cos())
    assert row[4] == 0
