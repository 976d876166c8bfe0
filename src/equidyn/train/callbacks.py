"""What happens at the end of an evaluation: a row of metrics, the best model kept, progress shown."""

from __future__ import annotations

import csv
import io
import sys
import time
from pathlib import Path
from typing import Any, cast

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import nn

from equidyn.core.files import write_atomically
from equidyn.train.checkpoint import save_model

COLUMNS = ("epoch", "step", "seconds", "train_loss", "val_f_mse", "val_a_mse", "lr")


class RunFolder(Callback):
    """Writes `metrics.csv` and keeps the model with the lowest validation F-MSE.

    Its state travels in the checkpoint: a resumed run continues its own rows and its own best.
    """

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        self.folder, self.config = folder, config
        self.rows: list[dict[str, Any]] = []
        self.best = float("inf")
        self._before = 0.0
        self._started = time.monotonic()

    def state_dict(self) -> dict[str, Any]:
        """Rows, best error and elapsed time."""
        return {"rows": self.rows, "best": self.best, "seconds": self._seconds()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        self.rows, self.best, self._before = list(state["rows"]), state["best"], state["seconds"]

    def _seconds(self) -> float:
        return self._before + time.monotonic() - self._started

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Start the clock."""
        self._started = time.monotonic()

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        """After an epoch with an evaluation (which ran before this hook): a row, and maybe a new best."""
        if (trainer.current_epoch + 1) % (trainer.check_val_every_n_epoch or 1):
            return
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        row = {
            "epoch": trainer.current_epoch + 1,
            "step": trainer.global_step,
            "seconds": round(self._seconds(), 3),
            "lr": trainer.optimizers[0].param_groups[0]["lr"],
        } | {name: metrics[name] for name in ("train_loss", "val_f_mse", "val_a_mse")}
        self.rows.append(row)
        if not trainer.is_global_zero:
            return
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        write_atomically(self.folder / "metrics.csv", buffer.getvalue())
        if row["val_f_mse"] < self.best:
            self.best = row["val_f_mse"]
            info = {"epoch": row["epoch"], "val_f_mse": self.best}
            save_model(self.folder, cast(nn.Module, module.evaluated), self.config, info)


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
        if "val_f_mse" in metrics:
            errors += f"  val F-MSE {float(metrics['val_f_mse']):.5f}"
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
