"""What is learned: losses, metrics, baselines. A task knows no model.

A task has `METRICS` (names of its validation errors), `monitor` (the one that chooses the epoch that is kept), `NEEDS`
(a field that its samples have), `differentiates` (whether its loss holds derivatives of a model's outputs), and

    cast(sample, dtype) -> sample                     what the model sees
    predict(model, sample, training=...) -> outputs
    loss(outputs, sample) -> terms                    their sum is minimised
    measure(outputs, sample) -> sums                  added up over batches
    metrics(sums) -> errors by name

One that learns something from the training samples first says so in `FITTED`, names of its options, and has
`fitted(part) -> options`; what comes of it stays with the run.
"""

from equidyn.tasks.classification import ClassificationTask
from equidyn.tasks.potential import PotentialTask
from equidyn.tasks.property import PropertyTask
from equidyn.tasks.trajectory import TrajectoryTask

TASKS = {
    "classification": ClassificationTask,
    "potential": PotentialTask,
    "property": PropertyTask,
    "trajectory": TrajectoryTask,
}
"""What a recipe can name under `task.name`."""

Task = ClassificationTask | PotentialTask | PropertyTask | TrajectoryTask

__all__ = ["TASKS", "ClassificationTask", "PotentialTask", "PropertyTask", "Task", "TrajectoryTask"]
