"""The command line: a few verbs, no per-model flags."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from equidyn import __version__
from equidyn.core.errors import EquidynError, InputError, unknown_name


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; 0 on success, 1 where a check failed, 2 for bad input (with one line on stderr)."""
    parser = _parser()
    warnings.formatwarning = _one_line
    options, rest = parser.parse_known_args(arguments)
    takes_overrides = options.run in (_train, _leaderboard)
    if rest and not takes_overrides:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        return options.run(options, rest) if takes_overrides else options.run(options)
    except EquidynError as error:
        print(f"equidyn: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("equidyn: interrupted", file=sys.stderr)
        return 130


def _one_line(message: Warning | str, *_: Any, **__: Any) -> str:
    return f"equidyn: warning: {message}\n"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="equidyn", description="Learn how things move and interact in 3D.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"equidyn {__version__}")
    verbs = parser.add_subparsers(metavar="VERB", required=True)

    def verb(name: str, run: Callable[..., int], text: str) -> argparse.ArgumentParser:
        added = verbs.add_parser(name, help=text, description=text, allow_abbrev=False)  # --seed is a key of recipes
        added.set_defaults(run=run)
        return added

    simulate = verb("simulate", _simulate, "Simulate particles or a molecule and write a trajectory file.")
    simulate.add_argument("system", help="charged, springs, gravity, liquid (periodic), or md for a molecule")
    simulate.add_argument("out", type=Path, help="trajectory file to write (.npz)")
    simulate.add_argument("--num", type=int, default=1000, help="number of trajectories (default 1000)")
    simulate.add_argument("--bodies", type=int, help="bodies per trajectory (default 5; liquid 108)")
    simulate.add_argument("--steps", type=int, help="time steps (default 5000; liquid 2000; md 20000)")
    simulate.add_argument("--dt", type=float, help="time step (default 0.001; liquid 0.004; md 0.5 fs)")
    simulate.add_argument("--store-every", type=int, help="steps between frames (default 100; liquid 10; md 1)")
    simulate.add_argument("--seed", type=int, default=43, help="random seed (default 43, the benchmark's)")
    simulate.add_argument(
        "--skip", type=int, default=0, help="trajectories of the sequence of that seed to leave out first"
    )
    simulate.add_argument(
        "--accurate", action="store_true", help="adaptive integration to 1e-12 instead of the benchmark's"
    )
    simulate.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="a constant of the system, e.g. box=none"
    )
    simulate.add_argument(
        "--molecule",
        default="ethanol",
        help="md: ethanol, aspirin, a formula that ASE knows, or a file (default ethanol)",
    )
    simulate.add_argument("--temperature", type=float, default=500.0, help="md: in K (default 500)")

    data = verb("data", _data, "Check or pack files of structures with energies and forces.")
    data.add_argument("what", choices=("check", "pack"), help="check one file; pack files into an LMDB")
    data.add_argument("file", type=Path, nargs="+", help="extxyz, any format of ASE, .db or .lmdb; pack: ... OUT.lmdb")
    data.add_argument("--cutoff", type=float, default=5.0, help="distance of neighbours in Å (default 5)")

    train = verb("train", _train, "Train a recipe; any --section.key value overrides it.")
    train.add_argument("recipe", help="recipe file, or the name of a shipped one (nbody/egno)")
    train.add_argument("--runs", type=Path, default=Path("runs"), help="folder of run folders (default runs)")
    train.add_argument("--resume", action="store_true", help="continue the run where it stopped")
    train.add_argument("--seeds", type=int, default=1, help="train so many seeds, and make an ensemble of them")

    evaluate = verb("evaluate", _evaluate, "Measure a trained run on its test samples.")
    evaluate.add_argument("run_folder", type=Path, nargs="+", metavar="RUN")
    evaluate.add_argument("--data", help="other data than the recipe's")
    evaluate.add_argument("--windows", type=int, default=1, help="roll on over so many windows; report what drifts")
    evaluate.add_argument("--curvature", action="store_true", help="measure the uncertainty of a single model")
    evaluate.add_argument(
        "--ensemble", type=Path, metavar="FOLDER", help="make an ensemble of the runs, evaluate it too"
    )

    predict = verb("predict", _predict, "Predict trajectories from initial states, or a property of each structure.")
    predict.add_argument("run_folder", type=Path, metavar="RUN")
    predict.add_argument(
        "states", type=Path, help="trajectory file or recording, whose frame --frame is the state; or structures"
    )
    predict.add_argument("out", type=Path, help="trajectory file to write (.npz), or table of properties (.csv)")
    predict.add_argument("--frame", type=int, default=0, help="frame of the initial states (default 0)")
    predict.add_argument("--times", type=float, nargs="+", help="times to predict; default: those of the training")

    report = verb("report", _report, "Write a self-contained HTML page about one or more runs.")
    report.add_argument("run_folder", type=Path, nargs="+", metavar="RUN")
    report.add_argument("--out", type=Path, help="default: report.html in the first run folder")

    board = verb(
        "leaderboard", _leaderboard, "Train every system of a data set at one budget; --section.key overrides."
    )
    board.add_argument("dataset", help="nbody or mocap")
    board.add_argument("--epochs", type=int, default=100, help="the budget of each (default 100)")
    board.add_argument("--runs", type=Path, default=Path("runs/leaderboard"), help="default runs/leaderboard")
    board.add_argument("--out", type=Path, help="page to write; default: leaderboard.html beside the runs")

    verify = verb("verify", _verify, "Replay golden records and compare every output.")
    verify.add_argument("record", nargs="+", help="record files (.npz)")
    verify.add_argument("--all", action="store_true", help="print every output, not only the worst")

    convert = verb("import", _import, "Convert a .model file of mace-torch, without running anything in it.")
    convert.add_argument("file", type=Path, help="file of mace-torch 0.3")
    convert.add_argument("--out", type=Path, help="folder to make (default runs/<name of the file>)")

    export = verb("export", _export, "Write a trained potential as a program that runs without this library.")
    export.add_argument("run_folder", type=Path, metavar="RUN")
    export.add_argument("--out", type=Path, help="file to write (default: potential.pt2 in the run folder)")
    export.add_argument("--dtype", help="float32 or float64; default: that of the weights")
    export.add_argument("--head", type=int, default=0, help="level of theory, for models of several (default 0)")

    verb("list", _list, "List the systems.")
    cite = verb("cite", _cite, "Print the BibTeX entry of systems.")
    cite.add_argument("system", nargs="+")
    return parser


