"""The initial weights that the EGNO paper's code draws for a seed, as a run to start from.

python -m benchmarks.egno_start FOLDER [--seed N]
equidyn train nbody/egno_paper --train.init_from FOLDER

The code draws them in an order of its own: embedding, layers, then the two temporal convolutions of each layer, as
inferred from the names in its records and from its measured curve. Where a training of ours starts from them, its curve
can be laid beside one of the code's with the same seed.
"""

import argparse
from pathlib import Path

import torch
from torch import nn

from benchmarks.plain_egno import PlainEGNO
from equidyn.core.files import make_folder
from equidyn.interop.weights import Piece, linear, load_weights
from equidyn.train.checkpoint import save_model
from equidyn.train.recipe import read_recipe, recipe_path


def _pieces(layers: int, edge_dim: int) -> list[Piece]:
    """Names and layouts of the plain network beside ours; our last layer has no node update, as nobody reads it."""
    parts = ["from_distance", "from_receiver", "from_sender", *(["from_edge"] if edge_dim else [])]
    pieces = linear("embedding", "embedding")
    for layer in (f"layers.{n}" for n in range(layers)):
        first = linear(f"{layer}.message.0", *(f"{layer}.{part}" for part in parts))
        pieces += [first[0], Piece(f"{layer}.message.0.bias", (f"{layer}.from_receiver.bias",))]
        pieces += linear(f"{layer}.message.2", f"{layer}.message_out")
        pieces += linear(f"{layer}.weight.0", f"{layer}.shift.inner")
        pieces += linear(f"{layer}.weight.2", f"{layer}.shift.out")
        pieces += linear(f"{layer}.velocity.0", f"{layer}.velocity_in")
        pieces += linear(f"{layer}.velocity.2", f"{layer}.velocity_out")
        if layer != f"layers.{layers - 1}":
            pieces += linear(f"{layer}.update.0", f"{layer}.from_self", f"{layer}.from_messages")
            pieces += linear(f"{layer}.update.2", f"{layer}.node_out")
    for conv in ("time_convs", "motion_convs"):  # theirs is [in, out, mode, part], ours [mode, part, out, in]
        pieces += [Piece(f"{conv}.{n}.weight", (f"{conv}.{n}.weight",), axes=(2, 3, 1, 0)) for n in range(layers)]
    return pieces


def start_like_the_original(model: nn.Module, options: dict, seed: int) -> None:
    """Give EGNO with the paper's options the weights that the paper's code draws for a seed."""
    torch.manual_seed(seed)
    plain = PlainEGNO(
        options["node_dim"],
        options["edge_dim"],
        options["hidden_dim"],
        options["num_layers"],
        points=len(options["times"]),
        modes=options["num_modes"],
        time_dim=options["time_dim"],
    )
    pieces = _pieces(options["num_layers"], options["edge_dim"])
    drawn = plain.state_dict()
    load_weights(model, pieces, {piece.theirs: drawn[piece.theirs] for piece in pieces})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    recipe = read_recipe(recipe_path("nbody/egno_paper"))
    model = recipe.build_model()
    start_like_the_original(model, recipe.config["model"], given.seed)
    make_folder(given.folder)
    save_model(given.folder, model, recipe.config, {"epoch": 0})


if __name__ == "__main__":
    main()
