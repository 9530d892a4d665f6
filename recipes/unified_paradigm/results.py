"""The folder of results: one JSON file for each pair of method and seed."""

import json
from pathlib import Path
from typing import Any

from grpo_hf.errors import OutputExistsError
from grpo_hf.run_files import write_whole

from .methods import RATES

# The result of every seed, by method.
Results = dict[str, dict[int, dict[str, Any]]]


def claim_folder(out: Path, settings: dict[str, Any]) -> None:
    """Reserve a folder for the results of one set of settings.

    Raises:
        OutputExistsError: the folder holds results of other settings.
    """
    file = out / "settings.json"
    if file.exists() and json.loads(file.read_text(encoding="utf-8")) != settings:
        raise OutputExistsError(
            f"{out} holds results of other settings, in {file.name}. Give another --output_dir."
        )
    write_whole(file, json.dumps(settings))


def read_results(out: Path) -> Results:
    """Read the results of all finished pairs, ordered by method and seed."""
    results: Results = {}
    for name in ("base", *RATES):
        of_seeds = {}
        for file in out.glob(f"seed*/{name}.json"):
            seed = int(file.parent.name.removeprefix("seed"))
            of_seeds[seed] = json.loads(file.read_text(encoding="utf-8"))
        if of_seeds:
            # glob has no fixed order, and sorted by name seed10 would come before seed2.
            results[name] = dict(sorted(of_seeds.items()))
    return results
