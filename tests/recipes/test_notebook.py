"""Every cell of recipes/first_run.ipynb runs, as in a notebook, on a CPU."""

import ast
import json
from pathlib import Path
from typing import Any

import pytest
from support.programs import RECIPES


def cells() -> list[dict[str, Any]]:
    notebook = json.loads((RECIPES / "first_run.ipynb").read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def test_every_cell_runs(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names: dict[str, Any] = {"__name__": "__main__"}
    for cell in cells():
        source = "".join(cell["source"])
        if "install" in cell["metadata"].get("tags", []):
            continue
        if "parameters" in cell["metadata"].get("tags", []):
            given = {node.targets[0].id for node in ast.parse(source).body}  # type: ignore[attr-defined]
            mine = {"MODEL": str(tiny_checkpoint), "STEPS": 2, "OUTPUT": str(tmp_path / "run")}
            assert given == set(mine)
            names.update(mine)
            continue
        # A notebook's cells share their names, and a function's source is the cell's.
        exec(compile(source, f"<cell {cell['id']}>", "exec"), names)
    said = capsys.readouterr().out
    assert "step   2  reward" in said
    assert "difference" in said
    assert (tmp_path / "run" / "adapter_config.json").is_file()


def test_no_output_is_kept() -> None:
    assert [cell["id"] for cell in cells() if cell["outputs"] or cell["execution_count"]] == []