def _simulate(options: argparse.Namespace) -> int:
    from rich.progress import Progress

    from equidyn.data.trajectories import check_writable, write_trajectories
    from equidyn.simulate import KINDS, Liquid, get_system, simulate, simulate_liquid

    check_writable(options.out)
    given = {k: v for k in ("bodies", "steps", "dt", "store_every") if (v := getattr(options, k)) is not None}
    if options.system == "md":
        given.pop("bodies", None)
        return _simulate_molecule(options, given)
    constants = dict(_constant(text) for text in options.set)
    if options.system == "liquid":
        for name in constants:
            if name not in Liquid.__dataclass_fields__:
                raise unknown_name("constant", name, Liquid.__dataclass_fields__, where="liquid")
        if options.accurate:
            raise InputError("liquids have one integrator", where="--accurate", expected="a shorter --dt")
        run: Callable[..., Any] = partial(simulate_liquid, Liquid(**constants))
    elif options.system in KINDS:
        run = partial(simulate, get_system(options.system, **constants), accurate=options.accurate)
    else:
        raise unknown_name("kind of system", options.system, (*KINDS, "liquid", "md"))
    with Progress(transient=True) as bar:
        task = bar.add_task(f"{options.num} trajectories", total=None)
        made = run(
            options.num,
            **given,
            seed=options.seed,
            skip=options.skip,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    write_trajectories(options.out, made)
    drift = made.meta["drift"]
    print(
        f"{options.out}: {len(made)} trajectories, {made.positions.shape[1]} frames, {made.positions.shape[2]} bodies"
    )
    print(f"relative energy drift: median {drift['energy_median']:.2g}, largest {drift['energy_max']:.2g}")
    return 0


def _simulate_molecule(options: argparse.Namespace, timing: dict[str, Any]) -> int:
    from rich.progress import Progress

    from equidyn.data.md_frames import write_md17
    from equidyn.simulate.molecules import simulate_molecule

    if options.out.suffix != ".npz":
        raise InputError("trajectory file", where=options.out, expected="a name that ends with .npz")
    with Progress(transient=True) as bar:
        task = bar.add_task(str(options.molecule), total=None)
        run = simulate_molecule(
            options.molecule,
            **timing,
            temperature=options.temperature,
            seed=options.seed,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    write_md17(options.out, run.numbers, run.positions, run.energies, run.forces, run.frame_time, run.meta)
    print(f"{options.out}: {len(run.positions)} frames of {len(run.numbers)} atoms, {run.frame_time:g} fs apart")
    drift = run.drift()
    kept = f"{drift['drift']:.2g} meV per atom and ps, spread {drift['spread']:.2g} meV per atom"
    print(f"energy drift {kept}; mean temperature {drift['mean_temperature']:.0f} K")
    return 0


def _constant(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise InputError("constant of the system", where="--set", expected="NAME=VALUE", got=text)
    try:
        return name, None if value.lower() == "none" else float(value)
    except ValueError:
        raise InputError(
            "constant of the system", where=f"--set {name}", expected="a number or none", got=value
        ) from None


def _data(options: argparse.Namespace) -> int:
    from equidyn.data.audit import audit
    from equidyn.data.frames import read_frames
    from equidyn.data.structure_store import write_store

    if options.what == "pack":
        *sources, out = options.file
        if not sources:
            raise InputError("data pack", where="command line", expected="files and OUT.lmdb", got=out)
        print(f"{out}: {write_store(out, (f for path in sources for f in read_frames(path)))} structures")
        return 0
    failed = False
    for path in options.file:
        lines, found = audit(path, options.cutoff)
        print("\n".join([*lines, *(f"warning: {line}" for line in found)]))
        failed |= bool(found)
    return 1 if failed else 0


def _train(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    from equidyn.train import evaluate, read_recipe, train

    if options.seeds != 1:
        return _train_ensemble(options, overrides)
    recipe = read_recipe(options.recipe, overrides)
    folder = train(recipe, options.runs / recipe.name, resume=options.resume)
    _print_results([evaluate(folder)])
    print(f"run folder: {folder}")
    return 0


def _train_ensemble(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    from equidyn.train import evaluate, read_recipe, train, write_ensemble

    if options.seeds < 2:
        raise InputError("number of seeds", where="--seeds", expected="1 or more", got=options.seeds)
    first = read_recipe(options.recipe, overrides)
    folders = []
    for seed in range(first.seed, first.seed + options.seeds):
        name = f"{first.name}-seed{seed}"
        recipe = read_recipe(options.recipe, [*overrides, f"--seed={seed}", f"--name={name}"])
        folder = options.runs / name
        folders.append(train(recipe, folder, resume=options.resume and (folder / "config.yaml").exists()))
    ensemble = write_ensemble(options.runs / f"{first.name}-ensemble", folders)
    _print_results([evaluate(folder) for folder in (*folders, ensemble)])
    print(f"ensemble: {ensemble}")
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    from equidyn.train import evaluate, write_ensemble

    folders = [*options.run_folder]
    if options.ensemble is not None:
        folders.append(write_ensemble(options.ensemble, folders))
    given = {"data": options.data, "windows": options.windows, "curvature": options.curvature}
    results = [evaluate(folder, **given) for folder in folders]
    _print_results(results)
    for result in results:
        _print_rolled(result)
        _print_calibration(result)
    return 0


def _print_rolled(result: dict[str, Any]) -> None:
    if rolled := result.get("rolled"):
        errors = ", ".join(f"{rolled['mse'][k]:.3g} at {rolled['times'][k]:g}" for k in _ends(rolled))
        print(f"{result['name']}, {rolled['windows']} windows: mean squared error {errors}")
        for name in ("energy", "momentum", "bonds"):
            if name in rolled["drift"]:
                own, true = (rolled["drift"][key][-1] for key in (name, f"{name}_true"))
                print(f"  drift of {name} at the end {own:.2g} (truth {true:.2g})")
        print(f"  velocities between windows: {rolled['velocities']}")


def _ends(rolled: dict[str, Any]) -> list[int]:
    """Last time of each window."""
    size = len(rolled["times"]) // rolled["windows"]
    return [size * (k + 1) - 1 for k in range(rolled["windows"])]


def _print_calibration(result: dict[str, Any]) -> None:
    for entry in result.get("calibration", ()):
        half = entry["coverage"][entry["levels"].index(0.5)]
        most = entry["coverage"][entry["levels"].index(0.9)]
        print(
            f"{result['name']}, uncertainty by {entry['method']}: rank correlation with the error "
            f"{entry['rank_correlation']:.2f}, coverage {half:.0%} of 50%, {most:.0%} of 90%, "
            f"factor {entry['factor']:.2g}"
        )


def _print_results(results: Sequence[dict[str, Any]]) -> None:
    from rich.console import Console

    for task in dict.fromkeys(result["task"] for result in results):
        same = [result for result in results if result["task"] == task]
        tables = {"potential": _potential_table, "trajectory": _trajectory_table}
        Console().print(tables.get(task, _property_table)(same))


def _trajectory_table(results: Sequence[dict[str, Any]]) -> Any:
    from rich.table import Table

    table = Table("", "F-MSE", "A-MSE", title=f"{results[0]['split']}, {results[0]['samples']} samples")
    most = max(results, key=lambda result: len(result["times"]))  # a run that predicts one time has no A-MSE
    rows = {result["name"]: result for result in results} | most["baselines"] | most["published"]
    for name, row in rows.items():
        table.add_row(name, *("" if row.get(k) is None else f"{row[k]:.5f}" for k in ("f_mse", "a_mse")))
    return table


def _potential_table(results: Sequence[dict[str, Any]]) -> Any:
    from rich.table import Table

    columns = {"e_mae": "E MAE", "e_rmse": "E RMSE", "f_mae": "F MAE", "f_rmse": "F RMSE", "s_mae": "S MAE"}
    measured = [row for result in results for rows in result["errors"].values() for row in rows.values()]
    columns = {key: name for key, name in columns.items() if any(row[key] == row[key] for row in measured)}
    table = Table("", "structures", *columns.values(), title="meV, meV/Å, meV/Å³")
    for result in results:
        for test, rows in result["errors"].items():
            for kind, row in rows.items():
                name = f"{result['name']}, {test}" + ("" if kind == "all" else f", {kind}")
                values = ("" if row[key] != row[key] else f"{row[key]:.2f}" for key in columns)
                table.add_row(name, str(row["structures"]), *values)
    return table


def _property_table(results: Sequence[dict[str, Any]]) -> Any:
    from rich.table import Table

    names = ("accuracy", "cross_entropy") if results[0]["task"] == "classification" else ("mae", "rmse")
    heads = {"mae": "MAE", "rmse": "RMSE", "accuracy": "accuracy", "cross_entropy": "cross-entropy"}
    table = Table("", "of", *(heads[name] for name in names), title=f"test, {results[0]['samples']} samples")
    for result in results:
        of = f"{result['target']} {result.get('unit', '')}".strip()
        for name, row in {result["name"]: result, **result["baselines"], **result["published"]}.items():
            table.add_row(name, of, *("" if row.get(key) is None else f"{row[key]:.4g}" for key in names))
    return table


def _predict(options: argparse.Namespace) -> int:
    from equidyn.data.trajectories import check_writable, write_trajectories
    from equidyn.train import load_model, predict_properties, predict_trajectories, read_states
    from equidyn.train.property_evaluation import write_rows

    check_writable(options.out)
    trained = load_model(options.run_folder)
    task = trained.config["task"]["name"]
    if task in ("classification", "property"):
        rows = predict_properties(trained, options.states)
        write_rows(options.out, rows)
        print(f"{options.out}: {len(rows)} predictions")
        return 0
    if task != "trajectory":
        expected = "a model of trajectories or properties (a potential: equidyn.Calculator)"
        raise InputError("predict", where=options.run_folder, expected=expected, got=task)
    states = read_states(trained, options.states)
    predicted = predict_trajectories(trained, states, frame=options.frame, times=options.times)
    write_trajectories(options.out, predicted)
    print(f"{options.out}: {len(predicted)} trajectories at {len(predicted.times)} times")
    return 0


def _report(options: argparse.Namespace) -> int:
    from equidyn.report import write_report
    from equidyn.train import evaluate

    for folder in options.run_folder:
        if not (folder / "evaluation.json").is_file():
            evaluate(folder)
    print(write_report(options.run_folder, options.out or options.run_folder[0] / "report.html"))
    return 0


def _leaderboard(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    from equidyn.report import write_leaderboard
    from equidyn.train import run_leaderboard

    board = run_leaderboard(
        options.dataset,
        options.runs,
        epochs=options.epochs,
        overrides=overrides,
        progress=lambda name: print(name, file=sys.stderr),
    )
    _print_results(board.results)
    out = options.out or options.runs / f"{options.dataset}-{options.epochs}" / "leaderboard.html"
    title = f"{options.dataset}, {options.epochs} epochs"
    print(write_leaderboard(title, board.folders, board.failed, out))
    for name, why in board.failed.items():
        print(f"{name}: not trained: {why}", file=sys.stderr)
    return 1 if board.failed else 0


def _verify(options: argparse.Namespace) -> int:
    from equidyn.interop import verify

    failed = 0
    for path in options.record:
        outcomes = verify(path)
        bad = [outcome for outcome in outcomes if not outcome.passed]
        worst = max(outcomes, key=lambda o: (not o.passed, o.error / o.tolerance))
        failed += bool(bad)
        state = "FAIL" if bad else "ok"
        most = f"worst {worst.name} {worst.error:.1e} (limit {worst.tolerance:.0e})"
        print(f"{state:4} {path}: {len(outcomes)} outputs, {most}")
        for outcome in outcomes if options.all else bad:
            print(f"     {'ok  ' if outcome.passed else 'FAIL'} {outcome.error:9.2e}  {outcome.name}")
    return 1 if failed else 0


def _import(options: argparse.Namespace) -> int:
    from equidyn.interop.mace_file import import_model

    folder = import_model(options.file, options.out or Path("runs") / options.file.stem)
    print(f"run folder: {folder}")
    return 0


def _export(options: argparse.Namespace) -> int:
    from equidyn.deploy import load_potential
    from equidyn.deploy.export import export

    potential = load_potential(options.run_folder, dtype=options.dtype, head=options.head)
    path = options.out or options.run_folder / "potential.pt2"
    error = export(potential, path)
    print(f"{path}: equal to the model within {error:.1e}")
    return 0


def _list(options: argparse.Namespace) -> int:
    from equidyn.models import SYSTEMS

    width = max(map(len, SYSTEMS))
    for name, entry in SYSTEMS.items():
        paper = f"{entry.citation.year}, arXiv {entry.citation.arxiv}"
        print(f"{name:{width}}  {entry.title} ({paper}), {entry.symmetry}")
        print(f"{'':{width}}  {', '.join(entry.needs)} -> {', '.join(entry.gives)}")
    return 0


def _cite(options: argparse.Namespace) -> int:
    from equidyn.models import SYSTEMS

    for name in options.system:
        if name not in SYSTEMS:
            raise unknown_name("system", name, SYSTEMS)
        print(SYSTEMS[name].citation.bibtex())
    return 0


if __name__ == "__main__":
    sys.exit(main())
