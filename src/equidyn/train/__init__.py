"""Training, evaluation and prediction: one Lightning module for all systems."""

from equidyn.train.checkpoint import load_model, write_ensemble
from equidyn.train.evaluation import evaluate
from equidyn.train.fit import train
from equidyn.train.leaderboard import run_leaderboard
from equidyn.train.property_evaluation import predict_properties
from equidyn.train.recipe import Recipe, read_recipe, recipe_path
from equidyn.train.trajectory_evaluation import predict_trajectories, read_states

__all__ = [
    "Recipe",
    "evaluate",
    "load_model",
    "predict_properties",
    "predict_trajectories",
    "read_recipe",
    "read_states",
    "recipe_path",
    "run_leaderboard",
    "train",
    "write_ensemble",
]
