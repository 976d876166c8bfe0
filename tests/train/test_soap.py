"""SOAP: Adam where there is one axis, the same steps in any axes, and fewer of them where the axes matter."""

import pytest
import torch

from equidyn.core.errors import InputError
from equidyn.train.recipe import TrainOptions
from equidyn.train.soap import Soap


def descend(optimizer, loss, steps):
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    return loss().item()


def skewed(seed=0, *, left=None, right=None):
    """A quadratic loss of two stacked matrices whose curvature is far from the entries, and a start."""
    generator = torch.Generator().manual_seed(seed)
    random = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    a, b, target, start = random(40, 6), random(40, 5), random(2, 6, 5), random(2, 6, 5)
    a, b = a * torch.logspace(0, 2, 40).unsqueeze(1).double().rsqrt(), b @ random(5, 5)
    left = torch.eye(6).double() if left is None else left
    right = torch.eye(5).double() if right is None else right
    weight = torch.nn.Parameter(left @ start @ right.T)
    return weight, lambda: (a @ (left.T @ weight @ right - target) @ b.T).square().mean()


def test_without_axes_it_is_adam():
    start, weights = torch.randn(2, 1, 1, dtype=torch.float64), []
    for kind, options in ((Soap, {}), (torch.optim.Adam, {"betas": (0.95, 0.99)})):
        vector, stack = (torch.nn.Parameter(start.flatten().clone()), torch.nn.Parameter(start.clone()))
        target = torch.tensor([1.0, -2.0], dtype=torch.float64)
        loss = lambda v=vector, s=stack, t=target: (v - t).pow(4).sum() + (s.flatten() + t).square().sum()  # noqa: E731
        # Its first step makes none.
        descend(kind([vector, stack], lr=0.05, **options), loss, 21 if kind is Soap else 20)
        weights.append(torch.cat([vector.detach(), stack.detach().flatten()]))
    torch.testing.assert_close(*weights, rtol=1e-9, atol=1e-9)


def test_its_steps_do_not_depend_on_the_axes_of_the_weights():
    generator = torch.Generator().manual_seed(1)
    random = lambda n: torch.randn(n, n, generator=generator, dtype=torch.float64)  # noqa: E731
    left, right = (torch.linalg.qr(random(n))[0] for n in (6, 5))
    (plain, loss), (turned, turned_loss) = skewed(), skewed(left=left, right=right)
    for weight, of in ((plain, loss), (turned, turned_loss)):
        descend(Soap([weight], lr=0.02), of, 35)
    torch.testing.assert_close(turned.detach(), left @ plain.detach() @ right.T, rtol=1e-5, atol=1e-5)


def test_it_needs_fewer_steps_than_adam():
    generator = torch.Generator().manual_seed(0)
    random = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    axes = torch.linalg.qr(random(12, 12))[0] * torch.logspace(0, -2, 12, dtype=torch.float64)
    target, inputs = random(12, 8), random(600, 4, 12) @ axes.T
    reached = {}
    for kind in (Soap, torch.optim.Adam):
        weight = torch.nn.Parameter(torch.zeros(12, 8, dtype=torch.float64))
        optimizer = kind([weight], lr=0.05)
        for step, x in enumerate(inputs):
            optimizer.param_groups[0]["lr"] = 0.05 * (1 - step / len(inputs))
            descend(optimizer, lambda w=weight, x=x: (x @ (w - target)).square().mean(), 1)
        reached[kind] = (inputs @ (weight.detach() - target)).square().mean()
    assert reached[Soap] < 0.2 * reached[torch.optim.Adam]


def test_what_has_no_gradient_or_no_entries_stays():
    weights = [torch.nn.Parameter(torch.ones(shape)) for shape in ((3, 2), (0, 4), (3, 3))]
    optimizer = Soap(weights, lr=0.1)
    descend(optimizer, lambda: weights[0].square().sum() + weights[1].sum(), 3)
    assert not torch.equal(weights[0], torch.ones(3, 2))
    assert torch.equal(weights[2], torch.ones(3, 3))
    assert torch.isfinite(weights[0]).all()


def test_decay_and_groups():
    weights = [torch.nn.Parameter(torch.ones(2, 2)) for _ in range(2)]
    groups = [{"params": weights[:1]}, {"params": weights[1:], "lr": 0.0}]
    descend(Soap(groups, lr=0.1, weight_decay=0.5), lambda: sum(0 * w.sum() for w in weights), 2)
    torch.testing.assert_close(weights[0], torch.full((2, 2), 0.95))
    torch.testing.assert_close(weights[1], torch.ones(2, 2))


def test_amsgrad_is_adams_alone():
    with pytest.raises(InputError, match="amsgrad"):
        TrainOptions(optimizer="soap", amsgrad=True)
