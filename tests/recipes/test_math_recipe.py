"""Test recipes/math_problems.py with rows in MATH's format, and as a program."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support.programs import RECIPES, load_recipe

pytestmark = pytest.mark.long


def test_a_step_on_local_rows(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = load_recipe("math_problems")
    rows = []
    for n in range(1, 17, 2):
        rows.append({"problem": f"What is ${n}/2$?", "answer": f"\\frac{{{n}}}{{2}}", "level": 1})
    data = tmp_path / "train.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    flags = ["--model_name_or_path", str(tiny_checkpoint), "--dataset_path", str(data)]
    flags += ["--dtype", "float32", "--use_cpu", "--gradient_checkpointing", "false"]
    flags += ["--max_steps", "1"]
    flags += ["--gradient_accumulation_steps", "1", "--max_completion_length", "8"]
    flags += ["--eval_rows", "2", "--eval_data", f"more={data}", "--eval_samples", "2"]
    recipe.main([*flags, "--output_dir", str(tmp_path / "run")])
    said = capsys.readouterr().out
    assert "rewards: math, think_format" in said
    assert "step 1/1" in said
    assert "base (adapter disabled)" in said
    for name in ("held_out", "more"):
        assert (tmp_path / "run" / "evaluations" / f"{name}.json").is_file()


def test_it_starts_as_a_plain_program() -> None:
    """A program's own folder is the first in which Python looks for modules."""
    done = subprocess.run(
        [sys.executable, str(RECIPES / "math_problems.py"), "--rewards", "mth"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "error: reward 'mth' is not known. Did you mean 'math'?" in done.stderr
