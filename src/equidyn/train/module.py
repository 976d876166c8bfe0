"""The one Lightning module that trains every system on every task."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from fnmatch import fnmatchcase
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
from equidyn.tasks import Task
from equidyn.train.process import compiled, keep_memory
from equidyn.train.recipe import TrainOptions
from equidyn.train.soap import Soap


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

    def __init__(self, model: nn.Module, task: Task, options: TrainOptions, steps_per_epoch: int) -> None:
        super().__init__()
        self.model, self.task, self.options, self.steps_per_epoch = model, task, options, steps_per_epoch
        # A part of the state: it is saved and resumed with the rest.
        self.average = AveragedModel(model, multi_avg_fn=partial(_follow, options.ema)) if options.ema else None
        if self.average is not None:
            self.average.requires_grad_(False)
        self._sums: dict[str, Tensor] = {}
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
            if self.task.differentiates:
                reason = "it cannot differentiate twice, as training on forces or stress does"
                warnings.warn(f"torch.compile does not work here, training without it: {reason}", stacklevel=1)
        keep_memory()

    def on_after_batch_transfer(self, batch: Data, dataloader_idx: int) -> Data:
        """What the model sees, in the precision of the training."""
        return self.task.cast(batch, torch.float64 if self.options.precision == "64" else torch.float32)

    @property
    def stage(self) -> int:
        """0, or 1 from the epoch of `stage_two` on."""
        second = self.options.stage_two
        return int(second is not None and self.current_epoch >= second.epoch)

    def on_train_epoch_start(self) -> None:
        """Enter the second stage when its time has come."""
        second = self.options.stage_two
        if second is None or not self.stage:
            return
        self.task = replace(self.task, **second.task)
        if self.options.schedule == "plateau":  # other schedules know of it
            for group in self.trainer.optimizers[0].param_groups:
                group["lr"] = second.lr * group["factor"]

    def training_step(self, batch: Data, index: int) -> Tensor:
        """The loss of one batch."""
        if self.options.noise:
            # Of the seed, the step and the process alone, so that a resumed run draws the same.
            generator = torch.Generator().manual_seed(
                (torch.initial_seed() * 1_000_003 + self.global_step) * 1_009 + self.global_rank
            )
            batch = noisy(batch, self.options.noise, generator)
        terms = self.task.loss(self.task.predict(self._forward, batch, training=True), batch)
        loss = torch.stack(list(terms.values())).sum()
        if not torch.isfinite(loss):
            values = ", ".join(f"{name} {term.item():g}" for name, term in terms.items())
            where = f"epoch {self.current_epoch}, batch {index}"
            raise InputError("the loss is not finite; training stopped", where=where, got=values)
        self.log("train_loss", loss, on_step=False, on_epoch=True, batch_size=len(batch.pos), sync_dist=True)
        return loss

    def _forward(self, batch: Data) -> dict[str, Tensor]:
        """The model's outputs, compiled if that is asked for and works here."""
        if self._compiled is not None and not self.task.differentiates:
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
        self._sums = {}

    def validation_step(self, batch: Data, index: int) -> None:
        """Collect the errors of one batch."""
        out = self.task.predict(self.evaluated, batch, training=False)
        for name, value in self.task.measure(out, batch).items():
            value = value.detach().double().cpu()
            self._sums[name] = self._sums[name] + value if name in self._sums else value

    def on_validation_epoch_end(self) -> None:
        """Log the errors."""
        metrics = self.task.metrics(self._sums)
        for name in self.task.METRICS:
            self.log(
                f"val_{name}", torch.tensor(metrics[name], dtype=torch.float64, device=self.device), sync_dist=True
            )

    def configure_optimizers(self) -> Any:
        """The optimiser, with the schedule of the recipe."""
        options = self.options
        optimizer = _optimizer(parameter_groups(self.model, options), options)
        if options.schedule == "plateau":
            plateau = options.plateau
            scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
                optimizer, factor=plateau.factor, patience=plateau.patience, threshold=plateau.threshold
            )
            monitored = {"monitor": f"val_{self.task.monitor}", "interval": "epoch", "frequency": options.eval_every}
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, **monitored}}
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(_factor, options, self.steps_per_epoch))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def _optimizer(groups: list[dict[str, Any]], options: TrainOptions) -> torch.optim.Optimizer:
    if options.optimizer == "soap":
        return Soap(groups, options.lr)
    kind = torch.optim.AdamW if options.optimizer == "adamw" else torch.optim.Adam
    # Lightning takes a fused optimiser under autocast for one that unscales gradients, and refuses to clip them.
    return kind(groups, options.lr, amsgrad=options.amsgrad, fused=options.precision != "bf16")


def _factor(options: TrainOptions, steps_per_epoch: int, step: int) -> float:
    """The learning rate of a step as a share of the largest one."""
    total, warmup = options.epochs * steps_per_epoch, options.warmup * steps_per_epoch
    second = options.stage_two
    if second is not None and step >= second.epoch * steps_per_epoch:
        return second.lr / options.lr
    rise = min(1.0, (step + 1) / (warmup + 1))
    if options.halve_every:
        rise *= 0.5 ** (step // (options.halve_every * steps_per_epoch))
    rise *= 0.1 ** sum(step >= epoch * steps_per_epoch for epoch in options.drop_at)
    if options.schedule == "constant":
        return rise
    return rise * 0.5 * (1 + float(torch.cos(torch.tensor(torch.pi * min(step, total) / total))))


def parameter_groups(model: nn.Module, options: TrainOptions) -> list[dict[str, Any]]:
    """Parameters with their learning rate and weight decay: one group for each pair of values.

    Raises:
        InputError: a pattern that no parameter's name matches.
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    for key, patterns in (("decay_only", options.decay_only), ("lr_factors", options.lr_factors)):
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name, _ in named):
                expected = f"a pattern of names like {named[0][0]}"
                raise InputError("no such parameter", where=f"train.{key}", expected=expected, got=pattern)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in named:
        matching = [factor for pattern, factor in options.lr_factors.items() if fnmatchcase(name, pattern)]
        decays = not options.decay_only or any(fnmatchcase(name, pattern) for pattern in options.decay_only)
        values = (matching[-1] if matching else 1.0, options.weight_decay if decays else 0.0)
        groups.setdefault(values, []).append(parameter)
    return [
        {"params": params, "lr": options.lr * factor, "factor": factor, "weight_decay": decay}
        for (factor, decay), params in groups.items()
        if factor
    ]
