"""Train a recipe in a run folder, from the start or from where it stopped."""

from __future__ import annotations

import io
import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import distributed
from torch.multiprocessing import ProcessRaisedException
from torch.utils.data import DataLoader, RandomSampler, Sampler, SequentialSampler

from equidyn.core.errors import InputError
from equidyn.core.files import make_folder, write_atomically
from equidyn.data.graphs import GraphDataset
from equidyn.tasks import Task
from equidyn.train import fine_tuning
from equidyn.train.callbacks import EpochProgress, RunFolder
from equidyn.train.checkpoint import refuse_other_tensors
from equidyn.train.module import TrainingModule
from equidyn.train.recipe import Recipe, read_recipe

_PRECISION: dict[str, Any] = {"32": "32-true", "64": "64-true", "bf16": "bf16-mixed"}
# What a resumed run may do otherwise than the run it continues.
_MAY_CHANGE = ("name", "published", "data.path", *(f"train.{k}" for k in ("epochs", "patience", "threads", "compile")))
_STATE = {"state_dict", "optimizer_states", "lr_schedulers", "callbacks", "loops", "epoch", "global_step"}


class EpochSampler(Sampler[int]):
    """A random order that depends on the seed and the epoch alone, so that a resumed epoch is the same epoch.

    Of several processes each takes every n-th sample of it: together they take, at each step, the batch that one
    process with n times the batch size would.
    """

    def __init__(self, length: int, seed: int, processes: int = 1) -> None:
        self.length, self.seed, self.processes, self.epoch = length, seed, processes, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the trainer before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length // self.processes

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = list(RandomSampler(range(self.length), generator=generator))
        rank = distributed.get_rank() if self.processes > 1 else 0
        return iter(order[rank : len(self) * self.processes : self.processes])


