"""The cost of training beside the packages people use: from structures to the optimiser, in turn, in one process.

python -m benchmarks.training_run --peer mace|nequip [--data FILE] [--steps N] [--repeats N] [--threads N] [--json FILE]

The recipes `acac/mace` and `acac/nequip`: same structures, same initial weights, batches of five, the settings of the
recipe. Each side has its own way from structures to batches, its own loop, loss, optimiser, clipping and average of the
weights: for mace-torch its `train_one_epoch`, for nequip its Lightning module and data module, for us our own. Both
keep neighbour lists if they do so in their own training. Environments as for `benchmarks.potentials`.
"""

import argparse
import importlib
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import ase.io
import torch
from ase import Atoms
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.plugins.environments import LightningEnvironment
from torch import nn
from torch.utils.data import DataLoader

from benchmarks.harness import show, write
from benchmarks.potentials import CUTOFF, ELEMENTS, MACE_CONFIG, NEQUIP_CONFIG, mace_ways, nequip_ways
from equidyn.data.frames import Frame
from equidyn.data.structures import Structures
from equidyn.train.fit import loaders
from equidyn.train.module import TrainingModule
from equidyn.train.process import keep_memory
from equidyn.train.recipe import Recipe, read_recipe

Steps = Callable[[], Any]


def ours(model: nn.Module, recipe: Recipe, data: Structures, steps: int) -> Steps:
    """Some steps of our training."""
    batches, _ = loaders(recipe, data)
    module = TrainingModule(model.train().requires_grad_(True), recipe.build_task(), recipe.train, len(batches))
    return lambda: fit(module, steps, batches)


def fit(module: LightningModule, steps: int, data: DataLoader | LightningDataModule) -> None:
    """Some training steps by Lightning, without validation."""
    off: dict[str, Any] = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar"), False)
    clip = getattr(getattr(module, "options", None), "clip", 0.0) or None
    off["plugins"] = [LightningEnvironment()]  # one process, whatever launchers are installed
    limits = {"limit_train_batches": steps, "limit_val_batches": 0, "gradient_clip_val": clip}
    trainer = Trainer(
        accelerator="cpu", max_epochs=1, enable_model_summary=False, inference_mode=False, **off, **limits
    )
    trainer.fit(module, data)


def ase_atoms(frame: Frame) -> Atoms:
    """The structure with its labels under the names that the packages look for."""
    atoms = Atoms(frame.numbers, frame.pos, cell=frame.cell, pbc=frame.pbc)
    atoms.info["REF_energy"], atoms.arrays["REF_forces"] = frame.energy, frame.forces
    return atoms


class First:
    """The first batches of a loader."""

    def __init__(self, loader: Any, steps: int) -> None:
        self.loader, self.steps = loader, steps

    def __iter__(self) -> Any:
        return islice(iter(self.loader), self.steps)

    def __len__(self) -> int:
        return self.steps


def mace_steps(recipe: Recipe, data: Structures, steps: int) -> dict[str, Steps]:
    """Of mace-torch, and of our model with its weights."""
    found = data.fitted()["reference"] | {"neighbours": data.fitted()["neighbours"]}
    config = {
        "atomic_energies": found["atoms"],
        "avg_num_neighbors": found["neighbours"],
        "atomic_inter_scale": found["scale"],
        "atomic_inter_shift": found["shift"],
    }
    ways = mace_ways(False, MACE_CONFIG | config)
    from mace import data as peer_data
    from mace import modules, tools
    from torch_ema import ExponentialMovingAverage

    keys = peer_data.KeySpecification(info_keys={"energy": "REF_energy"}, arrays_keys={"forces": "REF_forces"})
    table = tools.AtomicNumberTable(list(ELEMENTS.values()))
    samples = [
        peer_data.AtomicData.from_config(
            peer_data.config_from_atoms(ase_atoms(frame), key_specification=keys), z_table=table, cutoff=CUTOFF
        )
        for frame in data.part("train").frames
    ]
    options, task = recipe.train, recipe.build_task()
    batches = tools.torch_geometric.dataloader.DataLoader(samples, options.batch_size, shuffle=True, drop_last=True)
    peer = ways["mace-torch"][0].train()
    decays = [p for name, p in peer.named_parameters() if "products" in name or "linear.weight" in name]
    others = [p for p in peer.parameters() if all(p is not q for q in decays)]
    groups = [{"params": decays, "weight_decay": options.weight_decay}, {"params": others, "weight_decay": 0.0}]
    settings: dict[str, Any] = {
        "model": peer,
        "loss_fn": modules.WeightedEnergyForcesLoss(task.energy, task.forces),
        "data_loader": First(batches, steps),
        "optimizer": torch.optim.Adam(groups, options.lr, amsgrad=options.amsgrad),
        "epoch": 0,
        "output_args": {"forces": True, "virials": False, "stress": False},
        "max_grad_norm": options.clip,
        "ema": ExponentialMovingAverage(peer.parameters(), decay=options.ema),
        "logger": tools.MetricsLogger(tempfile.mkdtemp(), "benchmark"),
        "device": torch.device("cpu"),
        "distributed": False,
    }
    run = importlib.import_module("mace.tools.train").train_one_epoch
    return {"mace-torch": lambda: run(**settings), "equidyn": ours(ways["equidyn"][0], recipe, data, steps)}


