"""The message network of EGNN and its kin as one operator with hand-written derivatives.

    a_ij = r_i + s_j + W q_ij + e_ij        (the first map on [h_i ++ h_j ++ q_ij ++ e_ij], its parts applied apart)
    m_ij = silu(W2 silu(a_ij) + b2)         (message)
    g_ij = W4 silu(W3 m_ij + b3) + b4       (weights of the relative vector, or of several)
    M_i  = sum_j w_ij m_ij                  (w_ij: weights of the edges, if they have any)

ClofNet has one map more before the message, p_ij = W1 silu(a_ij) + b1, in the place of a_ij in the second line.

Written as plain PyTorch this is a dozen passes over [E, H] arrays, each kept for the backward pass. Here the first map
is one gathering pass, what can be is done in place, and only a, W2 silu(a) + b2 and W3 m + b3 are kept: about a third
of the memory, and less than half of the time on a CPU. `ops` callers that need second derivatives use the plain form.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from equidyn.ops.edges import Edges, collect
from equidyn.ops.linear import linear, thin_product, weight_gradient

_silu_backward = torch.ops.aten.silu_backward


class MessageWeights(NamedTuple):
    """Parameters: W [H', D], W2 [H, H'], b2 [H], W3 [H', H], b3 [H'], W4 [K, H'], b4 [K], W1 [H', H'], b1 [H']."""

    distance: Tensor
    weight2: Tensor
    bias2: Tensor
    weight3: Tensor
    bias3: Tensor
    weight4: Tensor
    bias4: Tensor | None = None
    weight1: Tensor | None = None
    bias1: Tensor | None = None


class _Message(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, nodes: Tensor, q: Tensor, shared: Tensor | None, factor: Tensor | None, edges: Edges, *weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        w = MessageWeights(*weights)
        inner, of_a = _silu(_first_map(nodes, q, shared, w.distance, edges))
        of_p = of_a
        if w.weight1 is not None:
            inner, of_p = _silu(linear(inner, w.weight1, w.bias1))
        m, of_b = _silu(linear(inner, w.weight2, w.bias2))
        outer, of_c = _silu(linear(m, w.weight3, w.bias3))
        g = linear(outer, w.weight4, w.bias4)
        ctx.save_for_backward(q, of_a, of_p, of_b, of_c, factor, *weights)
        ctx.edges, ctx.shared_rows = edges, None if shared is None else len(shared)
        return edges.sum(m if factor is None else m * factor), g

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_sum: Tensor, grad_g: Tensor) -> tuple[Tensor | None, ...]:
        q, of_a, of_p, of_b, of_c, factor, *weights = ctx.saved_tensors
        w, edges, rows = MessageWeights(*weights), ctx.edges, len(q)
        # g = W4 silu(c) + b4
        grad_w4 = weight_gradient(grad_g, _value(of_c, rows))
        grad_c = _through_silu(of_c, thin_product(grad_g, w.weight4.T))
        # c = W3 m + b3, and m also entered the sum
        m = _value(of_b, rows)
        grad_w3, grad_b3 = weight_gradient(grad_c, m), grad_c.sum(0)
        arrived, grad_factor = grad_sum.index_select(0, edges.receivers.node), None
        if factor is not None:
            grad_factor = (arrived * m).sum(1, keepdim=True)
            arrived = arrived.mul_(factor)
        grad_b = _through_silu(of_b, linear(grad_c, w.weight3.T).add_(arrived))
        # b = W2 silu(p) + b2
        grad_w2, grad_b2 = weight_gradient(grad_b, _value(of_p, rows)), grad_b.sum(0)
        grad_a = _through_silu(of_p, linear(grad_b, w.weight2.T))
        grad_w1 = grad_b1 = None
        if w.weight1 is not None:  # p = W1 silu(a) + b1
            grad_w1, grad_b1 = weight_gradient(grad_a, _value(of_a, rows)), grad_a.sum(0)
            grad_a = _through_silu(of_a, linear(grad_a, w.weight1.T))
        # a = r_i + s_j + W q + e
        grad_nodes = torch.cat([collect(grad_a, end) for end in (edges.receivers, edges.senders)], dim=1)
        grad_q, grad_distance = linear(grad_a, w.distance.T), weight_gradient(grad_a, q)
        grad_shared = None if ctx.shared_rows is None else grad_a.view(-1, ctx.shared_rows, grad_a.shape[1]).sum(0)
        grad_b4 = None if w.bias4 is None else grad_g.sum(0)
        by_weight = (grad_distance, grad_w2, grad_b2, grad_w3, grad_b3, grad_w4, grad_b4, grad_w1, grad_b1)
        return grad_nodes, grad_q, grad_shared, grad_factor, None, *by_weight


def _silu(x: Tensor) -> tuple[Tensor, Tensor]:
    """silu(x) [E, H], and what to keep of it for the backward pass: x.

    In compiled bfloat16, where exponentials are a quarter of a step and room is plenty, value and slope [2 E, H] are
    kept instead. They are joined because the compiler would compute again whatever is elementwise.
    """
    if not (torch.compiler.is_compiling() and x.dtype is torch.bfloat16):
        return F.silu(x), x
    sigmoid = x.sigmoid()
    value = x * sigmoid
    kept = torch.cat([value, sigmoid + value * (1 - sigmoid)])
    return kept[: len(x)], kept


def _value(kept: Tensor, rows: int) -> Tensor:
    """silu(x) [E, H] from what `_silu` kept."""
    return F.silu(kept) if len(kept) == rows else kept[:rows]


def _through_silu(kept: Tensor, grad: Tensor) -> Tensor:
    """The gradient of silu(x) [E, H] as that of x; it may overwrite `grad`."""
    if len(kept) > len(grad):
        return grad * kept[len(grad) :]
    return _silu_backward.grad_input(grad, kept, grad_input=grad)


def _first_map(nodes: Tensor, q: Tensor, shared: Tensor | None, distance: Tensor, edges: Edges) -> Tensor:
    """a [E, H']: receiver and sender parts of `nodes` summed in one pass, the rest added in place."""
    if torch.compiler.is_compiling():  # all in one pass
        receiver, sender = nodes.chunk(2, dim=1)
        a = receiver.index_select(0, edges.receivers.node) + sender.index_select(0, edges.senders.node)
        if q.shape[1] >= 8:
            a = a + linear(q, distance)
        else:
            for scalar, column in zip(q.split(1, dim=1), distance.T, strict=True):
                a = a + scalar * column
        return a if shared is None else (a.view(-1, *shared.shape) + shared).view(a.shape)
    pairs = nodes.reshape(2 * len(nodes), -1)
    begin = torch.arange(0, 2 * len(q), 2, device=q.device)
    a = torch.embedding_bag(pairs, edges.pairs, begin, mode=0)[0]
    if q.shape[1] >= 8:
        a.add_(linear(q, distance))
    else:
        a.addmm_(q, distance.T)
    if shared is not None:
        a.view(-1, *shared.shape).add_(shared)
    return a


def _without_gradient(
    nodes: Tensor, q: Tensor, shared: Tensor | None, edges: Edges, w: MessageWeights
) -> tuple[Tensor, Tensor]:
    """The same numbers; each array is let go as soon as the next one is there, which spares the allocator."""
    m = F.silu(_first_map(nodes, q, shared, w.distance, edges), inplace=True)
    if w.weight1 is not None:
        m = F.silu(linear(m, w.weight1, w.bias1), inplace=True)
    m = F.silu(linear(m, w.weight2, w.bias2), inplace=True)
    g = linear(F.silu(linear(m, w.weight3, w.bias3), inplace=True), w.weight4, w.bias4)
    return edges.sum(edges.weighted(m)), g


def fused_messages(
    nodes: Tensor, q: Tensor, shared: Tensor | None, edges: Edges, weights: MessageWeights
) -> tuple[Tensor, Tensor]:
    """Summed messages and weights of the relative vectors (module docstring).

    Args:
        nodes: [N, 2 H'] receiver parts r_i and sender parts s_i, side by side.
        q: [E, D] scalars of each edge that change from copy to copy: functions of the distance, features of the edge.
        shared: [E', H'] e_ij, of the first of the copies that make up E; or None.
        edges: of the N nodes.
        weights: the parameters.

    Returns:
        M [N, H] and g [E, K]. They can be differentiated once.
    """
    device = nodes.device.type
    if not torch.is_autocast_enabled(device):
        if not torch.is_grad_enabled():
            return _without_gradient(nodes, q, shared, edges, weights)
        return _Message.apply(nodes, q, shared, _factor(edges), edges, *weights)
    dtype = torch.get_autocast_dtype(device)  # the hand-written derivatives take one dtype
    nodes, q = nodes.to(dtype), q.to(dtype)
    shared, factor, *cast = (None if t is None else t.to(dtype) for t in (shared, _factor(edges), *weights))
    with torch.autocast(device, enabled=False):
        return _Message.apply(nodes, q, shared, factor, edges, *cast)


def _factor(edges: Edges) -> Tensor | None:
    """The weight of every edge [E, 1]."""
    weight = edges.weight
    if weight is None or not len(weight):
        return None
    return weight.repeat(len(edges.receivers.node) // len(weight), 1)
