"""Train a recipe in a run folder, from the start or from where it stopped."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import torch
import yaml
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from torch.utils.data import DataLoader, RandomSampler, Sampler

from equidyn.core.errors import InputError
from equidyn.core.files import make_folder, write_atomically
from equidyn.train.callbacks import EpochProgress, RunFolder
from equidyn.train.module import TrainingModule
from equidyn.train.recipe import Recipe

_PRECISION = {"32": "32-true", "64": "64-true", "bf16": "bf16-mixed"}


class EpochSampler(Sampler[int]):
    """A random order that depends on the seed and the epoch alone, so that a resumed epoch is the same epoch."""

    def __init__(self, length: int, seed: int) -> None:
        self.length, self.seed, self.epoch = length, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the trainer before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self):
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        return iter(RandomSampler(range(self.length), generator=generator))


def _only(batch):
    return batch


def loaders(recipe: Recipe) -> tuple[DataLoader, DataLoader]:
    """Batches for training (shuffled, the last incomplete one dropped) and for validation."""
    data = recipe.build_data()
    train, val = data.part("train"), data.part("val")
    size = recipe.train.batch_size
    if not 0 < size <= len(train):
        raise InputError("batch_size", where=recipe.name, expected=f"1 to {len(train)}", got=size)
    order = EpochSampler(len(train), recipe.seed)
    return (
        DataLoader(train, size, sampler=order, drop_last=True, collate_fn=_only),
        DataLoader(val, max(size, 250), collate_fn=_only),
    )


def train(recipe: Recipe, folder: str | Path, *, resume: bool = False, progress: bool = True) -> Path:
    """Train and leave `config.yaml`, `metrics.csv`, `model.safetensors`, `model.json` and `checkpoints/` in a folder.

    Args:
        recipe: what to train.
        folder: made if it does not exist.
        resume: continue a run from its last checkpoint, bit for bit as if it had not stopped.
        progress: show a progress bar.

    Raises:
        InputError: the folder holds another run, nothing to resume, unusable data, a loss that is not finite.
    """
    folder = Path(folder)
    last = folder / "checkpoints" / "last.ckpt"
    if resume and not last.is_file():
        raise InputError("nothing to resume", where=folder, expected="checkpoints/last.ckpt")
    if not resume and (folder / "config.yaml").exists():
        raise InputError("the folder holds a run", where=folder, expected="another --name, or --resume to continue it")
    options = recipe.train
    if options.threads:
        torch.set_num_threads(options.threads)
    seed_everything(recipe.seed, verbose=False)
    batches, validation = loaders(recipe)
    module = TrainingModule(recipe.build_model(), recipe.build_task(), options, len(batches))
    if options.compile:
        module.model.compile()
    make_folder(folder)
    write_atomically(folder / "config.yaml", yaml.safe_dump(recipe.config, sort_keys=False))
    _trainer(recipe, folder, progress).fit(
        module, batches, validation, ckpt_path=str(last) if resume else None, weights_only=True
    )
    return folder


def _trainer(recipe: Recipe, folder: Path, progress: bool) -> Trainer:
    options = recipe.train
    keep = RunFolder(folder, recipe.config)
    callbacks: list[Callback] = [keep]
    if options.patience:
        callbacks.append(EarlyStopping("val_f_mse", patience=options.patience, check_on_train_epoch_end=False))
    if progress:
        callbacks.append(EpochProgress(recipe.name))
    # Last, so that a checkpoint holds what the callbacks before it have just recorded.
    callbacks.append(
        ModelCheckpoint(
            folder / "checkpoints",
            save_last=True,
            save_top_k=0,
            every_n_epochs=options.eval_every,
            save_on_train_epoch_end=True,
        )
    )
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    return Trainer(
        accelerator=options.accelerator,
        devices=options.devices,
        strategy="ddp" if options.devices > 1 else "auto",
        precision=_PRECISION[options.precision],
        max_epochs=options.epochs,
        check_val_every_n_epoch=options.eval_every,
        gradient_clip_val=options.clip or None,
        callbacks=callbacks,
        deterministic="warn",
        logger=False,
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
