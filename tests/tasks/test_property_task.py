"""Losses and errors of properties and classes, against numbers worked out by hand."""

import numpy as np
import pytest
import torch
from torch_geometric.data import Data

from equidyn.core.errors import InputError
from equidyn.data.graphs import GraphDataset
from equidyn.tasks.classification import ClassificationTask
from equidyn.tasks.property import Fit, PropertyTask

WATER, METHANE, HYDROGEN = ([8, 1, 1], [6, 1, 1, 1, 1], [1, 1])


class Given(GraphDataset):
    """Molecules without a place."""

    name, unit = "heat", "kJ"

    def __init__(self, molecules, values, classes=()):
        super().__init__()
        self.molecules, self.values, self.classes = molecules, values, classes

    def __len__(self):
        return len(self.molecules)

    def targets(self):
        return torch.tensor(self.values) if self.classes else torch.tensor(self.values, dtype=torch.float64)

    def atoms(self):
        return [np.array(z) for z in self.molecules]


def sample(molecules, values):
    batch = torch.repeat_interleave(torch.arange(len(molecules)), torch.tensor([len(z) for z in molecules]))
    y = torch.tensor(values, dtype=torch.float64)
    return Data(z=torch.tensor([z for own in molecules for z in own]), y=y, batch=batch, pos=torch.zeros(len(batch), 3))


def fitted(part, **options):
    return PropertyTask(**options, fit=Fit(**PropertyTask(**options).fitted(part)["fit"]))


def test_scales_of_the_training_samples():
    part = Given([WATER, METHANE, HYDROGEN, HYDROGEN], [1.0, 2.0, 3.0, 6.0])
    assert fitted(part).fit == Fit(3.0, pytest.approx(3.5**0.5), {}, "kJ")
    assert fitted(part, scale="mad").fit == Fit(3.0, 1.5, {}, "kJ")
    assert fitted(part, scale="none").fit == Fit(0.0, 1.0, {}, "kJ")


def test_what_atoms_give_is_taken_off_and_put_back():
    molecules = [WATER, METHANE, HYDROGEN, [6, 8, 8]]
    own = [sum({1: -1.0, 6: -30.0, 8: -70.0}[z] for z in m) for m in molecules]
    beyond = [0.1, -0.2, 0.05, 0.3]
    part = Given(molecules, [a + b for a, b in zip(own, beyond, strict=True)])
    task = fitted(part, reference="atoms")
    assert set(task.fit.atoms) == {"H", "C", "O"}
    assert task.fit.scale < 0.3
    given = sample(molecules, part.values)
    scaled = torch.tensor([0.0, 1.0, 2.0, -1.0])
    values = task.values({"prediction": scaled}, given)
    atoms = torch.tensor([sum(task.fit.atoms["_HXXXXCXO"[z]] for z in m) for m in molecules], dtype=torch.float64)
    torch.testing.assert_close(values, scaled.double() * task.fit.scale + task.fit.mean + atoms)
    right = (given.y - atoms - task.fit.mean) / task.fit.scale
    assert float(task.loss({"prediction": right}, given)["mae"]) < 1e-6
    torch.testing.assert_close(task.values({"prediction": right}, given), given.y)
    torch.testing.assert_close(task.baseline(given), task.fit.mean + atoms)
    with pytest.raises(InputError, match=r"an element that the training samples lack, in field z, expected .* got N"):
        task.baseline(sample([[7, 1]], [0.0]))


def test_losses_and_errors():
    given = sample([HYDROGEN, HYDROGEN], [10.0, 20.0])
    out = {"prediction": torch.tensor([0.5, 3.0])}
    fit = Fit(10.0, 5.0)
    losses = {"mae": 0.75, "mse": (0.25 + 1.0) / 2, "huber": (0.5 * 0.25 + 1.0 - 0.5) / 2}
    for penalty, loss in losses.items():
        task = PropertyTask(penalty, fit=fit)
        assert float(task.loss(out, given)[penalty]) == pytest.approx(loss)
        sums = [task.measure({"prediction": out["prediction"][k : k + 1]}, one) for k, one in enumerate(halves(given))]
        errors = task.metrics({name: sums[0][name] + sums[1][name] for name in sums[0]})
        assert errors == pytest.approx({"loss": loss, "mae": 3.75, "rmse": (31.25 / 2) ** 0.5})


def halves(given):
    return [sample([HYDROGEN], [float(y)]) for y in given.y]


def test_classes():
    part = Given([HYDROGEN] * 3, [0, 1, 2], classes=("a", "b", "c"))
    task = ClassificationTask(**ClassificationTask().fitted(part))
    given = sample([HYDROGEN] * 2, [0.0, 2.0])
    given.y = given.y.long()
    scores = torch.tensor([[2.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    wrong = -torch.log_softmax(scores.double(), 1)[[0, 1], [0, 2]]
    assert float(task.loss({"prediction": scores}, given)["cross_entropy"]) == pytest.approx(float(wrong.mean()))
    errors = task.metrics(task.measure({"prediction": scores}, given))
    assert errors == pytest.approx({"loss": float(wrong.mean()), "error": 0.5, "accuracy": 0.5})
    torch.testing.assert_close(task.probabilities({"prediction": scores}, given).sum(1), torch.ones(2).double())


def test_wrong_wishes_are_named():
    numbers, classes = Given([WATER, METHANE], [1.0, 1.0]), Given([WATER] * 2, [0, 1], classes=("a", "b"))
    bare = Given([WATER, METHANE], [1.0, 2.0])
    bare.atoms = lambda: ()
    given = sample([WATER, METHANE], [1.0, 2.0])
    task = PropertyTask(fit=Fit(0.0, 1.0))
    for call, words in (
        (lambda: PropertyTask().fitted(numbers), "nothing to learn, in property heat, .* got 1 everywhere"),
        (lambda: PropertyTask(reference="atoms").fitted(bare), "reference, in task.reference, expected none"),
        (lambda: PropertyTask().fitted(classes), "does not fit the data, expected task: {name: classification}"),
        (lambda: ClassificationTask().fitted(numbers), "does not fit the data, expected task: {name: property}"),
        (lambda: PropertyTask(delta=0.0), "delta, in task.delta"),
        (lambda: PropertyTask(fit=Fit(0.0, 0.0)), "scale, in task.fit, expected above 0"),
        (lambda: ClassificationTask(smoothing=1.0), "smoothing, in task.smoothing"),
        (lambda: task.loss({"pos": given.pos}, given), r"no number per graph, .* expected prediction \(readout"),
        (lambda: task.loss({"prediction": torch.zeros(2, 3)}, given), r"model.out_dim, expected \[2\], got \[2, 3\]"),
    ):
        with pytest.raises(InputError, match=words):
            call()
