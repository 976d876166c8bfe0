"""The one Lightning module that trains every system on every task."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from copy import copy
from functools import partial
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException
from torch.optim.swa_utils import AveragedModel
from torch_geometric.data import Data

from equidyn.core.errors import InputError
from equidyn.data.states import noisy
from equidyn.tasks.trajectory import TrajectoryTask, roll_out
from equidyn.train.process import compiled, keep_memory
from equidyn.train.recipe import TrainOptions


@torch.no_grad()
def _follow(decay: float, average: list[Tensor], weights: list[Tensor], updates: Tensor) -> None:
    """Move the average towards the weights; at first it follows them closely, lest it should keep the initial ones."""
    known = int(updates)
    torch._foreach_lerp_(average, weights, 1 - min(decay, (1 + known) / (10 + known)))


class TrainingModule(LightningModule):
    """Model, task and optimiser.

    Args:
        model: the system.
        task: losses and errors.
        options: of the training.
        steps_per_epoch: optimiser steps in one epoch, for the schedule.
    """

    def __init__(self, model: nn.Module, task: TrajectoryTask, options: TrainOptions, steps_per_epoch: int) -> None:
        super().__init__()
        self.model, self.task, self.options, self.steps_per_epoch = model, task, options, steps_per_epoch
        # A part of the state: it is saved and resumed with the rest.
        self.average = AveragedModel(model, multi_avg_fn=partial(_follow, options.ema)) if options.ema else None
        if self.average is not None:
            self.average.requires_grad_(False)
        self._errors: list[tuple[int, Tensor]] = []
        self._compiled: Callable[[Data], dict[str, Tensor]] | None = None

    @property
    def evaluated(self) -> nn.Module:
        """The model that is evaluated and kept: the averaged one if there is one."""
        return self.model if self.average is None else cast(nn.Module, self.average.module)

    def setup(self, stage: str) -> None:
        """What each process does for itself."""
        if self.options.threads:
            torch.set_num_threads(self.options.threads)
        if self.options.compile:
            self._compiled = compiled(self.model.forward)
        keep_memory()

    def on_after_batch_transfer(self, batch: Data, dataloader_idx: int) -> Data:
        """Samples are stored in float32; training in float64 casts them."""
        if self.options.precision != "64":
            return batch
        return copy(batch).apply(lambda t: t.double() if t.is_floating_point() else t)

    def training_step(self, batch: Data, index: int) -> Tensor:
        """The loss of one batch."""
        if self.options.noise:
            # Of the seed, the step and the process alone, so that a resumed run draws the same.
            generator = torch.Generator().manual_seed(
                (torch.initial_seed() * 1_000_003 + self.global_step) * 1_009 + self.global_rank
            )
            batch = noisy(batch, self.options.noise, generator)
        terms = self.task.loss(self._predict(batch), batch)
        loss = torch.stack(list(terms.values())).sum()
        if not torch.isfinite(loss):
            values = ", ".join(f"{name} {term.item():g}" for name, term in terms.items())
            where = f"epoch {self.current_epoch}, batch {index}"
            raise InputError("the loss is not finite; training stopped", where=where, got=values)
        self.log("train_loss", loss, on_step=False, on_epoch=True, batch_size=len(batch.pos), sync_dist=True)
        return loss

    def _predict(self, batch: Data) -> dict[str, Tensor]:
        """The model's outputs, compiled if that is asked for and works here."""
        if self._compiled is not None:
            try:
                return self._compiled(batch)
            except TorchDynamoException as error:  # no C++ compiler, say; the rehearsal has shown that the model runs
                self._compiled = None
                reason = str(error).strip().splitlines()[0]
                warnings.warn(f"torch.compile does not work here, training without it: {reason}", stacklevel=1)
        return self.model(batch)

    def on_train_batch_end(self, outputs: object, batch: Data, index: int) -> None:
        """Follow the weights with their average."""
        if self.average is not None:
            self.average.update_parameters(self.model)

    def on_validation_epoch_start(self) -> None:
        """Forget the errors of the last evaluation."""
        self._errors = []

    def validation_step(self, batch: Data, index: int) -> None:
        """Collect the errors of one batch."""
        model = self.evaluated
        out = {"trajectory": roll_out(model, batch)} if self.task.rollout else model(batch)
        self._errors.append((len(batch.pos), self.task.errors(out, batch)))

    def on_validation_epoch_end(self) -> None:
        """Log F-MSE and A-MSE."""
        counts = torch.tensor([count for count, _ in self._errors], dtype=torch.float64)
        errors = torch.stack([error.double().cpu() for _, error in self._errors])
        horizon = (errors * counts[:, None]).sum(0) / counts.sum()
        self.log("val_f_mse", horizon[-1].to(self.device), sync_dist=True)
        self.log("val_a_mse", horizon.mean().to(self.device), sync_dist=True)

    def configure_optimizers(self) -> Any:
        """Adam or AdamW, with the schedule of the recipe."""
        options = self.options
        kind = torch.optim.AdamW if options.optimizer == "adamw" else torch.optim.Adam
        # Lightning takes a fused optimiser under autocast for one that unscales gradients, and refuses to clip them.
        fused = options.precision != "bf16"
        optimizer = kind(self.model.parameters(), options.lr, weight_decay=options.weight_decay, fused=fused)
        total, warmup = options.epochs * self.steps_per_epoch, options.warmup * self.steps_per_epoch

        def factor(step: int) -> float:
            rise = min(1.0, (step + 1) / (warmup + 1))
            if options.halve_every:
                rise *= 0.5 ** (step // (options.halve_every * self.steps_per_epoch))
            if options.schedule == "constant":
                return rise
            return rise * 0.5 * (1 + float(torch.cos(torch.tensor(torch.pi * min(step, total) / total))))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
