"""Recipes: every key and type is checked at once, and the nearest right name offered."""

import copy
from pathlib import Path

import pytest
import yaml

from equidyn.core.errors import InputError
from equidyn.train import read_recipe
from equidyn.train.recipe import TrainOptions, recipe_path

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.mark.parametrize("path", sorted(RECIPES.rglob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_recipes_build(path):
    recipe = read_recipe(path)
    if recipe.left:  # to the data, which are not here
        fitted = {
            "elements": [1, 6, 8],
            "species": ["H", "C", "O"],
            "cutoff": recipe.data.get("cutoff"),
            "neighbours": 12.0,
        }
        fitted |= {"mean_neighbors": 12.0, "scale": 1.0, "shift": 0.0, "reference": {"atoms": [1.0, 2.0, 3.0]}}
        fitted |= {"node_dim": 5, "edge_dim": 0, "out_dim": 5}
        recipe = recipe.completed(fitted)
    assert recipe.build_model() is not None
    assert recipe.build_task() is not None
    assert recipe_path(str(path.relative_to(RECIPES).with_suffix(""))).samefile(path)


def test_a_recipe_becomes_plain_values_and_reads_back(content):
    recipe = read_recipe(content, ["--model.hidden_dim", "4", "--train.lr=1e-4", "--data.frames=[3, 6, 9]"])
    assert recipe.model["hidden_dim"] == 4
    assert recipe.train.lr == 1e-4
    assert recipe.data["frames"] == (3, 6, 9)
    assert recipe.config["data"]["frames"] == [3, 6, 9]
    assert recipe.config["train"]["warmup"] == 0.0  # defaults are written too
    again = read_recipe(yaml.safe_load(yaml.safe_dump(recipe.config)))
    assert again.config == recipe.config
    assert content["model"]["hidden_dim"] == 8


def test_nested_options_are_checked(content):
    content |= {"system": "egnn", "model": {"node_dim": 1, "layer": {"residual": False}}}
    assert read_recipe(content).model["layer"].residual is False
    content["model"]["layer"]["residul"] = True
    with pytest.raises(InputError, match="residul"):
        read_recipe(content)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("--model.hiden_dim=4", "unknown recipe key 'model.hiden_dim', expected 'model.hidden_dim'"),
        ("--trian.lr=1", "unknown recipe key 'trian', expected 'train'"),
        ("--data.pth=x", "unknown recipe key 'data.pth', expected 'data.path'"),
        ("--task.rolout=true", "'task.rollout'"),
        ("--system=egnoo", "unknown system 'egnoo', expected 'egno'"),
        ("--system=null", "unknown system"),
        ("--data.dataset=nbdy", "unknown dataset 'nbdy', expected 'nbody'"),
        ("--task.name=trajectry", "unknown task 'trajectry', expected 'trajectory'"),
        ("--model.hidden_dim=wide", "hidden_dim"),
        ("--model.hidden_dim=1.5", "hidden_dim"),
        ("--train.schedule=cosin", "schedule"),
        ("--train.epochs=many", "epochs"),
        ("--data.frames=[a]", "frames"),
        ("--seed=1.5", "seed.*whole number, got 1.5"),
        ("--model=3", "model.*mapping of keys, got 3"),
        ("--model.hidden_dim=[", "unreadable value, in command line --model.hidden_dim, got \\["),
        ("--train.lr.x=3", "no keys"),
        ("--train.epochs=0", "in train.epochs, expected at least 1, got 0"),
        ("--train.eval_every=5", "in train.eval_every, expected at most the 4 epochs, got 5"),
        ("--train.lr=-1", "in train.lr, expected more than 0, got -1"),
        ("--train.lr=.nan", "in train.lr"),
        ("--train.ema=1.0", "in train.ema, expected 0 or more and less than 1"),
        ("--train.clip=-1", "in train.clip"),
        ("--train.batch_size=-5", "in train.batch_size"),
        ("--train.devices=0", "in train.devices"),
        ("model.hidden_dim=4", "expected --section.key value, got model.hidden_dim=4"),
        ("--model.hidden_dim", "expected --section.key value"),
    ],
)
def test_wrong_overrides_are_refused(override, words, content):
    with pytest.raises(InputError, match=words) as caught:
        read_recipe(content, [override])
    assert len(str(caught.value).splitlines()) == 1


def test_wrong_files_are_refused(content, tmp_path):
    path = tmp_path / "recipe.yaml"
    for text, words in (
        ("a: [", "not a YAML file"),
        ("- 1", "expected a mapping of keys, got list"),
        (yaml.safe_dump(content | {"modl": {}}), "unknown recipe key 'modl', in .*recipe.yaml, expected 'model'"),
        ("system: !!python/object/apply:os.system ['touch canary']", "not a YAML file"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=words) as caught:
            read_recipe(path)
        assert str(path) in str(caught.value)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not a YAML file"):
        read_recipe(path)
    with pytest.raises(InputError, match="no such recipe"):
        read_recipe(tmp_path / "none.yaml")
    with pytest.raises(InputError, match=r"unknown recipe 'nbody/egnoo'.*'nbody/egno"):
        recipe_path("nbody/egnoo")


def test_values_that_build_no_model(content):
    for values, words in (
        ({"hidden_dim": -1}, "build no model"),
        ({"num_modes": 9}, "number of temporal modes, expected 1 to 3"),
        ({"times": [0.1, 0.5, 0.6]}, "equidistant"),
        ({"backbone": "egn"}, "unknown backbone 'egn', expected 'egnn'"),
        ({"options": {"residul": True}}, "residul"),
    ):
        changed = copy.deepcopy(content)
        changed["model"] |= values
        with pytest.raises(InputError, match=words):
            read_recipe(changed).build_model()


def test_options_stand_for_themselves():
    assert TrainOptions(epochs=3, eval_every=3).eval_every == 3
