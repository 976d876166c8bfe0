"""What happens at the end of an evaluation: a row of metrics, the best model kept, progress shown."""

from __future__ import annotations

import csv
import io
import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import nn

from equidyn.core.files import write_atomically
from equidyn.train.checkpoint import save_model


def columns(metrics: Sequence[str]) -> list[str]:
    """Columns of `metrics.csv` for a task's validation errors."""
    return ["epoch", "step", "seconds", "cpu_seconds", "train_loss", *(f"val_{name}" for name in metrics), "lr"]


class RunFolder(Callback):
    """Writes `metrics.csv` and keeps the model with the lowest validation error (that of the second stage, if it came).

    Its state travels in the checkpoint: a resumed run continues its own rows and its own best.

    Args:
        folder: of the run.
        config: of the recipe.
        facts: what else the description of the model says.
    """

    def __init__(self, folder: Path, config: dict[str, Any], facts: Mapping[str, Any]) -> None:
        self.folder, self.config, self.facts = folder, config, facts
        self.rows: list[dict[str, Any]] = []
        self.best, self.stage = float("inf"), 0
        self._before = [0.0, 0.0]
        self._started = _clocks()

    def state_dict(self) -> dict[str, Any]:
        """Rows, best error and elapsed time."""
        return {"rows": self.rows, "best": self.best, "stage": self.stage, "seconds": self._seconds()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        self.rows, self.best, self.stage = list(state["rows"]), state["best"], state.get("stage", 0)
        seconds = state["seconds"]  # older checkpoints hold the first alone
        self._before = list(seconds) if isinstance(seconds, list) else [seconds, 0.0]

    def _seconds(self) -> list[float]:
        """On the wall, and of the processor."""
        return [b + now - then for b, now, then in zip(self._before, _clocks(), self._started, strict=True)]

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Start the clock."""
        self._started = _clocks()

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        """After an epoch with an evaluation (which ran before this hook): a row, and maybe a new best."""
        if (trainer.current_epoch + 1) % (trainer.check_val_every_n_epoch or 1):
            return
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        task = cast(Any, module).task
        names = columns(task.METRICS)
        seconds, cpu_seconds = (round(value, 3) for value in self._seconds())
        row = {
            "epoch": trainer.current_epoch + 1,
            "step": trainer.global_step,
            "seconds": seconds,
            "cpu_seconds": cpu_seconds,
            "lr": trainer.optimizers[0].param_groups[0]["lr"],
        } | {name: value for name, value in metrics.items() if name in names and not math.isnan(value)}
        self.rows.append(row)
        if not trainer.is_global_zero:
            return
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        write_atomically(self.folder / "metrics.csv", buffer.getvalue())
        error, stage = metrics[f"val_{task.monitor}"], cast(Any, module).stage
        if stage > self.stage or error < self.best:
            self.best, self.stage = error, stage
            errors = {name: row[name] for name in names if name.startswith("val_") and name in row}
            info = {"epoch": row["epoch"], **errors, **self.facts}
            save_model(self.folder, cast(nn.Module, module.evaluated), self.config, info)


def _clocks() -> tuple[float, float]:
    return time.monotonic(), time.process_time()


class EpochProgress(Callback):
    """A progress bar over epochs with the newest errors; plain lines where the output is no terminal."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.bar: Progress | None = None

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Show the bar."""
        if not trainer.is_global_zero or not sys.stderr.isatty():
            return
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        rest = (TimeRemainingColumn(), TextColumn("{task.fields[errors]}"))
        self.bar = Progress(*columns, *rest, console=Console(stderr=True))
        self.task = self.bar.add_task(self.name, total=trainer.max_epochs, completed=trainer.current_epoch, errors="")
        self.bar.start()

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        """One epoch further."""
        metrics = trainer.callback_metrics
        evaluated = (trainer.current_epoch + 1) % (trainer.check_val_every_n_epoch or 1) == 0
        errors = f"train {float(metrics['train_loss']):.5f}"
        task = cast(Any, module).task
        for name in task.METRICS:
            if f"val_{name}" in metrics and not math.isnan(value := float(metrics[f"val_{name}"])):
                errors += f"  {name.replace('_', '-').upper()} {value:.4g}"
        if self.bar is not None:
            self.bar.update(self.task, completed=trainer.current_epoch + 1, errors=errors)
        elif trainer.is_global_zero and evaluated:
            print(f"{self.name}: epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  {errors}", file=sys.stderr)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Leave the terminal in order."""
        if self.bar is not None:
            self.bar.stop()

    def on_exception(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
        """Likewise when training breaks off."""
        if self.bar is not None:
            self.bar.stop()
