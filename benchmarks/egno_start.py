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

from benchmarks.plain_egno import PlainEGNO
from equidyn.core.files import make_folder
from equidyn.interop.egno import pieces_of
from equidyn.interop.weights import load_weights
from equidyn.models.egno import EGNO
from equidyn.train.checkpoint import save_model
from equidyn.train.recipe import read_recipe

# Names in the plain network and in the original.
_NAMES = {
    ".message.": ".edge_message_net.scalar_net.mlp.",
    ".weight.": ".coord_net.mlp.",
    ".velocity.": ".node_v_net.mlp.",
    ".update.": ".node_net.mlp.",
    "motion_convs": "time_conv_x_modules",
    "time_convs": "time_conv_modules",
}


def _original_name(name: str) -> str:
    if "convs" in name:
        name = name.replace(".weight", ".t_conv.weights1")
    for plain, original in _NAMES.items():
        name = name.replace(plain, original)
    return name


def start_like_the_original(model: EGNO, options: dict, seed: int) -> None:
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
    drawn = {_original_name(name): value for name, value in plain.state_dict().items()}
    pieces = pieces_of(model)  # without the node update of the last layer, which nobody reads
    load_weights(model, pieces, {piece.theirs: drawn[piece.theirs] for piece in pieces})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    recipe = read_recipe("nbody/egno_paper")
    model = recipe.build_model()
    start_like_the_original(model, recipe.config["model"], given.seed)
    make_folder(given.folder)
    save_model(given.folder, model, recipe.config, {"epoch": 0})


if __name__ == "__main__":
    main()