def nequip_steps(recipe: Recipe, data: Structures, steps: int) -> dict[str, Steps]:
    """Of nequip, and of our model with its weights."""
    found = data.fitted()
    config = NEQUIP_CONFIG | {
        "avg_num_neighbors": found["mean_neighbors"],
        "per_type_energy_scales": found["scale"],
        "per_type_energy_shifts": found["shift"],
    }
    model = nequip_ways(False, config)["equidyn"][0]
    from nequip.data.datamodule import ASEDataModule
    from nequip.data.transforms import ChemicalSpeciesToAtomTypeMapper, NeighborListTransform
    from nequip.train import EMALightningModule

    options, task, names = recipe.train, recipe.build_task(), list(ELEMENTS)
    weights = {"total_energy": float(task.energy), "forces": float(task.forces)}
    module = EMALightningModule(
        ema_decay=options.ema,
        model={"_target_": "nequip.model.NequIPGNNModel", "compile_mode": "eager", **config}
        | {"seed": 0, "model_dtype": "float32"},
        num_datasets={"train": 1, "val": 1, "test": 0, "predict": 0},
        optimizer={"_target_": "torch.optim.Adam", "lr": options.lr},
        loss={"_target_": "nequip.train.EnergyForceLoss", "per_atom_energy": True, "coeffs": weights},
        val_metrics={"_target_": "nequip.train.EnergyForceMetrics", "coeffs": {"forces_mae": 1.0}},
    )
    file = Path(tempfile.mkdtemp()) / "train.xyz"
    ase.io.write(file, [ase_atoms(frame) for frame in data.part("train").frames])
    loader = {"_target_": "torch.utils.data.DataLoader", "batch_size": options.batch_size, "shuffle": True}
    structures = ASEDataModule(
        seed=0,
        train_file_path=str(file),
        val_file_path=str(file),
        transforms=[ChemicalSpeciesToAtomTypeMapper(names), NeighborListTransform(CUTOFF)],
        key_mapping={"REF_energy": "total_energy", "REF_forces": "forces"},
        include_keys=["REF_energy", "REF_forces"],
        train_dataloader=loader | {"drop_last": True},
        val_dataloader=loader,
    )
    return {"nequip": lambda: fit(module, steps, structures), "equidyn": ours(model, recipe, data, steps)}


PEERS = {"mace": mace_steps, "nequip": nequip_steps}


def compare(ways: dict[str, Steps], steps: int, repeats: int) -> list[dict[str, Any]]:
    """Seconds of `steps` steps of each way in turn, medians, and the ratio to the first; a round to warm up first."""
    keep_memory()
    clocks = (time.perf_counter, time.process_time)
    found: dict[str, list[list[float]]] = {name: [] for name in ways}
    for number in range(repeats + 1):
        for name, way in ways.items():
            before = [clock() for clock in clocks]
            way()
            if number:
                found[name].append([clock() - then for clock, then in zip(clocks, before, strict=True)])
                wall, cpu = found[name][-1]
                print(f"{name}: {steps} steps, {wall:.2f} s, {cpu:.2f} s of the processor", flush=True)
    medians = {name: [statistics.median(column) for column in zip(*rows, strict=True)] for name, rows in found.items()}
    first = medians[next(iter(ways))]
    return [
        {
            "way": name,
            "ms per step": 1e3 * wall / steps,
            "CPU ms per step": 1e3 * cpu / steps,
            "share of the time": wall / first[0],
            "share of the CPU time": cpu / first[1],
        }
        for name, (wall, cpu) in medians.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer", choices=PEERS, required=True, help="package to compare with")
    parser.add_argument("--data", help="training structures, if elsewhere than the recipe says")
    parser.add_argument("--split", help="file of the split, likewise")
    parser.add_argument("--isolated", help="file of the isolated atoms, likewise")
    parser.add_argument("--steps", type=int, default=90, help="in a turn; 90 are an epoch")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="file for the results")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    torch.set_num_threads(options.threads)
    given = {"path": options.data, "split": options.split, "isolated": options.isolated}
    overrides = [f"--data.{name}={value}" for name, value in given.items() if value]
    overrides += ["--train.schedule=constant", f"--train.threads={options.threads}"]  # nothing to watch: no validation
    recipe = read_recipe(f"acac/{options.peer}", overrides)
    rows = compare(PEERS[options.peer](recipe, recipe.build_data(), options.steps), options.steps, options.repeats)
    show(f"training on acetylacetone against {options.peer}", rows)
    write(options.json, {options.peer: rows})


if __name__ == "__main__":
    main()
