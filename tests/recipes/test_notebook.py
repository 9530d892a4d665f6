"""Every cell of recipes/first_run.ipynb runs, as in a notebook, on a CPU."""

import ast
import json
from pathlib import Path
from typing import Any

import pytest
from support.programs import RECIPES

# What pip is asked for in a notebook, where braces hold a name.
PIP = '%pip install -q "{SOURCE}"'


def cells() -> list[dict[str, Any]]:
    notebook = json.loads((RECIPES / "first_run.ipynb").read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


@pytest.mark.long
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


@pytest.mark.parametrize("name", ["grpo-hf.zip", "grpo-hf", "git+https://HOST/OWNER/grpo-hf"])
def test_the_first_cell_says_what_it_needs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is what a stranger in Colab runs, where nothing of the project is there yet."""
    monkeypatch.chdir(tmp_path)
    source = "".join(cells()[0]["source"])
    assert source.count(PIP) == 1 and source.count("grpo-hf.zip") == 1
    source = source.replace("grpo-hf.zip", name).replace(PIP, "installed.append(SOURCE)")
    installed: list[str] = []
    if not name.startswith("git+"):
        with pytest.raises(FileNotFoundError, match=rf"{name} is not in .* Upload it"):
            exec(source, {"installed": installed})
        assert installed == []
        (tmp_path / name).mkdir()
    exec(source, {"installed": installed})
    # By its path: a name alone would be looked for on PyPI.
    assert installed == [name if name.startswith("git+") else str(tmp_path / name)]


def test_no_output_is_kept() -> None:
    assert [cell["id"] for cell in cells() if cell["outputs"] or cell["execution_count"]] == []
