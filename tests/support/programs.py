"""Recipes as modules. They are programs, so each file of tests runs its own copy."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

RECIPES = Path(__file__).parents[2] / "recipes"


def load_recipe(name: str) -> ModuleType:
    """`recipes/NAME.py`, run anew, without its `if __name__ == "__main__"`."""
    spec = importlib.util.spec_from_file_location(f"{name}_recipe", RECIPES / f"{name}.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(
        spec
    )  # dataclasses look it up there
    spec.loader.exec_module(module)
    return module
