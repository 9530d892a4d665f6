"""Test the files of recipes/: valid settings, existing rewards, and names that hide no module."""

import sys
from pathlib import Path

import pytest

from grpo_hf.runs.recipe import read_recipe
from grpo_hf.scoring.registry import load_reward

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.mark.parametrize("file", sorted(RECIPES.glob("*.yaml")), ids=lambda file: file.stem)
def test_every_settings_file_is_read(file: Path) -> None:
    recipe = read_recipe(["--config", str(file)])
    assert recipe.model.use_peft and recipe.task.rewards
    for spec in recipe.task.rewards:
        assert load_reward(spec, relative_to=recipe.folder).doc
    weights = recipe.training.reward_weights
    assert weights is None or len(weights) == len(recipe.task.rewards)


@pytest.mark.parametrize("file", sorted(RECIPES.glob("*.py")), ids=lambda file: file.stem)
def test_no_recipe_stands_in_the_place_of_a_module(file: Path) -> None:
    """`python recipes/x.py` imports from recipes/ first: a math.py there would hide Python's."""
    assert file.stem not in sys.stdlib_module_names
