"""What is learned: losses, metrics, baselines. A task knows no model."""

from equidyn.tasks.trajectory import TrajectoryTask

TASKS = {"trajectory": TrajectoryTask}
"""What a recipe can name under `task.name`."""

__all__ = ["TASKS", "TrajectoryTask"]
