"""The names of a new task's files, and whether they are free; nothing heavy is imported."""

from pathlib import Path

from ..errors import OutputExistsError
from ..run_files import RECIPE_FILE as RECIPE

REWARD = "reward.py"
SCHEMA = "recipe.schema.json"


def refuse_existing(folder: Path) -> None:
    """Check that no file of a new task is there already.

    Raises:
        OutputExistsError: names the files.
    """
    there = [name for name in (RECIPE, REWARD, SCHEMA) if (folder / name).exists()]
    if there:
        raise OutputExistsError(
            f"{folder} holds {' and '.join(there)} already, and nothing is written over. Give "
            f"another folder, or move the files. To change a setting, edit {RECIPE}."
        )