class _WholeFiles(TorchCheckpointIO):
    """Checkpoints that appear whole or not at all."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        make_folder(Path(path).parent)
        write_atomically(Path(path), buffer.getvalue())


def _is_first_process() -> bool:
    """Of those that a launcher (torchrun, SLURM) has started."""
    return int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))) == 0


class BoundedBatches(Sampler[list[int]]):
    """Batches of at most so many samples, and of at most so many atoms or edges together.

    Args:
        sampler: the order of the samples.
        most: limits of each batch.
        sizes: for each limit, how much of it each sample takes.
        drop_last: drop the last batch, which is smaller.

    Raises:
        InputError: a sample that no batch can hold.
    """

    def __init__(
        self, sampler: Sampler[int], most: Sequence[int], sizes: Sequence[Sequence[int]], drop_last: bool
    ) -> None:
        self.sampler, self.most, self.sizes, self.drop_last = sampler, most, sizes, drop_last
        for limit, size in zip(most, sizes, strict=True):
            if max(size) > limit:
                what = "a structure larger than a batch may be"
                raise InputError(what, where="train.batch_atoms or batch_edges", expected=max(size), got=limit)

    def __iter__(self) -> Iterator[list[int]]:
        batch: list[int] = []
        filled = [0] * len(self.most)
        for index in self.sampler:
            more = [f + size[index] for f, size in zip(filled, self.sizes, strict=True)]
            if batch and any(f > limit for f, limit in zip(more, self.most, strict=True)):
                yield batch
                batch, more = [], [size[index] for size in self.sizes]
            batch.append(index)
            filled = more
        if batch and not self.drop_last:
            yield batch


def _only(batch):
    return batch


def loaders(recipe: Recipe, data: Any) -> tuple[DataLoader, DataLoader]:
    """Batches for training (shuffled, the last incomplete one dropped) and for validation."""
    train, val = data.part("train"), data.part("val")
    size, most = recipe.train.batch_size, len(train) // recipe.train.devices
    if not 0 < size <= most:
        raise InputError("batch_size", where=recipe.name, expected=f"1 to {most}", got=size)
    order = EpochSampler(len(train), recipe.seed, recipe.train.devices)
    limits = {"atoms": recipe.train.batch_atoms, "edges": recipe.train.batch_edges}
    limits = {kind: limit for kind, limit in limits.items() if limit}
    if not limits:
        return (
            DataLoader(train, size, sampler=order, drop_last=True, collate_fn=_only),
            DataLoader(val, val.at_once, collate_fn=_only),
        )
    if not hasattr(train, "sizes") or recipe.train.devices > 1:
        expected = "dataset: structures or properties, on one device"
        raise InputError("batch_atoms and batch_edges", where=recipe.name, expected=expected, got=limits)

    def batches(part: Any, sampler: Sampler[int], most: int, drop_last: bool) -> DataLoader:
        sizes = [[1] * len(part), *(part.sizes(kind) for kind in limits)]
        bounded = BoundedBatches(sampler, [most, *limits.values()], sizes, drop_last)
        return DataLoader(part, batch_sampler=bounded, collate_fn=_only)

    return batches(train, order, size, True), batches(val, SequentialSampler(val), val.at_once, False)


def _steps_per_epoch(batches: DataLoader) -> int:
    """Steps in an epoch; where batches are of different sizes, in the first one."""
    if isinstance(batches.batch_sampler, BoundedBatches):
        return sum(1 for _ in batches.batch_sampler)
    return len(batches)


def _completed(recipe: Recipe, data: Any, stored: Mapping[str, Any] | None) -> Recipe:
    """The recipe with what it leaves to the data: as it is stored with the run to be resumed, of the run to start
    from, or computed.
    """
    if recipe.train.init_from:
        values = stored["model"] if stored is not None else fine_tuning.arguments(recipe, data)
        return replace(recipe, left=tuple(values)).completed(values)
    if stored is not None and all(name in stored["model"] for name in recipe.left):
        return recipe.completed(stored["model"])
    return recipe.completed(data.fitted(recipe.config["model"])) if recipe.left else recipe


def _task_completed(recipe: Recipe, data: Any, stored: Mapping[str, Any] | None) -> Recipe:
    """The recipe with what its task leaves to the training samples, likewise."""
    if not recipe.task_left:
        return recipe
    if stored is None and recipe.train.init_from:
        stored = fine_tuning.origin_of(recipe).config
    if stored is not None and stored["task"]["name"] == recipe.config["task"]["name"]:
        return recipe.task_completed(stored["task"])
    train = data.part("train")
    if not isinstance(train, GraphDataset):
        raise InputError("the task does not fit the data", expected="dataset: properties or shapes")
    return recipe.task_completed(recipe.build_task().fitted(train))


def train(recipe: Recipe, folder: str | Path, *, resume: bool = False, progress: bool = True) -> Path:
    """Train and leave `config.yaml`, `metrics.csv`, `model.safetensors`, `model.json` and `checkpoints/` in a folder.

    Args:
        recipe: what to train.
        folder: made if it does not exist.
        resume: continue a run from its last checkpoint, bit for bit as if it had not stopped (from the start if it
            stopped before its first checkpoint). More epochs or patience may be given; a finished run stays as it is.
        progress: show a progress bar.

    Raises:
        InputError: the folder holds another run, nothing to resume, unusable data, a loss that is not finite.
    """
    folder = Path(folder)
    last = folder / "checkpoints" / "last.ckpt"
    stored = _refuse_other_recipe(recipe, folder) if resume else None
    if not resume and (folder / "config.yaml").exists() and _is_first_process():
        raise InputError("the folder holds a run", where=folder, expected="another --name, or --resume to continue it")
    options = recipe.train
    data = recipe.build_data()
    batches, validation = loaders(recipe, data)
    recipe = _task_completed(_completed(recipe, data, stored), data, stored)
    task = recipe.build_task()
    seed_everything(recipe.seed, verbose=False)
    model = recipe.build_model()
    if options.init_from:
        known = fine_tuning.origin_of(recipe).model.state_dict()
        model.load_state_dict(fine_tuning.widened(known, model.state_dict()))
    module = TrainingModule(model, task, options, _steps_per_epoch(batches))
    resume = resume and last.is_file()
    if resume and _finished(_read_checkpoint(last, module), recipe):
        return folder
    _rehearse(module, batches, validation)
    trainer = _trainer(recipe, task, folder, progress, fine_tuning.facts(recipe, data))
    make_folder(folder)
    if _is_first_process():
        write_atomically(folder / "config.yaml", yaml.safe_dump(recipe.config, sort_keys=False))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*(does not have many workers|LeafSpec|exists and is not empty).*")
        try:
            trainer.fit(module, batches, validation, ckpt_path=str(last) if resume else None, weights_only=True)
        except ProcessRaisedException as error:  # an error of ours in another process comes as its traceback
            *_, line = str(error).strip().splitlines()
            if not line.startswith(InputError.__module__):
                raise
            raise InputError(line.partition(": ")[2]) from None
    return folder


def _rehearse(module: TrainingModule, batches: DataLoader, validation: DataLoader) -> None:
    """One sample of each part, so that a model that does not fit the data is refused before anything is written."""
    sample, other = (loader.dataset[0] for loader in (batches, validation))
    if sample.get(module.task.NEEDS) is None:
        raise InputError("the task does not fit the data", expected=f"samples with {module.task.NEEDS}")
    try:
        with torch.random.fork_rng(devices=[]):
            sample, other = (module.task.cast(s, next(module.model.parameters()).dtype) for s in (sample, other))
            module.task.loss(module.task.predict(module.model, sample, training=True), sample)
            with torch.no_grad():
                module.validation_step(other, 0)
    except InputError:
        raise
    except (RuntimeError, ValueError, TypeError, LookupError, ArithmeticError) as error:
        raise InputError(
            "the model does not fit the data", expected="other options of model or data", got=error
        ) from None


def _trainer(recipe: Recipe, task: Task, folder: Path, progress: bool, facts: Mapping[str, Any]) -> Trainer:
    options = recipe.train
    callbacks: list[Callback] = [RunFolder(folder, recipe.config, facts)]
    if options.patience:
        callbacks.append(
            EarlyStopping(f"val_{task.monitor}", patience=options.patience, check_on_train_epoch_end=False)
        )
    if progress:
        callbacks.append(EpochProgress(recipe.name))
    # Last, so that a checkpoint holds what the callbacks before it have just recorded.
    callbacks.append(
        ModelCheckpoint(
            folder / "checkpoints",
            filename="last",  # of its own kinds of "last" Lightning writes none before the end if it keeps no others
            save_top_k=1,
            enable_version_counter=False,
            every_n_epochs=options.eval_every,
            save_on_train_epoch_end=True,
        )
    )
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    # Processes of our own, unless a launcher (torchrun, SLURM) has started them.
    launch = "ddp" if "WORLD_SIZE" in os.environ or "SLURM_PROCID" in os.environ else "ddp_spawn"
    try:
        return Trainer(
            accelerator=options.accelerator,
            devices=options.devices,
            # Some systems have parameters that a task does not reach.
            strategy=f"{launch}_find_unused_parameters_true" if options.devices > 1 else "auto",
            use_distributed_sampler=False,
            precision=_PRECISION[options.precision],
            max_epochs=options.epochs,
            check_val_every_n_epoch=options.eval_every,
            gradient_clip_val=options.clip or None,
            callbacks=callbacks,
            plugins=[_WholeFiles()],
            deterministic="warn",
            logger=False,
            num_sanity_val_steps=0,
            inference_mode=False,  # forces are derivatives
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
        )
    except (MisconfigurationException, ValueError, RuntimeError) as error:
        where = f"train.accelerator {options.accelerator}, train.devices {options.devices}"
        raise InputError("cannot train there", where=where, got=error) from None


def _refuse_other_recipe(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """The stored configuration of the run, which is that of the recipe but for what it leaves to the data."""
    path = folder / "config.yaml"
    if not path.is_file():
        raise InputError("nothing to resume", where=folder, expected="a run folder (config.yaml)")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        _flat(content)
    except (yaml.YAMLError, UnicodeDecodeError, AttributeError) as error:
        raise InputError("corrupt configuration", where=path, got=error) from None
    content = read_recipe(content).config  # with defaults of options that are younger than the run
    known = {name: content["task"].get(name) for name in recipe.task_left}
    stored, asked = _flat(content), _flat(recipe.config | {"task": recipe.config["task"] | known})
    for key in sorted(stored.keys() | asked.keys()):
        left = key.removeprefix("model.").split(".")[0] in recipe.left
        left = left or (recipe.train.init_from is not None and key.startswith("model."))  # the origin's
        if stored.get(key) != asked.get(key) and not key.startswith(_MAY_CHANGE) and not left:
            raise InputError(f"{key} of another run", where=path, expected=stored.get(key), got=asked.get(key))
    return content


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _read_checkpoint(path: Path, module: TrainingModule) -> dict[str, Any]:
    """A training state that fits the module; nothing in the file is executed."""
    try:
        with warnings.catch_warnings(action="ignore"):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        what = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        raise InputError("corrupt checkpoint", where=path, expected="a training state", got=what) from None
    if not isinstance(content, dict) or not content.keys() >= _STATE:
        raise InputError("not a checkpoint of a run", where=path, expected=f"the entries {', '.join(sorted(_STATE))}")
    refuse_other_tensors(module.state_dict(), content["state_dict"], path)
    return content


def _finished(content: dict[str, Any], recipe: Recipe) -> bool:
    waited = [s["wait_count"] for name, s in content["callbacks"].items() if name.startswith("EarlyStopping")]
    stopped = recipe.train.patience and any(count >= recipe.train.patience for count in waited)
    return bool(stopped) or content["epoch"] + 1 >= recipe.train.epochs
