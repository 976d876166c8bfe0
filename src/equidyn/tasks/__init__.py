"""What is learned: losses, metrics, baselines. A task knows no model.

A task has `METRICS` (names of its validation errors), `monitor` (the one that chooses the epoch that is kept), `NEEDS`
(a field that its samples have), `differentiates` (whether its loss holds derivatives of a model's outputs), and

    cast(sample, dtype) -> sample                     what the model sees
    predict(model, sample, training=...) -> outputs
    loss(outputs, sample) -> terms                    their sum is minimised
    measure(outputs, sample) -> sums                  added up over batches
    metrics(sums) -> errors by name
"""

from equidyn.tasks.potential import PotentialTask
from equidyn.tasks.trajectory import TrajectoryTask

TASKS = {"potential": PotentialTask, "trajectory": TrajectoryTask}
"""What a recipe can name under `task.name`."""

Task = PotentialTask | TrajectoryTask

__all__ = ["TASKS", "PotentialTask", "Task", "TrajectoryTask"]
