"""All systems of one data set, trained at one budget: what is done stays done, what was cut off goes on."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from equidyn.core.errors import InputError, unknown_name
from equidyn.train.evaluation import evaluate
from equidyn.train.fit import train
from equidyn.train.recipe import read_recipe, shipped_recipes

BOARDS = ("mocap", "nbody")


@dataclass
class Board:
    """What came of every recipe.

    Attributes:
        folders: run folders of the recipes that trained, the one with the smallest F-MSE first.
        results: their `evaluation.json`.
        failed: why the others did not, by recipe.
    """

    folders: list[Path] = field(default_factory=list)
    results: list[dict[str, Any]] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


def run_leaderboard(
    dataset: str,
    folder: str | Path,
    *,
    epochs: int = 100,
    overrides: Sequence[str] = (),
    progress: Callable[[str], None] | None = None,
) -> Board:
    """Train and evaluate every shipped recipe of a data set for the same number of epochs.

    Each recipe keeps its own learning rate and schedule, and its early stopping is off. Started again with the same
    arguments it skips finished runs and continues an interrupted one. A recipe that cannot be trained does not stop the
    others.

    Args:
        dataset: "nbody" or "mocap".
        folder: of the run folders, in a folder of the data set and the budget.
        epochs: the budget.
        overrides: of every recipe, `["--data.path=..."]`.
        progress: called with the name of each recipe when its turn comes.

    Raises:
        InputError: no such data set, a budget of no epochs, or no recipe could be trained.
    """
    if dataset not in BOARDS:
        raise unknown_name("leaderboard", dataset, BOARDS)
    if epochs < 1:
        raise InputError("budget", where="--epochs", expected="at least 1", got=epochs)
    board = Board()
    for name in shipped_recipes(dataset):
        if progress is not None:
            progress(name)
        try:
            run = _run(name, Path(folder) / f"{dataset}-{epochs}", epochs, overrides)
            result = _evaluated(run)
        except InputError as error:
            board.failed[name] = str(error)
            continue
        board.folders.append(run)
        board.results.append(result)
    if not board.folders:
        raise InputError("no recipe could be trained", where=dataset, got=next(iter(board.failed.values()), "none"))
    order = sorted(range(len(board.folders)), key=lambda k: _rank(board.results[k]["f_mse"]))
    return Board([board.folders[k] for k in order], [board.results[k] for k in order], board.failed)


def _run(name: str, folder: Path, epochs: int, overrides: Sequence[str]) -> Path:
    budget = [f"--train.epochs={epochs}", "--train.patience=0"]
    usual = read_recipe(name, [*overrides, f"--train.epochs={10**9}"]).train.eval_every
    every = min(usual, epochs)
    recipe = read_recipe(name, [*overrides, *budget, f"--train.eval_every={every}"])
    run = folder / recipe.name
    return train(recipe, run, resume=(run / "config.yaml").is_file())


def _evaluated(run: Path) -> dict[str, Any]:
    """The evaluation of a run, measured again only if its model is newer."""
    found, weights = run / "evaluation.json", run / "model.safetensors"
    if not weights.is_file():
        raise InputError("no model was kept", where=run, expected="a finite validation error at some epoch")
    if found.is_file() and found.stat().st_mtime_ns >= weights.stat().st_mtime_ns:
        try:
            return json.loads(found.read_text(encoding="utf-8"))
        except ValueError:
            pass
    return evaluate(run)


def _rank(value: float | None) -> float:
    return float("inf") if value is None else value
